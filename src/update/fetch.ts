import { createHash } from 'node:crypto'
import { createReadStream, createWriteStream } from 'node:fs'
import { mkdir, readFile, readdir, rename, rm, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { GatehouseError, reason } from '../config/errors.ts'
import { loadConfig } from '../config/load.ts'
import type { Paths } from '../config/paths.ts'
import { compareVersions, readBundle } from './bundle.ts'
import type { Bundle } from './bundle.ts'
import { hardwareAddress, placeOf } from './place.ts'
import { readUpdateRecord, runningVersion, updatePaths } from './record.ts'
import type { UpdatePaths } from './record.ts'

/** Milliseconds without a byte until a download counts as stuck; what has come stays, and the next run goes on from there. */
const patience = 60_000

async function get (url: string, headers: Record<string, string> = {}): Promise<{ response: Response, alive: () => void }> {
  const stuck = new AbortController()
  let timer = setTimeout(() => { stuck.abort(new Error(`no data for ${patience / 1000} s`)) }, patience)
  timer.unref()
  const alive = (): void => { timer.refresh() }
  const response = await fetch(url, { headers, signal: stuck.signal, redirect: 'follow' }).catch((err: unknown) => {
    throw new GatehouseError('GH_UPDATE_UNREACHABLE', `${url} cannot be fetched: ${reason(err)}`, 'Check updates.url in gatehouse.toml and the network. What has been downloaded stays, and the next attempt goes on from there', { cause: err })
  })
  if (!response.ok) throw new GatehouseError('GH_UPDATE_UNREACHABLE', `${url} answers ${response.status}`, 'Check updates.url in gatehouse.toml: it names the folder that SHA256SUMS lies in')
  return { response, alive }
}

/**
 * Downloads the newest version that `url` offers into `downloads`, beginning where an earlier run was cut off.
 *
 * @param force also what was given up before
 * @param takes whether this device takes it yet; asked before anything large is fetched
 * @returns the bundle, ready to be installed; undefined when nothing newer is offered, or it is not taken yet
 */
export async function download (url: string, paths: UpdatePaths, { force = false, takes = () => true }: { force?: boolean, takes?: (bundle: Bundle) => boolean } = {}): Promise<Bundle | undefined> {
  const base = url.replace(/\/$/, '')
  const small = async (name: string): Promise<Buffer> => {
    const { response } = await get(`${base}/${name}`)
    const content = Buffer.from(await response.arrayBuffer())
    if (content.length > 65_536) throw new GatehouseError('GH_UPDATE_FORMAT', `${base}/${name} is ${content.length} bytes long`, 'Check updates.url in gatehouse.toml: it names the folder that SHA256SUMS lies in')
    return content
  }
  // They say that a download is whole, for gatehouse-update-install.service. What an earlier one has left may have been installed since.
  for (const name of ['SHA256SUMS.sig', 'SHA256SUMS']) await rm(join(paths.downloads, name), { force: true })
  const sums = await small('SHA256SUMS')
  const signature = await small('SHA256SUMS.sig')
  const bundle = readBundle(sums, signature, await readFile(paths.key, 'utf8'))
  const running = await runningVersion(paths)
  if (compareVersions(bundle.version, running) <= 0) return undefined
  const record = await readUpdateRecord(paths)
  if (!force && record?.to === bundle.version && running === record.from) return undefined
  if (!takes(bundle)) return undefined

  await mkdir(paths.downloads, { recursive: true, mode: 0o700 })
  const wanted = new Set(bundle.files.flatMap(({ name }) => [name, `${name}.part`]))
  for (const name of await readdir(paths.downloads)) if (!wanted.has(name)) await rm(join(paths.downloads, name), { recursive: true, force: true })
  for (const { name, sha256 } of bundle.files) {
    const whole = join(paths.downloads, name)
    if (await stat(whole).then(() => true, () => false)) continue
    const part = `${whole}.part`
    const have = await stat(part).then((s) => s.size, () => 0)
    const { response, alive } = await get(`${base}/${name}`, have > 0 ? { range: `bytes=${have}-` } : {})
    // A server that knows no ranges sends it whole.
    const resumed = response.status === 206
    if (have > 0) process.stdout.write(`${name}: ${resumed ? `going on from byte ${have}` : 'from the beginning'}\n`)
    const body = Readable.fromWeb(response.body as Parameters<typeof Readable.fromWeb>[0])
    body.on('data', alive)
    await pipeline(body, createWriteStream(part, { flags: resumed ? 'a' : 'w' })).catch((err: unknown) => {
      throw new GatehouseError('GH_UPDATE_UNREACHABLE', `the download of ${name} broke off: ${reason(err)}`, 'What has come stays, and the next attempt goes on from there', { cause: err })
    })
    const hash = createHash('sha256')
    await pipeline(createReadStream(part), hash)
    if (hash.digest('hex') !== sha256) {
      const length = Number(response.headers.get('content-length') ?? Number.NaN)
      const got = (await stat(part)).size - (resumed ? have : 0)
      // Cut short is not damaged: keep it. Anything else begins anew.
      if (!(got < length)) await rm(part, { force: true })
      throw new GatehouseError('GH_UPDATE_DAMAGED', `${base}/${name} is not what SHA256SUMS says: truncated or damaged`, 'Nothing was changed. Put the file on the server again; the device tries again by itself')
    }
    await rename(part, whole)
  }
  await writeFile(join(paths.downloads, 'SHA256SUMS'), sums)
  await writeFile(join(paths.downloads, 'SHA256SUMS.sig'), signature)
  return bundle
}

/**
 * `gatehouse update-fetch`, as gatehouse-update: 0 when all is well, whether there was something new or not. By the timer it heeds
 * updates.automatic and the percentage of devices that a version is offered to; asked for by `gatehouse update` it does not.
 */
export async function runFetch (paths: Paths): Promise<number> {
  const where = updatePaths()
  const asked = await readFile(where.asked, 'utf8').catch(() => undefined)
  const force = asked === 'force'
  const say = (text: string): number => { process.stdout.write(`${text}\n`); return 0 }
  const { url, hold, automatic, place } = (await loadConfig(paths.config)).updates
  if (url === undefined) return say('no updates: gatehouse.toml names no updates.url')
  if (hold && !force) return say('updates are held back by updates.hold in gatehouse.toml')
  if (!automatic && asked === undefined) return say('updates.automatic in gatehouse.toml is false: gatehouse update installs what is new')
  try {
    const machine = await hardwareAddress()
    let waiting: string | undefined
    const takes = (bundle: Bundle): boolean => {
      const mine = place ?? placeOf(machine, bundle.version)
      if (asked !== undefined || mine < bundle.percentage) return true
      waiting = `${bundle.version} is offered to ${bundle.percentage} % of all devices for now; this one's place is ${mine}, so it waits`
      return false
    }
    const bundle = await download(url, where, { force, takes })
    return say(bundle === undefined ? waiting ?? 'nothing newer is offered' : `${bundle.version} is downloaded`)
  } catch (err) {
    process.stderr.write(`gatehouse update: ${err instanceof GatehouseError ? err.line : reason(err)}\n`)
    return 1
  }
}
