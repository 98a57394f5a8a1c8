import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { lstat, mkdir, open, readFile, readdir, rename, rm } from 'node:fs/promises'
import { uptime } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { removeFromCard, withCard } from '../base/card.ts'
import { call } from '../base/control-client.ts'
import { GatehouseError, reason } from '../base/errors.ts'
import { extensionName } from '../config/extensions.ts'
import { openForeign, readForeign } from '../base/files.ts'
import type { Paths } from '../base/paths.ts'
import { entriesOf } from './back.ts'
import { arch, compareVersions, largest, readBundle } from './bundle.ts'
import { incoming, largestExtension } from './extension.ts'
import { whoAsks } from './fetch.ts'
import { seenName } from './log.ts'
import { readOutcome, writeOutcome } from './outcome.ts'
import { startOnce } from './one-shot.ts'
import { smallest } from './source.ts'
import {
  bootID,
  readUpdateRecord,
  runningVersion,
  updatePaths,
  writeUpdateRecord,
} from './record.ts'
import type { UpdatePaths } from './record.ts'

const run = promisify(execFile)

/**
 * Writes the update in `folder` to the slot that does not run, and its kernel image beside the one
 * that does: as one that is not started, but for the next time (src/update/one-shot.ts). All is
 * checked first: signature, sums, that it is newer. systemd-sysupdate(8) writes partitions and
 * kernel image, in this order.
 *
 * @param folder as image/build leaves it: SHA256SUMS, SHA256SUMS.sig, three files
 * @param force also a version that was given up before, or while the gateway does not serve
 * @returns its version
 */
export async function install(
  folder: string,
  paths: UpdatePaths,
  boot: string,
  { force, serving }: { force: boolean; serving: () => Promise<boolean> },
): Promise<string> {
  const unreadable = (name: string, err: unknown): GatehouseError =>
    new GatehouseError(
      'GH_UPDATE_FORMAT',
      `${join(folder, name)} cannot be read: ${reason(err)}`,
      'Name a folder with SHA256SUMS, SHA256SUMS.sig and the three files, as out/update-<arch> has them',
      { cause: err },
    )
  const read = async (name: string): Promise<Buffer> =>
    await readForeign(join(folder, name), smallest).catch((err: unknown) => {
      throw unreadable(name, err)
    })
  const sums = await read('SHA256SUMS')
  const bundle = readBundle(sums, await read('SHA256SUMS.sig'), await readFile(paths.key, 'utf8'))
  const running = await runningVersion(paths)
  if (compareVersions(bundle.version, running) <= 0)
    throw new GatehouseError(
      'GH_UPDATE_OLD',
      `${bundle.version} is not newer than ${running}, which runs`,
      'Nothing was changed. An older version is never installed: it may have holes that are known',
    )
  if (!force && !(await serving()))
    throw new GatehouseError(
      'GH_UPDATE_NOT_SERVING',
      'the gateway does not serve now, so it could not be told whether the new version is worse',
      'See to what the page Overview of the web console names first; or use --force',
    )

  // In a folder of root's, so that what has been checked is what gets written.
  const source = join(paths.slots, 'source')
  await rm(source, { recursive: true, force: true })
  await mkdir(source, { recursive: true, mode: 0o700 })
  try {
    for (const { name, sha256 } of bundle.files) {
      // As overlays/usr/lib/sysupdate.d names them.
      const target = join(source, name.replace(`_${arch}.`, '.'))
      const sum = await take(join(folder, name), target, {
        most: largest(name),
        move: folder === paths.downloads && !name.endsWith('.efi'),
      }).catch((err: unknown) => {
        throw unreadable(name, err)
      })
      if (sum !== sha256)
        throw new GatehouseError(
          'GH_UPDATE_DAMAGED',
          `${join(folder, name)} is not what SHA256SUMS says: truncated or damaged`,
          'Nothing was changed. Copy the update again',
        )
    }
    await withCard(boot, async () => {
      // Kernel images of this version that was tried and given up, without which it counts as not
      // installed; of the version before, which sysupdate would remove now; and what a power cut has
      // left of one that was being written. In this order: a name that a cut has left leads to space
      // that counts as free, and that the new image would share (src/base/card.ts).
      const entries = join(boot, 'EFI/Linux')
      const keep = await entriesOf(boot, running)
      for (const name of await readdir(entries))
        if (/^(?:gatehouse_|\.)/.test(name) && !keep.includes(name))
          await removeFromCard(join(entries, name))
      await run('/usr/lib/systemd/systemd-sysupdate', ['--verify=no', 'update', bundle.version], {
        maxBuffer: 1 << 24,
      }).catch((err: { stderr?: string }) => {
        throw new GatehouseError(
          'GH_UPDATE_WRITE',
          'the update could not be written: ' +
            `${reason(new Error((err.stderr ?? '').trim().split('\n').at(-1) ?? 'no reason was given'))}`,
          'The system that runs is untouched. If this goes on, the card is failing',
        )
      })
      if (!(await readdir(entries)).some((name) => name.startsWith(`gatehouse_${bundle.version}+`)))
        throw new GatehouseError(
          'GH_UPDATE_WRITE',
          `systemd-sysupdate did not install ${bundle.version}`,
          'Nothing was changed. Copy the update again, or wait for the next version',
        )
    })
    const before = await readUpdateRecord(paths)
    const thisBoot = await bootID()
    const again = before?.to === bundle.version && before.from === running
    await writeUpdateRecord(paths, {
      from: running,
      to: bundle.version,
      installedAt: new Date().toISOString(),
      tries: again && !force ? (before.tries ?? 0) + 1 : 1,
      ...(thisBoot === undefined ? {} : { bootID: thisBoot }),
      ...(bundle.changes.length === 0 ? {} : { changes: bundle.changes }),
    })
    await startOnce(bundle.version, boot).catch((err: unknown) => {
      throw new GatehouseError(
        'GH_UPDATE_WRITE',
        `${bundle.version} is on the card, but the boot loader cannot be told to start it: ` +
          reason(err),
        'The system that runs is untouched, and the next look for updates tries again. If this ' +
          'goes on, the card is failing',
        { cause: err },
      )
    })
  } finally {
    await rm(source, { recursive: true, force: true })
  }
  return bundle.version
}

/**
 * Takes a file of an update to where root alone writes.
 *
 * It is copied, and its sum is that of the copy: whoever has the file open may change it after it
 * was looked at. What the root hash binds, which is in the kernel image, may be moved instead, so
 * that 200 MB need not be written twice: changed afterwards it does not start, and the version
 * before comes back.
 *
 * @param most bytes it may have
 * @returns the SHA-256 sum, hexadecimal
 */
export async function take(
  from: string,
  to: string,
  { most, move }: { most: number; move: boolean },
): Promise<string> {
  // Where it is then, nobody else can put another in its place.
  if (move) await rename(from, to)
  await using file = await openForeign(move ? to : from, most)
  await using copy = move ? undefined : await open(to, 'wx', 0o400)
  if (move) {
    if (process.getuid?.() === 0) await file.chown(0, 0)
    await file.chmod(0o400)
  }
  const hash = createHash('sha256')
  const buffer = Buffer.alloc(2 ** 20)
  for (let size = 0; ;) {
    const { bytesRead } = await file.read(buffer, 0, buffer.length, size)
    if (bytesRead === 0) break
    size += bytesRead
    if (size > most) throw new Error(`it grows beyond ${most} bytes`)
    const chunk = buffer.subarray(0, bytesRead)
    hash.update(chunk)
    await copy?.appendFile(chunk)
  }
  await copy?.sync()
  return hash.digest('hex')
}

/**
 * Whether a peer's request would be served now; where the system has not been up for ten minutes,
 * within the next five.
 */
async function serves(paths: Paths): Promise<boolean> {
  for (let tries = 0; ; tries++) {
    if (
      await call(paths.admin, 'GET', '/readyz').then(
        (answer) => answer.status === 200,
        () => false,
      )
    )
      return true
    if (uptime() > 600 || tries >= 60) return false
    await sleep(5_000)
  }
}

/**
 * `gatehouse update-install [FOLDER]`: installs what was downloaded, or what is in a folder, and
 * starts it.
 */
export async function runInstall(
  paths: Paths,
  { folder, force }: { folder?: string | undefined; force?: boolean } = {},
): Promise<number> {
  const where = updatePaths()
  force ??= (await whoAsks(where)) === 'force'
  const from = folder ?? where.downloads
  if (folder === undefined && (await bringExtensions(from, where.extensions)) > 0)
    await run('systemctl', ['restart', 'gatehouse-provision.service']).catch(() => {})
  if (
    folder === undefined &&
    !(await lstat(join(from, 'SHA256SUMS.sig')).then(
      () => true,
      () => false,
    ))
  )
    return 0
  const source = folder ?? (await readOutcome(where))?.source ?? 'updates.url'
  try {
    const version = await install(from, where, paths.boot, {
      force,
      serving: async () => await serves(paths),
    })
    const text =
      `${version} is installed; starting it. It stays once it has served through the tailnet, ` +
      'else this version comes back by itself'
    process.stdout.write(`${text}\n`)
    await writeOutcome(where, { source, text, failed: false })
  } catch (err) {
    const text = err instanceof GatehouseError ? err.line : reason(err)
    process.stderr.write(`gatehouse update: ${text}\n`)
    await writeOutcome(where, { source, text, failed: true })
    return 1
  } finally {
    if (folder === undefined)
      for (const name of await readdir(from).catch(() => []))
        if (!name.endsWith('.part') && name !== seenName)
          await rm(join(from, name), { force: true }).catch(() => {})
  }
  // Last: the restart does not wait for anything here.
  await run('systemctl', ['--no-block', 'reboot'])
  return 0
}

/**
 * As root: takes downloaded extensions to where gatehouse-provision reads them, without believing
 * anything of them: it checks all.
 *
 * @param extensions the folder of extensions
 * @returns how many
 */
export async function bringExtensions(downloads: string, extensions: string): Promise<number> {
  const form = /^([a-z0-9-]+)-(?:amd64|arm64)\.extension$/
  const names = (await readdir(downloads).catch(() => [])).filter((file) =>
    extensionName.test(form.exec(file)?.[1] ?? ''),
  )
  let brought = 0
  for (const file of names) {
    const from = join(downloads, file)
    try {
      if (!(await lstat(from)).isFile()) throw new Error('it is not a file')
      await mkdir(join(extensions, incoming), { recursive: true, mode: 0o755 })
      const to = join(extensions, incoming, file)
      await rm(to, { force: true })
      await take(from, to, { most: largestExtension, move: true })
      brought++
    } catch (err) {
      process.stderr.write(`gatehouse update: ${file}: ${reason(err)}\n`)
      await rm(from, { recursive: true, force: true })
    }
  }
  return brought
}
