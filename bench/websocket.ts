/**
 * WebSocket load. `echo`: CONNECTIONS clients, each with 8 messages of 64 bytes under way, for some
 * seconds; prints messages a second. `idle`: opens CONNECTIONS, says so, and waits for the end of
 * its input.
 *
 * Usage: node bench/websocket.ts echo|idle PORT CONNECTIONS (wss://gatehouse.tail.ts.net:PORT on
 * 127.0.0.1, not verified)
 */
import { once } from 'node:events'
import { connect } from 'node:tls'
import { WebSocket } from 'ws'

const [mode, port, count] = process.argv.slice(2) as [string, string, string]
const seconds = 4
const name = 'gatehouse.tail.ts.net'
let messages = 0

async function open(): Promise<WebSocket> {
  const ws = new WebSocket(`wss://${name}/comms`, {
    perMessageDeflate: false,
    createConnection: () =>
      connect({
        host: '127.0.0.1',
        port: Number(port),
        servername: name,
        rejectUnauthorized: false,
      }),
  })
  ws.on('error', (err) => {
    console.error(err.message)
    process.exit(1)
  })
  await once(ws, 'open')
  return ws
}

const sockets: WebSocket[] = []
while (sockets.length < Number(count))
  sockets.push(
    ...(await Promise.all(
      Array.from({ length: Math.min(20, Number(count) - sockets.length) }, open),
    )),
  )
if (mode === 'idle') {
  console.log('open')
  process.stdin.resume()
  await once(process.stdin, 'end')
} else {
  const payload = Buffer.alloc(64, 'x')
  const begun = performance.now()
  for (const ws of sockets) {
    ws.on('message', () => {
      messages++
      ws.send(payload)
    })
    for (let i = 0; i < 8; i++) ws.send(payload)
  }
  await new Promise((resolve) => setTimeout(resolve, seconds * 1_000))
  console.log((messages / (performance.now() - begun)) * 1_000)
}
process.exit(0)
