import { totalmem } from 'node:os'
import { Transform } from 'node:stream'
import type { Duplex } from 'node:stream'
import type { IncomingMessage, Server } from 'node:http'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { Config } from '../config/config.ts'
import { GatehouseError } from '../config/errors.ts'
import { Bucket } from './bucket.ts'
import type { Logger } from './log.ts'
import { sendError } from './pages.ts'
import { peerOf } from './peer.ts'
import { plugin } from './plugin.ts'

/** Which limit held something back: label of the metric, and in the log. */
export type Limit = 'connections' | 'connections_per_peer' | 'new_connections' | 'new_connections_per_peer' | 'requests' | 'requests_per_peer' | 'body' | 'stalled' | 'memory'

/** How often stalled connections and memory are looked at. Milliseconds. */
const interval = 1_000

/** Less than this in a whole stall_timeout counts as nothing moved. Bytes. */
const crawl = 1_024

/** Times the rate that may come at once: a browser opens the editor with a burst. */
const burst = 5

interface PeerUse { connections: number, opened: Bucket, requests: Bucket, at: number }
interface Watched { address: string, conn: Duplex, request: IncomingMessage | undefined, read: number, written: number, at: number }

/**
 * What one peer, and all of them together, may take of the gateway: [limits] in gatehouse.toml. Settings are read at each
 * decision, so that a new configuration holds from then on.
 */
export class Limits {
  settings: Config['limits']
  /** Told of each refusal. */
  onLimit: (limit: Limit) => void = () => {}
  /** Told when memory runs short: what can be given back should be. */
  onShort: () => void = () => {}
  #log: Logger
  #peers = new Map<string, PeerUse>()
  #connections = 0
  #watched = new Map<Duplex, Watched>()
  #opened = new Bucket(Infinity)
  #requests = new Bucket(Infinity)
  #said = new Map<Limit, { at: number, more: number }>()
  #short = false
  #timer: NodeJS.Timeout

  constructor (settings: Config['limits'], log: Logger) {
    this.settings = settings
    this.#log = log
    this.#timer = setInterval(() => { this.#look() }, interval)
    this.#timer.unref()
  }

  /** True while memory is short: no new connections, no new requests. */
  get short (): boolean { return this.#short }

  /** Whether a connection from an address may be accepted now. */
  admit (address: string): boolean {
    const { connections, connectionsPerPeer, newConnections, newConnectionsPerPeer } = this.settings
    const peer = this.#peer(address)
    let refused: Limit | undefined
    if (this.#short) refused = 'memory'
    else if (connections > 0 && this.#connections >= connections) refused = 'connections'
    else if (connectionsPerPeer > 0 && peer.connections >= connectionsPerPeer) refused = 'connections_per_peer'
    else if (peer.opened.take(newConnectionsPerPeer, newConnectionsPerPeer * burst) > 0) refused = 'new_connections_per_peer'
    else if (this.#opened.take(newConnections, newConnections * burst) > 0) refused = 'new_connections'
    if (refused === undefined) return true
    this.refuse(refused, address)
    return false
  }

  /** Counts an admitted connection until it closes. */
  count (address: string, socket: Duplex): void {
    const peer = this.#peer(address)
    peer.connections++
    this.#connections++
    socket.once('close', () => {
      peer.connections--
      this.#connections--
    })
  }

  /** Counts an admitted connection to the HTTP server, and ends it when it stalls. `conn` is what lies under its TLS. */
  track (address: string, conn: Duplex, socket: Duplex): void {
    this.count(address, socket)
    this.#watched.set(socket, { address, conn, request: undefined, read: 0, written: 0, at: performance.now() })
    socket.once('close', () => this.#watched.delete(socket))
  }

  /** Seconds until a request from an address may come; 0 when it may now. */
  request (address: string): number {
    const { requests, requestsPerPeer } = this.settings
    const own = this.#peer(address).requests.take(requestsPerPeer, requestsPerPeer * burst)
    if (own > 0) {
      this.refuse('requests_per_peer', address)
      return own
    }
    const all = this.#requests.take(requests, requests * burst)
    if (all > 0) this.refuse('requests', address)
    return all
  }

  /** A request whose body is to be watched has come on a connection. */
  watch (socket: Duplex, request: IncomingMessage): void {
    const watched = this.#watched.get(socket)
    if (watched !== undefined) watched.request = request
  }

  /** Counts a refusal; the log has one line a minute for each limit. */
  refuse (limit: Limit, address: string): void {
    this.onLimit(limit)
    const said = this.#said.get(limit)
    const now = performance.now()
    if (said !== undefined && now - said.at < 60_000) {
      said.more++
      return
    }
    this.#said.set(limit, { at: now, more: 0 })
    this.#log.warn({ code: 'GH_LIMIT', limit, peer: address, more: said?.more ?? 0 }, `limit reached: ${limit}, by ${address}. Raise it in [limits] of gatehouse.toml if this is as it should be`)
  }

  close (): void {
    clearInterval(this.#timer)
  }

  #peer (address: string): PeerUse {
    let peer = this.#peers.get(address)
    if (peer === undefined) {
      const { newConnectionsPerPeer, requestsPerPeer } = this.settings
      peer = { connections: 0, opened: new Bucket(newConnectionsPerPeer * burst), requests: new Bucket(requestsPerPeer * burst), at: 0 }
      this.#peers.set(address, peer)
    }
    peer.at = performance.now()
    return peer
  }

  #look (): void {
    const now = performance.now()
    for (const [address, peer] of this.#peers) if (peer.connections === 0 && now - peer.at > 60_000) this.#peers.delete(address)
    for (const [socket, watched] of this.#watched) this.#judge(socket as Duplex & { bytesRead: number, bytesWritten: number }, watched, now)
    const rss = process.memoryUsage.rss()
    const most = memoryLimit(this.settings.memoryMib)
    if (!this.#short && rss > most) {
      this.#short = true
      this.#log.error({ code: 'GH_MEMORY', rss, most }, `memory is short: ${mib(rss)} MiB of ${mib(most)} in use. New connections and requests are refused until it is less`)
      this.onShort()
    } else if (this.#short) {
      if (rss < most * 0.95) {
        this.#short = false
        this.#log.info({ rss, most }, 'memory is no longer short')
      } else {
        this.onShort()
      }
    }
  }

  /** Ends a connection whose peer neither takes what is written to it nor sends the body it has begun. Waiting for nothing is no offence. */
  #judge (socket: Duplex & { bytesRead: number, bytesWritten: number }, watched: Watched, now: number): void {
    const { conn, request } = watched
    // Node counts the time for headers from their first byte.
    if (request === undefined && socket.bytesRead === 0 && now - watched.at > this.settings.headerTimeout) {
      this.refuse('stalled', watched.address)
      socket.destroy()
      return
    }
    const writing = socket.writableLength > 0 || conn.writableLength > 0
    // A body that nobody takes here waits for the upstream, not for the peer.
    const reading = request !== undefined && !request.complete && !request.destroyed && request.readableLength < request.readableHighWaterMark && !socket.isPaused()
    // bytesWritten counts what the socket was given, which is what it still holds and what has gone.
    const written = socket.bytesWritten - conn.writableLength
    const moved = writing ? written - watched.written >= crawl : socket.bytesRead - watched.read >= crawl
    if (socket.bytesRead > 0 && ((!writing && !reading) || moved)) {
      watched.at = now
      watched.read = socket.bytesRead
      watched.written = written
    } else if (now - watched.at > this.settings.stallTimeout) {
      this.refuse('stalled', watched.address)
      socket.destroy()
    }
  }
}

/** The most memory the process may have, in bytes: as set, or three quarters of what the unit (MemoryMax) or else the machine has. */
export function memoryLimit (setMiB: number): number {
  if (setMiB > 0) return setMiB * 1024 * 1024
  const constrained = process.constrainedMemory()
  return (constrained > 0 && constrained < totalmem() ? constrained : totalmem()) * 0.75
}

function mib (bytes: number): number {
  return Math.round(bytes / 1024 / 1024)
}

/** Settings that are Node's own to enforce; takes effect for what comes from now on. */
export function applyTo (server: Server, { headerKib, headerTimeout }: Config['limits']): void {
  // Read by Node at each connection, though typed as an option of createServer alone.
  Object.assign(server, { maxHeaderSize: headerKib * 1024 })
  server.headersTimeout = headerTimeout
}

/** Limits on requests: rate (429), body (413), and 503 while memory is short. */
export const limitRequests = plugin<{ limits: Limits }>('limits', async (app, { limits }) => {
  app.addHook('onRequest', async (request, reply) => {
    const { address } = peerOf(request.raw.socket)
    if (limits.short) {
      limits.refuse('memory', address)
      reply.raw.shouldKeepAlive = false
      return await sendError(request, reply, 503, 'Too busy', new GatehouseError('GH_MEMORY', 'The gateway is short of memory', 'Try again in a moment'))
    }
    const wait = limits.request(address)
    if (wait > 0) {
      await sendError(request, reply, 429, 'Too many requests', new GatehouseError('GH_RATE', 'There are more requests than the gateway allows', 'Try again in a moment; the limits are in [limits] of gatehouse.toml'), undefined, { 'retry-after': String(Math.ceil(wait)) })
      return reply
    }
    if (Number(request.headers['content-length'] ?? 0) > bodyLimit(limits)) {
      limits.refuse('body', address)
      reply.raw.shouldKeepAlive = false
      return await tooLarge(request, reply)
    }
    limits.watch(request.raw.socket, request.raw)
  })

  // A body without a length is counted on its way.
  app.addHook('preParsing', async (request, _reply, payload) => {
    if (request.headers['transfer-encoding'] === undefined || bodyLimit(limits) === Infinity) return payload
    let size = 0
    const counted = new Transform({
      transform (piece: Buffer, _encoding, done) {
        size += piece.length
        if (size <= bodyLimit(limits)) {
          done(null, piece)
          return
        }
        limits.refuse('body', peerOf(request.raw.socket).address)
        done(new BodyTooLarge())
      },
    })
    payload.once('error', (err: Error) => counted.destroy(err))
    payload.once('close', () => { if (!request.raw.complete) counted.destroy(new Error('the peer went away')) })
    return payload.pipe(counted)
  })
})

function bodyLimit ({ settings }: Limits): number {
  return settings.bodyMib === 0 ? Infinity : settings.bodyMib * 1024 * 1024
}

/** A body turned out to be larger than allowed when part of it was at the upstream already. */
export class BodyTooLarge extends Error {
  readonly code = 'GH_BODY_SIZE'
}

/** 413 and the end of the connection: the rest of the body is not read. */
export async function tooLarge (request: FastifyRequest, reply: FastifyReply): Promise<FastifyReply> {
  reply.raw.shouldKeepAlive = false
  return await sendError(request, reply, 413, 'Too large', new GatehouseError('GH_BODY_SIZE', 'The request is larger than the gateway allows', 'The limit is body_mib in [limits] of gatehouse.toml'))
}
