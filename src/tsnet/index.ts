/**
 * Tailscale's tsnet for Node.js, compiled to WebAssembly: a process becomes a node of a tailnet,
 * with direct UDP paths and without a native add-on. Needs Node.js 26.1 (WebAssembly JSPI): an
 * older one gets TSNET_NODE_VERSION at import.
 */
import './check.ts'

export { Conn } from './conn.ts'
export { TsnetError, type TsnetErrorCode } from './errors.ts'
export type { ConnectorOptions, Dispatcher } from './http.ts'
export { Listener } from './listener.ts'
export { type CertPair, LocalAnswer } from './local.ts'
export type { Loopback } from './loopback.ts'
export { PacketSocket, type RemoteInfo } from './packet.ts'
export type { WaitOptions } from './calls.ts'
export { Server } from './server.ts'
export { TLSListener } from './tls.ts'
export type {
  CommonOptions,
  ConnectionDebug,
  HealthWarning,
  KeyExpiry,
  Network,
  NodeStatus,
  ServerOptions,
  StateStore,
  Stats,
  Status,
  WhoIs,
} from './types.ts'
export type { Notice } from './watch.ts'
