import type { FastifyInstance } from 'fastify'
import type { Server } from 'node:http'
import { Counter } from 'prom-client'
import { randomBytes } from 'node:crypto'
import { isIP } from 'node:net'
import { defaults } from '../config/config.ts'
import type { Config } from '../config/config.ts'
import { peersOf } from '../config/peers.ts'
import { ports } from '../config/ports.ts'
import { reason } from '../base/errors.ts'
import type { Right } from './access/access.ts'
import { editorRoot } from './access/channel.ts'
import { createApp } from './app.ts'
import { Apps } from './apps/apps.ts'
import { Arrivals } from './apps/old-links.ts'
import { certificateMetrics } from './certificates/metrics.ts'
import { Cache } from './cache/cache.ts'
import { Certificates } from './certificates/certificates.ts'
import { CertificateWatch } from './certificates/watch.ts'
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
import { Welcome } from './console/welcome.ts'
import { Delivery } from './cache/deliver.ts'
import { OriginPorts } from './listen/origin-ports.ts'
import { controlWords } from './shared/control-words.ts'
import { examine } from './operate/doctor.ts'
import type { Check } from './operate/doctor.ts'
import { Forwards } from './listen/forward.ts'
import { Front } from './listen/front.ts'
import { Guard } from './access/guard.ts'
import { Limits, applyTo } from './request/limits.ts'
import { KernelPath } from './listen/kernel-path.ts'
import type { KernelPathOptions } from './listen/kernel-path.ts'
import { LocalNetwork } from './listen/local-network.ts'
import type { LocalNetworkOptions } from './listen/local-network.ts'
import type { Logger } from './shared/log.ts'
import { Metrics } from './request/metrics.ts'
import { strictTransport } from './request/hygiene.ts'
import { Node } from './tailnet/node.ts'
import type { NodeOptions } from './tailnet/node.ts'
import type { TailnetConn, TailnetListener } from './tailnet/tailnet.ts'
import { Peer } from './tailnet/peer.ts'
import { ToPeers } from './listen/to-peers.ts'
import { Problems } from './shared/problems.ts'
import type { Part, Problem } from './shared/problems.ts'
import { Reloader } from './operate/reload.ts'
import { listenOn } from '../base/sockets.ts'
import type { ListenSocket } from '../base/sockets.ts'
import { Services } from './tailnet/services.ts'
import { Backups } from './operate/backups.ts'
import { Figures, judgeKey } from './operate/figures.ts'
import { examineStorage } from './operate/storage.ts'
import { collectStatus, judgeConfiguration, pathTo } from './operate/collect-status.ts'
import type { GatewayStatus } from './operate/status.ts'
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
  /** Told when other things are wrong than before. */
  onProblems?: (device: string, problems: Array<Problem & { part: Part }>) => void
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
  /** Where the kernel's data path leads to. Default: the appliance's. */
  kernelPath?: Pick<KernelPathOptions, 'addresses' | 'portOf' | 'patience'>
  /** How long Node-RED may take to answer. Milliseconds, default 120 s. */
  responseTimeout?: number
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
  readonly backups: Backups
  readonly originPorts: OriginPorts
  readonly toPeers: ToPeers
  readonly localNetwork: LocalNetwork
  readonly kernelPath: KernelPath
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
  #admin: Server
  #certs: Server
  #front: Front
  #watch: CertificateWatch
  #localRights: readonly Right[] = []
  readonly #figures: Figures
  #line = ''
  #wrong = ''
  #closing = false
  #timer: NodeJS.Timeout | undefined

  constructor(options: GatewayOptions) {
    this.#options = options
    const { log } = options
    this.problems = new Problems(log)
    this.#figures = new Figures(options.state)
    this.certificates = new Certificates(options.tls, log)
    this.#watch = new CertificateWatch({
      log,
      problems: this.problems,
      certificates: this.certificates,
      tls: options.tls,
      runtime: options.runtime,
      sources: () => this.#sources(),
      startedAt: this.#startedAt,
    })
    this.upstream = new Upstream(
      { path: options.nodeRed },
      options.responseTimeout === undefined ? {} : { responseTimeout: options.responseTimeout },
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
    this.toPeers = new ToPeers({
      log,
      tailnet: () => this.#node?.tailnet,
      status: () => this.#node?.status,
    })
    this.backups = new Backups({
      ...{ log, problems: this.problems, state: options.state },
      broker: options.broker ?? '/run/gatehouse-broker.sock',
      name: () => this.#node?.name,
      dial: async (host, port) => {
        const tailnet = this.#node?.running === true ? this.#node.tailnet : undefined
        if (tailnet === undefined) throw new Error('the device is not in the tailnet now')
        const waits = { signal: AbortSignal.timeout(30_000) }
        const address = isIP(host) === 0 ? (await tailnet.resolve(host, waits))[0] : host
        if (address === undefined) throw new Error(`${host} has no address in the tailnet`)
        return await tailnet.dial(address, port, waits)
      },
    })
    this.#arrivals = new Arrivals(this.problems)
    this.originPorts = new OriginPorts({
      problems: this.problems,
      accept: (conn, port) => {
        this.metrics.connections.inc()
        const peer = new Peer(conn, this.#node!.tailnet!, log, undefined, port)
        if (port === ports.flows) this.#arrivals.arrived(peer)
        this.#front.accept(conn, peer)
      },
      listen: async (port, accept) => await this.#listen(port, accept),
    })
    this.kernelPath = new KernelPath({ log, problems: this.problems, ...options.kernelPath })
    this.localNetwork = new LocalNetwork({
      log,
      problems: this.problems,
      ...(options.localPorts === undefined ? {} : { ports: options.localPorts }),
      accept: {
        http: (conn, peer) => {
          this.#front.redirect(conn, peer)
        },
        // Before there is a certificate, as on the tailnet: no handshake. Names of forwards are not
        // for those whom nobody knows.
        https: (conn, peer) => {
          this.#front.accept(conn, peer)
        },
        flows: (conn, peer) => {
          this.#front.accept(conn, peer)
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
        const peer = new Peer(
          conn,
          this.#node!.tailnet!,
          log,
          service,
          port === 80 ? ports.editor : port,
        )
        if (port === 80) this.#front.redirect(conn, peer)
        else {
          this.metrics.connections.inc()
          this.#front.accept(conn, peer)
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
      connections: () => this.connections,
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
      record: () => this.#watch.record,
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
        names: () => this.#watch.names,
        problem: () => this.problems.get('https') ?? this.problems.get('tailnet'),
        setDNS: async (name, value) => {
          await this.#node!.tailnet!.setDNS(name, value)
        },
      },
      log,
    )
    this.#front = new Front({
      log,
      problems: this.problems,
      certificates: this.certificates,
      limits: this.limits,
      metrics: this.metrics,
      originPorts: this.originPorts,
      forwards: this.forwards,
      listen: async (port, accept) => await this.#listen(port, accept),
      name: (service) => this.#nameOf(service),
      ownAuthority: () => this.#settings.mode === 'self',
      tls: options.tls,
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
    const { log } = this.#options
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
        doctor: async () => await this.examine(),
        figures: () => this.#figures.show(),
        access: () => this.guard.settings,
        self: async () => await this.guard.self(),
        renewKey: async () => await this.#node?.renew(),
        backups: this.backups,
        welcome: new Welcome(this.#options.state),
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
    this.upstream.start()
    await this.#judgeStorage()
    await this.#judgeBoard()
    // Expiry comes with time alone, and the last run's record may be older than this process.
    this.#timer = setInterval(() => {
      void this.#judgeStorage()
      void this.#judgeBoard()
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
      serving: this.#front.serving,
      services: this.services,
      names: this.#watch.names,
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
      | 'backup'
    >,
  ): void {
    this.backups.configure(config.backup)
    this.#settings = config.certificates
    strictTransport(this.#settings.mode !== 'self')
    if (this.#node !== undefined) this.#node.wantsNames = this.#settings.mode === 'tailscale'
    // The agent is to look at what changed, names or not.
    this.#watch.forget()
    this.#localRights = config.local_network.listen ? config.local_network.rights : []
    this.guard.local = this.#localRights
    void this.localNetwork.configure(config.local_network)
    // What is stored came of other apps, or by other rules.
    const others = this.apps.configure(config.app, this.#options.authority ?? (() => undefined))
    const friends = this.apps.flowOrigins.join() !== config.node_red.allowOrigins.join()
    this.apps.flowOrigins = config.node_red.allowOrigins
    if (others || friends) this.delivery.cache.purge()
    this.originPorts.configure(
      config.app.flatMap(({ port }) => port ?? []),
      config.forward.filter(({ sni }) => sni.length === 0).map(({ port }) => port),
    )
    this.upstream.responseTimeout = this.#options.responseTimeout ?? config.node_red.responseTimeout
    this.apps.editorService = config.node_red.service
    this.services.configure(
      config.app.flatMap(({ service }) => service ?? []),
      config.node_red.service,
    )
    this.#takeNames()
    this.forwards.configure(config.forward)
    void this.toPeers.configure(peersOf(config.node_red.allow))
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
    await this.#front.join(node, this.#app!)
    this.services.start()
    this.forwards.start()
    await this.#judgeCertificates()
  }

  /** A port of HTTPS: by the kernel, where that is wanted and can be had; else by the node. */
  async #listen(
    port: number,
    accept: (conn: TailnetConn) => void,
  ): Promise<TailnetListener | undefined> {
    const node = this.#node
    if (node === undefined) return undefined
    return (await this.kernelPath.listen(node, port, accept)) ?? (await node.listen(port, accept))
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

  /** The names may be others: of the node, of Services it hosts. */
  #takeNames(): void {
    this.certificates.want(certificateNames(this.#sources()))
    void this.#watch.tell()
    void this.#judgeCertificates()
  }

  /** TLS connections of peers that are open. */
  get connections(): number {
    return this.#front.connections.size
  }

  /** How things are now. */
  async status(): Promise<GatewayStatus> {
    const configurationProblem = await this.#options.configurationProblem?.()
    const configurationNotes = (await this.#options.configurationNotes?.()) ?? []
    judgeConfiguration(this.problems, configurationProblem)
    await Promise.all([this.#node?.look(), this.upstream.check(), this.#judgeCertificates()])
    return await collectStatus({
      version: this.#options.version,
      startedAt: this.#startedAt,
      configurationProblem,
      configurationNotes,
      problems: this.problems,
      node: this.#node,
      name: this.#nameOf(),
      serving: this.#front.serving,
      mode: this.#settings.mode,
      certificates: this.certificates,
      watch: this.#watch,
      upstream: this.upstream,
      guard: this.guard,
      services: this.services,
      kernel: this.kernelPath.serving,
      localRights: this.localNetwork.listening ? this.#localRights : undefined,
    })
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
      this.#front.close(),
      this.originPorts.close(),
      this.services.close(),
    ])
    await this.#app?.drain(this.#front.connections, grace)
    await this.#app?.close()
    this.#front.destroyPlain()
    await this.forwards.close()
    await this.toPeers.close()
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

  async #judgeBoard(): Promise<void> {
    await this.#figures.look(this.problems)
    if (this.#node?.running === true) await this.backups.look()
    if (this.#node?.running === true)
      judgeKey(
        this.problems,
        this.#node.status?.self?.keyExpiry,
        `Renew it now (page Overview, by the owner). ${controlWords(this.#controlURL).keepKey}`,
      )
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
    if (this.#node?.running === true && this.#front.serving && this.upstream.state === 'up')
      return undefined
    return (
      this.problems.list()[0] ?? {
        code: 'GH_STARTING',
        message: 'the gateway is starting',
        cure: 'Wait a minute',
      }
    )
  }

  /** Looks at the certificates, and opens port 443 once there is one for it. */
  async #judgeCertificates(): Promise<void> {
    await this.#watch.read()
    if (this.#closing) return
    if (await this.#front.openHTTPS()) this.#say()
    await this.#watch.judge()
  }

  #say(): void {
    if (this.#closing) return
    const problems = this.problems.list()
    const wrong = JSON.stringify(problems)
    if (wrong !== this.#wrong) {
      this.#wrong = wrong
      this.#options.onProblems?.(this.#nameOf() ?? 'gatehouse', problems)
    }
    const problem = problems[0]
    const name = this.#front.serving ? this.#nameOf() : undefined
    const well = name === undefined ? 'joining the tailnet' : `serving https://${name}/`
    const line = problem === undefined ? well : `${problem.message}. ${problem.cure}`
    if (line === this.#line) return
    this.#line = line
    this.#options.onState?.(line)
  }
}
