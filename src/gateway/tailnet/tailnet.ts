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

/** A UDP port of the node; `message` is a datagram and where it came from. */
export interface TailnetPacketSocket extends EventEmitter {
  on(
    event: 'message',
    listener: (data: Buffer, from: { address: string; port: number }) => void,
  ): this
  on(event: 'error', listener: (err: Error) => void): this
  send: (data: Uint8Array, port: number, address: string) => void
  close: () => void
}

/**
 * What the gateway needs of a tailnet: the part of `@gatehouse/tsnet`'s Server it uses. Emits
 * `state` (backend state), `loginURL` (URL), `message` (what the control server refuses) and `error`
 * (unusable from now on).
 */
export interface Tailnet extends EventEmitter {
  start: () => Promise<void>
  up: (options?: { signal?: AbortSignal }) => Promise<Status>
  listen: (port: number) => Promise<TailnetListener>
  /** A UDP port, on all addresses of the node. */
  listenPacket: (port: number) => Promise<TailnetPacketSocket>
  /** A port of a Tailscale Service, `svc:name`. */
  listenService: (
    name: string,
    port: number,
    options: { signal?: AbortSignal },
  ) => Promise<TailnetListener>
  /** A TCP connection to an address in the tailnet; an error for any other. */
  dial: (host: string, port: number, options: { signal?: AbortSignal }) => Promise<Duplex>
  /** Addresses of a name in the tailnet, IPv4 first; an error for any other. */
  resolve: (name: string, options: { signal?: AbortSignal }) => Promise<string[]>
  whoIs: (addr: string) => Promise<WhoIs>
  setDNS: (name: string, value: string) => Promise<void>
  /** Tailscale's LocalAPI. */
  localAPI: (method: string, path: string, body?: unknown) => Promise<unknown>
  status: () => Promise<Status>
  close: () => Promise<void>
}
