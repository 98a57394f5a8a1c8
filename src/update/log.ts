import { createHash, createPublicKey, verify } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { GatehouseError } from '../base/errors.ts'
import { writeFileAtomic } from '../base/files.ts'
import { arch } from './bundle.ts'
import type { Bundle } from './bundle.ts'
import type { UpdatePaths } from './record.ts'

/**
 * The log of releases that lies beside the updates of a channel: a line for each, which is never
 * changed and never taken away. A device remembers how far it has seen it, and takes nothing from a
 * channel whose log has another past now: whoever has stolen the signing key and offers one device
 * a version of its own has to put it into the log that everybody reads, or is noticed.
 */

/** One release: a line of the log, its fields with tabs between. */
export interface Release {
  /** When it was published, YYYY-MM-DD. */
  date: string
  arch: string
  version: string
  /** SHA-256 of what SHA256SUMS says of its three files ({@link sumsOf}), hexadecimal. */
  sums: string
  /** SHA-256 of the chain of the line before, a line break, and the fields above. */
  chain: string
}

/** How far a log has been seen: its number of lines, and the chain of the last. */
export interface Head {
  lines: number
  chain: string
}

/** Names of the log and of its signature in a channel, and of what a device has seen of it. */
export const logName = 'releases'
export const seenName = 'releases.seen'

const sha256 = (text: string): string => createHash('sha256').update(text).digest('hex')

/** What a line of the log says of an update's files, in any order. */
export function sumsOf(files: Bundle['files']): string {
  return sha256(
    files
      .map(({ sha256: sum, name }) => `${sum}  ${name}\n`)
      .toSorted()
      .join(''),
  )
}

const fields = ({ date, arch: of, version, sums }: Omit<Release, 'chain'>): string =>
  [date, of, version, sums].join('\t')

const next = (before: Release | undefined, release: Omit<Release, 'chain'>): string =>
  sha256(`${before?.chain ?? ''}\n${fields(release)}`)

/** The log with one release more. @param text of the log so far, empty for a new one */
export function appendRelease(text: string, release: Omit<Release, 'chain'>): string {
  return `${text}${fields(release)}\t${next(parseLog(text).at(-1), release)}\n`
}

/** The releases of a log. @throws GatehouseError GH_UPDATE_LOG when a line does not follow from the one before */
export function parseLog(text: string): Release[] {
  const releases: Release[] = []
  for (const line of text.split('\n').slice(0, -1)) {
    const match =
      /^(\d{4}-\d\d-\d\d)\t([a-z0-9]+)\t([0-9A-Za-z.~^-]+)\t([0-9a-f]{64})\t([0-9a-f]{64})$/.exec(
        line,
      )
    const [, date, of, version, sums, chain] = match ?? []
    const release = { date: date!, arch: of!, version: version!, sums: sums! }
    if (match === null || chain !== next(releases.at(-1), release))
      throw new GatehouseError(
        'GH_UPDATE_LOG',
        `line ${releases.length + 1} of the log of releases does not follow from the one before`,
        'Nothing was changed. Whoever publishes the updates has to put the log back as it was',
      )
    releases.push({ ...release, chain })
  }
  return releases
}

/**
 * Whether a channel's log vouches for what it offers, and still says what it said.
 *
 * @param seen what this device has seen of it before
 * @param force take a log with another past, as a person who knows why asks for
 * @returns how far it is seen now
 * @throws GatehouseError GH_UPDATE_LOG, GH_UPDATE_SIGNATURE
 */
export function checkLog(
  text: Buffer,
  signature: Buffer,
  publicKey: string,
  { bundle, seen, force }: { bundle: Bundle; seen: Head | undefined; force: boolean },
): Head {
  if (!verify(null, text, createPublicKey(publicKey), signature))
    throw new GatehouseError(
      'GH_UPDATE_SIGNATURE',
      'the log of releases is not signed with the key that this device trusts',
      'Nothing was changed. Whoever publishes the updates has to sign it anew',
    )
  const releases = parseLog(text.toString('utf8'))
  if (!force && seen !== undefined && releases[seen.lines - 1]?.chain !== seen.chain)
    throw new GatehouseError(
      'GH_UPDATE_LOG',
      `the log of releases has another past than this device has seen: line ${seen.lines} was another`,
      'Nothing was changed. Ask whoever publishes the updates what happened before you take ' +
        'any; `gatehouse update --force` takes the log as it is now',
    )
  const last = releases.findLast((release) => release.arch === arch)
  if (last?.version !== bundle.version || last.sums !== sumsOf(bundle.files))
    throw new GatehouseError(
      'GH_UPDATE_LOG',
      `the log of releases ends with ${last?.version ?? 'nothing'} for ${arch}, not with the ` +
        `${bundle.version} that is offered`,
      'Nothing was changed. If the channel was being written just now the next attempt ' +
        'succeeds; otherwise ask whoever publishes the updates',
    )
  return { lines: releases.length, chain: releases.at(-1)!.chain }
}

/** What has been seen of the log of the channel at `url`; undefined: nothing yet. */
export async function readSeen({ downloads }: UpdatePaths, url: string): Promise<Head | undefined> {
  try {
    const seen = JSON.parse(await readFile(join(downloads, seenName), 'utf8')) as Head & {
      url: string
    }
    return seen.url === url ? seen : undefined
  } catch {
    return undefined
  }
}

/** Remembers it, over restarts and updates. */
export async function writeSeen(
  { downloads }: UpdatePaths,
  url: string,
  { lines, chain }: Head,
): Promise<void> {
  await writeFileAtomic(
    join(downloads, seenName),
    `${JSON.stringify({ url, lines, chain })}\n`,
    0o600,
  )
}
