import { ServerResponse } from 'node:http'
import type { IncomingMessage } from 'node:http'
import type { Duplex } from 'node:stream'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { leaks } from '../../config/header-names.ts'
import { becomeTunnel } from '../shared/on-close.ts'
import type { Logger } from '../shared/log.ts'
import { plugin } from '../shared/plugin.ts'
import { peerOf } from '../tailnet/peer.ts'
import type { Tunnel } from '../request/drain.ts'
import { countBody } from '../request/garbage.ts'
import type { Limits } from '../request/limits.ts'
import type { Metrics } from '../request/metrics.ts'
import type { App } from './apps.ts'
import { Exchange } from './exchange.ts'
import type { Agreed } from './exchange.ts'
import { FrameGate } from './frames.ts'
import { headersFor } from './headers.ts'

/** Options of {@link websocket}. */
export interface WebSocketOptions {
  metrics: Metrics
  limits: Limits
  log: Logger
  /** How long the upstream may take to answer the handshake. Milliseconds, default 30 s. */
  handshakeTimeout?: number
}

/** A peer has this long to answer a Close frame. Milliseconds. */
const closeTimeout = 2_000

interface Upgrade {
  socket: Duplex
  head: Buffer
}

const upgrades = new WeakMap<IncomingMessage, Upgrade>()

/**
 * WebSockets as a tunnel: the handshake goes to the upstream with all its headers, the upstream's
 * own answer goes back, and from then on bytes are passed both ways.
 *
 * This is not http-proxy's WebSocket support, on purpose: that one accepts the client before it has
 * asked the upstream, so that it has to choose the subprotocol itself, cannot refuse with a status,
 * and has to re-frame every message with no back-pressure.
 *
 * Nothing is tunnelled unless both sides have agreed: the request must be a WebSocket handshake and
 * the answer a 101 to it, or an upgrade would be a way past every check made on requests (h2c
 * smuggling and the like).
 */
export const websocket = plugin<WebSocketOptions>(
  'websocket',
  async (app, { metrics, limits, log, handshakeTimeout = 30_000 }) => {
    app.server.on('upgrade', (raw: IncomingMessage, socket: Duplex, head: Buffer) => {
      upgrades.set(raw, { socket, head })
      socket.on('error', destroyIt)
      // Through the router like any request: the same hooks, the same log.
      const response = new ServerResponse(raw)
      response.shouldKeepAlive = false
      try {
        response.assignSocket(socket as never)
      } catch {
        // Sent behind a request that is not answered yet, which no WebSocket client does: the
        // answers could not be told apart.
        upgrades.delete(raw)
        socket.destroy()
        return
      }
      response.once('finish', () => {
        if (upgrades.has(raw)) socket.end()
      })
      app.routing(raw, response)
    })

    app.addHook('preHandler', (request, reply, done) => {
      const upgrade = upgrades.get(request.raw)
      if (upgrade === undefined) done()
      else open(request, reply, upgrade)
    })

    const open = (request: FastifyRequest, reply: FastifyReply, upgrade: Upgrade): void => {
      if (
        request.method !== 'GET' ||
        request.headers.upgrade?.toLowerCase() !== 'websocket' ||
        request.headers['sec-websocket-key'] === undefined
      ) {
        reply
          .code(400)
          .header('connection', 'close')
          .type('text/plain; charset=utf-8')
          .send('Only WebSocket upgrades are passed on.\n')
        return
      }
      request.upstream = request.route.name
      const headers = headersFor(request)
      // A handshake has no body (RFC 6455 §4.1), and what would be read as one must not reach the
      // upstream as a request.
      delete headers['content-length']
      delete request.payload
      const agreed = ({ rawHeaders, socket }: Agreed): void => {
        reply.hijack()
        reply.raw.statusCode = 101
        reply.raw.detachSocket(upgrade.socket as never)
        upgrades.delete(request.raw)
        limits.unwatch(upgrade.socket)
        metrics.websockets.inc({ route: request.route.name })
        upgrade.socket.write(head(rawHeaders, request.route), 'latin1')
        // It may be open for days, and nothing of request and answer is of use any more: whatever
        // is called at its end must not hold them.
        new WebSocketTunnel(upgrade, socket, {
          peer: peerOf(upgrade.socket),
          access: request.access!,
          tunnels: app.tunnels,
          ended: becomeTunnel(reply.raw),
        })
      }
      new Exchange(request, reply, headers, {
        log,
        webSocket: { timeout: handshakeTimeout, agreed },
      }).start()
    }
  },
)

/** A listener that holds nothing. */
function destroyIt(this: Duplex): void {
  this.destroy()
}

/** The head of the answer to a handshake, as the peer gets it. */
function head(rawHeaders: readonly string[], { rules }: App): string {
  const lines = ['HTTP/1.1 101 Switching Protocols']
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const name = rawHeaders[i]!.toLowerCase()
    if (
      leaks.has(name) ||
      rules?.answer.remove.has(name) === true ||
      rules?.answer.set.some(([set]) => set === name) === true
    )
      continue
    lines.push(`${rawHeaders[i]}: ${rawHeaders[i + 1]}`)
  }
  for (const [name, value] of [...(rules?.answer.set ?? []), ...(rules?.answer.add ?? [])])
    lines.push(`${name}: ${value}`)
  return `${lines.join('\r\n')}\r\n\r\n`
}

/** By this both ends of a tunnel know it. */
const tunnelOf: unique symbol = Symbol('tunnel')

type End = Duplex & { [tunnelOf]?: WebSocketTunnel }

/** What a {@link WebSocketTunnel} is made with, beside its ends. */
interface About extends Pick<Tunnel, 'peer' | 'access'> {
  /** It is one of these while it is open. */
  tunnels: Set<Tunnel>
  /** Called at its end. */
  ended: Array<() => void>
}

/**
 * Passes bytes both ways. Not by pipe(), and its listeners are not closures: thousands may be open
 * for days, and each pipe is some ten listeners with what they hold.
 */
class WebSocketTunnel implements Tunnel {
  readonly peer: Tunnel['peer']
  readonly access: Tunnel['access']
  readonly client: Duplex
  readonly origin: Duplex
  readonly gate: FrameGate = new FrameGate()
  closing = false
  readonly tunnels: Set<Tunnel>
  readonly ended: Array<() => void>

  constructor({ socket, head }: Upgrade, origin: Duplex, about: About) {
    this.peer = about.peer
    this.access = about.access
    this.client = socket
    this.origin = origin
    this.tunnels = about.tunnels
    this.ended = about.ended
    about.tunnels.add(this)
    ;(socket as End)[tunnelOf] = this
    ;(origin as End)[tunnelOf] = this
    origin.on('data', fromOrigin)
    origin.on('end', originEnds)
    origin.on('drain', originDrains)
    origin.on('error', originFails)
    origin.on('close', originCloses)
    socket.on('data', fromClient)
    socket.on('end', clientEnds)
    socket.on('drain', clientDrains)
    socket.on('error', clientFails)
    socket.on('close', clientCloses)
    if (head.length > 0) origin.write(head)
  }

  close(code: number, reason: string): void {
    this.closing = true
    this.give(this.gate.close(code, reason))
    const timer = setTimeout(() => {
      this.client.destroy()
      this.origin.destroy()
    }, closeTimeout)
    timer.unref()
    this.client.once('close', () => clearTimeout(timer))
  }

  give(piece: Buffer | undefined): void {
    if (piece === undefined) return
    if (!this.client.write(piece)) this.origin.pause()
    if (!this.gate.over) return
    // The peer's answer is of no use to an origin that does not know of the end; but it must be
    // read, or the connection never ends.
    this.client.end()
    this.origin.destroy()
    this.client.resume()
  }
}

// The listeners: `this` is the end that says so.

function fromOrigin(this: End, piece: Buffer): void {
  countBody(piece.length)
  const tunnel = this[tunnelOf]!
  tunnel.give(tunnel.gate.pass(piece))
}

function originEnds(this: End): void {
  this[tunnelOf]!.client.end()
}

function originDrains(this: End): void {
  this[tunnelOf]!.client.resume()
}

function originFails(this: End): void {
  this[tunnelOf]!.client.destroy()
}

/** A side that breaks off without an end must not leave the other open. */
function originCloses(this: End): void {
  const tunnel = this[tunnelOf]!
  if (!this.readableEnded && !tunnel.closing) tunnel.client.destroy()
}

function fromClient(this: End, piece: Buffer): void {
  countBody(piece.length)
  const origin = this[tunnelOf]!.origin
  if (!origin.destroyed && !origin.write(piece)) this.pause()
}

function clientEnds(this: End): void {
  this[tunnelOf]!.origin.end()
}

function clientDrains(this: End): void {
  this[tunnelOf]!.origin.resume()
}

function clientFails(this: End): void {
  this[tunnelOf]!.origin.destroy()
}

function clientCloses(this: End): void {
  const tunnel = this[tunnelOf]!
  if (this.readableEnded) tunnel.origin.end()
  else tunnel.origin.destroy()
  tunnel.tunnels.delete(tunnel)
  for (const ended of tunnel.ended.splice(0)) ended()
}
