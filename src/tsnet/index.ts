/**
 * Tailscale's tsnet for Node.js, compiled to WebAssembly: a process becomes a node of a tailnet, with direct UDP paths and
 * without a native add-on. Needs Node.js 26 (WebAssembly JSPI).
 */
export { Conn, Listener } from './conn.ts';
export { TsnetError, type TsnetErrorCode } from './errors.ts';
export { Server, type WaitOptions } from './server.ts';
export type { NodeStatus, ServerOptions, Stats, Status, WhoIs } from './types.ts';
