/**
 * The gateway as it is, but for the tailnet, in whose place is TCP on 127.0.0.1: for
 * bench/gateway.ts to measure beside others.
 *
 * Usage: node bench/loopback.ts PORT SOCKET PEM DIR (port, upstream's socket, chain and key of
 * gatehouse.tail.ts.net, directory for what it writes)
 */
import { EventEmitter } from 'node:events'
import { createServer } from 'node:net'
import type { TailnetListener } from '../src/gateway/tailnet/tailnet.ts'
import { LoopbackTailnet } from '../test/unit/support/tailnet.ts'
import { subject } from './subject.ts'

const [port, socket, pem, directory] = process.argv.slice(2) as [string, string, string, string]

/** Port 443 is the one given; port 80 is any. */
class TCP extends LoopbackTailnet {
  override async listen(wanted: number): Promise<never> {
    const server = createServer({ allowHalfOpen: true, noDelay: true })
    const listener: TailnetListener = Object.assign(new EventEmitter(), {
      close: async () => {
        server.close()
      },
    })
    server.on('connection', (conn) => listener.emit('connection', conn))
    await new Promise<void>((resolve) =>
      server.listen(
        { host: '127.0.0.1', port: wanted === 443 ? Number(port) : 0, backlog: 4_096 },
        resolve,
      ),
    )
    return listener as never
  }
}

const gateway = subject(directory, pem, 'gatehouse.tail.ts.net', socket)
await gateway.start()
await gateway.join({ create: () => new TCP(), controlURL: undefined, hasAuthKey: true })
process.once('SIGTERM', () => {
  void gateway.close(100).then(() => process.exit(0))
})
