import { spawn } from 'node:child_process'
import { createReadStream, existsSync } from 'node:fs'
import { mkdir, open, readFile, readdir, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { PassThrough, Readable, Writable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { text as readText } from 'node:stream/consumers'
import { createInterface } from 'node:readline'
import { Decrypter, Encrypter } from 'age-encryption'
import { GatehouseError, reason } from '../base/errors.ts'

/**
 * What makes this device itself: flows and the key to their credentials, tailnet identity,
 * certificates and account, settings. Below `root`, default /var/lib. Not in it: caches, downloads,
 * the reports of runs.
 */
const kept = [
  'node-red',
  'node-red-secret',
  'gatehouse',
  'gatehouse-certs',
  'gatehouse-tls',
  'gatehouse-config',
]

/**
 * systemd's key that seals the secrets in gatehouse-config: sealed with another device's, they
 * cannot be read, so it goes along.
 */
const hostKey = 'systemd/credential.secret'

/** Where a backup is unpacked, and the file in there that says that it is on its way into place. */
const unpacked = '.restore'
const whole = 'whole'

/** Runs a program with pipes. @throws Error with what it said when it ends other than well */
export async function tool(
  command: string,
  args: string[],
  io: { input?: Readable; output?: Writable },
): Promise<void> {
  const child = spawn(command, args, {
    stdio: [
      io.input === undefined ? 'ignore' : 'pipe',
      io.output === undefined ? 'ignore' : 'pipe',
      'pipe',
    ],
  })
  const ended = new Promise<number>((resolve, reject) => {
    child.once('close', (code) => {
      resolve(code ?? 1)
    })
    child.once('error', reject)
  })
  const said = readText(child.stderr!)
  await Promise.all([
    io.input === undefined ? undefined : pipeline(io.input, child.stdin!),
    io.output === undefined ? undefined : pipeline(child.stdout!, io.output),
  ]).catch(async (err: unknown) => {
    child.kill()
    await ended
    throw err
  })
  if ((await ended) !== 0) throw new Error(`${command}: ${(await said).trim()}`)
}

/** @throws GatehouseError when it is too short */
export function checkPassphrase(passphrase: string): void {
  if (passphrase.length < 8)
    throw new GatehouseError(
      'GH_BACKUP_PASSPHRASE',
      'the passphrase has fewer than 8 characters',
      'Take a longer one: whoever finds the file may try them all',
    )
}

/** What a backup has of `root`. */
export async function partsOf(root: string): Promise<string[]> {
  const present = await readdir(root)
  const names = kept.filter((name) => present.includes(name))
  if (
    await readFile(join(root, hostKey)).then(
      () => true,
      () => false,
    )
  )
    names.push(hostKey)
  return names
}

/** Who can read a backup: whoever has the passphrase, or the secret key of one of the recipients. */
export type Seal = { passphrase: string } | { recipients: readonly string[] }

/**
 * A backup as a stream: a tar archive, encrypted by age (https://age-encryption.org/v1), so that
 * `age -d` and `tar` read it anywhere. Nothing is ever on disk in the clear, and memory is that of a
 * chunk.
 *
 * @param root the directory whose parts are kept
 * @param output takes the encrypted bytes, and is ended
 */
export async function archive(root: string, seal: Seal, output: Writable): Promise<void> {
  const names = await partsOf(root)
  const age = new Encrypter()
  if ('passphrase' in seal) {
    checkPassphrase(seal.passphrase)
    // age's default of 18 takes 256 MiB of memory, half of what the smallest board has; 15: 32.
    age.setScryptWorkFactor(15)
    age.setPassphrase(seal.passphrase)
  } else for (const recipient of seal.recipients) age.addRecipient(recipient)
  const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>()
  const encrypted = await age.encrypt(readable)
  await Promise.all([
    tool('tar', ['--create', '--numeric-owner', '--xattrs', '--directory', root, '--', ...names], {
      output: Writable.fromWeb(writable),
    }),
    pipeline(
      Readable.fromWeb(encrypted as unknown as Parameters<typeof Readable.fromWeb>[0]),
      output,
    ),
  ])
}

/**
 * Reads a backup to its end, as a restore would, and keeps nothing of it.
 *
 * @param identity an age secret key
 * @returns how many files and folders there are in it, and the names at its top
 * @throws Error when it is not for this key, damaged, or no archive
 */
export async function rehearse(
  file: Readable,
  identity: string,
): Promise<{ entries: number; names: string[] }> {
  const age = new Decrypter()
  age.addIdentity(identity)
  const clear = await age.decrypt(Readable.toWeb(file) as unknown as ReadableStream<Uint8Array>)
  const listed = new PassThrough()
  const names = new Set<string>()
  let entries = 0
  const reading = (async () => {
    for await (const line of createInterface({ input: listed, crlfDelay: Infinity })) {
      entries++
      names.add(line.split('/', 1)[0]!)
    }
  })()
  await tool('tar', ['--list'], {
    input: Readable.fromWeb(clear as unknown as Parameters<typeof Readable.fromWeb>[0]),
    output: listed,
  })
  await reading
  return { entries, names: [...names] }
}

/** Writes {@link archive} to a file, which has its name only once it is whole and on disk. */
export async function backup(root: string, file: string, passphrase: string): Promise<void> {
  checkPassphrase(passphrase)
  const unfinished = `${file}.part`
  try {
    // Opened first: a stream that cannot open its file says so when nobody listens yet.
    const handle = await open(unfinished, 'wx', 0o600)
    await archive(root, { passphrase }, handle.createWriteStream({ flush: true }))
    await rename(unfinished, file)
  } catch (err) {
    await rm(unfinished, { force: true })
    throw new GatehouseError(
      'GH_BACKUP_WRITE',
      `the backup could not be written: ${reason(err)}`,
      'Check that there is room and that no backup of that name is being written',
      { cause: err },
    )
  }
}

/** A backup, decrypted and unpacked beside what is there. */
export interface Staged {
  /** What it holds, by the names of its folders. */
  names: string[]
  /**
   * Puts it in place of what is there, which is kept as `<name>.before-restore` until the next
   * restore. Who writes there must be stopped ({@link quiet}).
   */
  put: () => Promise<void>
  /** Removes what has not been put in place; what was on its way stays for {@link finishRestore}. */
  drop: () => Promise<void>
}

/** Puts a backup in place of what is there, as {@link stage} and then `put` do; what it held. */
export async function restore(root: string, file: string, passphrase: string): Promise<string[]> {
  const staged = await stage(root, file, passphrase)
  try {
    await staged.put()
    return staged.names
  } finally {
    await staged.drop()
  }
}

/**
 * Decrypts a backup and unpacks it beside what is there, which stays as it is; the secret key of a
 * recipient will do for its passphrase.
 *
 * @throws GatehouseError GH_RESTORE_PASSPHRASE, GH_RESTORE_DAMAGED
 */
export async function stage(root: string, file: string, passphrase: string): Promise<Staged> {
  const fresh = join(root, unpacked)
  await rm(fresh, { recursive: true, force: true })
  await mkdir(fresh, { mode: 0o700 })
  const drop = async (): Promise<void> => {
    if (!existsSync(join(fresh, whole))) await rm(fresh, { recursive: true, force: true })
  }
  try {
    const age = new Decrypter()
    // A nightly one is for a key, not a passphrase.
    if (/^AGE-SECRET-KEY-/i.test(passphrase.trim()))
      age.addIdentity(passphrase.trim().toUpperCase())
    else age.addPassphrase(passphrase)
    const clear = await age
      .decrypt(Readable.toWeb(createReadStream(file)) as unknown as ReadableStream<Uint8Array>)
      .catch((err: unknown) => {
        throw new GatehouseError(
          'GH_RESTORE_PASSPHRASE',
          `${file} cannot be decrypted: ${reason(err)}`,
          'Nothing was changed. Check the passphrase, and that it is a file that the page ' +
            'Backup of the console gave, or gatehouse backup wrote',
        )
      })
    await tool(
      'tar',
      [
        '--extract',
        '--numeric-owner',
        '--same-owner',
        '--preserve-permissions',
        '--xattrs',
        '--directory',
        fresh,
      ],
      { input: Readable.fromWeb(clear as unknown as Parameters<typeof Readable.fromWeb>[0]) },
    ).catch((err: unknown) => {
      throw err instanceof GatehouseError
        ? err
        : new GatehouseError(
            'GH_RESTORE_DAMAGED',
            `${file} is damaged: ${reason(err)}`,
            'Nothing was changed. Take another copy of the backup',
          )
    })
    const names = (await readdir(fresh)).filter((name) => kept.includes(name))
    if (names.length === 0)
      throw new GatehouseError(
        'GH_RESTORE_DAMAGED',
        `${file} holds nothing of a Gatehouse`,
        'Nothing was changed. Take a file that the page Backup of the console gave, or gatehouse backup wrote',
      )
    return { names, put: async () => await put(root, fresh), drop }
  } catch (err) {
    await drop()
    throw err
  }
}

/**
 * Puts what lies unpacked in place, so that power may go at any moment: before `whole` is written
 * nothing has changed, and from then on {@link finishRestore} can go on with it.
 */
async function put(root: string, fresh: string): Promise<void> {
  await tool('sync', ['--file-system', fresh], {})
  const mark = await open(join(fresh, whole), 'w')
  await mark.sync().finally(async () => await mark.close())
  await syncFolder(fresh)
  await finishRestore(root)
}

/** Moves what lies unpacked in place, or what is left of it. */
async function move(root: string, fresh: string): Promise<void> {
  for (const name of kept) {
    if (!existsSync(join(fresh, name))) continue
    if (existsSync(join(root, name))) {
      const old = join(root, `${name}.before-restore`)
      await rm(old, { recursive: true, force: true })
      await rename(join(root, name), old)
    }
    await rename(join(fresh, name), join(root, name))
  }
  if (existsSync(join(fresh, hostKey))) await rename(join(fresh, hostKey), join(root, hostKey))
  await syncFolder(root)
}

async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r')
  await handle.sync().finally(async () => await handle.close())
}

/**
 * Ends what a restore left that lost its power, or its process: what was on its way into place is
 * put there, what was not is removed. Who writes there must not run.
 *
 * @returns true when something was put in place
 */
export async function finishRestore(root: string): Promise<boolean> {
  const fresh = join(root, unpacked)
  const begun = existsSync(join(fresh, whole))
  if (begun) await move(root, fresh)
  await rm(fresh, { recursive: true, force: true })
  return begun
}

/**
 * Units that write there; stopped while it is read or replaced, so that the files belong together.
 */
const units = [
  'gatehouse-certs.path',
  'gatehouse-certs.service',
  'gatehouse.service',
  'node-red.service',
]

/** Runs `work` with the units stopped, and starts those again that ran. */
export async function quiet<T>(work: () => Promise<T>): Promise<T> {
  const systemctl = async (...args: string[]): Promise<void> => {
    await tool('systemctl', args, {})
  }
  const start = async (): Promise<void> => {
    await systemctl('start', 'node-red.service', 'gatehouse.service', 'gatehouse-certs.path')
  }
  await systemctl('stop', ...units)
  const result = await work().catch(async (err: unknown) => {
    // What went wrong first is what is told.
    await start().catch(() => {})
    throw err
  })
  await start()
  return result
}
