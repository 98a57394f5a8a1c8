/**
 * Writes docs/nodes.md from what runs of nodes.test.ts have kept in out/nodes. What has nothing
 * there keeps what the page said of it: it was tried from another checkout, or before.
 *
 * Usage: node test/nodes/report.ts
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { candidates } from './list.ts'
import type { Outcome } from './shop.ts'

/** What a run keeps of a package. */
export interface Tried extends Outcome {
  /** Most memory of Node-RED's unit until then, npm included. Bytes. */
  peak: number
}

/** What the page says of a package. */
interface Row {
  version: string
  verdict: string
  /** `image`, `image, arm64`, `lab`; empty where it has not been tried. */
  where: string
}

const root = path.resolve(import.meta.dirname, '../..')
const page = path.join(root, 'docs/nodes.md')
const untried: Row = { version: '', verdict: 'not tried yet', where: '' }

/** The rows of the page as it is, by the package's name. */
function before(): Map<string, Row> {
  const text = existsSync(page) ? readFileSync(page, 'utf8') : ''
  return new Map(
    text
      .split('\n')
      .map((line) => line.split(' | '))
      .filter((cells) => cells.length === 5)
      .map(([name, version, verdict, , tried]) => [
        name!.replace(/^\| /, ''),
        { version: version!, verdict: verdict!, where: tried!.replace(/(?:; .*)? \|$/, '') },
      ]),
  )
}

function verdictOf({ said, types }: Outcome): string {
  if (said.some((text) => text.includes('already registered'))) return 'is part of Node-RED'
  const all = said.join('; ').replaceAll(/\s+/g, ' ').replaceAll('|', '/')
  if (types.length === 0) return `no: ${all.slice(0, 400)}`
  return said.length === 0 ? 'yes' : `in part: ${all.slice(0, 200)}`
}

function write(): void {
  const kept = before()
  const file = (arch: string): Record<string, Tried> => {
    const name = path.join(root, `out/nodes/${arch}.json`)
    return existsSync(name) ? JSON.parse(readFileSync(name, 'utf8')) : {}
  }
  const [arm64, amd64, lab] = [file('arm64'), file('amd64'), file('lab')]
  const rowOf = (name: string): Row => {
    const [got, where] =
      [
        [arm64[name], 'image, arm64'] as const,
        [amd64[name], 'image'] as const,
        // The image says more than the lab, whenever that was.
        ...(kept.get(name)?.where.startsWith('image') ? [] : [[lab[name], 'lab'] as const]),
      ].find(([tried]) => tried !== undefined) ?? []
    if (got === undefined || where === undefined) return kept.get(name) ?? untried
    return { version: got.version ?? '', verdict: verdictOf(got), where }
  }
  const counts = { flashed: 0, settings: 0, not: 0, untried: 0, booted: 0 }
  const rows = candidates.map(({ name, settings, needs, used }) => {
    const { version, verdict, where } = rowOf(name)
    if (verdict === untried.verdict) counts.untried++
    else if (verdict.startsWith('no: ')) counts.not++
    else if (settings === undefined || verdict === 'is part of Node-RED') counts.flashed++
    else counts.settings++
    if (where.startsWith('image')) counts.booted++
    const more = [settings === undefined ? '' : `\`${settings}\``, needs ?? ''].filter(Boolean)
    const tried = [where, used === undefined ? '' : `used in the lab: ${used}`].filter(Boolean)
    return `| ${[name, version, verdict, more.join(', '), tried.join('; ')].join(' | ')} |`
  })
  writeFileSync(
    page,
    [
      '# Nodes that people install',
      '',
      'What became of each when it was asked for through the editor. `make test-nodes` writes this page:',
      "on the booted image (`image`), or with the image's Node-RED and npm and the gateway, without its",
      `sandbox (\`lab\`). ${counts.booted} have been tried on the image. "Yes" is: installs, and Node-RED loads its nodes;`,
      'what they do is tried where the last column says so, against devices that speak their protocols.',
      '',
      `${counts.flashed} install and load with \`allow = ["palette"]\` alone, ${counts.settings} with the settings`,
      `named, ${counts.not} do not, ${counts.untried} have not been tried.`,
      '',
      '| package | version | installs and loads | settings beside `palette`; what else it needs | tried |',
      '|---|---|---|---|---|',
      ...rows,
      '',
    ].join('\n'),
  )
}

if (import.meta.main) write()
