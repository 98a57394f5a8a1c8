import type { EventEmitter } from 'node:events'
import type { Duplex } from 'node:stream'
import type { Status, WhoIs } from '@gatehouse/tsnet'

/** A connection from a tailnet peer. */
export interface TailnetConn extends Duplex {
  remoteAddress: string
  remotePort: number
}

/** A port of the node on the tailnet; emits `connection` with a {@link TailnetConn}. */
export interface TailnetListener extends EventEmitter {
  close: () => Promise<void>
}

/**
 * What the gateway needs of a tailnet: the part of `@gatehouse/tsnet`'s Server it uses. Emits
 * `state` (backend state), `loginURL` (URL) and `error` (unusable from now on).
 */
export interface Tailnet extends EventEmitter {
  start: () => Promise<void>
  up: (options?: { signal?: AbortSignal }) => Promise<Status>
  listen: (port: number) => Promise<TailnetListener>
  /** A port of a Tailscale Service, `svc:name`. */
  listenService: (
    name: string,
    port: number,
    options: { signal?: AbortSignal },
  ) => Promise<TailnetListener>
  whoIs: (addr: string) => Promise<WhoIs>
  setDNS: (name: string, value: string) => Promise<void>
  status: () => Promise<Status>
  close: () => Promise<void>
}
