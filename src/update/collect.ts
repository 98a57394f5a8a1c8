import { createHash } from 'node:crypto'
import { createReadStream, createWriteStream } from 'node:fs'
import {
  mkdir,
  open,
  readFile,
  readdir,
  rename,
  rm,
  stat,
  statfs,
  writeFile,
} from 'node:fs/promises'
import { join } from 'node:path'
import { Transform } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { GatehouseError, reason } from '../base/errors.ts'
import { compareVersions, largest, readBundle } from './bundle.ts'
import type { Bundle } from './bundle.ts'
import { checkLog, logName, readSeen, seenName, writeSeen } from './log.ts'
import { givenUp, readUpdateRecord, runningVersion } from './record.ts'
import type { UpdatePaths } from './record.ts'
import type { Source } from './source.ts'

const megabytes = (bytes: number): string => `${Math.ceil(bytes / 1e6)} MB`

/**
 * Copies the newest version of `source` into `downloads`, beginning where an earlier run was cut
 * off. The list is believed by its signature, each file by its sum, and nothing by its name.
 *
 * @param force also what was given up before
 * @param anyLog also from a channel whose log of releases has another past than was seen
 * @param takes whether this device takes it yet; asked before anything large is fetched
 * @param skipped told why there is nothing to be installed, for whom it is news
 * @returns the bundle, ready to be installed; undefined when nothing newer is offered, or it is not
 *   taken yet
 * @throws GatehouseError GH_UPDATE_SIGNATURE, GH_UPDATE_FORMAT, GH_UPDATE_UNREACHABLE,
 *   GH_UPDATE_DAMAGED, GH_UPDATE_SPACE, GH_UPDATE_SIZE
 */
export async function collect(
  source: Source,
  paths: UpdatePaths,
  {
    force = false,
    anyLog = false,
    takes = () => true,
    skipped = () => {},
  }: {
    force?: boolean
    anyLog?: boolean
    takes?: (bundle: Bundle) => boolean
    skipped?: (why: 'old' | 'given up' | 'not taken', bundle: Bundle, running: string) => void
  } = {},
): Promise<Bundle | undefined> {
  // They say that a download is whole, for gatehouse-update-install.service. What an earlier one
  // has left may have been installed since.
  for (const name of ['SHA256SUMS.sig', 'SHA256SUMS'])
    await rm(join(paths.downloads, name), { force: true })
  const sums = await source.small('SHA256SUMS')
  const signature = await source.small('SHA256SUMS.sig')
  const bundle = readBundle(sums, signature, await readFile(paths.key, 'utf8'))
  await followLog(source, paths, bundle, anyLog)
  const running = await runningVersion(paths)
  const skip = (why: Parameters<typeof skipped>[0]): undefined => {
    skipped(why, bundle, running)
  }
  if (compareVersions(bundle.version, running) <= 0) return skip('old')
  const record = await readUpdateRecord(paths)
  if (!force && record?.to === bundle.version && running === record.from && givenUp(record))
    return skip('given up')
  if (!takes(bundle)) return skip('not taken')

  await mkdir(paths.downloads, { recursive: true, mode: 0o700 })
  const wanted = new Set([seenName, ...bundle.files.flatMap(({ name }) => [name, `${name}.part`])])
  for (const name of await readdir(paths.downloads))
    if (!wanted.has(name)) await rm(join(paths.downloads, name), { recursive: true, force: true })
  for (const file of bundle.files) await copy(source, file, paths.downloads)
  await writeFile(join(paths.downloads, 'SHA256SUMS'), sums)
  await writeFile(join(paths.downloads, 'SHA256SUMS.sig'), signature)
  return bundle
}

/** Nothing is taken from a channel whose log of releases does not vouch for it (src/update/log.ts). */
async function followLog(
  source: Source,
  paths: UpdatePaths,
  bundle: Bundle,
  anyLog: boolean,
): Promise<void> {
  if (source.optional === undefined) return
  const seen = await readSeen(paths, source.name)
  const text = await source.optional(logName)
  if (text === undefined) {
    // A folder that never had one is taken as it is.
    if (seen === undefined || anyLog) return
    throw new GatehouseError(
      'GH_UPDATE_LOG',
      `${source.name} has no log of releases any more`,
      'Nothing was changed. Whoever publishes the updates has to put the log back; ' +
        '`gatehouse update --force` does without',
    )
  }
  const head = checkLog(
    text,
    await source.small(`${logName}.sig`),
    await readFile(paths.key, 'utf8'),
    { bundle, seen, force: anyLog },
  )
  await mkdir(paths.downloads, { recursive: true, mode: 0o700 })
  if (head.chain !== seen?.chain) await writeSeen(paths, source.name, head)
}

const damaged = (name: string, source: Source): GatehouseError =>
  new GatehouseError(
    'GH_UPDATE_DAMAGED',
    `${name} of ${source.name} is not what SHA256SUMS says: truncated or damaged`,
    'Nothing was changed. Copy the file there again',
  )

/** Copies one file, or what is missing of it, and checks its sum. */
async function copy(
  source: Source,
  { name, sha256 }: Bundle['files'][number],
  folder: string,
): Promise<void> {
  const whole = join(folder, name)
  if (
    await stat(whole).then(
      () => true,
      () => false,
    )
  )
    return
  const part = `${whole}.part`
  const have = await stat(part).then(
    (s) => s.size,
    () => 0,
  )
  const { body, from, length, alive } = await source.open(name, have)
  const tooLarge = (size: number): GatehouseError =>
    new GatehouseError(
      'GH_UPDATE_SIZE',
      `${name} of ${source.name} does not fit: it has ${megabytes(size)} or more, and there ` +
        `is room for ${megabytes(largest(name))}`,
      'Nothing was changed. This is not an update for this device',
    )
  try {
    if (length !== undefined) {
      if (from + length > largest(name)) throw tooLarge(from + length)
      const { bavail, bsize } = await statfs(folder)
      if (length > bavail * bsize)
        throw new GatehouseError(
          'GH_UPDATE_SPACE',
          `${name} of ${source.name} does not fit: it needs ${megabytes(length)}, and the ` +
            `data partition has ${megabytes(bavail * bsize)} free`,
          'Nothing was changed. Remove what flows have written, or use a larger card',
        )
    }
    if (have > 0)
      process.stdout.write(
        `${name}: ${from > 0 ? `going on from byte ${have}` : 'from the beginning'}\n`,
      )
    let size = from
    const limit = new Transform({
      transform(chunk: Buffer, _encoding, done) {
        alive()
        size += chunk.length
        done(size > largest(name) ? tooLarge(size) : null, chunk)
      },
    })
    await pipeline(body, limit, createWriteStream(part, { flags: from > 0 ? 'a' : 'w' })).catch(
      (err: unknown) => {
        if (err instanceof GatehouseError) throw err
        throw new GatehouseError(
          'GH_UPDATE_UNREACHABLE',
          `reading ${name} from ${source.name} broke off: ${reason(err)}`,
          'What has come stays, and the next attempt goes on from there',
          { cause: err },
        )
      },
    )
  } catch (err) {
    body.destroy()
    if (err instanceof GatehouseError && err.code === 'GH_UPDATE_SIZE')
      await rm(part, { force: true })
    throw err
  }
  const hash = createHash('sha256')
  await pipeline(createReadStream(part), hash)
  if (hash.digest('hex') !== sha256) {
    const got = (await stat(part)).size - from
    // Cut short is not damaged: keep it. Anything else begins anew.
    if (!(got < (length ?? 0))) {
      await rm(part, { force: true })
      // What a power cut left may not be what had come: at once, and only once.
      if (from > 0) return await copy(source, { name, sha256 }, folder)
    }
    throw damaged(name, source)
  }
  // Under its name it is taken to be whole, also after a power cut.
  const file = await open(part)
  await file.sync().finally(async () => {
    await file.close()
  })
  await rename(part, whole)
}
