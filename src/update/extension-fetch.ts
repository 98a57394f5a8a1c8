import { createWriteStream } from 'node:fs'
import { mkdir, rename } from 'node:fs/promises'
import { join } from 'node:path'
import { Readable, Transform } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { GatehouseError, reason } from '../base/errors.ts'
import { compareVersions } from './bundle.ts'
import { extensionFile, headLength, largestExtension, readHead } from './extension.ts'
import type { Source } from './source.ts'

/** Options of {@link fetchExtensions}. */
export interface FetchOptions {
  /** Those that gatehouse.toml names. */
  names: readonly string[]
  /** Versions of those that are attached, by name. */
  attached: ReadonlyMap<string, string>
  arch: string
  /** PEM, the key that updates are signed with. */
  publicKey: string
  /** Where to; files are complete under their own name. */
  downloads: string
}

/**
 * Downloads the extensions that gatehouse.toml names from where updates come from, where they are
 * there and newer than what is attached. A file is believed as far as its signed beginning goes
 * before the rest is fetched; the rest is summed by who takes it over, as root.
 *
 * @returns a line for each: what came, and what did not for which reason
 */
export async function fetchExtensions(
  source: Source,
  { names, attached, arch, publicKey, downloads }: FetchOptions,
): Promise<{ fetched: string[]; failed: string[] }> {
  const [fetched, failed]: [string[], string[]] = [[], []]
  for (const name of names) {
    const file = extensionFile(name, arch)
    try {
      const version = await fetchOne(source, file, attached.get(name), publicKey, downloads)
      if (version !== undefined) fetched.push(`${name} ${version} is downloaded`)
    } catch (err) {
      // It may be on the card alone.
      if (err instanceof GatehouseError && err.cause === 404) continue
      failed.push(err instanceof GatehouseError ? err.line : `${file}: ${reason(err)}`)
    }
  }
  return { fetched, failed }
}

/** @returns its version; undefined when it is not newer */
async function fetchOne(
  source: Source,
  file: string,
  has: string | undefined,
  publicKey: string,
  downloads: string,
): Promise<string | undefined> {
  const { body, alive } = await source.open(file, 0)
  const called = `${file} of ${source.name}`
  try {
    const pieces = body[Symbol.asyncIterator]() as AsyncIterator<Buffer>
    let begun = Buffer.alloc(0)
    while (headLength(begun) === undefined && begun.length < 65_536) {
      const { done, value } = await pieces.next()
      if (done === true) break
      alive()
      begun = Buffer.concat([begun, value])
    }
    const { manifest, text } = readHead(begun, called, publicKey)
    if (has !== undefined && compareVersions(manifest.version, has) <= 0) return undefined
    const whole = Buffer.byteLength(text, 'latin1') + manifest.root.size + manifest.verity.size
    if (whole > largestExtension) throw damaged(called)
    await mkdir(downloads, { recursive: true, mode: 0o700 })
    const part = join(downloads, `${file}.part`)
    let size = 0
    const limit = new Transform({
      transform(chunk: Buffer, _encoding, done) {
        alive()
        size += chunk.length
        done(size > whole ? damaged(called) : null, chunk)
      },
    })
    async function* all(): AsyncGenerator<Buffer> {
      yield begun
      for (let next = await pieces.next(); next.done !== true; next = await pieces.next())
        yield next.value
    }
    await pipeline(Readable.from(all()), limit, createWriteStream(part))
    if (size !== whole) throw damaged(called)
    await rename(part, join(downloads, file))
    return manifest.version
  } finally {
    body.destroy()
  }
}

const damaged = (called: string): GatehouseError =>
  new GatehouseError(
    'GH_EXTENSION_DAMAGED',
    `${called} is truncated or damaged`,
    'Put the file that `make extension` leaves in out/ there again',
  )
