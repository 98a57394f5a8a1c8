/** The gateway as it is, on the bindings, for bench/tailnet.ts. Argument: JSON, see {@link Options}. Prints its name when it serves; ends with its input. */
import { randomBytes } from 'node:crypto'
import { copyFileSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { pino } from 'pino'
import { defaults } from '../src/config/config.ts'
import { Gateway } from '../src/gateway/gateway.ts'
import { Server } from '../src/tsnet/index.ts'

export interface Options { dir: string, hostname: string, controlURL: string, authKey: string, origin: string, pem: string, name: string }

const { dir, hostname, controlURL, authKey, origin, pem, name } = JSON.parse(process.argv[2]!) as Options
mkdirSync(join(dir, 'tls'), { recursive: true })
copyFileSync(pem, join(dir, 'tls', `${name}.pem`))
const gateway = new Gateway({
  version: 'bench',
  log: pino({ base: null }, pino.destination({ dest: join(dir, 'log'), sync: true })),
  tls: join(dir, 'tls'),
  runtime: join(dir, 'run'),
  nodeRed: origin,
  channelKey: randomBytes(32),
  admin: { path: join(dir, 'admin.sock') },
  certs: { path: join(dir, 'certs.sock') },
  onState: (line) => { if (line.startsWith('serving')) console.log(JSON.stringify({ name })) },
})
const none = { connections: 0, connectionsPerPeer: 0, newConnections: 0, newConnectionsPerPeer: 0, requests: 0, requestsPerPeer: 0 }
gateway.configure({ ...defaults(), limits: { ...defaults().limits, ...none } })
// The lab's users all own their nodes.
process.stdin.on('end', () => { void gateway.close(100).then(() => process.exit(0)) }).resume()
await gateway.start()
await gateway.join({ controlURL, hasAuthKey: true, create: () => new Server({ dir: join(dir, 'state'), hostname, controlURL, authKey }) })
