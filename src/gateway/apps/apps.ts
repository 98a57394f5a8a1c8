import type { IncomingMessage } from 'node:http'
import { isIP } from 'node:net'
import type { Config } from '../../config/config.ts'
import { appIdentity } from '../../config/schema.ts'
import type { Right } from '../access/access.ts'
import { GatehouseError } from '../../base/errors.ts'
import { headerRules } from '../../config/header-rules.ts'
import type { HeaderRules } from '../../config/header-rules.ts'
import type { Logger } from '../shared/log.ts'
import { sendError } from '../shared/pages.ts'
import { peerOf } from '../tailnet/peer.ts'
import { plugin } from '../shared/plugin.ts'
import { Upstream } from './upstream.ts'
import type { Where } from './upstream.ts'

/** Something behind the gateway: Node-RED, or an [[app]] of gatehouse.toml. */
export class App {
  /** Label of the metrics: letters, digits and hyphens. */
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
  readonly rules: { request: HeaderRules; answer: HeaderRules } | undefined
  /** Foreign origins whose pages may call it (request-origin.ts); of Node-RED, only its flows. */
  allowOrigins: readonly string[]
  /** Milliseconds from a request's headers to the end of its answer; 0 is no limit. */
  readonly totalTimeout: number
  /** In the order they are tried. */
  readonly upstreams: readonly Upstream[]

  constructor({
    name,
    label,
    service,
    path,
    strip,
    right,
    rules,
    allowOrigins,
    totalTimeout,
    upstreams,
  }: Pick<
    App,
    | 'name'
    | 'label'
    | 'service'
    | 'path'
    | 'strip'
    | 'right'
    | 'rules'
    | 'allowOrigins'
    | 'totalTimeout'
    | 'upstreams'
  >) {
    this.name = name
    this.label = label
    this.service = service
    this.path = path
    this.strip = strip
    this.right = right
    this.rules = rules
    this.allowOrigins = allowOrigins
    this.totalTimeout = totalTimeout
    this.upstreams = upstreams
  }

  /** True when a path belongs to it. */
  owns(path: string): boolean {
    return path.startsWith(this.path) || `${path}/` === this.path
  }

  /** The target as the app sees it. */
  target(target: string): string {
    return this.strip ? target.slice(this.path.length - 1) : target
  }

  /** Those to be tried for a request, best first: one that is down is asked only when all are. */
  get candidates(): readonly Upstream[] {
    const up = this.upstreams.filter((upstream) => upstream.state !== 'down')
    return up.length > 0 ? up : this.upstreams
  }

  /** Requests under way go on to their ends; no new ones are taken. */
  close(): void {
    for (const upstream of this.upstreams) upstream.close()
  }

  /** Requests under way are broken off. */
  destroy(): void {
    for (const upstream of this.upstreams) {
      upstream.close()
      void upstream.pool.destroy()
    }
  }
}

/** Codes of a connection that was never made: nothing of the request has been sent. */
const unconnected =
  /^(?:ECONNREFUSED|ENOENT|EACCES|ENOTFOUND|EAI_AGAIN|EHOSTUNREACH|ENETUNREACH|UND_ERR_CONNECT_TIMEOUT|CERT_|DEPTH_ZERO|SELF_SIGNED|UNABLE_TO|ERR_TLS)/

/** True for a failure to connect to an upstream at all, rather than of one request. */
export function isUnconnected(err: Error): boolean {
  const cause = err.cause instanceof Error ? err.cause : err
  return unconnected.test((cause as NodeJS.ErrnoException).code ?? '')
}

/** Code of a request that took longer than total_timeout. */
export const totalTimeoutCode = 'GH_TOTAL_TIMEOUT'

/** All apps. */
export class Apps {
  readonly nodeRed: App
  #others: App[] = []
  #key = '[]'
  #log: Logger

  constructor(nodeRed: Upstream, log: Logger) {
    this.nodeRed = new App({
      name: 'node-red',
      label: 'Node-RED',
      service: undefined,
      path: '/',
      strip: false,
      right: undefined,
      rules: undefined,
      allowOrigins: [],
      totalTimeout: 0,
      upstreams: [nodeRed],
    })
    this.#log = log
  }

  get all(): readonly App[] {
    return [...this.#others, this.nodeRed]
  }

  /**
   * Takes over settings: apps that are new or changed begin anew, requests under way end as they
   * began.
   *
   * @returns whether anything has changed
   */
  configure(settings: Config['app'], ca: (file: string) => string | undefined): boolean {
    const key = JSON.stringify(settings)
    if (key === this.#key) return false
    this.#key = key
    const before = this.#others
    this.#others = settings
      .map((entry) => {
        const {
          service,
          right,
          allowOrigins,
          upstreams,
          serverName,
          caFile,
          healthPath,
          connectTimeout,
          responseTimeout,
          idleTimeout,
          totalTimeout,
        } = entry
        const { name, label, path } = appIdentity(entry)
        const rules = {
          request: headerRules({
            remove: entry.requestRemove,
            set: entry.requestSet,
            add: entry.requestAdd,
          }),
          answer: headerRules({
            remove: entry.answerRemove,
            set: entry.answerSet,
            add: entry.answerAdd,
          }),
        }
        // Without its own authority an app is trusted by none, rather than by the system's.
        const authority = caFile === undefined ? undefined : (ca(caFile) ?? [])
        return new App({
          name,
          label,
          service,
          path,
          right,
          rules,
          allowOrigins,
          totalTimeout,
          strip: entry.strip && path !== '/',
          upstreams: upstreams.map((url) => {
            const upstream = new Upstream(where(url, { ca: authority, serverName }), {
              name: label,
              healthPath,
              connectTimeout,
              responseTimeout,
              idleTimeout,
            })
            upstream.on('change', () => {
              if (upstream.error === undefined)
                this.#log.info({ app: name, upstream: url }, `${url} is up`)
              else
                this.#log.warn(
                  { app: name, upstream: url, code: upstream.error.code },
                  `${label}: ${upstream.error.line}`,
                )
            })
            upstream.start()
            return upstream
          }),
        })
      })
      // The longest path is the most particular.
      .toSorted((a, b) => b.path.length - a.path.length)
    for (const app of before) app.close()
    return true
  }

  /**
   * The app a canonical target at the node's name, or at a Service's, belongs to. Only the node's
   * has one for every path.
   */
  find(target: string, service?: string): App | undefined {
    const path = target.split('?', 1)[0]!
    return (
      this.#others.find((app) => app.service === service && app.owns(path)) ??
      (service === undefined ? this.nodeRed : undefined)
    )
  }

  /** The server has closed. */
  destroy(): void {
    for (const app of this.all) app.destroy()
  }
}

/** Where an upstream of gatehouse.toml is; checked by the schema. */
function where(
  url: string,
  tls: { ca: string | string[] | undefined; serverName: string | undefined },
): Where {
  if (url.startsWith('unix:')) return { path: url.slice('unix:'.length) }
  const { protocol, hostname, port } = new URL(url)
  const host = hostname.replace(/^\[|\]$/g, '')
  if (protocol === 'http:') return { host, port: Number(port || 80) }
  // SNI is for names alone (RFC 6066 §3); a certificate is then verified by the address.
  return {
    host,
    port: Number(port || 443),
    tls: {
      servername: tls.serverName ?? (isIP(host) === 0 ? host : ''),
      ...(tls.ca === undefined ? {} : { ca: tls.ca }),
    },
  }
}

/**
 * Finds a request's app before anything asks about it; sends `/path` to `/path/`, so that relative
 * links work.
 */
export const chooseApp = plugin<{ apps: Apps }>('apps', async (app, { apps }) => {
  app.decorateRequest('to')
  app.addHook('onRequest', (request, reply, done) => {
    const target = (request.raw as IncomingMessage).url ?? '/'
    const { service } = peerOf(request.raw.socket)
    const found = apps.find(target, service)
    if (found === undefined) {
      void sendError(
        request,
        reply,
        404,
        'Not here',
        new GatehouseError(
          'GH_NO_APP',
          `There is no app at this path of ${service}`,
          'Check the address, and path in [[app]] of gatehouse.toml',
        ),
      )
      return
    }
    request.to = found
    if (request.to !== apps.nodeRed && `${target.split('?', 1)[0]!}/` === request.to.path) {
      reply
        .code(308)
        .header('location', `${request.to.path}${target.slice(request.to.path.length - 1)}`)
        .send()
      return
    }
    done()
  })
})

declare module 'fastify' {
  interface FastifyRequest {
    /** The app the request is for. */
    to: App
  }
}
