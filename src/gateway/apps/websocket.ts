import { ServerResponse } from 'node:http'
import type { IncomingMessage } from 'node:http'
import type { Duplex } from 'node:stream'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { leaks } from '../../config/header-names.ts'
import type { Logger } from '../shared/log.ts'
import { plugin } from '../shared/plugin.ts'
import { peerOf } from '../tailnet/peer.ts'
import type { Tunnel } from '../request/drain.ts'
import type { Metrics } from '../request/metrics.ts'
import type { App } from './apps.ts'
import { Exchange } from './exchange.ts'
import type { Agreed } from './exchange.ts'
import { FrameGate } from './frames.ts'
import { headersFor } from './headers.ts'

/** Options of {@link websocket}. */
export interface WebSocketOptions {
  metrics: Metrics
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
  async (app, { metrics, log, handshakeTimeout = 30_000 }) => {
    app.server.on('upgrade', (raw: IncomingMessage, socket: Duplex, head: Buffer) => {
      upgrades.set(raw, { socket, head })
      socket.on('error', () => socket.destroy())
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
      const agreed = (answer: Agreed): void => {
        request.upgrade = true
        reply.hijack()
        reply.raw.statusCode = 101
        reply.raw.detachSocket(upgrade.socket as never)
        upgrades.delete(request.raw)
        const opened = tunnel(upgrade, answer, request.route, {
          peer: peerOf(request.raw.socket),
          access: request.access!,
        })
        app.tunnels.add(opened)
        metrics.websockets.inc({ route: request.route.name })
        // It may be open for days, and what the handshake said is of no use any more.
        request.raw.rawHeaders = []
        request.raw.headers = {}
        upgrade.socket.once('close', () => {
          app.tunnels.delete(opened)
          // Nothing was written through it, but the access log waits for its end.
          reply.raw.emit('close')
        })
      }
      new Exchange(request, reply, headers, {
        log,
        webSocket: { timeout: handshakeTimeout, agreed },
      }).start()
    }
  },
)

function tunnel(
  client: Upgrade,
  { rawHeaders, socket: origin }: Agreed,
  { rules }: App,
  who: Pick<Tunnel, 'peer' | 'access'>,
): Tunnel {
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
  const { socket } = client
  socket.write(`${lines.join('\r\n')}\r\n\r\n`, 'latin1')
  const gate = new FrameGate()
  let closing = false
  const give = (piece: Buffer | undefined): void => {
    if (piece === undefined) return
    if (!socket.write(piece)) origin.pause()
    if (!gate.over) return
    // The peer's answer is of no use to an origin that does not know of the end; but it must be
    // read, or the connection never ends.
    socket.end()
    origin.destroy()
    socket.resume()
  }
  // Not pipe(): thousands may be open for days, and each pipe is some ten listeners with what they
  // hold.
  origin.on('data', (piece: Buffer) => {
    give(gate.pass(piece))
  })
  origin.on('end', () => socket.end())
  origin.on('drain', () => socket.resume())
  socket.on('data', (piece: Buffer) => {
    if (!origin.destroyed && !origin.write(piece)) socket.pause()
  })
  socket.on('end', () => origin.end())
  socket.on('drain', () => origin.resume())
  socket.on('error', () => origin.destroy())
  origin.on('error', () => socket.destroy())
  // A side that breaks off without an end must not leave the other open.
  socket.once('close', () => {
    if (socket.readableEnded) origin.end()
    else origin.destroy()
  })
  origin.once('close', () => {
    if (!origin.readableEnded && !closing) socket.destroy()
  })
  if (client.head.length > 0) origin.write(client.head)
  return {
    ...who,
    close: (code, reason) => {
      closing = true
      give(gate.close(code, reason))
      const timer = setTimeout(() => {
        socket.destroy()
        origin.destroy()
      }, closeTimeout)
      timer.unref()
      socket.once('close', () => clearTimeout(timer))
    },
  }
}
