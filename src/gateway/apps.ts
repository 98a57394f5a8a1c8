import type { IncomingHttpHeaders, IncomingMessage } from 'node:http'
import { isIP } from 'node:net'
import type { Dispatcher } from 'undici'
import type { Config } from '../config/config.ts'
import { appIdentity } from '../config/schema.ts'
import type { Right } from './access.ts'
import { GatehouseError } from '../config/errors.ts'
import { headerRules } from './header-rules.ts'
import type { HeaderRules } from './header-rules.ts'
import type { Logger } from './log.ts'
import { sendError } from './pages.ts'
import { peerOf } from './peer.ts'
import { plugin } from './plugin.ts'
import { Upstream } from './upstream.ts'
import type { Where } from './upstream.ts'

/** Something behind the gateway: Node-RED, or an [[app]] of gatehouse.toml. */
export class App {
  /** Label of the metrics, and the host of its made-up origin: letters, digits and hyphens. */
  readonly name: string
  /** What people call it: its path, or the Service's name with it. */
  readonly label: string
  /** The Tailscale Service whose name it has, `svc:name`; undefined: it is at the node's name. */
  readonly service: string | undefined
  /** Paths that are its own: begins and ends with a slash. */
  readonly path: string
  /** Whether it sees its paths without {@link path}. */
  readonly strip: boolean
  /** What a peer needs; undefined: as for Node-RED, by method and path. */
  readonly right: Right | undefined
  /** What is changed in the headers of its requests, and of its answers. */
  readonly rules: { request: HeaderRules, answer: HeaderRules } | undefined
  /** Milliseconds from a request's headers to the end of its answer; 0 is no limit. */
  readonly totalTimeout: number
  /** In the order they are tried. */
  readonly upstreams: readonly Upstream[]

  constructor ({ name, label, service, path, strip, right, rules, totalTimeout, upstreams }: Pick<App, 'name' | 'label' | 'service' | 'path' | 'strip' | 'right' | 'rules' | 'totalTimeout' | 'upstreams'>) {
    this.name = name
    this.label = label
    this.service = service
    this.path = path
    this.strip = strip
    this.right = right
    this.rules = rules
    this.totalTimeout = totalTimeout
    this.upstreams = upstreams
  }

  /** True when a path belongs to it. */
  owns (path: string): boolean {
    return path.startsWith(this.path) || `${path}/` === this.path
  }

  /** The target as the app sees it. */
  target (target: string): string {
    return this.strip ? target.slice(this.path.length - 1) : target
  }

  /** Those to be tried for a request, best first: one that is down is asked only when all are. */
  get candidates (): readonly Upstream[] {
    const up = this.upstreams.filter((upstream) => upstream.state !== 'down')
    return up.length > 0 ? up : this.upstreams
  }

  /** Requests under way go on to their ends; no new ones are taken. */
  close (): void {
    for (const upstream of this.upstreams) upstream.close()
  }

  /** Requests under way are broken off. */
  destroy (): void {
    for (const upstream of this.upstreams) {
      upstream.close()
      void upstream.pool.destroy()
    }
  }
}

/** Codes of a connection that was never made: nothing of the request has been sent. */
const unconnected = /^(?:ECONNREFUSED|ENOENT|EACCES|ENOTFOUND|EAI_AGAIN|EHOSTUNREACH|ENETUNREACH|UND_ERR_CONNECT_TIMEOUT|CERT_|DEPTH_ZERO|SELF_SIGNED|UNABLE_TO|ERR_TLS)/

/** True for a failure to connect to an upstream at all, rather than of one request. */
export function isUnconnected (err: Error): boolean {
  const cause = err.cause instanceof Error ? err.cause : err
  return unconnected.test((cause as NodeJS.ErrnoException).code ?? '')
}

/** Code of a request that took longer than total_timeout. */
export const totalTimeoutCode = 'GH_TOTAL_TIMEOUT'

type Answer = (err: Error | null, data: Dispatcher.ResponseData) => void

/** What a request's headers carry to {@link Apps.request} past reply-from, which has no other way: options of undici's. Symbols are not sent. */
export const extras: unique symbol = Symbol('extras')

/** See {@link extras}. */
export interface Extras extends Pick<Dispatcher.RequestOptions, 'onInfo'> {
  /** Aborted when nobody waits for the answer any more. */
  gone: AbortController
  /** Set with the answer; filled when its body has ended. */
  trailers?: IncomingHttpHeaders
}

/**
 * All apps. It is also what @fastify/reply-from takes for undici's dispatcher, which lets it choose for each request: an app by the origin
 * (`http://<name>.invalid`), and among the app's upstreams.
 *
 * Tried again at the next upstream is a request without body that no connection could be made for. One with a body is not, since the body may be
 * gone; and none that an upstream has seen.
 */
export class Apps {
  readonly nodeRed: App
  #others: App[] = []
  #key = '[]'
  #log: Logger

  constructor (nodeRed: Upstream, log: Logger) {
    this.nodeRed = new App({ name: 'node-red', label: 'Node-RED', service: undefined, path: '/', strip: false, right: undefined, rules: undefined, totalTimeout: 0, upstreams: [nodeRed] })
    this.#log = log
  }

  get all (): readonly App[] { return [...this.#others, this.nodeRed] }

  /**
   * Takes over settings: apps that are new or changed begin anew, requests under way end as they began.
   *
   * @returns whether anything has changed
   */
  configure (settings: Config['app'], ca: (file: string) => string | undefined): boolean {
    const key = JSON.stringify(settings)
    if (key === this.#key) return false
    this.#key = key
    const before = this.#others
    this.#others = settings
      .map((entry) => {
        const { service, right, upstreams, serverName, caFile, connectTimeout, responseTimeout, idleTimeout, totalTimeout } = entry
        const { name, label, path } = appIdentity(entry)
        const rules = {
          request: headerRules({ remove: entry.requestRemove, set: entry.requestSet, add: entry.requestAdd }),
          answer: headerRules({ remove: entry.answerRemove, set: entry.answerSet, add: entry.answerAdd }),
        }
        // Without its own authority an app is trusted by none, rather than by the system's.
        const authority = caFile === undefined ? undefined : ca(caFile) ?? []
        return new App({ name, label, service, path, right, rules, totalTimeout, strip: entry.strip && path !== '/', upstreams: upstreams.map((url) => {
          const upstream = new Upstream(where(url, { ca: authority, serverName }), { name: label, connectTimeout, responseTimeout, idleTimeout })
          upstream.on('change', () => {
            if (upstream.error === undefined) this.#log.info({ app: name, upstream: url }, `${url} is up`)
            else this.#log.warn({ app: name, upstream: url, code: upstream.error.code }, `${label}: ${upstream.error.line}`)
          })
          upstream.start()
          return upstream
        }) })
      })
      // The longest path is the most particular.
      .toSorted((a, b) => b.path.length - a.path.length)
    for (const app of before) app.close()
    return true
  }

  /** The app a canonical target at the node's name, or at a Service's, belongs to. Only the node's has one for every path. */
  find (target: string, service?: string): App | undefined {
    const path = target.split('?', 1)[0]!
    return this.#others.find((app) => app.service === service && app.owns(path)) ?? (service === undefined ? this.nodeRed : undefined)
  }

  /** See undici's Dispatcher.request. */
  request (options: Dispatcher.RequestOptions, answer: Answer): void {
    const name = URL.parse(String(options.origin))?.hostname.replace(/\.invalid$/, '')
    const app = this.all.find((candidate) => candidate.name === name) ?? this.nodeRed
    const candidates = app.candidates
    const path = app.target(options.path)
    const bodyless = options.body === null || options.body === undefined || options.body === ''
    const extra = (options.headers as { [extras]?: Extras } | undefined)?.[extras]
    // Who waits for the answer may give it up (proxy.ts), and so may the app's own limit.
    const gone = extra?.gone ?? new AbortController()
    const late = app.totalTimeout === 0 ? undefined : setTimeout(() => {
      gone.abort(Object.assign(new Error(`not done within ${app.totalTimeout / 1_000} s`), { code: totalTimeoutCode }))
    }, app.totalTimeout)
    const attempt = (i: number): void => {
      const upstream = candidates[i]!
      upstream.pool.request({ ...options, signal: gone.signal, onInfo: extra?.onInfo, origin: upstream.origin, path, headersTimeout: upstream.responseTimeout }, (err, data) => {
        if (err === null) {
          upstream.up()
          if (extra !== undefined) extra.trailers = data.trailers as IncomingHttpHeaders
          data.body.once('close', () => clearTimeout(late)).once('error', (broken: NodeJS.ErrnoException) => {
            const limit = broken.code === totalTimeoutCode ? 'total_timeout' : broken.code === 'UND_ERR_BODY_TIMEOUT' ? 'idle_timeout' : undefined
            if (limit !== undefined) this.#log.warn({ code: 'GH_UPSTREAM_TIMEOUT', app: app.name }, `${app.label}: an answer was broken off, ${limit} is over. Look at what the app is doing, or raise ${limit} in [[app]]`)
          })
        } else if (isUnconnected(err)) {
          upstream.down(err.cause instanceof Error ? err.cause : err)
          if (bodyless && i + 1 < candidates.length) {
            attempt(i + 1)
            return
          }
        }
        if (err !== null) clearTimeout(late)
        answer(err, data)
      })
    }
    attempt(0)
  }

  /** See undici's Dispatcher.destroy; reply-from calls it when the server has closed. */
  destroy (): void {
    for (const app of this.all) app.destroy()
  }
}

/** Where an upstream of gatehouse.toml is; checked by the schema. */
function where (url: string, tls: { ca: string | string[] | undefined, serverName: string | undefined }): Where {
  if (url.startsWith('unix:')) return { path: url.slice('unix:'.length) }
  const { protocol, hostname, port } = new URL(url)
  const host = hostname.replace(/^\[|\]$/g, '')
  if (protocol === 'http:') return { host, port: Number(port || 80) }
  // SNI is for names alone (RFC 6066 §3); a certificate is then verified by the address.
  return { host, port: Number(port || 443), tls: { servername: tls.serverName ?? (isIP(host) === 0 ? host : ''), ...(tls.ca === undefined ? {} : { ca: tls.ca }) } }
}

/** Finds a request's app before anything asks about it; sends `/path` to `/path/`, so that relative links work. */
export const chooseApp = plugin<{ apps: Apps }>('apps', async (app, { apps }) => {
  app.decorateRequest('to')
  app.addHook('onRequest', async (request, reply) => {
    const target = (request.raw as IncomingMessage).url ?? '/'
    const { service } = peerOf(request.raw.socket)
    const found = apps.find(target, service)
    if (found === undefined) return await sendError(request, reply, 404, 'Not here', new GatehouseError('GH_NO_APP', `There is no app at this path of ${service}`, 'Check the address, and path in [[app]] of gatehouse.toml'))
    request.to = found
    if (request.to !== apps.nodeRed && `${target.split('?', 1)[0]!}/` === request.to.path) {
      return await reply.code(308).header('location', `${request.to.path}${target.slice(request.to.path.length - 1)}`).send()
    }
  })
})

declare module 'fastify' {
  interface FastifyRequest {
    /** The app the request is for. */
    to: App
  }
}
