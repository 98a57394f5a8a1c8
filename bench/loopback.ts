/**
 * The gateway as it is, but for the tailnet, in whose place is TCP on 127.0.0.1: for bench/gateway.ts to measure beside others.
 *
 * Usage: node bench/loopback.ts PORT SOCKET PEM DIR   (port, upstream's socket, chain and key of gatehouse.tail.ts.net, directory for what it writes)
 */
import { EventEmitter } from 'node:events'
import { copyFileSync, mkdirSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { randomBytes } from 'node:crypto'
import { pino } from 'pino'
import { defaults } from '../src/config/config.ts'
import { Gateway } from '../src/gateway/gateway.ts'
import type { TailnetListener } from '../src/gateway/tailnet.ts'
import { LoopbackTailnet } from '../test/unit/support/tailnet.ts'

const [port, socket, pem, directory] = process.argv.slice(2) as [string, string, string, string]

/** Port 443 is the one given; port 80 is any. */
class TCP extends LoopbackTailnet {
  override async listen (wanted: number): Promise<never> {
    const server = createServer({ allowHalfOpen: true, noDelay: true })
    const listener: TailnetListener = Object.assign(new EventEmitter(), { close: async () => { server.close() } })
    server.on('connection', (conn) => listener.emit('connection', conn))
    await new Promise<void>((resolve) => server.listen({ host: '127.0.0.1', port: wanted === 443 ? Number(port) : 0, backlog: 4_096 }, resolve))
    return listener as never
  }
}

mkdirSync(join(directory, 'tls'), { recursive: true })
copyFileSync(pem, join(directory, 'tls', 'gatehouse.tail.ts.net.pem'))
const gateway = new Gateway({
  version: 'bench',
  // The access log is on, as on the appliance.
  log: pino({ base: null }, pino.destination({ dest: join(directory, 'log'), sync: true })),
  tls: join(directory, 'tls'),
  runtime: join(directory, 'run'),
  nodeRed: socket,
  channelKey: randomBytes(32),
  admin: { path: join(directory, 'admin.sock') },
  certs: { path: join(directory, 'certs.sock') },
})
// One peer makes all the load here: its limits are what would be measured.
const none = { connections: 0, connectionsPerPeer: 0, newConnections: 0, newConnectionsPerPeer: 0, requests: 0, requestsPerPeer: 0, openRequestsPerPeer: 0 }
gateway.configure({ ...defaults(), limits: { ...defaults().limits, ...none } })
await gateway.start()
await gateway.join({ create: () => new TCP(), controlURL: undefined, hasAuthKey: true })
process.once('SIGTERM', () => { void gateway.close(100).then(() => process.exit(0)) })
