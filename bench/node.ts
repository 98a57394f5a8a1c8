/**
 * The program that bench/tsnet.ts measures on the bindings; its twin, natively compiled, is
 * test/lab/load.go. Argument: the Server's options as JSON; with `tun` it serves on the kernel's
 * ports, having given the device its addresses. When it is in the tailnet it prints its
 * addresses, and when the module was loaded and began to join (ms from the start of the process),
 * as one JSON line. Ends with its standard input.
 */
import { execFileSync } from 'node:child_process'
import net from 'node:net'
import type { Duplex } from 'node:stream'
import { Server, type ServerOptions } from '@gatehouse/tsnet'

const options = JSON.parse(process.argv[2]!) as ServerOptions
const server = new Server(options)
process.stdin.on('end', () => void server.close().then(() => process.exit(0))).resume()
await server.start()
const loadedMs = performance.now()
const { tailscaleIPs: ips } = await server.up()

if (options.tun) {
  const ip = (...args: string[]): unknown => execFileSync('ip', args)
  ip('link', 'set', options.tun, 'mtu', '1280', 'up')
  for (const address of ips) ip('address', 'add', address, 'dev', options.tun)
  ip('route', 'add', '100.64.0.0/10', 'dev', options.tun)
  ip('route', 'add', 'fd7a:115c:a1e0::/48', 'dev', options.tun)
}

async function serve(port: number, onConnection: (conn: Duplex) => void): Promise<void> {
  const connected = (conn: Duplex): void => {
    conn.on('error', () => {}) // the load ends when it likes
    onConnection(conn)
  }
  if (!options.tun) {
    ;(await server.listen(port)).on('connection', connected)
    return
  }
  // The kernel has the packets, and so the port.
  const listener = net.createServer({ allowHalfOpen: true, noDelay: true }, connected)
  await new Promise<void>((resolve) => listener.listen(port, resolve))
}

// Echo.
await serve(7, (conn) => conn.pipe(conn))
// Sink: reads to the end, then answers with the number of bytes.
await serve(9, (conn) => {
  let bytes = 0
  conn.on('data', (part: Buffer) => (bytes += part.length))
  conn.on('end', () => {
    const answer = Buffer.alloc(8)
    answer.writeBigUInt64BE(BigInt(bytes))
    conn.end(answer)
  })
})
// Source: gets a number of milliseconds, sends for that long.
const block = Buffer.alloc(64 << 10)
await serve(19, (conn) => {
  conn.once('data', (ask: Buffer) => {
    const end = performance.now() + ask.readUInt32BE()
    const fill = (): void => {
      while (performance.now() < end) if (!conn.write(block)) return
      conn.end()
    }
    conn.on('drain', fill)
    fill()
  })
})
console.log(JSON.stringify({ ips, loadedMs }))
