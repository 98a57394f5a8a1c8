import type { FastifyRequest } from 'fastify'
import type { IncomingMessage } from 'node:http'
import { isIP } from 'node:net'
import type { Config } from '../../config/config.ts'
import { originOf, ports } from '../../config/ports.ts'
import { appIdentity } from '../../config/schema.ts'
import type { Right } from '../access/access.ts'
import { GatehouseError } from '../../base/errors.ts'
import { headerRules } from '../../config/header-rules.ts'
import type { HeaderRules } from '../../config/header-rules.ts'
import type { Logger } from '../shared/log.ts'
import { sendError } from '../shared/pages.ts'
import type { Shield } from '../request/hygiene.ts'
import { hostName } from '../request/target.ts'
import { peerOf } from '../tailnet/peer.ts'
import type { Peer } from '../tailnet/peer.ts'
import { pathOf } from '../shared/path.ts'
import { plugin } from '../shared/plugin.ts'
import { Upstream } from './upstream.ts'
import type { UpstreamAddress } from './upstream.ts'

/** Something behind the gateway: Node-RED, or an [[app]] of gatehouse.toml. */
export class App implements Shield {
  /** Label of the metrics: letters, digits and hyphens. */
  readonly name: string
  /** What people call it: its path, or the Service's name or the port with it. */
  readonly label: string
  /** The Tailscale Service whose name it has, `svc:name`; undefined: it is at the node's name. */
  readonly service: string | undefined
  /** The port at which it is. */
  readonly port: number
  /** Paths that are its own: begins and ends with a slash. */
  readonly path: string
  /** Whether it sees its paths without {@link path}. */
  readonly strip: boolean
  /** What comes before all paths as it sees them; without a slash at its end. */
  readonly prefix: string
  /** What a peer needs; undefined: as for Node-RED's editor, by method and path. */
  readonly right: Right | undefined
  /** What is changed in the headers of its requests, and of its answers. */
  readonly rules: { request: HeaderRules; answer: HeaderRules } | undefined
  /** Foreign origins whose pages may call it (request-origin.ts). */
  allowOrigins: readonly string[]
  readonly opener: Shield['opener']
  readonly sandbox: boolean
  /** Where else a request is to be tried that it answers with 404: a URL, or undefined. */
  readonly elsewhere: ((request: FastifyRequest) => string | undefined) | undefined
  /** Milliseconds from a request's headers to the end of its answer; 0 is no limit. */
  readonly totalTimeout: number
  /** In the order they are tried. */
  readonly upstreams: readonly Upstream[]
  /** Which of those that are up is asked. */
  readonly balance: Config['app'][number]['balance']
  #turn = 0
  /** Whether it is Node-RED, editor or flows. */
  readonly nodeRed: boolean

  constructor(
    options: Pick<App, 'name' | 'label' | 'right' | 'upstreams'> &
      Partial<
        Pick<
          App,
          | 'service'
          | 'port'
          | 'path'
          | 'strip'
          | 'prefix'
          | 'rules'
          | 'allowOrigins'
          | 'opener'
          | 'sandbox'
          | 'elsewhere'
          | 'totalTimeout'
          | 'nodeRed'
          | 'balance'
        >
      >,
  ) {
    this.name = options.name
    this.label = options.label
    this.service = options.service
    this.port = options.port ?? ports.editor
    this.path = options.path ?? '/'
    this.strip = options.strip ?? false
    this.prefix = options.prefix ?? ''
    this.right = options.right
    this.rules = options.rules
    this.allowOrigins = options.allowOrigins ?? []
    this.opener = options.opener
    this.sandbox = options.sandbox ?? false
    this.elsewhere = options.elsewhere
    this.totalTimeout = options.totalTimeout ?? 0
    this.upstreams = options.upstreams
    this.nodeRed = options.nodeRed ?? false
    this.balance = options.balance ?? 'first'
  }

  /** True when a path belongs to it. */
  owns(path: string): boolean {
    return path.startsWith(this.path) || `${path}/` === this.path
  }

  /** The target as the app sees it. */
  target(target: string): string {
    // An address that Node-RED made itself.
    if (this.prefix !== '' && target.startsWith(`${this.prefix}/`)) return target
    const rest = this.strip ? target.slice(this.path.length - 1) : target
    return `${this.prefix}${rest.startsWith('/') ? '' : '/'}${rest}`
  }

  /** Those to be tried for a request, best first: one that is down is asked only when all are. */
  get candidates(): readonly Upstream[] {
    const up = this.upstreams.filter((upstream) => upstream.state !== 'down')
    return up.length > 0 ? up : this.upstreams
  }

  /**
   * As {@link candidates}, for a new request: its turn, where they take turns. The others follow,
   * for the case that no connection can be made.
   */
  choose(): readonly Upstream[] {
    const { candidates } = this
    if (this.balance === 'first' || candidates.length < 2) return candidates
    const turn = this.#turn++ % candidates.length
    const rotated = [...candidates.slice(turn), ...candidates.slice(0, turn)]
    // Those with equally many take turns: the sort is stable.
    return this.balance === 'round_robin' ? rotated : rotated.toSorted((a, b) => a.open - b.open)
  }

  /** Requests under way go on to their ends; no new ones are taken. */
  close(): void {
    for (const upstream of this.upstreams) upstream.close()
  }

  /** Requests under way are broken off. */
  destroy(): void {
    for (const upstream of this.upstreams) upstream.destroy()
  }
}

/** What flows served before they had a port of their own; as Node-RED's router folds case. */
const oldPath = /^\/app(?:\/|$)/i

/** The gateway's own pages before they had a port of their own. */
const oldOwnPath = '/.gatehouse/'

/** Options of {@link Apps}. */
export interface AppsOptions {
  log: Logger
  /** Where Node-RED has its editor (channel.ts); `/` for tests of what does not depend on it. */
  editorRoot: string
}

/** All apps. */
export class Apps {
  /** The Tailscale Service that is another name of the editor and of what flows serve. */
  editorService: string | undefined
  /** Node-RED's editor. */
  readonly nodeRed: App
  /** What flows serve. */
  readonly flows: App
  /**
   * What flows serve, below /app/ as they did before they had a port of their own: at 443 for
   * programs alone (old-links.ts), and for WebSockets, which can't be sent elsewhere.
   */
  readonly oldFlows: App
  /** The gateway's own pages, which are answered by the gateway. */
  readonly own: App
  #others: App[] = []
  #key = '[]'
  #log: Logger
  #editorSegment: string

  constructor(nodeRed: Upstream, { log, editorRoot }: AppsOptions) {
    this.#editorSegment = editorRoot.slice(1, -1)
    this.nodeRed = new App({
      name: 'node-red',
      label: 'Node-RED',
      prefix: editorRoot.slice(0, -1),
      right: undefined,
      // Its pop-ups, in which other sites let somebody log in, may tell it how that went.
      opener: { policy: 'same-origin-allow-popups', path: '/' },
      // Links to dashboards in the editor, and bookmarks of before, lead to its own origin.
      elsewhere: ({ method, headers, raw }) =>
        method === 'GET' &&
        headers['sec-fetch-mode'] === 'navigate' &&
        headers['sec-fetch-dest'] === 'document'
          ? `${originOf(hostName(headers.host ?? ''), ports.flows)}${raw.url}`
          : undefined,
      upstreams: [nodeRed],
      nodeRed: true,
    })
    this.flows = new App({
      name: 'node-red-flows',
      label: 'Node-RED',
      port: ports.flows,
      right: 'use',
      elsewhere: ({ headers, raw }) =>
        oldPath.test(pathOf(raw.url ?? '/'))
          ? `https://${headers.host}${this.oldFlows.target(raw.url!)}`
          : undefined,
      upstreams: [nodeRed],
      nodeRed: true,
    })
    this.oldFlows = new App({
      name: 'node-red-flows',
      label: 'Node-RED',
      path: '/app/',
      strip: true,
      right: 'use',
      // A browser that does not say what it is must not take it for the editor's.
      sandbox: true,
      upstreams: [nodeRed],
      nodeRed: true,
    })
    this.own = new App({
      name: 'gatehouse',
      label: 'the gateway',
      port: ports.own,
      right: 'status',
      opener: { policy: 'same-origin' },
      upstreams: [],
    })
    this.#log = log
  }

  /** Those with upstreams of their own. */
  get all(): readonly App[] {
    return [...this.#others, this.nodeRed]
  }

  /** Foreign origins whose pages may call what flows serve. */
  get flowOrigins(): readonly string[] {
    return this.flows.allowOrigins
  }
  set flowOrigins(origins: readonly string[]) {
    this.flows.allowOrigins = origins
    this.oldFlows.allowOrigins = origins
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
          port,
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
            remove: entry.responseRemove,
            set: entry.responseSet,
            add: entry.responseAdd,
          }),
        }
        // Without its own authority an app is trusted by none, rather than by the system's.
        const authority = caFile === undefined ? undefined : (ca(caFile) ?? [])
        return new App({
          name,
          label,
          service,
          port: port ?? ports.editor,
          path,
          right,
          rules,
          allowOrigins,
          totalTimeout,
          balance: entry.balance,
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
   * The app a request is for, by where it came in and its canonical target. Only the node's own
   * name at 443, and the ports that are one app's alone, have one for every path.
   *
   * @param upgrade whether it is to become a WebSocket
   */
  find(
    target: string,
    { service, localPort }: Pick<Peer, 'service' | 'localPort'>,
    upgrade = false,
  ): App | undefined {
    const path = pathOf(target)
    const editor = service === undefined || service === this.editorService
    if (service === undefined && localPort === ports.own) return this.own
    if (editor && localPort === ports.flows)
      return this.#withoutEditor(upgrade && oldPath.test(path) ? this.oldFlows : this.flows, path)
    const found = this.#others.find(
      (app) => app.service === service && app.port === localPort && app.owns(path),
    )
    if (found !== undefined || !editor || localPort !== ports.editor) return found
    if (path.startsWith(oldOwnPath) && service === undefined) return this.own
    return oldPath.test(path) ? this.#withoutEditor(this.oldFlows, path) : this.nodeRed
  }

  /** No request to flows gets to the editor, whatever it knows of its root. */
  #withoutEditor(flows: App, path: string): App | undefined {
    const first = flows.target(path).split('/', 2)[1]!
    return this.#editorSegment !== '' && first.toLowerCase() === this.#editorSegment
      ? undefined
      : flows
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
): UpstreamAddress {
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
  app.decorateRequest('route')
  app.addHook('onRequest', (request, reply, done) => {
    const target = (request.raw as IncomingMessage).url ?? '/'
    const peer = peerOf(request.raw.socket)
    const found = apps.find(target, peer, request.headers.upgrade !== undefined)
    if (found === undefined) {
      void sendError(
        request,
        reply,
        404,
        'Not here',
        new GatehouseError(
          'GH_NO_APP',
          `There is no app at this path of ${peer.service ?? `port ${peer.localPort}`}`,
          'Check the address, and path in [[app]] of gatehouse.toml',
        ),
      )
      return
    }
    request.route = found
    if (found !== apps.oldFlows && `${pathOf(target)}/` === found.path) {
      reply
        .code(308)
        .header('location', `${request.route.path}${target.slice(request.route.path.length - 1)}`)
        .send()
      return
    }
    done()
  })
})
