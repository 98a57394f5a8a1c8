import httpProxy from '@fastify/http-proxy'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { IncomingHttpHeaders, ServerResponse } from 'node:http'
import type { Readable } from 'node:stream'
import { GatehouseError } from '../config/errors.ts'
import type { Delivery } from './deliver.ts'
import { requestHeaders, responseHeaders } from './headers.ts'
import { BodyTooLarge, tooLarge } from './limits.ts'
import { sendError } from './pages.ts'
import { peerOf } from './peer.ts'
import { plugin } from './plugin.ts'
import { upstreamError } from './upstream.ts'
import type { Upstream } from './upstream.ts'

/** Options of {@link proxy}. */
export interface ProxyOptions {
  upstream: Upstream
  delivery: Delivery
  /** How long the upstream may take from the end of the request to its response headers. Milliseconds, default 120 s. */
  headersTimeout?: number
}

/**
 * Everything over HTTP to Node-RED on its unix socket: bodies streamed both ways with no limit of size or time, nothing
 * retried, failures as 502 and 504 pages. WebSockets are not its business: see websocket.ts.
 */
export const proxy = plugin<ProxyOptions>('proxy', async (app, { upstream, delivery, headersTimeout = 120_000 }) => {
  // Fastify reads text/plain into memory with a limit unless told otherwise; http-proxy replaces only the JSON parser.
  app.removeAllContentTypeParsers()

  await app.register(httpProxy, {
    upstream: `unix+http://${encodeURIComponent(upstream.socket)}/`,
    // reply-from logs every failure itself: the problem is logged once, the request in the access log.
    logLevel: 'error',
    disableRequestLogging: true,
    destroyAgent: true,
    undici: {
      connections: 1024,
      pipelining: 1,
      headersTimeout,
      // The pause between two pieces of an event stream has no limit.
      bodyTimeout: 0,
    },
    preHandler: async (request: FastifyRequest) => {
      request.app = 'node-red'
    },
    replyOptions: {
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
        delivery.prepare(request as FastifyRequest, out)
        return out
      },
      // The connection to the origin is not the connection to the peer: Keep-Alive and the like stay on their side.
      rewriteHeaders: (headers) => responseHeaders(headers as IncomingHttpHeaders),
      onResponse: (request, reply, res) => {
        // What the types call the response is reply-from's own record of it.
        const stream = (res as unknown as { stream: Readable }).stream
        upstream.up()
        // An invalid status has been answered with 502 already (reply-from#374).
        if (reply.sent) {
          stream.destroy()
          return
        }
        // Node sends headers with the first piece of the body: an event stream would look dead until its first event.
        const raw = reply.raw as ServerResponse
        raw.once('pipe', () => setImmediate(() => {
          if (!raw.headersSent && !raw.destroyed) raw.flushHeaders()
        }))
        void delivery.take(request as FastifyRequest, reply as FastifyReply, stream).then(
          (body) => { if (body !== undefined) reply.send(body) },
          (err: Error) => { void failed(request as FastifyRequest, reply as FastifyReply, err, upstream) })
      },
      onError: (reply, { error }) => {
        void failed(reply.request as FastifyRequest, reply as FastifyReply, error, upstream)
      },
    },
  })
})

/** Answers a request whose upstream failed: 504 when it was late, 502 when it was not there. */
export async function failed (request: FastifyRequest, reply: FastifyReply, error: Error, upstream: Upstream): Promise<void> {
  if (reply.sent || reply.raw.headersSent) return
  const cause = error.cause instanceof Error ? error.cause : error
  const code = (cause as NodeJS.ErrnoException).code ?? ''
  if (cause instanceof BodyTooLarge) {
    await tooLarge(request, reply)
    return
  }
  if (/TIMEOUT|ETIMEDOUT/.test(code)) {
    await sendError(request, reply, 504, 'Node-RED did not answer in time', new GatehouseError('GH_UPSTREAM_TIMEOUT',
      'Node-RED took the request but did not answer', 'Try again; if it stays so, a flow may be busy or waiting without end: look at `journalctl -u node-red` on the device'))
    return
  }
  // Only a socket that does not connect says that Node-RED is down; one request breaking off does not.
  if (/^(?:ECONNREFUSED|ENOENT|EACCES)$/.test(code)) upstream.down(cause)
  const explained = upstreamError(cause)
  await sendError(request, reply, 502, explained.code === 'GH_UPSTREAM_DOWN' ? 'Node-RED is not running' : 'Node-RED did not answer', explained)
}
