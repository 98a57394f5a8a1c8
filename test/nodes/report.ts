/**
 * Writes docs/nodes.md from what runs of nodes.test.ts have kept in out/nodes.
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

const root = path.resolve(import.meta.dirname, '../..')

function write(): void {
  const file = (arch: string): Record<string, Tried> => {
    const name = path.join(root, `out/nodes/${arch}.json`)
    return existsSync(name) ? JSON.parse(readFileSync(name, 'utf8')) : {}
  }
  const tried = { amd64: file('amd64'), arm64: file('arm64'), lab: file('lab') }
  const booted = candidates.filter(({ name }) => tried.arm64[name] ?? tried.amd64[name]).length
  const counts = { flashed: 0, settings: 0, not: 0, untried: 0 }
  const rows = candidates.map(({ name, settings, needs, used }) => {
    const got = tried.arm64[name] ?? tried.amd64[name] ?? tried.lab[name]
    let where = 'lab'
    if (tried.arm64[name] !== undefined) where = 'image, arm64'
    else if (tried.amd64[name] !== undefined) where = 'image'
    let verdict = 'not tried yet'
    if (got === undefined) counts.untried++
    else if (got.said.some((text) => text.includes('already registered'))) {
      counts.flashed++
      verdict = 'is part of Node-RED'
    } else if (got.types.length === 0) {
      counts.not++
      verdict = `no: ${got.said.join('; ').replaceAll(/\s+/g, ' ').replaceAll('|', '/').slice(0, 400)}`
    } else {
      if (settings === undefined) counts.flashed++
      else counts.settings++
      verdict = got.said.length === 0 ? 'yes' : `in part: ${got.said.join('; ').slice(0, 200)}`
    }
    const more = [settings === undefined ? '' : `\`${settings}\``, needs ?? ''].filter(Boolean)
    return (
      `| ${name} | ${got?.version ?? ''} | ${verdict} | ${more.join(', ')} | ` +
      `${got === undefined ? '' : where}${used === undefined ? '' : `; used in the lab: ${used}`} |`
    )
  })
  writeFileSync(
    path.join(root, 'docs/nodes.md'),
    [
      '# Nodes that people install',
      '',
      'What became of each when it was asked for through the editor. `make test-nodes` writes this page:',
      "on the booted image (`image`), or with the image's Node-RED and npm and the gateway, without its",
      `sandbox (\`lab\`). ${booted} have been tried on the image. "Yes" is: installs, and Node-RED loads its nodes;`,
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
