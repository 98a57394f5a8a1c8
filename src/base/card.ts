import { execFile } from 'node:child_process'
import { open, readFile, readdir, rename, rm, stat, writeFile } from 'node:fs/promises'
import type { FileHandle } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { isDeepStrictEqual, promisify } from 'node:util'
import { parse } from 'smol-toml'
import { syncDirectory } from './files.ts'
import { scanToml } from './toml-scan.ts'
import type { TomlEntry } from './toml-scan.ts'

const run = promisify(execFile)

/**
 * Does something with the card's FAT partition writable, which it is for no longer than that:
 * read-only, a power cut cannot harm what boots. Outside the appliance (`boot` is no mount point)
 * it is just done.
 */
export async function withCard<T>(boot: string, work: () => Promise<T>): Promise<T> {
  const mounted = (await readFile('/proc/self/mounts', 'utf8'))
    .split('\n')
    .some((line) => line.split(' ')[1] === boot)
  if (!mounted) return await work()
  // One at a time: who is done makes it read-only again.
  await using _lock = await lock('/run/gatehouse-card.lock')
  await run('mount', ['-o', 'remount,rw', boot])
  try {
    await sweepTemporary(boot)
    return await work()
  } finally {
    await run('sync', ['-f', boot])
    await run('mount', ['-o', 'remount,ro', boot])
  }
}

/**
 * A lock by a file with the holder's process ID, which frees itself when that process is gone.
 * Waits for up to five minutes.
 */
async function lock(path: string): Promise<AsyncDisposable> {
  for (let tries = 0; ; tries++) {
    try {
      await writeFile(path, String(process.pid), { flag: 'wx' })
      return {
        [Symbol.asyncDispose]: async () => {
          await rm(path, { force: true })
        },
      }
    } catch (err) {
      if ((err as NodeJS.ErrnoException).code !== 'EEXIST' || tries > 1500) throw err
    }
    const holder = Number(await readFile(path, 'utf8').catch(() => ''))
    if (
      holder > 0 &&
      !(await stat(`/proc/${holder}`).then(
        () => true,
        () => false,
      ))
    )
      await rm(path, { force: true })
    await sleep(200)
  }
}

/**
 * Replaces a file on the card unless it has this content already. FAT has no modes: root alone can
 * see the partition.
 */
export async function writeCard(boot: string, path: string, content: string): Promise<void> {
  if ((await readFile(path, 'utf8').catch(() => '')) === content) return
  await withCard(boot, async () => {
    await putOnCard(path, content)
  })
}

/** What {@link putOnCard} writes first. */
const temporaryName = (name: string): string => `.${name}.tmp`

/**
 * Removes what a power cut has left of files that were being written. Before anything else is: such
 * a name may lead to space that counts as free, and that the next file would share.
 */
async function sweepTemporary(boot: string): Promise<void> {
  const names = (await readdir(boot)).filter((name) => /^\..+\.tmp$/.test(name))
  for (const name of names) await rm(join(boot, name), { force: true })
  if (names.length > 0) await syncDirectory(boot)
}

/**
 * Replaces a file on the card's FAT partition, or makes it, so that after a power cut there is the
 * old one or the new one (of a file that is made, an empty one at worst). In the partition's own
 * folder, within {@link withCard}.
 *
 * FAT has no journal. Linux frees the space of a file that is replaced, or removed, at once, and
 * writes where the new one lies with that file, not with its folder (fs/fat/namei_vfat.c): after a
 * cut in between, the name leads to space that is free, which another file may then have, too. So
 * the old file is kept open here, and with it its space, until nothing leads there. At worst some
 * space is lost.
 */
export async function putOnCard(path: string, content: string | Uint8Array): Promise<void> {
  const folder = dirname(path)
  // A new name goes with no space. (Of a rename to a new name there may be both after a cut.)
  await using _old = (await opened(path)) ?? (await made(path))
  const temporary = join(folder, temporaryName(basename(path)))
  await rm(temporary, { force: true })
  await using file = await open(temporary, 'wx', 0o700)
  try {
    await file.writeFile(content)
    await file.sync()
    await rename(temporary, path)
  } catch (err) {
    await rm(temporary, { force: true })
    throw err
  }
  // The temporary name goes; then the other leads to the new file.
  await syncDirectory(folder)
  await file.sync()
}

/** An empty file, for good. */
async function made(path: string): Promise<FileHandle> {
  const file = await open(path, 'wx', 0o700)
  await file.sync()
  await syncDirectory(dirname(path))
  return file
}

/** Removes a file from the card's FAT partition, in the order that {@link putOnCard} has. */
export async function removeFromCard(path: string): Promise<void> {
  await using file = await opened(path)
  if (file === undefined) return
  await rm(path, { force: true })
  await syncDirectory(dirname(path))
}

/**
 * Gives a file on the card's FAT partition another name, which none has. The kernel writes where it
 * lies with the file, not with its folder: until then the new name leads nowhere.
 */
export async function renameOnCard(from: string, to: string): Promise<void> {
  await using file = await open(from, 'r')
  await rename(from, to)
  await file.sync()
  await syncDirectory(dirname(to))
}

/** The file, to hold its space; undefined where there is none. */
async function opened(path: string): Promise<FileHandle | undefined> {
  return await open(path, 'r').catch((err: NodeJS.ErrnoException) => {
    if (err.code === 'ENOENT') return undefined
    throw err
  })
}

const joined =
  'used to join the tailnet, and taken off the card. The device keeps its own identity.'
const kept = 'used, kept on the device, and taken off the card.'

/** Keys that add the device to the tailnet, once, and what becomes of them. */
const once: ReadonlyMap<string, string> = new Map([
  ['auth_key', joined],
  ['client_secret', joined],
])

/**
 * gatehouse.toml without its auth key or OAuth client secret, in whatever way TOML lets them be
 * written: a comment says what became of each. All else, comments and line ends included, is left
 * as the person wrote it; but for the secret itself where it stands once more, in a comment say.
 *
 * @returns undefined when there is none
 */
export function withoutAuthKey(text: string): string | undefined {
  return withoutKeys(text, once)
}

/**
 * gatehouse.toml without secrets that the device keeps by itself, likewise.
 *
 * @param keys as they are called in the file
 */
export function withoutKept(text: string, keys: readonly string[]): string | undefined {
  return withoutKeys(text, new Map(keys.map((key) => [key, kept])))
}

function withoutKeys(text: string, once: ReadonlyMap<string, string>): string | undefined {
  // One without a whole value has no place to take it out of.
  const entries = scanToml(text).entries.filter(
    ({ path, value, end }) => end > value && path.some((part) => once.has(part)),
  )
  // A key below the key (which is a mistake) goes with it.
  const outer = entries.filter(
    (entry) => !entries.some((other) => other !== entry && within(entry, other)),
  )
  const before = parsed(text)
  if (outer.length === 0) {
    const swept = before === undefined ? sweep(text) : text
    return swept === text ? undefined : swept
  }
  const secrets = outer
    .map(({ value, end }) => parsed(`x = ${text.slice(value, end)}`)?.x)
    .filter((secret): secret is string => typeof secret === 'string' && secret.length >= 12)
  const scrub = (result: string): string =>
    secrets.reduce((rest, secret) => rest.replaceAll(secret, '(taken off the card)'), result)

  // From the end, so that the places before stay right.
  let result = text
  for (const entry of outer.toReversed()) result = without(result, entry, once)
  result = scrub(result)
  if (before === undefined) return sweep(result)
  if (sameButSecrets(before, parsed(result), once)) return result

  // Never the secret: rather a comment of all that is in one expression with it.
  result = text
  for (const { expression, end } of outer.toReversed()) {
    const [first, last] = [lineStart(result, expression), lineEnd(result, end)]
    const commented = result.slice(first, last).replaceAll(/^/gm, '# ')
    result =
      `${result.slice(0, first)}# The key could not be taken out alone: what was written with ` +
      `it is a comment now.\n${commented}${result.slice(last)}`
  }
  for (const { value, end } of outer)
    result = result.replaceAll(text.slice(value, end), '(taken off the card)')
  return scrub(result)
}

/**
 * Of a file that is not TOML, and of which nothing was read: what looks like a key all the same (a
 * quotation mark is missing, a colon stands for the equals sign).
 */
function sweep(text: string): string {
  return text
    .replaceAll(
      /^([ \t]*)(["']?(?:tailnet["']?[ \t]*\.[ \t]*["']?)?(?:auth_key|client_secret)["']?[ \t]*[:=])[^\r\n]+/gm,
      '$1# $2 (taken off the card)',
    )
    .replaceAll(/(?:ts|hs)key-(?:auth|client)-[A-Za-z0-9_-]{8,}/g, '(taken off the card)')
}

const within = (inner: TomlEntry, outer: TomlEntry): boolean =>
  outer.start <= inner.start && inner.end <= outer.end

/** Offsets of a line's beginning and of its end, the line end not included. */
const lineStart = (text: string, at: number): number => text.lastIndexOf('\n', at - 1) + 1
const lineEnd = (text: string, at: number): number => {
  const end = text.indexOf('\n', at)
  if (end === -1) return text.length
  return text[end - 1] === '\r' ? end - 1 : end
}

function without(
  text: string,
  { path, start, end, inline, expression }: TomlEntry,
  once: ReadonlyMap<string, string>,
): string {
  const key = path.find((part) => once.has(part))!
  const said = `# ${key}: ${once.get(key)}`
  if (!inline) return `${text.slice(0, start)}${said}${text.slice(end)}`
  // With the comma behind it; where it is the last, with the one before.
  let [from, to] = [start, end]
  const before = /,\s*$/.exec(text.slice(0, start))
  const behind = /^\s*,[ \t]*/.exec(text.slice(end))
  if (behind !== null) to += behind[0].length
  else if (before !== null) from -= before[0].length
  else to += /^[ \t]*/.exec(text.slice(end))![0].length
  const line = lineStart(text, expression)
  const indent = /^[ \t]*/.exec(text.slice(line))![0]
  const eol = text[lineEnd(text, expression)] === '\r' ? '\r\n' : '\n'
  return `${text.slice(0, line)}${indent}${said}${eol}${text.slice(line, from)}${text.slice(to)}`
}

function parsed(text: string): Record<string, unknown> | undefined {
  try {
    return parse(text.replace(/^\uFEFF/, ''))
  } catch {
    return undefined
  }
}

/** Whether one document says what another says, but for the keys that are gone. */
function sameButSecrets(
  before: unknown,
  after: unknown,
  once: ReadonlyMap<string, string>,
): boolean {
  const strip = (value: unknown): unknown => {
    if (Array.isArray(value)) return value.map(strip)
    if (typeof value !== 'object' || value === null || value instanceof Date) return value
    return Object.fromEntries(
      Object.entries(value)
        .filter(([name]) => !once.has(name))
        .map(([name, inner]) => [name, strip(inner)])
        // A table that held nothing else may be gone with it.
        .filter(([, inner]) => typeof inner !== 'object' || JSON.stringify(inner) !== '{}'),
    )
  }
  return after !== undefined && isDeepStrictEqual(strip(before), strip(after))
}
