/**
 * What is published beside an image, after image/build has made out/gatehouse-<arch>.img and
 * mkosi's artifacts:
 *
 *     gatehouse-<arch>.img.zst           what is downloaded and flashed
 *     gatehouse-<arch>.packages.txt      name and version, one a line
 *     gatehouse-<arch>.spdx.json         the same as an SBOM
 *     gatehouse-<arch>.imager.json for Raspberry Pi Imager (its settings dialog works with it)
 *     gatehouse-<arch>.SHA256SUMS, .sig of all these update-<arch>/ for a static web server or a
 *     USB stick: kernel image, root, hash tree, SHA256SUMS and .sig
 *
 * Usage, as node tools/release.ts …
 *     ARCH VERSION BUILD_SECONDS   prints the RESULT line last
 *     key                          prints the public key's file; makes the pair if there is none
 *     percentage FOLDER N          offers the update in FOLDER to N % of all devices, signed anew
 *     changes FOLDER FILE          says in the update what it changes, a line each, signed anew
 *
 * Environment: SOURCE_DATE_EPOCH; GATEHOUSE_UPDATE_ONLY, a folder: only the update is written,
 * there; GATEHOUSE_KEYS (default keys/); GATEHOUSE_DOWNLOAD_URL, where the files will lie (default:
 * a file: URL); GATEHOUSE_PROFILE, the image's (image/mkosi.profiles): everything is called
 * gatehouse-<profile>-<arch> then, and update-<profile>-<arch>.
 */
import { createHash } from 'node:crypto'
import { createReadStream, createWriteStream } from 'node:fs'
import { cp, mkdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { pathToFileURL } from 'node:url'
import { constants, createZstdCompress } from 'node:zlib'
import { devices, imagerList } from './imager.ts'
import { parts, spdx } from './sbom.ts'
import { signature, signingKey } from './signing.ts'

const root = join(import.meta.dirname, '..')
const out = join(root, 'out')
const key = signingKey(process.env.GATEHOUSE_KEYS ?? join(root, 'keys'))
if (key.made)
  console.error(
    `release: made a signing key: keep ${key.privateKey}. Devices flashed with your images ` +
      'take updates signed with it alone',
  )

const profile = process.env.GATEHOUSE_PROFILE ?? ''
/** The image by its processor and profile, as its files' names have it. */
function variant(arch: Arch): string {
  return profile === '' ? arch : `${profile}-${arch}`
}

async function sha256(path: string): Promise<string> {
  const hash = createHash('sha256')
  await pipeline(createReadStream(path), hash)
  return hash.digest('hex')
}

/** Writes `sums` and `sums`.sig for files of one directory, in the form of sha256sum(1). */
async function signSums(sums: string, files: string[]): Promise<void> {
  const lines = await Promise.all(
    files.map(async (file) => `${await sha256(file)}  ${basename(file)}\n`),
  )
  await signText(sums, lines.join(''))
}

async function signText(sums: string, text: string): Promise<void> {
  await writeFile(sums, text)
  await writeFile(`${sums}.sig`, signature(key.privateKey, Buffer.from(text)))
}

async function release(arch: Arch, version: string, seconds: number): Promise<void> {
  const name = `gatehouse-${variant(arch)}`
  const file = (extension: string): string => join(out, `${name}.${extension}`)
  const image = file('img')
  const zst = file('img.zst')
  // The root in it is compressed already: a higher level takes minutes and saves 1 %.
  await pipeline(
    createReadStream(image),
    createZstdCompress({
      params: {
        // Not nbWorkers: Node.js 26.10 then ends the stream twice (ERR_STREAM_PUSH_AFTER_EOF).
        [constants.ZSTD_c_compressionLevel]: 6,
        [constants.ZSTD_c_checksumFlag]: 1,
      },
      pledgedSrcSize: (await stat(image)).size,
    }),
    createWriteStream(zst),
  )

  const created = Number(process.env.SOURCE_DATE_EPOCH ?? Math.floor(Date.now() / 1000))
  const all = await parts(root, arch, profile)
  await writeFile(
    file('packages.txt'),
    all
      .map(
        (part) => `${part.purl.slice(4, part.purl.indexOf('/'))}\t${part.name}\t${part.version}\n`,
      )
      .join(''),
  )
  await writeFile(file('spdx.json'), spdx(name, version, all, created))

  const base = process.env.GATEHOUSE_DOWNLOAD_URL
  const url = (path: string): string =>
    base === undefined ? pathToFileURL(path).href : `${base.replace(/\/$/, '')}/${basename(path)}`
  await writeFile(
    file('imager.json'),
    imagerList([
      {
        name: `Gatehouse ${version}${profile === '' ? '' : ` (${profile})`}`,
        description: 'Node-RED, reachable from your tailnet and from nowhere else',
        icon: url(join(root, 'docs/gatehouse-icon.svg')),
        url: url(zst),
        extract_size: (await stat(image)).size,
        extract_sha256: await sha256(image),
        image_download_size: (await stat(zst)).size,
        image_download_sha256: await sha256(zst),
        release_date: new Date(created * 1000).toISOString().slice(0, 10),
        init_format: 'cloudinit',
        devices: profile === 'raspios' ? devices.raspios : devices[arch],
      },
    ]),
  )
  await signSums(file('SHA256SUMS'), [
    image,
    zst,
    file('packages.txt'),
    file('spdx.json'),
    file('imager.json'),
  ])

  await publishUpdate(arch, version, join(out, `update-${variant(arch)}`))
  console.log(
    `RESULT image_mb=${((await stat(zst)).size / 1e6).toFixed(1)} build_s=${seconds} packages=${all.length}`,
  )
}

/** The folder for a web server or a USB stick. */
async function publishUpdate(arch: Arch, version: string, update: string): Promise<void> {
  const name = `gatehouse-${variant(arch)}`
  await rm(update, { recursive: true, force: true })
  await mkdir(update)
  const pieces: string[] = []
  // The two partitions' UUIDs are the root hash's halves, by which the kernel image finds them
  // (systemd-veritysetup-generator(8)).
  const kernel = (await readFile(join(out, 'mkosi', `${name}.efi`))).toString('latin1')
  const hash = /\broothash=([0-9a-f]{64})\b/.exec(kernel)?.[1]
  if (hash === undefined) throw new Error(`release: out/mkosi/${name}.efi names no root hash`)
  const uuid = (half: string): string =>
    half.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5')
  for (const [from, extension, id] of [
    ['efi', 'efi', ''],
    ['verity.raw', 'verity', `${uuid(hash.slice(32))}_`],
    ['root.raw', 'root', `${uuid(hash.slice(0, 32))}_`],
  ] as const) {
    const piece = join(update, `gatehouse_${version}_${id}${arch}.${extension}`)
    await cp(join(out, 'mkosi', `${name}.${from}`), piece)
    pieces.push(piece)
  }
  await signSums(join(update, 'SHA256SUMS'), pieces)
}

/**
 * Offers an update to N % of all devices for now (100: to all), in a line that sha256sum(1) takes
 * for a comment; signed anew.
 */
async function stage(folder: string, percentage: number): Promise<void> {
  const sums = join(folder, 'SHA256SUMS')
  const files = (await readFile(sums, 'utf8')).replaceAll(/^# percentage .*\n/gm, '')
  await signText(sums, percentage === 100 ? files : `# percentage ${percentage}\n${files}`)
  console.log(
    `${folder} is offered to ${percentage} % of all devices; put SHA256SUMS and SHA256SUMS.sig on the server`,
  )
}

/** Says in an update what it changes, for the console's page Updates; signed anew. */
async function tell(folder: string, file: string): Promise<void> {
  const sums = join(folder, 'SHA256SUMS')
  const rest = (await readFile(sums, 'utf8')).replaceAll(/^# changes .*\n/gm, '')
  const lines = (await readFile(file, 'utf8')).split('\n').filter((line) => line.trim() !== '')
  // A device reads 64 KiB of the list at most (src/update/source.ts).
  const text = lines.map((line) => `# changes ${line.trim().slice(0, 300)}\n`)
  let size = Buffer.byteLength(rest)
  const kept = text.filter((line) => (size += Buffer.byteLength(line)) <= 60_000)
  await signText(sums, kept.join('') + rest)
  console.log(`${folder} says what it changes, in ${kept.length} lines`)
}

const [what, version, seconds] = process.argv.slice(2)
const only = process.env.GATEHOUSE_UPDATE_ONLY
type Arch = 'amd64' | 'arm64'
if (what === 'key') console.log(key.publicKey)
else if (what === 'percentage' && version !== undefined && /^(?:\d\d?|100)$/.test(seconds ?? ''))
  await stage(version, Number(seconds))
else if (what === 'changes' && version !== undefined && seconds !== undefined)
  await tell(version, seconds)
else if ((what === 'amd64' || what === 'arm64') && version !== undefined && seconds !== undefined) {
  if (only === undefined || only === '') await release(what, version, Number(seconds))
  else await publishUpdate(what, version, join(root, only))
} else {
  console.error(
    'usage: release.ts amd64|arm64 VERSION BUILD_SECONDS | key | percentage FOLDER N | changes FOLDER FILE',
  )
  process.exitCode = 2
}
