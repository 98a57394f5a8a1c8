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
import type { Peer } from '../tailnet/peer.ts'
import { Memory } from './memory.ts'
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
  | 'udp_flow'
  | 'body'
  | 'stalled'
  | 'memory'

/** How often stalled connections and memory are looked at. Milliseconds. */
const interval = 1_000

/** Less than this in a whole stall_timeout counts as nothing moved. Bytes. */
const crawl = 1_024

/** Times the rate that may come at once: a browser opens the editor with a burst. */
const burst = 5

/** Whether a node has any right is asked again, at its next connection, after so long. Milliseconds. */
const standingLifetime = 10_000

/**
 * What one node takes. It has an IPv4 and an IPv6 address, which count as one as soon as the
 * tailnet has said whose they are; a peer that it does not know is its address.
 */
interface PeerUse {
  connections: number
  underWay: number
  opened: Bucket
  requests: Bucket
  at: number
  /** Stable ID of the node, once that is known. */
  node: string | undefined
  /** True when it had no right at all when that was last asked. */
  mayNothing: boolean | undefined
  /** When that was asked; 0: never. */
  askedAt: number
  /** Whose part it has become: two addresses turned out to be one node's. */
  partOf: PeerUse | undefined
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
  readonly memory: Memory
  /** Finds out what a peer may do, for its {@link Peer.mayNothing}. */
  ask: (peer: Peer) => Promise<unknown> = async () => {}
  #log: Logger
  /** By address; those of one node have one. */
  #peers = new Map<string, PeerUse>()
  /** By stable node ID. */
  #nodes = new Map<string, PeerUse>()
  /** Open connections, the oldest first. */
  #admitted = new Map<Duplex, { peer: Peer; use: PeerUse }>()
  #watched = new Map<Duplex, Watched>()
  #requestOn = new WeakMap<Duplex, IncomingMessage>()
  #opened = new Bucket(Infinity)
  #requests = new Bucket(Infinity)
  #said = new Map<Limit, { at: number; more: number }>()
  #timer: NodeJS.Timeout

  constructor(settings: Config['limits'], log: Logger) {
    this.settings = settings
    this.#log = log
    this.memory = new Memory(log)
    this.#timer = setInterval(() => {
      this.#look()
    }, interval)
    this.#timer.unref()
  }

  /** True while memory is short: no new connections, no new requests. */
  get short(): boolean {
    return this.memory.short
  }

  /**
   * Whether a connection of a peer may be accepted now; it then counts until it closes. Asked about
   * again, it is the same one. When there are as many as may be, one of a peer without any right
   * makes room for one that may have some.
   */
  admit(peer: Peer, conn: Duplex): boolean {
    if (this.#admitted.has(conn)) return true
    const use = this.#use(peer.address)
    const refused = this.#refusal(use)
    if (refused !== undefined) {
      this.refuse(refused, peer.address)
      return false
    }
    this.#admitted.set(conn, { peer, use })
    use.connections++
    conn.on('close', () => this.#release(conn))
    this.#learn(peer, use)
    return true
  }

  #refusal(use: PeerUse): Limit | undefined {
    const { connections, connectionsPerPeer, newConnections, newConnectionsPerPeer } = this.settings
    if (this.short) return 'memory'
    if (connectionsPerPeer > 0 && use.connections >= connectionsPerPeer)
      return 'connections_per_peer'
    if (use.opened.take(newConnectionsPerPeer, newConnectionsPerPeer * burst) > 0)
      return 'new_connections_per_peer'
    // Whoever may do nothing cannot use up what the others need.
    const kept = knownToHaveNone(use) ? (newConnections * burst) / 2 : 0
    if (this.#opened.take(newConnections, newConnections * burst, kept) > 0)
      return 'new_connections'
    if (connections > 0 && this.#admitted.size >= connections)
      if (knownToHaveNone(use) || !this.#makeRoom()) return 'connections'
    return undefined
  }

  /** Ends the oldest connection of a peer without any right. False when there is none. */
  #makeRoom(): boolean {
    for (const [conn, { peer, use }] of this.#admitted) {
      if (!this.mayNothing(peer, use)) continue
      this.refuse('connections', peer.address)
      this.#release(conn)
      conn.destroy()
      return true
    }
    return false
  }

  /** Whether a peer is known to have no right at all, by its own last request or its node's. */
  mayNothing(peer: Peer, use: PeerUse | undefined = this.#peers.get(peer.address)): boolean {
    return peer.mayNothing ?? (use !== undefined && current(use).mayNothing === true)
  }

  #release(conn: Duplex): void {
    const held = this.#admitted.get(conn)
    if (held === undefined) return
    this.#admitted.delete(conn)
    current(held.use).connections--
  }

  /** Asks the tailnet whose address it is, and what its node may do; from time to time. */
  #learn(peer: Peer, use: PeerUse): void {
    const now = performance.now()
    if (use.askedAt > 0 && now - use.askedAt < standingLifetime) return
    use.askedAt = now
    void Promise.all([peer.whoIs(), this.ask(peer)])
      .then(([whoIs]) => {
        const whole =
          whoIs === undefined
            ? current(use)
            : this.#unite(peer.address, whoIs.node.id, whoIs.node.addresses)
        whole.mayNothing = peer.mayNothing
        whole.askedAt = now
      })
      .catch(() => {})
  }

  /** Addresses are those of this node: what came from them counts together. */
  #unite(address: string, node: string, addresses: readonly string[]): PeerUse {
    let whole = this.#nodes.get(node)
    for (const one of new Set([address, ...addresses])) {
      const part = this.#peers.get(one)
      if (part === undefined || part === whole) continue
      // Another node had the address before.
      if (part.node !== undefined && part.node !== node) {
        this.#peers.delete(one)
        continue
      }
      if (whole === undefined) {
        whole = part
        continue
      }
      whole.connections += part.connections
      whole.underWay += part.underWay
      part.partOf = whole
    }
    whole ??= this.#use(address)
    whole.node = node
    this.#nodes.set(node, whole)
    for (const one of [address, ...addresses]) this.#peers.set(one, whole)
    return whole
  }

  /** Ends a connection to the HTTP server when it stalls. `conn` is what lies under its TLS. */
  track(address: string, conn: Duplex, socket: TLSSocket): void {
    // Node counts the time for headers from their first byte.
    const late = setTimeout(() => {
      if (socket.bytesRead > 0) return
      this.refuse('stalled', address)
      socket.destroy()
    }, this.settings.headerTimeout)
    socket.on('close', () => clearTimeout(late))
    this.trackFlow(address, socket, new ConnectionFlow(conn, socket, this.#requestOn))
  }

  /** Ends what a peer stalls; it is watched until `stream` closes. */
  trackFlow(address: string, stream: Duplex, flow: Flow): void {
    this.#watched.set(stream, { address, flow, read: 0, written: 0, at: performance.now() })
    stream.on('close', () => this.#watched.delete(stream))
  }

  /** Seconds until a request from an address may come; 0 when it may now. */
  request(address: string): number {
    const { requests, requestsPerPeer } = this.settings
    const use = this.#use(address)
    const own = use.requests.take(requestsPerPeer, requestsPerPeer * burst)
    if (own > 0) {
      this.refuse('requests_per_peer', address)
      return own
    }
    const kept = knownToHaveNone(use) ? (requests * burst) / 2 : 0
    const all = this.#requests.take(requests, requests * burst, kept)
    if (all > 0) this.refuse('requests', address)
    return all
  }

  /** A request whose body is to be watched has come on a connection. */
  watch(socket: Duplex, request: IncomingMessage): void {
    this.#requestOn.set(socket, request)
  }

  /** No more requests come on a connection. */
  unwatch(socket: Duplex): void {
    this.#requestOn.delete(socket)
  }

  /**
   * Counts a request that is under way until its answer has ended. False when its peer has as many
   * as it may.
   */
  begin(address: string, response: ServerResponse): boolean {
    const use = this.#use(address)
    const { openRequestsPerPeer } = this.settings
    if (openRequestsPerPeer > 0 && use.underWay >= openRequestsPerPeer) {
      this.refuse('open_requests_per_peer', address)
      return false
    }
    use.underWay++
    whenClosed(response, () => {
      current(use).underWay--
      return undefined
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

  #use(address: string): PeerUse {
    let use = this.#peers.get(address)
    if (use === undefined) {
      const { newConnectionsPerPeer, requestsPerPeer } = this.settings
      use = {
        connections: 0,
        underWay: 0,
        opened: new Bucket(newConnectionsPerPeer * burst),
        requests: new Bucket(requestsPerPeer * burst),
        at: 0,
        node: undefined,
        mayNothing: undefined,
        askedAt: 0,
        partOf: undefined,
      }
      this.#peers.set(address, use)
    }
    use.at = performance.now()
    return use
  }

  #look(): void {
    const now = performance.now()
    for (const [address, use] of this.#peers)
      if (use.connections === 0 && use.underWay === 0 && now - use.at > 60_000) {
        this.#peers.delete(address)
        if (use.node !== undefined) this.#nodes.delete(use.node)
      }
    for (const watched of this.#watched.values()) this.#judge(watched, now)
    let underWay = 0
    for (const use of new Set(this.#peers.values())) underWay += use.underWay
    this.memory.look(this.settings.memoryMib, underWay)
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

/** A {@link Flow} of HTTP/1.1. One class: an object of accessors for each connection is a kilobyte. */
class ConnectionFlow implements Flow {
  #conn: Duplex
  #socket: TLSSocket
  #requestOn: WeakMap<Duplex, IncomingMessage>

  constructor(conn: Duplex, socket: TLSSocket, requestOn: WeakMap<Duplex, IncomingMessage>) {
    this.#conn = conn
    this.#socket = socket
    this.#requestOn = requestOn
  }

  /** A body that nobody takes here waits for the upstream, not for the peer. */
  get reading(): boolean {
    const body = this.#requestOn.get(this.#socket)
    return (
      body !== undefined &&
      !body.complete &&
      !body.destroyed &&
      body.readableLength < body.readableHighWaterMark &&
      !this.#socket.isPaused()
    )
  }

  get writing(): boolean {
    return this.#socket.writableLength > 0 || this.#conn.writableLength > 0
  }

  get read(): number {
    return this.#socket.bytesRead
  }

  /** bytesWritten counts what the socket was given, which is what it still holds and what has gone. */
  get written(): number {
    return this.#socket.bytesWritten - this.#conn.writableLength
  }

  end(): void {
    this.#socket.destroy()
  }
}

/** What counts for it now. */
function current(use: PeerUse): PeerUse {
  let whole = use
  while (whole.partOf !== undefined) whole = whole.partOf
  return whole
}

/** Whether a node is known, and of late, to have no right at all. */
function knownToHaveNone(use: PeerUse): boolean {
  return use.mayNothing === true && performance.now() - use.askedAt < standingLifetime
}

/** Settings that are Node's own to enforce; takes effect for what comes from now on. */
export function applyTo(server: Server, { headerKib, headerTimeout }: Config['limits']): void {
  // Read by Node at each connection, though typed as an option of createServer alone.
  Object.assign(server, { maxHeaderSize: headerKib * 1024 })
  server.headersTimeout = headerTimeout
}

/**
 * A peer without any right has no use for a connection that stays: it ends with the answer,
 * whatever that is. (Of HTTP/2 see http2.ts.)
 */
export const endWithoutRights = plugin<{ limits: Limits }>(
  'end-without-rights',
  async (app, { limits }) => {
    app.addHook('onRequest', (request, reply, done) => {
      if (limits.mayNothing(peerOf(request.raw.socket))) reply.raw.shouldKeepAlive = false
      done()
    })
  },
)

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
