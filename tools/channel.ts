/**
 * A folder that any static web server can serve as the place where images and updates come from:
 *
 *     SHA256SUMS, .sig      of the updates' files, with the percentage of devices that take them
 *     gatehouse_<version>_… the updates' files, for each processor those of the newest version
 *     releases, .sig        the log of releases: a line is added for each, none is ever changed
 *                           (src/update/log.ts)
 *     gatehouse-<arch>.…    the image, Raspberry Pi Imager's list of it, package list, SBOM
 *     gatehouse.json        Imager's list of all images here; gatehouse-icon.svg its icon
 *
 * Usage: node tools/channel.ts FOLDER [--percentage N] [--xz] UPDATE…
 * UPDATE: folders as image/build leaves them (out/update-<arch>, out/update-<profile>-<arch>). Beside
 * such a folder the image's files are taken along where they are; with --xz packed by xz too, which Etcher and every Imager
 * read (minutes). Signs with GATEHOUSE_KEYS (default keys/);
 * GATEHOUSE_DOWNLOAD_URL: the address that FOLDER is served at, for Imager's list.
 */
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { createReadStream, createWriteStream } from 'node:fs'
import { copyFile, mkdir, readFile, readdir, rm, stat, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { pipeline } from 'node:stream/promises'
import { parseArgs } from 'node:util'
import { createZstdDecompress } from 'node:zlib'
import { appendRelease, logName, parseLog, sumsOf } from '../src/update/log.ts'
import { imagerList } from './imager.ts'
import type { ImagerEntry } from './imager.ts'
import { signature, signingKey } from './signing.ts'

const root = path.join(import.meta.dirname, '..')
const key = signingKey(process.env['GATEHOUSE_KEYS'] ?? path.join(root, 'keys'))

async function sha256(file: string): Promise<string> {
  const hash = createHash('sha256')
  await pipeline(createReadStream(file), hash)
  return hash.digest('hex')
}

async function signed(file: string, text: string): Promise<void> {
  await writeFile(file, text)
  await writeFile(`${file}.sig`, signature(key.privateKey, Buffer.from(text)))
}

const piece = /^gatehouse_([0-9A-Za-z.~^]+)_(?:[0-9a-f-]{36}_)?(amd64|arm64)\.(efi|root|verity)$/

/** Puts one update into the channel. @returns what to say of it */
async function add(channel: string, update: string): Promise<string> {
  const found = (await readdir(update)).flatMap((name) => {
    const [, version, arch] = piece.exec(name) ?? []
    return version === undefined ? [] : [{ name, version, arch: arch! }]
  })
  const { version, arch } = found[0] ?? {}
  if (
    version === undefined ||
    found.some((file) => file.version !== version || file.arch !== arch) ||
    found.length !== 3
  )
    throw new Error(
      `${update} is no update of one version: it holds ` +
        `${found.map(({ name }) => name).join(', ') || 'none of its files'}`,
    )
  // The one before is no longer offered; who is on its way gets an error and begins anew.
  for (const name of await readdir(channel))
    if (piece.exec(name)?.[2] === arch) await rm(path.join(channel, name))
  for (const { name } of found) await copyFile(path.join(update, name), path.join(channel, name))
  const files = await Promise.all(
    found.map(async ({ name }) => ({ name, sha256: await sha256(path.join(channel, name)) })),
  )
  const log = path.join(channel, logName)
  const text = await readFile(log, 'utf8').catch(() => '')
  const sums = sumsOf(files)
  const last = parseLog(text).findLast((release) => release.arch === arch)
  if (last?.version === version && last.sums !== sums)
    throw new Error(
      `${version} for ${arch} is in the log already, with other files: build it anew, as another version`,
    )
  const said = last?.version === version
  const date = new Date().toISOString().slice(0, 10)
  await signed(log, said ? text : appendRelease(text, { date, arch: arch!, version, sums }))
  // The image itself, where it lies beside: a channel may be for updates alone.
  const beside = path.dirname(path.resolve(update))
  // With a profile it has that in its name, as the update's folder has.
  const image = `gatehouse-${/^update-([\w-]+)$/.exec(path.basename(path.resolve(update)))?.[1] ?? arch}`
  for (const extension of [
    'img.zst',
    'imager.json',
    'packages.txt',
    'spdx.json',
    'SHA256SUMS',
    'SHA256SUMS.sig',
  ]) {
    const name = `${image}.${extension}`
    await copyFile(path.join(beside, name), path.join(channel, name)).catch(
      (err: NodeJS.ErrnoException) => {
        if (err.code !== 'ENOENT') throw err
      },
    )
  }
  if (values.xz) {
    const raw = path.join(channel, `${image}.img`)
    await pipeline(createReadStream(`${raw}.zst`), createZstdDecompress(), createWriteStream(raw))
    // The root in it is packed: higher levels take longer and save nothing.
    execFileSync('xz', ['--force', '--threads=0', '-3', raw])
  }
  return `${version} for ${arch}: ${said ? 'in the log already' : 'a line more in the log'}`
}

/**
 * The entries with the addresses of this channel, where that is known (GATEHOUSE_DOWNLOAD_URL); and
 * with `.img.xz` where there is one, which every Imager and Etcher read.
 */
async function atHome(channel: string, entries: ImagerEntry[]): Promise<ImagerEntry[]> {
  const base = process.env['GATEHOUSE_DOWNLOAD_URL']?.replace(/\/$/, '')
  return await Promise.all(
    entries.map(async (entry) => {
      const name = path.basename(entry.url)
      const xz = name.replace(/\.zst$/, '.xz')
      const packed = await stat(path.join(channel, xz)).catch(() => undefined)
      return {
        ...entry,
        ...(base === undefined
          ? {}
          : { icon: `${base}/gatehouse-icon.svg`, url: `${base}/${name}` }),
        ...(packed === undefined
          ? {}
          : {
              url: `${base ?? path.dirname(entry.url)}/${xz}`,
              image_download_size: packed.size,
              image_download_sha256: await sha256(path.join(channel, xz)),
            }),
      }
    }),
  )
}

/** Imager's list of all images in the channel. */
async function list(channel: string): Promise<void> {
  const entries: ImagerEntry[] = []
  for (const name of (await readdir(channel)).toSorted())
    if (/^gatehouse-[\w-]+\.imager\.json$/.test(name)) {
      const part = JSON.parse(await readFile(path.join(channel, name), 'utf8')) as {
        os_list: ImagerEntry[]
      }
      entries.push(...part.os_list)
    }
  if (entries.length === 0) return
  await copyFile(
    path.join(root, 'docs/gatehouse-icon.svg'),
    path.join(channel, 'gatehouse-icon.svg'),
  )
  await writeFile(path.join(channel, 'gatehouse.json'), imagerList(await atHome(channel, entries)))
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    percentage: { type: 'string', default: '100' },
    xz: { type: 'boolean', default: false },
  },
})
const [channel, ...updates] = positionals
const percentage = Number(values.percentage)
if (channel === undefined || updates.length === 0 || !(percentage >= 0 && percentage <= 100)) {
  console.error('usage: channel.ts FOLDER [--percentage 0…100] [--xz] UPDATE…')
  process.exitCode = 2
} else {
  await mkdir(channel, { recursive: true })
  for (const update of updates) console.log(await add(channel, update))
  await list(channel)
  const names = (await readdir(channel)).filter((name) => piece.test(name)).toSorted()
  // What is said in the updates' own lists: what they change (tools/release.ts changes).
  const changes = new Set<string>()
  for (const update of updates)
    for (const line of (
      await readFile(path.join(update, 'SHA256SUMS'), 'utf8').catch(() => '')
    ).split('\n'))
      if (line.startsWith('# changes ')) changes.add(`${line}\n`)
  const lines = [...changes]
  for (const name of names) lines.push(`${await sha256(path.join(channel, name))}  ${name}\n`)
  // Last: what it names is there, and the log speaks of it.
  await signed(
    path.join(channel, 'SHA256SUMS'),
    `${percentage === 100 ? '' : `# percentage ${percentage}\n`}${lines.join('')}`,
  )
  console.log(
    `${channel} offers it to ${percentage} % of all devices; serve the folder, and put its address into updates.url`,
  )
}
