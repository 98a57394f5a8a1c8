import type { FastifyInstance } from 'fastify'
import type { Server } from 'node:http'
import type { Socket } from 'node:net'
import { mkdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Counter } from 'prom-client'
import { authorityFile, readRecord } from '../certs/record.ts'
import type { CertsRecord } from '../certs/record.ts'
import { randomBytes } from 'node:crypto'
import { defaults } from '../config/config.ts'
import { originOf, ports } from '../config/ports.ts'
import type { Config } from '../config/config.ts'
import { GatehouseError, reason } from '../base/errors.ts'
import { writeFileAtomic } from '../base/files.ts'
import { capability } from './access/access.ts'
import type { Right } from './access/access.ts'
import { editorRoot } from './access/channel.ts'
import { createApp } from './app.ts'
import { Apps } from './apps/apps.ts'
import { Arrivals } from './apps/old-links.ts'
import { judgeCertificates, wantedAt } from './certificates/health.ts'
import { certificateMetrics } from './certificates/metrics.ts'
import { Cache } from './cache/cache.ts'
import { Certificates } from './certificates/certificates.ts'
import {
  canonicalName,
  certificateNames,
  covers,
  isAlias,
  serviceName,
} from './certificates/names.ts'
import type { NameSources } from './certificates/names.ts'
import { createAdminServer, createCertsServer } from './operate/control.ts'
import { Audit } from './console/audit.ts'
import { Delivery } from './cache/deliver.ts'
import { Doors } from './listen/doors.ts'
import { examine } from './operate/doctor.ts'
import type { Check } from './operate/doctor.ts'
import { Forwards } from './listen/forward.ts'
import { acceptTLS } from './listen/tls.ts'
import { Guard } from './access/guard.ts'
import { Limits, applyTo } from './request/limits.ts'
import { LocalNetwork } from './listen/local-network.ts'
import type { LocalNetworkOptions } from './listen/local-network.ts'
import type { Logger } from './shared/log.ts'
import { Metrics } from './request/metrics.ts'
import { strictTransport } from './request/hygiene.ts'
import { Node } from './tailnet/node.ts'
import type { NodeOptions } from './tailnet/node.ts'
import { Peer, setPeer } from './tailnet/peer.ts'
import { Problems } from './shared/problems.ts'
import type { Problem } from './shared/problems.ts'
import { createRedirectServer } from './listen/redirect.ts'
import { Reloader } from './operate/reload.ts'
import { listenOn } from '../base/sockets.ts'
import type { ListenSocket } from '../base/sockets.ts'
import { Services } from './tailnet/services.ts'
import { examineStorage } from './operate/storage.ts'
import type { GatewayStatus } from './operate/status.ts'
import type { TailnetConn, TailnetListener } from './tailnet/tailnet.ts'
import type { NodeStatus } from '@gatehouse/tsnet'
import { Upstream } from './apps/upstream.ts'

/** Options of {@link Gateway}. */
export interface GatewayOptions {
  version: string
  log: Logger
  /** Directory of the certificates. */
  tls: string
  /** Directory for `names`, the list of names to have certificates for. */
  runtime: string
  /** Node-RED's socket. */
  nodeRed: string
  /** Shared with Node-RED, so that it knows who is logged in (channel.ts). */
  channelKey: Buffer | undefined
  /** Where Node-RED has its editor. Default: where the channel key says (channel.ts). */
  editorRoot?: string
  admin: ListenSocket
  certs: ListenSocket
  /** The node's state directory, whose file system is watched. Default: none is. */
  state?: string
  /** The broker's socket. Default: the appliance's. */
  broker?: string
  /** Directory of the web console's pages (tools/console.ts). Default: there are none. */
  pages?: string
  /** Told on every change: one line on how things are. */
  onState?: (line: string) => void
  /**
   * The process must end: the tailnet server died, or memory is short for good (a GatehouseError).
   */
  onFatal?: (err: Error) => void
  /** Reads the provisioned configuration, for a reload. Default: that of an empty file. */
  load?: () => Promise<Config>
  /** Reads what provisioning complains about; undefined when it does not. */
  configurationProblem?: () => Promise<string | undefined>
  /** Reads what provisioning says beside that, a line each. Default: nothing. */
  configurationNotes?: () => Promise<string[]>
  /** Addresses of a name in DNS, for `gatehouse doctor`. Default: as the system's resolver has them. */
  resolve?: (name: string) => Promise<string[]>
  /** Content of a `ca_file` of gatehouse.toml. */
  authority?: (file: string) => string | undefined
  /** Ports of the listener on the local network. Default: the appliance's. */
  localPorts?: LocalNetworkOptions['ports']
  /** How long Node-RED may take to answer. Milliseconds, default 120 s. */
  headersTimeout?: number
}

/**
 * The gateway: control sockets, the node on the tailnet, ports 443 and 80 on it, and Node-RED
 * behind. Every part may be missing or broken for as long as it takes; the others work and the
 * status says what is wrong.
 */
export class Gateway {
  readonly problems: Problems
  readonly certificates: Certificates
  /** Node-RED. */
  readonly upstream: Upstream
  readonly apps: Apps
  readonly limits: Limits
  readonly delivery: Delivery
  readonly forwards: Forwards
  readonly doors: Doors
  readonly localNetwork: LocalNetwork
  readonly services: Services
  readonly metrics: Metrics
  readonly guard: Guard
  readonly reloader: Reloader
  #options: GatewayOptions
  #editorRoot: string
  #arrivals: Arrivals
  #startedAt = new Date()
  #app: FastifyInstance | undefined
  #node: Node | undefined
  #controlURL: string | undefined
  #controlAuthority: string | undefined
  /** [certificates]: where names and certificates come from. */
  #settings: Config['certificates'] = defaults().certificates
  #redirect: Server
  #admin: Server
  #certs: Server
  #https: TailnetListener | undefined
  #http: TailnetListener | undefined
  /** Takes a connection to port 443, once that is served. */
  #accept: ((conn: TailnetConn, peer?: Peer) => void) | undefined
  #localRights: readonly Right[] = []
  #opening = false
  #open: ReadonlySet<Socket> = new Set<Socket>()
  #plain = new Set<TailnetConn>()
  #record: CertsRecord | undefined
  #names = ''
  #writing = Promise.resolve()
  #woken: string | undefined
  #line = ''
  #closing = false
  #timer: NodeJS.Timeout | undefined

  constructor(options: GatewayOptions) {
    this.#options = options
    const { log } = options
    this.problems = new Problems(log)
    this.certificates = new Certificates(options.tls, log)
    this.upstream = new Upstream(
      { path: options.nodeRed },
      options.headersTimeout === undefined ? {} : { responseTimeout: options.headersTimeout },
    )
    // Without the key nobody gets to the editor, rather than to what flows have at its root.
    this.#editorRoot = options.editorRoot ?? editorRoot(options.channelKey ?? randomBytes(32))
    this.apps = new Apps(this.upstream, { log, editorRoot: this.#editorRoot })
    this.reloader = new Reloader({
      log,
      problems: this.problems,
      load: options.load ?? (async () => defaults()),
      apply: (config) => {
        this.configure(config)
      },
    })
    this.guard = new Guard({
      log,
      tailnet: () => this.#node?.tailnet,
      addresses: () => this.#node?.status?.tailscaleIPs ?? [],
      channelKey: options.channelKey,
    })
    this.limits = new Limits(defaults().limits, log)
    this.limits.ask = async (peer) => await this.guard.ask(peer)
    this.forwards = new Forwards({
      log,
      guard: this.guard,
      limits: this.limits,
      tailnet: () => this.#node?.tailnet,
      addresses: () => this.#node?.status?.tailscaleIPs ?? [],
      context: (asked) => {
        const own = asked ?? this.#nameOf() ?? ''
        return this.#covered(own) ? this.certificates.context(own) : undefined
      },
      listen: async (port, accept) => await this.#node?.listen(port, accept),
      listenPacket: async (port) => await this.#node?.listenPacket(port),
    })
    this.#arrivals = new Arrivals(this.problems)
    this.doors = new Doors({
      problems: this.problems,
      accept: (conn, port) => {
        this.metrics.connections.inc()
        const peer = new Peer(conn, this.#node!.tailnet!, log, undefined, port)
        if (port === ports.flows) this.#arrivals.arrived(peer)
        this.#accept!(conn, peer)
      },
      listen: async (port, accept) => await this.#node?.listen(port, accept),
    })
    this.localNetwork = new LocalNetwork({
      log,
      problems: this.problems,
      ...(options.localPorts === undefined ? {} : { ports: options.localPorts }),
      accept: {
        http: (conn, peer) => {
          this.#redirectConn(conn, peer)
        },
        // Before there is a certificate, as on the tailnet: no handshake. Names of forwards are not
        // for those whom nobody knows.
        https: (conn, peer) => {
          this.#acceptLocal(conn, peer)
        },
        flows: (conn, peer) => {
          this.#acceptLocal(conn, peer)
        },
      },
    })
    this.services = new Services({
      log,
      problems: this.problems,
      node: () => this.#node,
      controlURL: () => this.#controlURL,
      nameOf: (label, tailnet) => serviceName(this.#sources(), label, tailnet),
      certifiable: (name) =>
        this.#settings.mode === 'tailscale'
          ? (this.#node?.names.includes(name) ?? false)
          : this.#settings.name.some((one) => covers(one, name)),
      accept: (service, port, conn) => {
        const peer = new Peer(conn, this.#node!.tailnet!, log, service)
        if (port === 80) this.#redirectConn(conn, peer)
        else {
          this.metrics.connections.inc()
          this.#accept!(conn, peer)
        }
      },
    })
    this.delivery = new Delivery(new Cache(log), defaults().cache)
    this.limits.memory.events = {
      short: () => {
        this.delivery.cache.purge()
      },
      problem: (error) => {
        if (error === undefined) this.problems.clear('memory', 'there is enough memory again')
        else this.problems.set('memory', error, 'error')
      },
      stuck: (error) => {
        options.onFatal?.(error)
      },
    }
    this.metrics = new Metrics(options.version, {
      connections: () => this.#open.size,
      websockets: () => this.#app?.tunnels.size ?? 0,
      upstreams: () =>
        this.apps.all.flatMap((app) =>
          app.upstreams.map((upstream, i) => ({
            upstream: app.upstreams.length === 1 ? app.name : `${app.name}-${i + 1}`,
            up: upstream.state === 'up',
          })),
        ),
      tailnetState: () => this.#node?.status?.backendState ?? 'NoState',
      peers: () => (this.#node?.status?.peers ?? []).map((peer) => pathTo(peer).path),
      keyExpiry: () => {
        const expiry = this.#node?.status?.self?.keyExpiry
        return expiry === undefined ? undefined : new Date(expiry)
      },
      problems: () => this.problems.list(),
    })
    certificateMetrics(this.metrics.registry, {
      certificates: this.certificates,
      record: () => this.#record,
    })
    const limited = new Counter({
      name: 'gatehouse_limited_total',
      help: 'Connections and requests refused or ended by a limit.',
      labelNames: ['limit'],
      registers: [this.metrics.registry],
    })
    this.delivery.measure(this.metrics.registry)
    this.limits.onLimit = (limit) => {
      limited.inc({ limit })
    }
    this.#admin = createAdminServer(
      {
        status: async () => await this.status(),
        notReady: () => this.#notReady(),
        registry: this.metrics.registry,
        purge: () => this.delivery.cache.purge(),
        doctor: async () => await this.examine(),
        reload: async () => await this.reloader.reload(),
      },
      log,
    )
    this.#certs = createCertsServer(
      {
        names: () => certificateNames(this.#sources()),
        problem: () => this.problems.get('https') ?? this.problems.get('tailnet'),
        setDNS: async (name, value) => {
          await this.#node!.tailnet!.setDNS(name, value)
        },
      },
      log,
    )
    this.#redirect = createRedirectServer({
      authority: async () =>
        this.#settings.mode === 'self'
          ? await readFile(join(options.tls, authorityFile), 'utf8').catch(() => undefined)
          : undefined,
      name: (service) => this.#nameOf(service),
      waiting: (service) => {
        const ready =
          service === undefined
            ? this.#https !== undefined && this.#covered(this.#nameOf() ?? '')
            : this.#covered(this.#nameOf(service) ?? '')
        const problem = ready
          ? undefined
          : (this.problems.get('https') ?? this.problems.get('certificate'))
        return (
          problem ??
          (!ready
            ? { message: 'There is no certificate for HTTPS yet', cure: 'Try again in a minute' }
            : undefined)
        )
      },
    })
    this.problems.on('change', () => {
      this.#say()
    })
    this.upstream.on('change', () => {
      const { error } = this.upstream
      if (error === undefined) this.problems.clear('upstream', 'Node-RED is up')
      else this.problems.set('upstream', error)
      this.#say()
    })
    this.certificates.on('look', () => {
      void this.#judgeCertificates()
    })
  }

  /** Opens the control sockets and begins to look at Node-RED and the certificates. */
  async start(): Promise<void> {
    const { log, upstream } = { log: this.#options.log, upstream: this.upstream }
    await listenOn(this.#admin, this.#options.admin)
    await listenOn(this.#certs, this.#options.certs)
    this.#app = await createApp({
      log,
      metrics: this.metrics,
      apps: this.apps,
      arrivals: this.#arrivals,
      guard: this.guard,
      pages: this.#options.pages,
      status: async () => await this.status(),
      console: {
        broker: this.#options.broker ?? '/run/gatehouse-broker.sock',
        audit: new Audit(this.#options.state, log),
        notReady: () => this.#notReady(),
        metrics: async () => ({
          type: this.metrics.registry.contentType,
          text: await this.metrics.registry.metrics(),
        }),
        access: () => this.guard.settings,
        self: async () => await this.guard.self(),
      },
      limits: this.limits,
      delivery: this.delivery,
      names: {
        name: (service) => this.#nameOf(service),
        addresses: (service) =>
          service === undefined
            ? (this.#node?.status?.tailscaleIPs ?? [])
            : this.services.addresses(service),
        alias: (host, service) =>
          service === undefined &&
          !this.services.list().some(({ name }) => name === host) &&
          isAlias(this.#sources(), host),
      },
    })
    applyTo(this.#app.server as Server, this.limits.settings)
    await this.certificates.start()
    upstream.start()
    await this.#judgeStorage()
    // Expiry comes with time alone, and the last run's record may be older than this process.
    this.#timer = setInterval(() => {
      void this.#judgeStorage()
      void this.#judgeCertificates()
    }, 60_000)
    this.#timer.unref()
    this.#say()
  }

  /** For `gatehouse doctor`: what only the gateway can check. */
  async examine(): Promise<Check[]> {
    await this.#node?.look()
    return await examine({
      node: this.#node,
      controlURL: this.#controlURL,
      controlAuthority: this.#controlAuthority,
      certificates: this.certificates,
      upstream: this.upstream,
      guard: this.guard,
      problems: this.problems,
      channelKey: this.#options.channelKey,
      editorRoot: this.#editorRoot,
      serving: this.#https !== undefined,
      services: this.services,
      names: certificateNames(this.#sources()),
      ...(this.#options.resolve !== undefined && { resolve: this.#options.resolve }),
    })
  }

  /** True unless the node has started and does not answer any more. For the watchdog. */
  async alive(): Promise<boolean> {
    await this.#node?.tailnet?.status()
    return true
  }

  /**
   * Takes over settings; they hold for what comes from now on, and nothing that is open is dropped.
   */
  configure(
    config: Pick<
      Config,
      | 'limits'
      | 'cache'
      | 'access'
      | 'forward'
      | 'app'
      | 'local_network'
      | 'node_red'
      | 'certificates'
    >,
  ): void {
    this.#settings = config.certificates
    strictTransport(this.#settings.mode !== 'self')
    if (this.#node !== undefined) this.#node.wantsNames = this.#settings.mode === 'tailscale'
    // The agent is to look at what changed, names or not.
    this.#names = ''
    this.#localRights = config.local_network.listen ? config.local_network.rights : []
    this.guard.local = this.#localRights
    void this.localNetwork.configure(config.local_network)
    // What is stored came of other apps, or by other rules.
    const others = this.apps.configure(config.app, this.#options.authority ?? (() => undefined))
    const friends = this.apps.flowOrigins.join() !== config.node_red.allowOrigins.join()
    this.apps.flowOrigins = config.node_red.allowOrigins
    if (others || friends) this.delivery.cache.purge()
    this.doors.configure(
      config.app.flatMap(({ port }) => port ?? []),
      config.forward.filter(({ sni }) => sni.length === 0).map(({ port }) => port),
    )
    this.upstream.responseTimeout = this.#options.headersTimeout ?? config.node_red.responseTimeout
    this.services.configure(config.app.flatMap(({ service }) => service ?? []))
    this.#takeNames()
    this.forwards.configure(config.forward)
    this.guard.settings = config.access
    this.limits.settings = config.limits
    this.delivery.settings = config.cache
    if (this.#app !== undefined) applyTo(this.#app.server as Server, config.limits)
  }

  /**
   * Joins the tailnet and serves. Resolves when port 80 is open on the node, which may be before it
   * has joined.
   */
  async join(options: Omit<NodeOptions, 'problems' | 'log'>): Promise<void> {
    const node = new Node({ ...options, problems: this.problems, log: this.#options.log })
    node.wantsNames = this.#settings.mode === 'tailscale'
    this.#node = node
    this.#controlURL = options.controlURL
    this.#controlAuthority = options.controlAuthority
    this.guard.controlURL = options.controlURL
    node.on('fatal', (err: Error) => {
      this.#options.onFatal?.(err)
    })
    node.on('status', () => {
      this.services.judge()
      this.#takeNames()
      this.#say()
    })
    await node.start()
    const front = acceptTLS({
      server: this.#app!.server as Server,
      acceptHTTP2: this.#app!.acceptHTTP2,
      certificates: this.certificates,
      tailnet: node.tailnet!,
      limits: this.limits,
      log: this.#options.log,
      name: (service) => this.#nameOf(service),
    })
    this.#open = front.open
    this.#accept = front.accept
    this.#http = await node.listen(80, (conn) => {
      this.#redirectConn(conn, new Peer(conn, node.tailnet!, this.#options.log))
    })
    this.services.start()
    this.forwards.start()
    await this.#judgeCertificates()
  }

  /** What the names of this device follow from. */
  #sources(): NameSources {
    return {
      settings: this.#settings,
      node: this.#node,
      covered: (name) => this.#covered(name),
    }
  }

  #covered(name: string): boolean {
    return this.certificates.covering(name) !== undefined
  }

  /** The one name of the device, or of a Service it hosts. */
  #nameOf(service?: string): string | undefined {
    return service === undefined ? canonicalName(this.#sources()) : this.services.name(service)
  }

  /** A connection of the local network, to the editor's port or to that of what flows serve. */
  #acceptLocal(conn: TailnetConn, peer: Peer): void {
    if (this.#accept === undefined) conn.destroy()
    else this.#accept(conn, peer)
  }

  /** A connection to port 80. */
  #redirectConn(conn: TailnetConn, peer: Peer): void {
    conn.on('error', () => conn.destroy())
    if (!this.limits.admit(peer, conn)) {
      conn.destroy()
      return
    }
    setPeer(conn, peer)
    this.#plain.add(conn)
    // All there is to do is to ask and be sent elsewhere: whoever takes longer than headers may is
    // after something else.
    const late = setTimeout(() => conn.destroy(), this.limits.settings.headerTimeout)
    conn.once('close', () => {
      clearTimeout(late)
      this.#plain.delete(conn)
    })
    this.#redirect.emit('connection', conn)
  }

  /** The names may be others: of the node, of Services it hosts. */
  #takeNames(): void {
    this.certificates.want(certificateNames(this.#sources()))
    void this.#writeNames()
    void this.#judgeCertificates()
  }

  /** Connections of peers to port 443 that are open. */
  get connections(): number {
    return this.#open.size
  }

  /** How things are now. */
  async status(): Promise<GatewayStatus> {
    const configuration = await this.#options.configurationProblem?.()
    // What the problem says is said.
    const notes = ((await this.#options.configurationNotes?.()) ?? []).filter(
      (note) => !(configuration ?? '').includes(note),
    )
    if (configuration !== undefined)
      this.problems.set(
        'configuration',
        new GatehouseError(
          'GH_CONFIGURATION',
          configuration.replace(/\.$/, ''),
          'Then restart the device',
        ),
      )
    else if (this.problems.get('configuration')?.code === 'GH_CONFIGURATION')
      this.problems.clear('configuration', 'the configuration is well again')
    await Promise.all([this.#node?.look(), this.upstream.check(), this.#judgeCertificates()])
    const node = this.#node
    const name = this.#nameOf()
    const status = node?.status
    const record = this.#record
    const problems = this.problems.list()
    return {
      version: this.#options.version,
      ok: problems.length === 0 && node?.running === true && this.#https !== undefined,
      startedAt: this.#startedAt.toISOString(),
      ...(name === undefined
        ? {}
        : {
            url: `${originOf(name, ports.editor)}/`,
            urls: {
              editor: `${originOf(name, ports.editor)}/`,
              flows: `${originOf(name, ports.flows)}/`,
              gateway: `${originOf(name, ports.own)}/`,
            },
          }),
      tailnet: {
        state: status?.backendState ?? 'NoState',
        ...(node?.name === undefined ? {} : { name: node.name }),
        addresses: status?.tailscaleIPs ?? [],
        ...(node?.loginURL === undefined ? {} : { loginURL: node.loginURL }),
        tags: status?.self?.tags ?? [],
        ...(status?.self?.keyExpiry === undefined ? {} : { keyExpiry: status.self.keyExpiry }),
        health: status?.health ?? [],
        peers: (status?.peers ?? []).map((peer) => ({
          name: peer.dnsName.replace(/\.$/, '') || peer.hostName,
          online: peer.online,
          ...pathTo(peer),
        })),
      },
      certificate: {
        mode: this.#settings.mode,
        ...(record?.authority === undefined || this.#settings.mode !== 'self'
          ? {}
          : { authority: record.authority }),
        records: record?.records ?? [],
        names: certificateNames(this.#sources()).map((name) => {
          const certificate = this.certificates.get(name)
          const problem = this.certificates.refused(name)
          const renewAt = record?.certificates?.find((one) => one.name === name)?.renewAt
          return {
            name,
            ...(certificate === undefined
              ? {}
              : { notAfter: certificate.notAfter.toISOString(), issuer: certificate.issuer }),
            ...(renewAt === undefined ? {} : { renewAt }),
            ...(problem === undefined ? {} : { problem }),
          }
        }),
        ...(record === undefined
          ? {}
          : {
              lastRun: {
                checkedAt: record.checkedAt,
                result: record.result,
                problem: record.problem,
                code: record.code,
                severity: record.severity,
                daysLeft: record.daysLeft,
                next: record.next,
              },
            }),
        notes: record?.notes ?? [],
      },
      upstream: {
        socket: this.upstream.socket,
        state: this.upstream.state,
        since: this.upstream.since.toISOString(),
      },
      access: {
        ...(await this.#owner()),
        settings: this.guard.settings,
        capability,
        ...(this.localNetwork.listening ? { localNetwork: [...this.#localRights] } : {}),
      },
      services: this.services.list(),
      configuration: {
        ...(configuration === undefined ? {} : { problem: configuration }),
        ...(notes.length === 0 ? {} : { notes }),
      },
      problems,
    }
  }

  /**
   * Ends: no new connections, requests under way get `grace` milliseconds (default 4.5 s: the node
   * itself may take another 5 s, and systemd is told 10), WebSockets are closed.
   */
  async close(grace = 4_500): Promise<void> {
    if (this.#closing) return
    this.#closing = true
    clearInterval(this.#timer)
    // Not waited for: a listener may count as closed only when its connections are.
    const listeners = Promise.allSettled([
      this.#https?.close(),
      this.#http?.close(),
      this.doors.close(),
      this.services.close(),
    ])
    await this.#app?.drain(this.#open, grace)
    await this.#app?.close()
    for (const conn of this.#plain) conn.destroy()
    await this.forwards.close()
    await this.localNetwork.close()
    await listeners
    this.certificates.close()
    this.apps.destroy()
    this.limits.close()
    this.#admin.close()
    this.#certs.close()
    this.#admin.closeAllConnections()
    this.#certs.closeAllConnections()
    await this.#node?.close().catch((err: unknown) => {
      this.#options.log.warn(`closing the tailnet node: ${reason(err)}`)
    })
  }

  async #judgeStorage(): Promise<void> {
    if (this.#options.state === undefined) return
    // Where there is no such directory yet, the node's start makes it or says why it cannot.
    const storage = await examineStorage(this.#options.state).catch(() => undefined)
    if (storage === undefined) return
    const { found, problem } = storage
    if (problem === undefined)
      this.problems.clear('storage', `the data partition is well: ${found}`)
    else this.problems.set('storage', problem.error, problem.severity)
  }

  async #owner(): Promise<{ owner?: string }> {
    const self = await this.guard.self()
    return self?.user === undefined || self.node.tags.length > 0
      ? {}
      : { owner: self.user.loginName }
  }

  #notReady(): Pick<Problem, 'code' | 'message' | 'cure'> | undefined {
    if (this.#closing)
      return {
        code: 'GH_CLOSING',
        message: 'the gateway is closing',
        cure: 'Wait until it has started again',
      }
    // Nobody new is let in.
    const memory = this.problems.get('memory')
    if (memory !== undefined) return memory
    if (this.#node?.running === true && this.#https !== undefined && this.upstream.state === 'up')
      return undefined
    return (
      this.problems.list()[0] ?? {
        code: 'GH_STARTING',
        message: 'the gateway is starting',
        cure: 'Wait a minute',
      }
    )
  }

  /**
   * Opens 443 as soon as there is a certificate for it: until then a connection is refused, not
   * broken off in the handshake.
   */
  async #openHTTPS(): Promise<void> {
    const node = this.#node
    if (
      this.#https !== undefined ||
      this.#opening ||
      this.#closing ||
      node === undefined ||
      this.#accept === undefined ||
      !node.running ||
      !this.#covered(this.#nameOf() ?? '')
    )
      return
    this.#opening = true
    this.#https = await node.listen(443, (conn) => {
      this.metrics.connections.inc()
      if (this.forwards.byName) this.forwards.passThrough(conn, this.#accept!)
      else this.#accept!(conn)
    })
    this.#opening = false
    if (this.#https !== undefined) this.doors.start()
    if (this.#https !== undefined) this.#options.log.info(`serving https://${this.#nameOf()}/`)
    this.#say()
  }

  async #judgeCertificates(): Promise<void> {
    this.#record = await readRecord(this.#options.tls)
    if (this.#closing) return
    await this.#openHTTPS()
    const names = certificateNames(this.#sources())
    if (names.length === 0) return
    const finding = judgeCertificates({
      names,
      certificates: this.certificates,
      record: this.#record,
      now: new Date(),
      uptime: Date.now() - this.#startedAt.getTime(),
      mode: this.#settings.mode,
    })
    if (finding === undefined)
      this.problems.clear('certificate', 'there is a certificate for every name')
    else this.problems.set('certificate', finding.error, finding.severity)
    await this.#wakeAgent()
  }

  /**
   * Has the agent run when its record says it is wanted, once for each record: gatehouse-certs.path
   * starts it when the list of names is written.
   */
  async #wakeAgent(): Promise<void> {
    const at = wantedAt(this.#record)
    if (at === undefined || Date.now() < at.getTime() || this.#woken === this.#record?.checkedAt)
      return
    this.#woken = this.#record?.checkedAt
    this.#names = ''
    await this.#writeNames()
  }

  async #writeNames(): Promise<void> {
    // One after the other: they have one temporary file.
    this.#writing = this.#writing.then(async () => {
      await this.#writeNamesNow()
    })
    await this.#writing
  }

  async #writeNamesNow(): Promise<void> {
    const names = certificateNames(this.#sources())
    const text = names.map((name) => `${name}\n`).join('')
    if (names.length === 0 || text === this.#names) return
    this.#names = text
    try {
      await mkdir(this.#options.runtime, { recursive: true })
      await writeFileAtomic(join(this.#options.runtime, 'names'), text, 0o644)
    } catch (err) {
      this.#names = ''
      this.#options.log.error(
        { code: 'GH_NAMES_WRITE' },
        `the list of names cannot be written, so no certificate is asked for: ${reason(err)}. Check RuntimeDirectory=gatehouse in the unit`,
      )
    }
  }

  #say(): void {
    if (this.#closing) return
    const problem = this.problems.list()[0]
    const name = this.#https === undefined ? undefined : this.#nameOf()
    const well = name === undefined ? 'joining the tailnet' : `serving https://${name}/`
    const line = problem === undefined ? well : `${problem.message}. ${problem.cure}`
    if (line === this.#line) return
    this.#line = line
    this.#options.onState?.(line)
  }
}

/** The way packets take to a peer. */
function pathTo(peer: NodeStatus): { path: 'direct' | 'relay'; via: string } | { path: 'idle' } {
  if (peer.curAddr !== '') return { path: 'direct', via: peer.curAddr }
  return peer.relay !== '' ? { path: 'relay', via: peer.relay } : { path: 'idle' }
}
