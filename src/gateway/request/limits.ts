import { totalmem } from 'node:os'
import { Transform } from 'node:stream'
import type { Duplex } from 'node:stream'
import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import type { TLSSocket } from 'node:tls'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { Config } from '../../config/config.ts'
import { GatehouseError } from '../../base/errors.ts'
import { Bucket } from '../shared/bucket.ts'
import { whenClosed } from '../shared/on-close.ts'
import type { Logger } from '../shared/log.ts'
import { sendError } from '../shared/pages.ts'
import { peerOf } from '../tailnet/peer.ts'
import { plugin } from '../shared/plugin.ts'

/** Which limit held something back: label of the metric, and in the log. */
export type Limit =
  | 'connections'
  | 'connections_per_peer'
  | 'new_connections'
  | 'new_connections_per_peer'
  | 'requests'
  | 'requests_per_peer'
  | 'open_requests_per_peer'
  | 'control_frames'
  | 'client_hello'
  | 'body'
  | 'stalled'
  | 'memory'

/** How often stalled connections and memory are looked at. Milliseconds. */
const interval = 1_000

/** Less than this in a whole stall_timeout counts as nothing moved. Bytes. */
const crawl = 1_024

/** Times the rate that may come at once: a browser opens the editor with a burst. */
const burst = 5

interface PeerUse {
  connections: number
  underWay: number
  opened: Bucket
  requests: Bucket
  at: number
}

/** What a peer may hold up: an HTTP/1.1 connection, or an HTTP/2 stream. */
export interface Flow {
  /** The peer is to go on with a body. */
  readonly reading: boolean
  /** Something waits for the peer to take it. */
  readonly writing: boolean
  /** Bytes that came from the peer, and bytes that it took. */
  readonly read: number
  readonly written: number
  end: () => void
}

interface Watched {
  address: string
  flow: Flow
  read: number
  written: number
  at: number
}

/**
 * What one peer, and all of them together, may take of the gateway: [limits] in gatehouse.toml.
 * Settings are read at each decision, so that a new configuration holds from then on.
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
  #admitted = new WeakSet<Duplex>()
  #watched = new Map<Duplex, Watched>()
  #requestOn = new WeakMap<Duplex, IncomingMessage>()
  #opened = new Bucket(Infinity)
  #requests = new Bucket(Infinity)
  #said = new Map<Limit, { at: number; more: number }>()
  #short = false
  #timer: NodeJS.Timeout

  constructor(settings: Config['limits'], log: Logger) {
    this.settings = settings
    this.#log = log
    this.#timer = setInterval(() => {
      this.#look()
    }, interval)
    this.#timer.unref()
  }

  /** True while memory is short: no new connections, no new requests. */
  get short(): boolean {
    return this.#short
  }

  /**
   * Whether a connection from an address may be accepted now; it then counts until it closes. Asked
   * about again, it is the same one.
   */
  admit(address: string, conn: Duplex): boolean {
    if (this.#admitted.has(conn)) return true
    const { connections, connectionsPerPeer, newConnections, newConnectionsPerPeer } = this.settings
    const peer = this.#peer(address)
    let refused: Limit | undefined
    if (this.#short) refused = 'memory'
    else if (connections > 0 && this.#connections >= connections) refused = 'connections'
    else if (connectionsPerPeer > 0 && peer.connections >= connectionsPerPeer)
      refused = 'connections_per_peer'
    else if (peer.opened.take(newConnectionsPerPeer, newConnectionsPerPeer * burst) > 0)
      refused = 'new_connections_per_peer'
    else if (this.#opened.take(newConnections, newConnections * burst) > 0)
      refused = 'new_connections'
    if (refused !== undefined) {
      this.refuse(refused, address)
      return false
    }
    this.#admitted.add(conn)
    peer.connections++
    this.#connections++
    conn.once('close', () => {
      peer.connections--
      this.#connections--
    })
    return true
  }

  /** Ends a connection to the HTTP server when it stalls. `conn` is what lies under its TLS. */
  track(address: string, conn: Duplex, socket: TLSSocket): void {
    // Node counts the time for headers from their first byte.
    const late = setTimeout(() => {
      if (socket.bytesRead > 0) return
      this.refuse('stalled', address)
      socket.destroy()
    }, this.settings.headerTimeout)
    socket.once('close', () => clearTimeout(late))
    const request = (): IncomingMessage | undefined => this.#requestOn.get(socket)
    this.trackFlow(address, socket, {
      // A body that nobody takes here waits for the upstream, not for the peer.
      get reading() {
        const body = request()
        return (
          body !== undefined &&
          !body.complete &&
          !body.destroyed &&
          body.readableLength < body.readableHighWaterMark &&
          !socket.isPaused()
        )
      },
      get writing() {
        return socket.writableLength > 0 || conn.writableLength > 0
      },
      get read() {
        return socket.bytesRead
      },
      // bytesWritten counts what the socket was given, which is what it still holds and what has
      // gone.
      get written() {
        return socket.bytesWritten - conn.writableLength
      },
      end: () => socket.destroy(),
    })
  }

  /** Ends what a peer stalls; it is watched until `stream` closes. */
  trackFlow(address: string, stream: Duplex, flow: Flow): void {
    this.#watched.set(stream, { address, flow, read: 0, written: 0, at: performance.now() })
    stream.once('close', () => this.#watched.delete(stream))
  }

  /** Seconds until a request from an address may come; 0 when it may now. */
  request(address: string): number {
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
  watch(socket: Duplex, request: IncomingMessage): void {
    this.#requestOn.set(socket, request)
  }

  /**
   * Counts a request that is under way until its answer has ended. False when its peer has as many
   * as it may.
   */
  begin(address: string, response: ServerResponse): boolean {
    const peer = this.#peer(address)
    const { openRequestsPerPeer } = this.settings
    if (openRequestsPerPeer > 0 && peer.underWay >= openRequestsPerPeer) {
      this.refuse('open_requests_per_peer', address)
      return false
    }
    peer.underWay++
    whenClosed(response, () => {
      peer.underWay--
    })
    return true
  }

  /** Counts a refusal; the log has one line a minute for each limit. */
  refuse(limit: Limit, address: string): void {
    this.onLimit(limit)
    const said = this.#said.get(limit)
    const now = performance.now()
    if (said !== undefined && now - said.at < 60_000) {
      said.more++
      return
    }
    this.#said.set(limit, { at: now, more: 0 })
    this.#log.warn(
      { code: 'GH_LIMIT', limit, peer: address, more: said?.more ?? 0 },
      `limit reached: ${limit}, by ${address}. Raise it in [limits] of gatehouse.toml if this is as it should be`,
    )
  }

  close(): void {
    clearInterval(this.#timer)
  }

  #peer(address: string): PeerUse {
    let peer = this.#peers.get(address)
    if (peer === undefined) {
      const { newConnectionsPerPeer, requestsPerPeer } = this.settings
      peer = {
        connections: 0,
        underWay: 0,
        opened: new Bucket(newConnectionsPerPeer * burst),
        requests: new Bucket(requestsPerPeer * burst),
        at: 0,
      }
      this.#peers.set(address, peer)
    }
    peer.at = performance.now()
    return peer
  }

  #look(): void {
    const now = performance.now()
    for (const [address, peer] of this.#peers)
      if (peer.connections === 0 && peer.underWay === 0 && now - peer.at > 60_000)
        this.#peers.delete(address)
    for (const watched of this.#watched.values()) this.#judge(watched, now)
    const rss = process.memoryUsage.rss()
    const most = memoryLimit(this.settings.memoryMib)
    if (!this.#short && rss > most) {
      this.#short = true
      this.#log.error(
        { code: 'GH_MEMORY', rss, most },
        `memory is short: ${mib(rss)} MiB of ${mib(most)} in use. New connections and requests are refused until it is less`,
      )
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

  /** Ends what a peer neither takes nor goes on with. Waiting for nothing is no offence. */
  #judge(watched: Watched, now: number): void {
    const { flow } = watched
    const { read, written, writing } = flow
    const moved = writing ? written - watched.written >= crawl : read - watched.read >= crawl
    if ((!writing && !flow.reading) || moved) {
      watched.at = now
      watched.read = read
      watched.written = written
    } else if (now - watched.at > this.settings.stallTimeout) {
      this.refuse('stalled', watched.address)
      flow.end()
    }
  }
}

/**
 * The most memory the process may have, in bytes: as set, or three quarters of what the unit
 * (MemoryMax) or else the machine has.
 */
export function memoryLimit(setMiB: number): number {
  if (setMiB > 0) return setMiB * 1024 * 1024
  const constrained = process.constrainedMemory()
  return (constrained > 0 && constrained < totalmem() ? constrained : totalmem()) * 0.75
}

function mib(bytes: number): number {
  return Math.round(bytes / 1024 / 1024)
}

/** Settings that are Node's own to enforce; takes effect for what comes from now on. */
export function applyTo(server: Server, { headerKib, headerTimeout }: Config['limits']): void {
  // Read by Node at each connection, though typed as an option of createServer alone.
  Object.assign(server, { maxHeaderSize: headerKib * 1024 })
  server.headersTimeout = headerTimeout
}

/** Limits on requests: rate (429), body (413), and 503 while memory is short. */
export const limitRequests = plugin<{ limits: Limits }>('limits', async (app, { limits }) => {
  app.addHook('onRequest', (request, reply, done) => {
    const { address } = peerOf(request.raw.socket)
    if (limits.short) {
      limits.refuse('memory', address)
      reply.raw.shouldKeepAlive = false
      void sendError(
        request,
        reply,
        503,
        'Too busy',
        new GatehouseError('GH_MEMORY', 'The gateway is short of memory', 'Try again in a moment'),
      )
      return
    }
    const wait = limits.request(address)
    if (wait > 0) {
      void sendError(
        request,
        reply,
        429,
        'Too many requests',
        new GatehouseError(
          'GH_RATE',
          'There are more requests than the gateway allows',
          'Try again in a moment; the limits are in [limits] of gatehouse.toml',
        ),
        undefined,
        { 'retry-after': String(Math.ceil(wait)) },
      )
      return
    }
    // A WebSocket is a connection, and counted as one.
    if (request.headers.upgrade === undefined && !limits.begin(address, reply.raw)) {
      void sendError(
        request,
        reply,
        429,
        'Too many requests',
        new GatehouseError(
          'GH_RATE',
          'There are more requests at a time than the gateway allows',
          'Wait until others have ended; the limits are in [limits] of gatehouse.toml',
        ),
        undefined,
        { 'retry-after': '1' },
      )
      return
    }
    if (Number(request.headers['content-length'] ?? 0) > bodyLimit(limits)) {
      limits.refuse('body', address)
      reply.raw.shouldKeepAlive = false
      void tooLarge(request, reply)
      return
    }
    limits.watch(request.raw.socket, request.raw)
    done()
  })

  // A body without a length is counted on its way.
  app.addHook('preParsing', (request, _reply, payload, next) => {
    if (request.headers['transfer-encoding'] === undefined || bodyLimit(limits) === Infinity) {
      next(null, payload)
      return
    }
    let size = 0
    const counted = new Transform({
      transform(piece: Buffer, _encoding, done) {
        size += piece.length
        if (size <= bodyLimit(limits)) {
          done(null, piece)
          return
        }
        limits.refuse('body', peerOf(request.raw.socket).address)
        done(new BodyTooLarge())
      },
    })
    // For whoever reads it; there may be nobody yet, or nobody any more.
    counted.on('error', () => {})
    payload.once('error', (err: Error) => counted.destroy(err))
    payload.once('close', () => {
      if (!request.raw.complete) counted.destroy(new Error('the peer went away'))
    })
    next(null, payload.pipe(counted))
  })
})

function bodyLimit({ settings }: Limits): number {
  return settings.bodyMib === 0 ? Infinity : settings.bodyMib * 1024 * 1024
}

/** A body turned out to be larger than allowed when part of it was at the upstream already. */
export class BodyTooLarge extends Error {
  readonly code = 'GH_BODY_SIZE'
}

/** 413 and the end of the connection: the rest of the body is not read. */
export async function tooLarge(
  request: FastifyRequest,
  reply: FastifyReply,
): Promise<FastifyReply> {
  reply.raw.shouldKeepAlive = false
  return await sendError(
    request,
    reply,
    413,
    'Too large',
    new GatehouseError(
      'GH_BODY_SIZE',
      'The request is larger than the gateway allows',
      'The limit is body_mib in [limits] of gatehouse.toml',
    ),
  )
}
