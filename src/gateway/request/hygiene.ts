import type { FastifyInstance } from 'fastify'
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Duplex } from 'node:stream'
import { GatehouseError } from '../../base/errors.ts'
import { sendError } from '../shared/pages.ts'
import { peerOf } from '../tailnet/peer.ts'
import { plugin } from '../shared/plugin.ts'
import { ambiguity, canonicalTarget, hostName, streamAmbiguity } from './target.ts'
import type { Refusal } from './target.ts'

/** Errors of Node's parser that have a status of their own. */
const byteErrors: Record<string, string> = {
  HPE_HEADER_OVERFLOW: '431 Request Header Fields Too Large',
  ERR_HTTP_REQUEST_TIMEOUT: '408 Request Timeout',
}

/**
 * Fastify's `clientErrorHandler`, for bytes that are no request: a status, and the end of the
 * connection. Said before anything is known of the request, so in the barest form.
 */
export function refuseBytes(err: Error & { code?: string }, socket: Duplex): void {
  const status = byteErrors[err.code ?? ''] ?? '400 Bad Request'
  condemned.add(socket)
  // Not into an answer that has begun: it would be taken for a part of it.
  if (
    socket.writable &&
    err.code !== 'ECONNRESET' &&
    (socket as Duplex & { _httpMessage?: ServerResponse | null })._httpMessage?.headersSent !== true
  ) {
    socket.end(`HTTP/1.1 ${status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n`)
  }
  // Whatever still comes in is not read; the peer gets a moment to read the answer.
  setTimeout(() => socket.destroy(), 1_000).unref()
}

/**
 * What the node, or a Tailscale Service it hosts (`svc:name`), is called: asked at each request.
 */
export interface Names {
  /** Full name; undefined until the node has joined. */
  name: (service?: string) => string | undefined
  /** Addresses in the tailnet. */
  addresses: (service?: string) => readonly string[]
}

const refusals = new WeakMap<IncomingMessage, Refusal>()

/**
 * Connections a request was refused on: what was sent behind it in one go has been parsed, and
 * would be served.
 */
const condemned = new WeakSet<object>()

/**
 * Fastify's `rewriteUrl`: gives the router, and whatever decides after it, the canonical target. It
 * cannot answer by itself, so what it refuses gets a harmless target, and {@link hygiene} answers
 * before any other hook.
 */
export function rewriteUrl(request: IncomingMessage): string {
  // For a request over HTTP/2 the socket is its stream: frames cannot be taken for one another.
  const ambiguous = request.httpVersionMajor === 2 ? streamAmbiguity : ambiguity
  const refused = condemned.has(request.socket)
    ? { status: 400 as const, message: 'a request before this one was refused' }
    : ambiguous(request)
  const target = refused ?? canonicalTarget(request.url ?? '', request.headers.host ?? '')
  if (typeof target === 'string') return target
  refusals.set(request, target)
  condemned.add(request.socket)
  return '/'
}

/**
 * What comes before everything: requests with more than one reading are refused, those under
 * another name sent to the full one, and every answer carries the headers that keep a browser from
 * being tricked.
 *
 * The node answers to its full name alone (308 from the short name and from its addresses, as there
 * is no certificate for them), and at the address of a Service to that Service's: whom the
 * tailnet's policy lets to the one it need not let to the other. Any other name is 421: a page
 * elsewhere can point a name of its own at the node's address, and would then be of the same origin
 * as what it reads (DNS rebinding).
 */
export const hygiene = plugin<{ names: Names }>(
  'hygiene',
  async (app: FastifyInstance, { names }) => {
    app.addHook('onRequest', (request, reply, done) => {
      const refused = refusals.get(request.raw)
      if (refused !== undefined) {
        // What follows on the connection may be the rest of an attempt to smuggle.
        reply.raw.shouldKeepAlive = false
        void sendError(
          request,
          reply,
          refused.status,
          'Bad request',
          new GatehouseError(
            'GH_BAD_REQUEST',
            capital(refused.message),
            'The gateway passes on only requests that can be read in one way',
          ),
        )
        return
      }
      const { service } = peerOf(request.raw.socket)
      const name = names.name(service)
      const host = hostName(request.headers.host ?? '')
      if (host === name) {
        done()
        return
      }
      if (
        name !== undefined &&
        (host === name.split('.', 1)[0] ||
          names.addresses(service).includes(host.replace(/^\[|\]$/g, '')))
      ) {
        reply
          .code(308)
          .header('location', `https://${name}${request.raw.url}`)
          .header('cache-control', 'no-store')
          .type('text/plain; charset=utf-8')
          .send(`https://${name}${request.raw.url}\n`)
        return
      }
      reply.raw.shouldKeepAlive = false
      void sendError(
        request,
        reply,
        421,
        'Wrong address',
        new GatehouseError(
          'GH_HOST',
          service === undefined
            ? "The request is for a name that is not this node's"
            : `The request is for a name that is not ${service}'s, but came to its address`,
          `Use https://${name ?? 'its full name'}/`,
        ),
      )
    })

    app.addHook('onSend', (_request, reply, payload, done) => {
      for (const [header, value] of security)
        if (!reply.hasHeader(header)) reply.header(header, value)
      done(null, payload)
    })
  },
)

/**
 * Set on every answer whose origin says nothing itself. Tried with the Node-RED editor: no
 * Content-Security-Policy (its templates are inline scripts), and frames of the same origin
 * (dashboards) are allowed.
 */
export const securityHeaders: Readonly<Record<string, string>> = {
  // RFC 6797; a year. Not includeSubDomains: names below this one are not the node's to decide
  // about.
  'strict-transport-security': 'max-age=31536000',
  'x-content-type-options': 'nosniff',
  'x-frame-options': 'SAMEORIGIN',
  'referrer-policy': 'strict-origin-when-cross-origin',
}

const security = Object.entries(securityHeaders)

/** {@link securityHeaders} for an answer that does not go through Fastify's reply. */
export function secure(
  headers: Record<string, string | string[]>,
): Record<string, string | string[]> {
  for (const [header, value] of security) headers[header] ??= value
  return headers
}

function capital(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1)
}
