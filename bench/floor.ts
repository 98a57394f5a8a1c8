/**
 * What Node.js itself takes: TLS, and WebSockets piped to a unix socket after the upgrade, with no
 * check of anything. For bench/gateway.ts to tell the gateway's memory from it.
 *
 * Usage: node bench/floor.ts PORT SOCKET PEM   (port, upstream's socket, chain and key)
 */
import { readFileSync } from 'node:fs'
import { createServer } from 'node:https'
import { connect } from 'node:net'

const [port, path, file] = process.argv.slice(2) as [string, string, string]
const pem = readFileSync(file)
const server = createServer({ cert: pem, key: pem })
server.on('upgrade', (request, socket) => {
  const origin = connect(path)
  origin.write(
    `${request.method} ${request.url} HTTP/1.1\r\n` +
      `${request.rawHeaders.map((text, i) => text + (i % 2 === 0 ? ': ' : '\r\n')).join('')}\r\n`,
  )
  for (const [from, to] of [
    [socket, origin],
    [origin, socket],
  ] as const)
    from.on('error', () => to.destroy()).pipe(to)
})
server.listen({ host: '127.0.0.1', port: Number(port), backlog: 4_096 })
process.once('SIGTERM', () => process.exit(0))
