import httpProxy from '@fastify/http-proxy'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { IncomingHttpHeaders, ServerResponse } from 'node:http'
import type { Readable } from 'node:stream'
import { GatehouseError } from '../config/errors.ts'
import { extras, isUnconnected, totalTimeoutCode } from './apps.ts'
import type { Apps, Extras } from './apps.ts'
import { whenClosed } from './closed.ts'
import type { Delivery } from './deliver.ts'
import { applyRules } from './header-rules.ts'
import { requestHeaders, responseHeaders, responseTrailers } from './headers.ts'
import { BodyTooLarge, tooLarge } from './limits.ts'
import { sendError } from './pages.ts'
import { peerOf } from './peer.ts'
import { plugin } from './plugin.ts'

/** Requests that are being answered by {@link failed}, which takes a moment. */
const broken = new WeakSet<object>()

/** Options of {@link proxy}. */
export interface ProxyOptions {
  apps: Apps
  delivery: Delivery
}

/**
 * Everything over HTTP to Node-RED on its unix socket: bodies streamed both ways with no limit of size or time, nothing
 * retried, failures as 502 and 504 pages. WebSockets are not its business: see websocket.ts.
 */
export const proxy = plugin<ProxyOptions>('proxy', async (app, { apps, delivery }) => {
  // Not a WeakMap: V8's young collection keeps its values, and with them all of each request, until the next full one.
  app.decorateRequest('extras')
  // Fastify reads text/plain into memory with a limit unless told otherwise; http-proxy replaces only the JSON parser.
  app.removeAllContentTypeParsers()

  await app.register(httpProxy, {
    // Chosen for each request, below and in apps.ts.
    upstream: '',
    // reply-from logs every failure itself: the problem is logged once, the request in the access log.
    logLevel: 'error',
    disableRequestLogging: true,
    destroyAgent: true,
    undici: apps as never,
    preHandler: async (request: FastifyRequest, reply: FastifyReply) => {
      request.app = request.to.name
      // A peer that takes its request back, or is gone, has no use for an answer.
      const gone = new AbortController()
      whenClosed(reply.raw, () => { if (!reply.raw.writableFinished) gone.abort() })
      request.extras = { gone, onInfo: (info) => { interim(request, reply, info) } }
    },
    replyOptions: {
      getUpstream: (request) => `http://${(request as FastifyRequest).to.name}.invalid`,
      // reply-from retries a GET that was answered 503 ten times unless the delay says no.
      retryDelay: () => null as unknown as number,
      rewriteRequestHeaders: (request, headers) => {
        const out = requestHeaders(headers as IncomingHttpHeaders, {
          address: peerOf(request.raw.socket).address,
          host: request.raw.headers.host ?? '',
          whoIs: (request as FastifyRequest).whoIs,
          statement: (request as FastifyRequest).statement,
        })
        // Fastify does not read a body of these; its length without it would be a request that never ends.
        if (request.method === 'GET' || request.method === 'HEAD') delete out['content-length']
        const { to } = request as FastifyRequest
        if (to.strip) out['x-forwarded-prefix'] = to.path.slice(0, -1)
        if (to.rules !== undefined) applyRules(out, to.rules.request)
        delivery.prepare(request as FastifyRequest, out)
        return Object.assign(out, { [extras]: (request as FastifyRequest).extras })
      },
      // The connection to the origin is not the connection to the peer: Keep-Alive and the like stay on their side.
      rewriteHeaders: (headers, request) => {
        const out = responseHeaders(headers as IncomingHttpHeaders)
        const { to } = request as unknown as FastifyRequest
        return to.rules === undefined ? out : applyRules(out, to.rules.answer)
      },
      onResponse: (request, reply, res) => {
        // What the types call the response is reply-from's own record of it.
        const stream = (res as unknown as { stream: Readable }).stream
        // An invalid status has been answered with 502 already (reply-from#374).
        if (reply.sent || broken.has(request)) {
          stream.destroy()
          return
        }
        // Node sends headers with the first piece of the body: an event stream would look dead until its first event.
        const raw = reply.raw as ServerResponse
        raw.once('pipe', () => setImmediate(() => {
          if (!raw.headersSent && !raw.destroyed) raw.flushHeaders()
        }))
        const { to } = request as FastifyRequest
        // What an app that knows nothing of its prefix sends to its own root stays with it.
        const location = reply.getHeader('location')
        if (to.strip && typeof location === 'string' && /^\/(?!\/)/.test(location) && !to.owns(location.split(/[?#]/, 1)[0]!)) reply.header('location', to.path.slice(0, -1) + location)
        void delivery.take(request as FastifyRequest, reply as FastifyReply, stream).then(
          (body) => {
            if (body === undefined) return
            // What is compressed had a length, and so no trailers.
            if (body === stream) passTrailers(request as FastifyRequest, reply as FastifyReply, stream)
            reply.send(body)
          },
          (err: Error) => { void failed(request as FastifyRequest, reply as FastifyReply, err) })
      },
      onError: (reply, { error }) => {
        void failed(reply.request as FastifyRequest, reply as FastifyReply, error)
      },
    },
  })
})

/** An answer before the answer (RFC 9110 §15.2), such as 103 with what a browser may fetch meanwhile. */
function interim (request: FastifyRequest, reply: FastifyReply, { statusCode, headers }: { statusCode: number, headers: IncomingHttpHeaders | Array<string | Buffer> }): void {
  const raw = reply.raw as ServerResponse & { writeInformation: (status: number, headers: Record<string, string>) => void }
  // 100 is between the gateway and each side; 101 is an upgrade; HTTP/1.0 knows none.
  if (statusCode < 102 || request.raw.httpVersion === '1.0' || raw.headersSent || raw.destroyed) return
  const { 'content-length': _length, 'set-cookie': _cookie, ...fields } = withoutRemoved(responseHeaders(headers as IncomingHttpHeaders), request.to)
  try {
    raw.writeInformation(statusCode, Object.fromEntries(Object.entries(fields).map(([name, value]) => [name, Array.isArray(value) ? value.join(', ') : value])))
  } catch {
    // A hint that cannot be said is none.
  }
}

/** What peers are not to get of an app's answer, they get neither before it nor behind. */
function withoutRemoved (headers: Record<string, string | string[]>, { rules }: FastifyRequest['to']): Record<string, string | string[]> {
  for (const name of rules?.answer.remove ?? []) delete headers[name]
  return headers
}

/** Has what an app sends after its answer follow it, where there is room for it: in chunks, and over HTTP/2. */
function passTrailers (request: FastifyRequest, reply: FastifyReply, stream: Readable): void {
  const { statusCode } = reply
  if (request.method === 'HEAD' || request.raw.httpVersion === '1.0' || statusCode === 204 || statusCode === 304 || reply.hasHeader('content-length')) return
  // Before the body is piped: its end is also the answer's.
  stream.once('end', () => {
    try {
      reply.raw.addTrailers(withoutRemoved(responseTrailers(request.extras?.trailers ?? {}), request.to) as Record<string, string>)
    } catch {
      // The answer is whole without them.
    }
  })
}

/** What a limit that is over means, by the codes of undici and of ours. */
const lateness = [
  { codes: /^UND_ERR_CONNECT_TIMEOUT$/, key: 'connect_timeout', message: 'took no connection in time' },
  { codes: new RegExp(`^${totalTimeoutCode}$`), key: 'total_timeout', message: 'took the request but was not done with it in time' },
  { codes: /^UND_ERR_BODY_TIMEOUT$/, key: 'idle_timeout', message: 'began an answer and did not go on with it' },
  { codes: /TIMEOUT|TIMEDOUT/, key: 'response_timeout', message: 'took the request but did not answer' },
]

/** Answers a request whose upstream failed: 504 when it was late, 502 when it was not there. */
export async function failed (request: FastifyRequest, reply: FastifyReply, error: Error): Promise<void> {
  if (reply.sent || reply.raw.headersSent) return
  broken.add(request)
  if (reply.raw.destroyed) {
    reply.hijack()
    return
  }
  const cause = error.cause instanceof Error ? error.cause : error
  const code = (cause as NodeJS.ErrnoException).code ?? ''
  const { to } = request
  const nodeRed = to.right === undefined
  const name = to.label
  if (cause instanceof BodyTooLarge) {
    await tooLarge(request, reply)
    return
  }
  const late = lateness.find(({ codes }) => codes.test(code))
  if (late !== undefined) {
    await sendError(request, reply, 504, `${name} did not answer in time`, new GatehouseError('GH_UPSTREAM_TIMEOUT', `${name} ${late.message}`,
      nodeRed ? 'Try again; if it stays so, a flow may be busy or waiting without end: look at `journalctl -u node-red` on the device' : `Try again; if it stays so, look at what the app is doing, or raise ${late.key} in [[app]]`))
    return
  }
  const explained = to.candidates[0]!.explain(cause)
  await sendError(request, reply, 502, isUnconnected(error) ? `${name} is not running` : `${name} did not answer`, explained)
}

declare module 'fastify' {
  interface FastifyRequest {
    /** What goes with the request to the app, beside what reply-from passes on. */
    extras?: Extras
  }
}
