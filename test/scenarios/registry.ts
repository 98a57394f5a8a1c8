/**
 * An npm registry of one package, as far as `npm install` asks one
 * (https://github.com/npm/registry/blob/main/docs/REGISTRY-API.md): packs the folder given, answers
 * with what there is of it, and prints "up" when it listens, then a line for each request.
 *
 * Usage: node registry.ts FOLDER PORT
 */
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import path from 'node:path'

const [folder, port] = process.argv.slice(2)
if (!folder || !port) {
  console.error('usage: registry.ts FOLDER PORT')
  process.exit(2)
}
const made = mkdtempSync(path.join(tmpdir(), 'gh-registry-'))
const file = execFileSync(
  'npm',
  [
    'pack',
    '--silent',
    '--ignore-scripts',
    '--offline',
    '--pack-destination',
    made,
    path.resolve(folder),
  ],
  { encoding: 'utf8' },
)
  .trim()
  .split('\n')
  .at(-1)!
const tarball = readFileSync(path.join(made, file))
rmSync(made, { recursive: true })
const manifest = JSON.parse(readFileSync(path.join(folder, 'package.json'), 'utf8')) as {
  name: string
  version: string
}

createServer((request, response) => {
  console.log(`${request.method} ${request.url}`)
  const { pathname } = new URL(request.url!, 'http://registry')
  if (pathname === `/-/${file}`)
    return response.setHeader('content-type', 'application/octet-stream').end(tarball)
  if (pathname !== `/${manifest.name}`)
    return response
      .writeHead(404, { 'content-type': 'application/json' })
      .end('{"error":"Not found"}')
  const dist = {
    tarball: `http://${request.headers.host}/-/${file}`,
    integrity: `sha512-${createHash('sha512').update(tarball).digest('base64')}`,
  }
  return response.setHeader('content-type', 'application/json').end(
    JSON.stringify({
      name: manifest.name,
      'dist-tags': { latest: manifest.version },
      versions: { [manifest.version]: { ...manifest, dist } },
    }),
  )
}).listen(Number(port), () => console.log('up'))
