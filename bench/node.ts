/**
 * The program that bench/tsnet.ts measures on the bindings; its twin, natively compiled, is
 * test/lab/load.go. Argument: the Server's options as JSON. When it is in the tailnet it prints its
 * addresses, and when the module was loaded and began to join (ms from the start of the process),
 * as one JSON line. Ends with its standard input.
 */
import { Server, type Conn, type ServerOptions } from '@gatehouse/tsnet'

const server = new Server(JSON.parse(process.argv[2]!) as ServerOptions)
process.stdin.on('end', () => void server.close().then(() => process.exit(0))).resume()
await server.start()
const loadedMs = performance.now()
const { tailscaleIPs: ips } = await server.up()

async function serve(port: number, onConnection: (conn: Conn) => void): Promise<void> {
  const listener = await server.listen(port)
  listener.on('connection', (conn) => {
    conn.on('error', () => {}) // the load ends when it likes
    onConnection(conn)
  })
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
