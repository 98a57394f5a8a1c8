import { connect } from 'node:net'
import type { Duplex } from 'node:stream'
import { TLSSocket } from 'node:tls'
import { isDeepStrictEqual } from 'node:util'
import type { SecureContext } from 'node:tls'
import { ClientHello } from './client-hello.ts'
import { whenSecure } from './handshake.ts'
import { mayUse, stillMayUse, targetAway } from './forward-rights.ts'
import type { Forward } from './forward-rights.ts'
import type { Guard } from '../access/guard.ts'
import { countBody } from '../request/garbage.ts'
import type { Limits } from '../request/limits.ts'
import type { Logger } from '../shared/log.ts'
import { Peer } from '../tailnet/peer.ts'
import { proxyHeader } from './proxy-protocol.ts'
import { UDPForward } from './forward-udp.ts'
import type {
  Tailnet,
  TailnetConn,
  TailnetListener,
  TailnetPacketSocket,
} from '../tailnet/tailnet.ts'

/**
 * A target has this long to accept a connection, and a client to send its ClientHello.
 * Milliseconds.
 */
const patience = 10_000

/** Options of {@link Forwards}. */
export interface ForwardsOptions {
  log: Logger
  guard: Guard
  limits: Limits
  tailnet: () => Tailnet | undefined
  /** Addresses of the node in the tailnet. */
  addresses: () => readonly string[]
  /**
   * What TLS that ends here is served with: for a name, a certificate that covers it; for none,
   * that of the device. Undefined where there is none (yet).
   */
  context: (name: string | undefined) => SecureContext | undefined
  /** Opens a UDP port of the node; retries by itself. */
  listenPacket: (port: number) => Promise<TailnetPacketSocket | undefined>
  /** Opens a port of the node; retries by itself. */
  listen: (
    port: number,
    accept: (conn: TailnetConn) => void,
  ) => Promise<TailnetListener | undefined>
}

/**
 * TCP as it is from a port of the node to a target, or TLS by the name that is asked for on port
 * 443: without looking inside, unless TLS is to end here. Who may is asked at each connection, and
 * again while it is open: whoever has lost the right is cut off.
 */
export class Forwards {
  /** Connections that are forwarded, and who holds them by which right. */
  readonly #open = new Map<Duplex, { peer: Peer; forward: Forward }>()
  #options: ForwardsOptions
  #forwards: readonly Forward[] = []
  #listeners = new Map<number, Promise<TailnetListener | undefined>>()
  /** UDP, by port. What is open stays as it was begun until the port's settings change. */
  #packets = new Map<number, { forward: Forward; opening: Promise<UDPForward | undefined> }>()
  #started = false
  #stopRecheck = (): void => {}

  constructor(options: ForwardsOptions) {
    this.#options = options
  }

  /** Takes over settings. What is open stays open. */
  configure(forwards: readonly Forward[]): void {
    this.#forwards = forwards
    this.#listen()
  }

  /** Opens ports from now on: the node is there. */
  start(): void {
    this.#started = true
    this.#stopRecheck = this.#options.guard.recheck(async () => {
      for (const [conn, { peer, forward }] of this.#open) {
        if (!(await stillMayUse(this.#options, forward, peer))) conn.destroy()
      }
      for (const { opening } of this.#packets.values()) await (await opening)?.recheck()
    })
    this.#listen()
  }

  async close(): Promise<void> {
    this.#started = false
    this.#stopRecheck()
    const listeners = [...this.#listeners.values()]
    this.#listeners.clear()
    for (const { opening } of this.#packets.values())
      void opening.then((open) => open?.close()).catch(() => {})
    this.#packets.clear()
    for (const conn of this.#open.keys()) conn.destroy()
    await Promise.allSettled(listeners.map(async (listener) => await (await listener)?.close()))
  }

  /** Whether connections to port 443 have to be looked at. */
  get byName(): boolean {
    return this.#forwards.some((forward) => forward.sni.length > 0)
  }

  /**
   * A connection to port 443: forwarded when the name it asks for is one to be passed through, else
   * handed to `terminate`, whole.
   */
  passThrough(conn: TailnetConn, terminate: (conn: TailnetConn, peer: Peer) => void): void {
    const { limits, log } = this.#options
    const tailnet = this.#options.tailnet()
    if (tailnet === undefined) {
      conn.destroy()
      return
    }
    const peer = new Peer(conn, tailnet, log)
    if (!limits.admit(peer, conn)) {
      conn.destroy()
      return
    }
    const hello = new ClientHello()
    const timer = setTimeout(() => conn.destroy(), patience)
    const give = (): void => {
      conn.destroy()
    }
    conn.on('error', give)
    conn.on('end', give)
    conn.once('close', () => clearTimeout(timer))
    const read = (): void => {
      const piece = conn.read() as Buffer | null
      if (piece === null) return
      const name = hello.push(piece)
      if (name === 'more') return
      clearTimeout(timer)
      if (name === 'refused') {
        limits.refuse('client_hello', peer.address)
        conn.destroy()
        return
      }
      conn.off('readable', read)
      conn.off('end', give)
      const forward = this.#forwards.find(({ sni }) => name !== undefined && sni.includes(name))
      conn.unshift(hello.bytes)
      if (forward !== undefined) {
        void this.#accept(forward, conn, peer)
        return
      }
      conn.off('error', give)
      terminate(conn, peer)
    }
    conn.on('readable', read)
  }

  #listen(): void {
    if (!this.#started) return
    this.#listenPackets()
    const wanted = new Set(
      this.#forwards
        .filter((forward) => forward.protocol === 'tcp' && forward.sni.length === 0)
        .map((forward) => forward.port),
    )
    for (const [port, listener] of this.#listeners) {
      if (wanted.has(port)) continue
      this.#listeners.delete(port)
      void listener.then(async (open) => await open?.close()).catch(() => {})
    }
    for (const port of wanted) {
      if (this.#listeners.has(port)) continue
      this.#listeners.set(
        port,
        this.#options.listen(port, (conn) => {
          const forward = this.#forwards.find(
            (candidate) =>
              candidate.protocol === 'tcp' && candidate.sni.length === 0 && candidate.port === port,
          )
          const tailnet = this.#options.tailnet()
          if (forward === undefined || tailnet === undefined) conn.destroy()
          else void this.#accept(forward, conn, new Peer(conn, tailnet, this.#options.log))
        }),
      )
    }
  }

  #listenPackets(): void {
    const { log, guard, limits, listenPacket } = this.#options
    const wanted = this.#forwards.filter(({ protocol }) => protocol === 'udp')
    for (const [port, { forward, opening }] of this.#packets) {
      if (wanted.some((one) => isDeepStrictEqual(one, forward))) continue
      this.#packets.delete(port)
      void opening.then((open) => open?.close()).catch(() => {})
    }
    for (const forward of wanted) {
      if (this.#packets.has(forward.port)) continue
      const opening = listenPacket(forward.port).then((socket) => {
        const tailnet = this.#options.tailnet()
        if (socket === undefined || tailnet === undefined) return undefined
        return new UDPForward({ forward, socket, log, guard, limits, tailnet })
      })
      this.#packets.set(forward.port, { forward, opening })
    }
  }

  async #accept(forward: Forward, conn: TailnetConn, peer: Peer): Promise<void> {
    const { log, limits } = this.#options
    conn.on('error', () => conn.destroy())
    if (!limits.admit(peer, conn)) {
      conn.destroy()
      return
    }
    this.#open.set(conn, { peer, forward })
    const begun = performance.now()
    conn.once('close', () => this.#open.delete(conn))
    const { about, allowed } = await mayUse(this.#options, forward, peer)
    if (!allowed) {
      conn.destroy()
      return
    }
    if (conn.destroyed) return
    const stream = forward.terminateTLS ? await this.#terminate(forward, conn) : conn
    if (stream === undefined || stream.destroyed) return
    const target = connect({ ...address(forward.target), allowHalfOpen: true, noDelay: true })
    const late = setTimeout(
      () => target.destroy(new Error(`no answer within ${patience / 1_000} s`)),
      patience,
    )
    conn.once('close', () => {
      if (target.connecting) target.destroy()
    })
    target.once('error', (err) => {
      clearTimeout(late)
      if (target.bytesWritten === 0) targetAway(log, about, err)
      conn.destroy()
    })
    target.once('connect', () => {
      clearTimeout(late)
      if (forward.proxyProtocol !== 'off')
        target.write(proxyHeader(forward.proxyProtocol, this.#ends(conn, forward.port)))
      for (const [from, to] of [
        [stream, target],
        [target, stream],
      ] as const) {
        from.once('close', () => {
          if (from.readableEnded) to.end()
          else to.destroy()
        })
        from.pipe(to)
        from.on('data', (piece: Buffer) => countBody(piece.length))
      }
    })
    conn.once('close', () =>
      log.info({ ...about, ms: Math.round(performance.now() - begun) }, 'forward'),
    )
  }

  /** Ends TLS here: what is within, once the handshake is done; undefined when it fails. */
  async #terminate(forward: Forward, conn: TailnetConn): Promise<TLSSocket | undefined> {
    const { context, log } = this.#options
    const secureContext = context(forward.sni[0])
    if (secureContext === undefined) {
      const what = forward.sni[0] ?? 'the device'
      log.warn(
        { code: 'GH_FORWARD_CERTIFICATE', port: forward.port },
        `there is no certificate for ${what}, so TLS cannot end at the gateway. Write the ` +
          'name under [certificates] in gatehouse.toml, or remove terminate_tls',
      )
      conn.destroy()
      return undefined
    }
    const socket = new TLSSocket(conn, {
      isServer: true,
      secureContext,
      SNICallback: (name, done) => {
        done(null, context(name) ?? secureContext)
      },
    })
    return await new Promise((resolve) => {
      socket.on('error', () => socket.destroy())
      whenSecure(socket, patience, () => resolve(socket))
      socket.once('close', () => {
        conn.destroy()
        resolve(undefined)
      })
    })
  }

  #ends(conn: TailnetConn, destinationPort: number): Parameters<typeof proxyHeader>[1] {
    const six = conn.remoteAddress.includes(':')
    const destination =
      this.#options.addresses().find((candidate) => candidate.includes(':') === six) ??
      (six ? '::' : '0.0.0.0')
    return { source: conn.remoteAddress, sourcePort: conn.remotePort, destination, destinationPort }
  }
}

/**
 * Where a target is: `unix:/path`, `host:port` or `[address]:port`; checked by {@link
 * file://./../config/schema.ts}.
 */
function address(target: string): { path: string } | { host: string; port: number } {
  if (target.startsWith('unix:')) return { path: target.slice('unix:'.length) }
  const [, host, port] = /^\[?(.+?)\]?:(\d+)$/.exec(target)!
  return { host: host!, port: Number(port) }
}
