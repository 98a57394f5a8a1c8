/**
 * An npm registry of all that npm has in its cache (fetch.ts): answers each address with what the
 * registry answered there, so that a machine in the lab resolves and installs as it would outside.
 * Prints "up" when it listens.
 *
 * Usage: node test/nodes/registry.ts PORT
 */
import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import path from 'node:path'

interface Entry {
  key: string
  integrity: string
  metadata?: { url?: string; resHeaders?: Record<string, string> }
}
interface Cacache {
  ls(cache: string): Promise<Record<string, Entry>>
  get: { byDigest(cache: string, integrity: string): Promise<Buffer> }
}

const root = path.resolve(import.meta.dirname, '../..')
const cache = path.join(root, 'out/cache/nodes/npm/_cacache')
const npm = path.join(
  root,
  `out/cache/node-red-${process.arch}/node_modules/npm/node_modules/cacache/package.json`,
)
const cacache = createRequire(npm)('cacache') as Cacache

const entries = new Map<string, Entry>()
for (const entry of Object.values(await cacache.ls(cache))) {
  const url = URL.parse(entry.metadata?.url ?? entry.key.replace(/^.*?request-cache:/, ''))
  if (url !== null) entries.set(decodeURIComponent(url.pathname), entry)
}

createServer((request, response) => {
  void (async () => {
    const { pathname } = new URL(request.url!, 'http://registry')
    const entry = entries.get(decodeURIComponent(pathname))
    if (request.method !== 'GET' || entry === undefined) {
      console.log(`404 ${request.method} ${request.url}`)
      response.writeHead(404, { 'content-type': 'application/json' }).end('{"error":"Not found"}')
      return
    }
    const content = await cacache.get.byDigest(cache, entry.integrity)
    if (pathname.endsWith('.tgz')) {
      response.setHeader('content-type', 'application/octet-stream').end(content)
      return
    }
    const document = JSON.parse(content.toString()) as {
      versions?: Record<string, { dist: { tarball: string } }>
    }
    for (const { dist } of Object.values(document.versions ?? {}))
      dist.tarball = `http://${request.headers.host}${new URL(dist.tarball).pathname}`
    response.setHeader('content-type', 'application/json').end(JSON.stringify(document))
  })().catch((error: unknown) => response.writeHead(500).end(String(error)))
}).listen(Number(process.argv[2]), () => console.log('up'))
