/**
 * What changed between two builds: packages new, gone and of another version, and the advisories
 * that Debian's changelogs say are closed by it. `make rebuild` ends with it.
 *
 * Usage: node tools/changes.ts OLD.packages.txt NEW.packages.txt [DIRECTORY]
 * DIRECTORY: where the new packages' .deb files are. Default:
 * out/cache/packages/cache/apt/archives, where a build leaves them.
 */
import { execFile } from 'node:child_process'
import { readFile, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { gunzipSync } from 'node:zlib'

/** One package that is not the same in both; no `before`: it is new, no `after`: it is gone. */
export interface Change {
  /** As in a package URL: deb, npm, golang. */
  type: string
  name: string
  before?: string
  after?: string
}

/** Versions by type and name. npm may have one package in several versions: they count together. */
function versions(text: string): Map<string, string> {
  const found = new Map<string, string[]>()
  for (const line of text.trim().split('\n')) {
    const [type, name, version] = line.split('\t')
    if (type === undefined || name === undefined || version === undefined)
      throw new Error(
        `changes: ${JSON.stringify(line)} is no line of a packages.txt: type, name and version with tabs between`,
      )
    found.set(`${type}\t${name}`, [...(found.get(`${type}\t${name}`) ?? []), version])
  }
  return new Map([...found].map(([key, list]) => [key, list.toSorted().join(' ')]))
}

/** The differences of two packages.txt (tools/release.ts), by type and name. */
export function changes(before: string, after: string): Change[] {
  const [old, now] = [versions(before), versions(after)]
  return [...new Set([...old.keys(), ...now.keys()])].toSorted().flatMap((key) => {
    if (old.get(key) === now.get(key)) return []
    const [type, name] = key.split('\t') as [string, string]
    return [
      {
        type,
        name,
        ...(old.has(key) ? { before: old.get(key)! } : {}),
        ...(now.has(key) ? { after: now.get(key)! } : {}),
      },
    ]
  })
}

/**
 * The advisories (CVE, DSA, GHSA) that a Debian changelog (deb-changelog(5)) names in the entries
 * above version `before`; undefined when it has no such entry, and so cannot tell. A rebuild
 * without a change of source (`+b1`) has its source's changelog.
 */
export function advisories(changelog: string, before: string): string[] | undefined {
  const source = (version: string): string => version.replace(/\+b\d+$/, '')
  const found = new Set<string>()
  for (const line of changelog.split('\n')) {
    const version = /^\S+ \(([^)]+)\) /.exec(line)?.[1]
    if (version !== undefined && source(version) === source(before))
      return [...found].toSorted((a, b) => a.localeCompare(b, 'en', { numeric: true }))
    for (const [name] of line.matchAll(
      /\b(?:CVE-\d{4}-\d{4,}|DSA-\d+-\d+|GHSA-[0-9a-z]{4}-[0-9a-z]{4}-[0-9a-z]{4})\b/g,
    ))
      found.add(name)
  }
  return undefined
}

/**
 * The changelog in a .deb; undefined where it has none of its own (its directory in /usr/share/doc
 * may be a link to another package's).
 */
async function changelogOf(deb: string, name: string): Promise<string | undefined> {
  const run = promisify(execFile)
  for (const file of ['changelog.Debian.gz', 'changelog.gz']) {
    try {
      const { stdout } = await run(
        'sh',
        [
          '-c',
          'dpkg-deb --fsys-tarfile "$1" | tar -xO "./usr/share/doc/$2/$3" 2>/dev/null',
          'sh',
          deb,
          name,
          file,
        ],
        { encoding: 'buffer', maxBuffer: 1 << 26 },
      )
      if (stdout.length > 0) return gunzipSync(stdout).toString('utf8')
    } catch {
      /* not under this name */
    }
  }
  return undefined
}

/** The report, a line a package. @param debs where the .deb files of the new packages are */
export async function report(before: string, after: string, debs: string): Promise<string> {
  const files = await readdir(debs).catch(() => [])
  const lines: string[] = []
  const closed = new Map<string, string[]>()
  const all = changes(before, after)
  for (const { type, name, before: old, after: now } of all) {
    let note = ''
    if (type === 'deb' && old !== undefined && now !== undefined) {
      // apt writes the epoch's colon as %3a.
      const deb = files.find((file) => file.startsWith(`${name}_${now.replaceAll(':', '%3a')}_`))
      const changelog = deb === undefined ? undefined : await changelogOf(join(debs, deb), name)
      const found = changelog === undefined ? undefined : advisories(changelog, old)
      if (found === undefined) note = '  (its changelog does not tell)'
      else if (found.length > 0) note = `  closes ${found.join(', ')}`
      for (const advisory of found ?? [])
        closed.set(advisory, [...(closed.get(advisory) ?? []), name])
    }
    if (old === undefined) lines.push(`+ ${type} ${name} ${now}`)
    else if (now === undefined) lines.push(`- ${type} ${name} ${old}`)
    else lines.push(`  ${type} ${name} ${old} → ${now}${note}`)
  }
  const advisory = [...closed.keys()].toSorted((a, b) =>
    a.localeCompare(b, 'en', { numeric: true }),
  )
  lines.push(
    all.length === 0
      ? 'No package has changed.'
      : `${all.length} packages have changed; ` +
          `${advisory.length === 0 ? 'their changelogs name no advisory' : `advisories closed: ${advisory.join(', ')}`}.`,
  )
  return `${lines.join('\n')}\n`
}

if (import.meta.main) {
  const [
    before,
    after,
    debs = join(import.meta.dirname, '../out/cache/packages/cache/apt/archives'),
  ] = process.argv.slice(2)
  if (before === undefined || after === undefined) {
    console.error('usage: changes.ts OLD.packages.txt NEW.packages.txt [DIRECTORY OF .deb FILES]')
    process.exitCode = 2
  } else {
    process.stdout.write(
      await report(await readFile(before, 'utf8'), await readFile(after, 'utf8'), debs),
    )
  }
}
