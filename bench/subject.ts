/** The gateway as it is measured: its access log on, as on the appliance, and without limits. */
import { randomBytes } from 'node:crypto'
import { copyFileSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { pino } from 'pino'
import { defaults } from '../src/config/config.ts'
import { Gateway } from '../src/gateway/gateway.ts'
import type { GatewayOptions } from '../src/gateway/gateway.ts'

// One peer makes all the load: its limits are what would be measured.
const unlimited = {
  connections: 0,
  connectionsPerPeer: 0,
  newConnections: 0,
  newConnectionsPerPeer: 0,
  requests: 0,
  requestsPerPeer: 0,
  openRequestsPerPeer: 0,
}

/**
 * Makes it; the caller starts it.
 *
 * @param directory for all that it writes
 * @param pem chain and key of `name`
 * @param origin unix socket of the upstream
 */
export function subject(
  directory: string,
  pem: string,
  name: string,
  origin: string,
  options: Pick<GatewayOptions, 'onState'> = {},
): Gateway {
  mkdirSync(join(directory, 'tls'), { recursive: true })
  copyFileSync(pem, join(directory, 'tls', `${name}.pem`))
  const gateway = new Gateway({
    version: 'bench',
    log: pino({ base: null }, pino.destination({ dest: join(directory, 'log'), sync: true })),
    tls: join(directory, 'tls'),
    runtime: join(directory, 'run'),
    nodeRed: origin,
    channelKey: randomBytes(32),
    // The origins here know of no editor below a path of its own.
    editorRoot: '/',
    admin: { path: join(directory, 'admin.sock') },
    certs: { path: join(directory, 'certs.sock') },
    ...options,
  })
  gateway.configure({ ...defaults(), limits: { ...defaults().limits, ...unlimited } })
  return gateway
}
