/**
 * A static web server with ranges (RFC 9110, section 14), as an update is offered by: run in a
 * namespace of the lab.
 *
 * Usage: node static-server.ts FOLDER ADDRESS PORT prints "listening" when it is, then one line a
 * request: method, path, range
 */
import { createReadStream } from 'node:fs'
import { stat } from 'node:fs/promises'
import { createServer } from 'node:http'
import path from 'node:path'
import { pipeline } from 'node:stream/promises'

const [folder, address, port] = process.argv.slice(2)
if (!folder || !address || !port) {
  console.error('usage: static-server.ts FOLDER ADDRESS PORT')
  process.exit(2)
}
const server = createServer(async (req, res) => {
  const name = path.join(
    path.resolve(folder),
    path.posix.normalize(`/${decodeURIComponent(req.url ?? '')}`),
  )
  const size = await stat(name).then(
    (s) => (s.isFile() ? s.size : undefined),
    () => undefined,
  )
  const from = Number(/^bytes=(\d+)-$/.exec(req.headers.range ?? '')?.[1] ?? 0)
  console.log(`${req.method} ${req.url} ${from}`)
  if (size === undefined) return void res.writeHead(404).end()
  if (from > 0 && from >= size)
    return void res.writeHead(416, { 'content-range': `bytes */${size}` }).end()
  res.writeHead(from > 0 ? 206 : 200, {
    'content-length': size - from,
    ...(from > 0 ? { 'content-range': `bytes ${from}-${size - 1}/${size}` } : {}),
  })
  await pipeline(createReadStream(name, { start: from }), res).catch(() => {}) // the client has gone
})
server.listen(Number(port), address, () => console.log('listening'))
