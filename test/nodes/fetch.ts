/**
 * Puts packages and all that they need into out/cache/nodes, by the image's npm, from the registry
 * that this machine's npm uses: what registry.ts then serves in the lab, where nothing leaves. What is
 * there already is not asked for again.
 *
 * Usage: node test/nodes/fetch.ts NAME… (`quick`: those of `make test`; `all`: the list)
 */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { candidates } from './list.ts'

const root = path.resolve(import.meta.dirname, '../..')
const cache = path.join(root, 'out/cache/nodes')
// The image's, by its Node.js: which version of a package it takes depends on both.
const npm = path.join(root, `out/cache/node-red-${process.arch}/node_modules/npm/bin/npm-cli.js`)
if (!existsSync(npm)) {
  console.error(`${npm} is not there: an image build fetches it`)
  process.exit(1)
}
const asked = process.argv.slice(2).flatMap((word) => {
  if (word === 'all') return candidates.map(({ name }) => name)
  if (word === 'quick') return candidates.flatMap(({ name, quick }) => (quick ? name : []))
  return word
})
mkdirSync(cache, { recursive: true })
const list = path.join(cache, 'fetched.json')
/** What became of each: its version, or why it is not there. */
const fetched: Record<string, { version?: string; missing?: string }> = existsSync(list)
  ? JSON.parse(readFileSync(list, 'utf8'))
  : {}
for (const name of asked) {
  const version = candidates.find((candidate) => candidate.name === name)?.version
  const had = fetched[name]?.version
  if (had !== undefined && (version ?? had) === had) continue
  const into = mkdtempSync(path.join(tmpdir(), 'gh-nodes-'))
  writeFileSync(path.join(into, 'package.json'), '{"private":true}')
  // As Node-RED asks npm (@node-red/registry), for both processors' optional parts.
  for (const cpu of ['x64', 'arm64']) {
    const { status, stderr } = spawnSync(
      process.execPath,
      [
        npm,
        'install',
        `--cache=${path.join(cache, 'npm')}`,
        '--os=linux',
        `--cpu=${cpu}`,
        '--libc=glibc',
        '--ignore-scripts',
        '--no-audit',
        '--no-fund',
        '--omit=dev',
        '--prefer-offline',
        '--loglevel=error',
        // What is not there is said within seconds.
        '--fetch-retries=1',
        '--',
        version === undefined ? name : `${name}@${version}`,
      ],
      { cwd: into, encoding: 'utf8' },
    )
    if (status !== 0) {
      const missing =
        stderr.split('\n').find((line) => /code|404/.test(line)) ?? stderr.slice(0, 200)
      fetched[name] = { missing }
      break
    }
    fetched[name] = {
      version: JSON.parse(
        readFileSync(path.join(into, 'node_modules', name, 'package.json'), 'utf8'),
      ).version,
    }
  }
  rmSync(into, { recursive: true })
  console.log(`nodes: ${name} ${fetched[name]?.version ?? fetched[name]?.missing}`)
  writeFileSync(list, JSON.stringify(fetched, null, 2))
}
