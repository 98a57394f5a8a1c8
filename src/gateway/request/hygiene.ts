import type { FastifyInstance } from 'fastify'
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Duplex } from 'node:stream'
import { GatehouseError } from '../../base/errors.ts'
import { originOf } from '../../config/ports.ts'
import { sendError } from '../shared/pages.ts'
import { pathOf } from '../shared/path.ts'
import { peerOf } from '../tailnet/peer.ts'
import { plugin } from '../shared/plugin.ts'
import { ambiguity, canonicalTarget, hostName, streamAmbiguity } from './target.ts'
import type { Redirect, Refusal } from './target.ts'

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
  /** Whether a host is another name of the node's, which is sent to the full one. Default: none is. */
  alias?: (host: string, service?: string) => boolean
}

const refusals = new WeakMap<IncomingMessage, Refusal>()
const redirects = new WeakMap<IncomingMessage, Redirect>()

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
  if (target.status === 308) {
    redirects.set(request, target)
    return target.location
  }
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
      const { service, localPort } = peerOf(request.raw.socket)
      const name = names.name(service)
      const given = request.headers.host ?? ''
      const host = hostName(given)
      const port = Number(/:(\d+)$/.exec(given)?.[1] ?? 443)
      if (host === name && port === localPort) {
        const redirect = redirects.get(request.raw)
        if (redirect === undefined) done()
        else reply.code(308).header('location', redirect.location).send()
        return
      }
      if (
        name !== undefined &&
        (host === name.split('.', 1)[0] ||
          names.addresses(service).includes(host.replace(/^\[|\]$/g, '')) ||
          names.alias?.(host, service) === true)
      ) {
        const location = `${originOf(name, localPort)}${request.raw.url}`
        reply
          .code(308)
          .header('location', location)
          .header('cache-control', 'no-store')
          .type('text/plain; charset=utf-8')
          .send(`${location}\n`)
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
          misdirected({ host, name, port, localPort, service }),
          `Use ${name === undefined ? 'its full name' : `${originOf(name, localPort)}/`}`,
        ),
      )
    })

    app.addHook('onSend', (request, reply, payload, done) => {
      const said = reply.getHeaders() as Headers
      for (const [header, value] of Object.entries(secure({ ...said }, request)))
        if (value !== said[header]) reply.header(header, value)
      done(null, payload)
    })
  },
)

/** Why a request is not for where it came to. */
function misdirected({
  host,
  name,
  port,
  localPort,
  service,
}: {
  host: string
  name: string | undefined
  port: number
  localPort: number
  service: string | undefined
}): string {
  // Two ports are two origins to a browser: what one answers must not be taken for the other's.
  if (host === name) return `The request is for port ${port}, but came to port ${localPort}`
  return service === undefined
    ? "The request is for a name that is not this node's"
    : `The request is for a name that is not ${service}'s, but came to its address`
}

type Headers = Record<string, string | string[]>

/** What an app is protected by beside {@link always}, for {@link secure}. */
export interface Shield {
  /** Foreign origins that may embed it. */
  readonly allowOrigins: readonly string[]
  /**
   * Cross-Origin-Opener-Policy of its pages, or of the page at `path` alone: a page that opened it
   * is then not told what becomes of it, and cannot lead it elsewhere.
   */
  readonly opener: { policy: string; path?: string } | undefined
  /** Its pages may not act as the origin that they come from. */
  readonly sandbox: boolean
}

/**
 * Set on every answer where its app says nothing itself. Tried with the Node-RED editor: no policy
 * for scripts, since its templates are inline ones.
 */
const usual = {
  // RFC 6797; a year. Not includeSubDomains: names below this one are not the node's to decide
  // about.
  'strict-transport-security': 'max-age=31536000',
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'strict-origin-when-cross-origin',
}
let always = Object.entries(usual)

/**
 * Whether browsers are told to come by https alone from now on (HSTS); they are, until this says
 * otherwise. With an authority of the device's own they are told to forget it: who has not its root
 * (any more) must get to it by http on port 80, and past a warning. For the process: there is one
 * gateway in it.
 */
export function strictTransport(on: boolean): void {
  always = Object.entries(on ? usual : { ...usual, 'strict-transport-security': 'max-age=0' })
}

/**
 * Adds to the headers of an answer what keeps a browser from being tricked, as far as its app does
 * not say it itself: {@link always}; that foreign pages may neither frame it nor include it, also
 * not from a browser's cache (other nodes of the tailnet are the same site, and share that), but
 * for those that are named; and its {@link Shield}.
 *
 * @returns the same headers
 */
export function secure(
  headers: Headers,
  { url, route }: { url: string; route?: Shield | undefined },
): Headers {
  for (const [header, value] of always) headers[header] ??= value
  const friends = route?.allowOrigins ?? []
  if (friends.length === 0) headers['cross-origin-resource-policy'] ??= 'same-origin'
  const policy = headers['content-security-policy']
  const policies = policy === undefined ? [] : [policy].flat()
  if (
    headers['x-frame-options'] === undefined &&
    !policies.some((text) => /frame-ancestors/i.test(text))
  ) {
    policies.push(["frame-ancestors 'self'", ...friends].join(' '))
    // Says the same to browsers that do not know the other; it knows no names.
    if (friends.length === 0) headers['x-frame-options'] = 'SAMEORIGIN'
  }
  if (route?.sandbox === true) policies.push('sandbox')
  // Each counts for itself (CSP3 §4.1): what an app says is not made weaker.
  if (policies.length > 0) headers['content-security-policy'] = policies.join(', ')
  const { opener } = route ?? {}
  if (
    opener !== undefined &&
    (opener.path === undefined || opener.path === pathOf(url)) &&
    String(headers['content-type'] ?? '').startsWith('text/html')
  )
    headers['cross-origin-opener-policy'] ??= opener.policy
  return headers
}

function capital(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1)
}
