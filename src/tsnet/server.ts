import { EventEmitter } from 'node:events'
import type http from 'node:http'
import type https from 'node:https'
import type { Readable } from 'node:stream'
import type { TlsOptions } from 'node:tls'
import { Calls, closedError, type Reply, type WaitOptions } from './calls.ts'
import type { Conn } from './conn.ts'
import { TsnetError } from './errors.ts'
import {
  connector,
  type ConnectorOptions,
  type Dispatcher,
  loadUndici,
  TailnetAgent,
  TailnetHttpsAgent,
} from './http.ts'
import type { Listener } from './listener.ts'
import {
  type CertPair,
  decodeAnswer,
  encodeBody,
  type LocalAnswer,
  type RawAnswer,
  splitPair,
} from './local.ts'
import { listenLoopback, type Loopback } from './loopback.ts'
import { checkOptions, checkPort, joinHostPort, logLevel, splitHostPort } from './options.ts'
import { PacketSocket } from './packet.ts'
import { prepare } from './prepare.ts'
import type { ToUser, ToWorker } from './protocol.ts'
import { Streams } from './streams.ts'
import { Thread } from './thread.ts'
import { TLSListener } from './tls.ts'
import type {
  ConnectionDebug,
  HealthWarning,
  KeyExpiry,
  ServerOptions,
  StateStore,
  Stats,
  Status,
  WhoIs,
} from './types.ts'
import { type Notice, Notices } from './watch.ts'

interface Events {
  /**
   * The backend's state (ipn.State): NoState, NeedsLogin, NeedsMachineAuth, Stopped, Starting,
   * Running.
   */
  state: [string]
  /** A person must open this URL to log the node in. */
  loginURL: [string]
  /** The key's end, at first and when it changes. */
  keyExpiry: [KeyExpiry]
  /** All that Tailscale's health tracker complains of now; empty: nothing. */
  health: [HealthWarning[]]
  /** What the control server says against this node. */
  message: [string]
  /** Tailscale's log, a line at a time, and its level: 0, 1 or 2. */
  log: [string, number]
  /** The module died; the server is of no further use. */
  error: [TsnetError]
  close: []
}

/** How long Tailscale may take to leave the network before its thread is ended, in ms. */
const CLOSE_MS = 5000

/** Keeps nothing: the module itself has the state for as long as it runs. */
const forgetful = (): StateStore => ({ read: () => undefined, write: () => {} })

/**
 * A node of a tailnet inside this process: tsnet.Server (tailscale.com/tsnet).
 *
 * ```ts
 * const server = new Server({ dir: '/var/lib/hello', hostname: 'hello', authKey });
 * await server.up();
 * const listener = await server.listen(80);
 * listener.on('connection', (conn) => conn.end(`hello ${conn.remoteAddress}\n`));
 * ```
 */
export class Server extends EventEmitter<Events> {
  private readonly options: ServerOptions
  private readonly calls: Calls
  private readonly streams: Streams
  private readonly notices = new Notices()
  private thread: Thread | undefined
  private starting: Promise<void> | undefined
  private closing: Promise<void> | undefined
  private exited: (() => void) | undefined
  private state = 'NoState'
  private fetching: Dispatcher | undefined

  /** Nothing happens before {@link start}. */
  constructor(options: ServerOptions) {
    super()
    checkOptions(options)
    this.options = options.memory ? { ...options, store: forgetful() } : options
    const post = (m: ToWorker): void => this.post(m)
    this.calls = new Calls({
      post,
      why: () => this.why(),
      ready: async (method) => {
        if (method !== 'start' && method !== 'close') await this.start()
      },
    })
    this.streams = new Streams(this.calls, post)
  }

  /**
   * Loads the module and starts the backend: it connects by itself from here on. Calling it again
   * gives the first call's result.
   */
  start(): Promise<void> {
    this.starting ??= this.doStart()
    return this.starting
  }

  private async doStart(): Promise<void> {
    const { program, data, params } = await prepare(this.options, process.env, (message) =>
      this.emit('message', message),
    )
    if (this.calls.closing) throw closedError()
    this.thread = new Thread(program, data, {
      message: (m) => this.receive(m),
      ended: (code, reason) => this.end(code, reason),
      lost: (s, err) => this.streams.lost(s, err),
    })
    try {
      await this.calls.call('start', params)
    } catch (err) {
      // Nothing of it stays: a worker that could not start would keep the process alive.
      this.end(0, '', err as TsnetError)
      throw err
    }
  }

  /**
   * Waits until the node is in the tailnet. Rejects with TSNET_AUTH when the control server refuses
   * it; the backend goes on trying, and `up` may be called again. Without an auth key, listen to
   * `loginURL`.
   */
  async up(options: WaitOptions = {}): Promise<Status> {
    return await this.calls.call('up', {}, options)
  }

  /**
   * Listens on a TCP port of the node's tailnet addresses; 0 takes a free one. May be called before
   * the node is up. `host`: an address to listen on alone, one of the node's or one that is routed
   * to it. Default: both of the node's.
   */
  async listen(port: number, options: WaitOptions & { host?: string } = {}): Promise<Listener> {
    checkPort(port, 0)
    const { host = '' } = options
    return await this.streams.listen(
      'listen',
      { addr: joinHostPort(host, port) },
      options,
      ({ addr }) => splitHostPort(addr!),
    )
  }

  /**
   * Hosts a port of a Tailscale Service (`svc:name`): connections to the Service's address come to
   * this listener. The node must be tagged ({@link CommonOptions.advertiseTags}), and an admin (or
   * the policy) must approve the host. Call it for each port. Waits until the node is up.
   */
  async listenService(name: string, port: number, options: WaitOptions = {}): Promise<Listener> {
    checkPort(port)
    return await this.streams.listen('listenService', { name, port }, options, () => ['', port])
  }

  /**
   * As {@link listen}, with TLS: `connection` gives tls.TLSSocket. The certificate is the one that
   * Tailscale gets for the node's name (HTTPS must be enabled for the tailnet), renewed in time;
   * `tls` are more options of tls.createServer, such as `ALPNProtocols`, or `cert` and `key` of
   * one's own. Waits until the node is up. TSNET_LISTEN: HTTPS is not enabled.
   */
  async listenTLS(
    port: number,
    { tls: tlsOptions, ...options }: WaitOptions & { host?: string; tls?: TlsOptions } = {},
  ): Promise<TLSListener> {
    checkPort(port, 0)
    const { certDomains } = await this.up(options)
    if (certDomains.length === 0)
      throw new TsnetError(
        'TSNET_LISTEN',
        'HTTPS is not enabled for the tailnet: enable it in the admin console, DNS page',
      )
    return this.secured(await this.listen(port, options), certDomains, tlsOptions)
  }

  /**
   * Listens at Tailscale Funnel: from the internet, at `https://<name>:port`, and from the tailnet
   * too unless `funnelOnly`. Ports 443, 8443 and 10000, as the policy allows. With TLS as
   * {@link listenTLS}; `tls: false`: connections are the client's bytes, TLS not taken off.
   */
  async listenFunnel(
    port: number,
    options: WaitOptions & { funnelOnly?: boolean; tls: false },
  ): Promise<Listener>
  async listenFunnel(
    port: number,
    options?: WaitOptions & { funnelOnly?: boolean; tls?: TlsOptions },
  ): Promise<TLSListener>
  async listenFunnel(
    port: number,
    {
      tls: tlsOptions,
      funnelOnly = false,
      ...options
    }: WaitOptions & { funnelOnly?: boolean; tls?: TlsOptions | false } = {},
  ): Promise<Listener | TLSListener> {
    checkPort(port)
    const { certDomains } = await this.up(options)
    const listener = await this.streams.listen(
      'listenFunnel',
      { addr: `:${port}`, only: funnelOnly },
      options,
      () => ['', port],
    )
    return tlsOptions === false ? listener : this.secured(listener, certDomains, tlsOptions)
  }

  private secured(listener: Listener, names: string[], options?: TlsOptions): TLSListener {
    return new TLSListener(listener, names, (name) => this.certPair(name), options)
  }

  /**
   * Takes the TCP connections that no other listener does, on whatever port, those to
   * {@link CommonOptions.advertiseRoutes} among them: `localAddress` and `localPort` say what was
   * asked for, `destroy()` refuses it. One at a time.
   */
  async listenFallback(options: WaitOptions = {}): Promise<Listener> {
    return await this.streams.listen('listenFallback', {}, options, () => ['', 0])
  }

  /**
   * Connects to a port of a tailnet node (or of what a subnet router in the tailnet leads to), by
   * address or name. All else is TSNET_NO_PEER, other than with tsnet, which would dial it over the
   * machine's own network.
   */
  async dial(host: string, port: number, options: WaitOptions = {}): Promise<Conn> {
    checkPort(port)
    const [conn] = await this.streams.dial('dial', { addr: joinHostPort(host, port) }, options)
    setImmediate(() => conn.release()) // when the caller has had its turn to add event listeners
    return conn
  }

  /**
   * Binds a UDP port of the node's tailnet addresses; 0 takes a free one. `host`: one of the node's
   * addresses. Default: both. Waits until the node is up, for its addresses.
   */
  async listenPacket(
    port: number,
    options: WaitOptions & { host?: string } = {},
  ): Promise<PacketSocket> {
    checkPort(port, 0)
    const [conn, { locals }] = await this.streams.dial<{ locals: string[] }>(
      'listenPacket',
      { addr: options.host ?? '', port },
      options,
    )
    const socket = new PacketSocket(conn, locals, false)
    setImmediate(() => conn.release())
    return socket
  }

  /**
   * A UDP socket whose one peer is a port of a tailnet node, by address or name. As {@link dial} it
   * never leaves the tailnet.
   */
  async dialPacket(host: string, port: number, options: WaitOptions = {}): Promise<PacketSocket> {
    checkPort(port)
    const [conn, { locals }] = await this.streams.dial<{ locals: string[] }>(
      'dialPacket',
      { addr: joinHostPort(host, port) },
      options,
    )
    const socket = new PacketSocket(conn, locals, true)
    setImmediate(() => conn.release())
    return socket
  }

  /**
   * For node:http: an agent whose connections go over the tailnet. `http.get('http://peer/', {
   * agent })`.
   */
  httpAgent(options?: http.AgentOptions): http.Agent {
    return new TailnetAgent((...args) => this.dial(...args), options)
  }

  /**
   * For node:https, as {@link httpAgent}. Certificates are verified as usual; `options` may name
   * authorities (`ca`).
   */
  httpsAgent(options?: https.AgentOptions): https.Agent {
    return new TailnetHttpsAgent((...args) => this.dial(...args), options)
  }

  /**
   * For undici: `new Agent({ connect: server.connector() })`. `options` are those of TLS, such as
   * `ca`, and `connectTimeout`.
   */
  connector(options?: ConnectorOptions): ReturnType<typeof connector> {
    return connector((...args) => this.dial(...args), options)
  }

  /**
   * A dispatcher for fetch and undici whose connections go over the tailnet. Needs the package
   * undici. `options` are those of {@link connector}. Close it after use.
   */
  async dispatcher(options?: ConnectorOptions): Promise<Dispatcher> {
    const { Agent } = await loadUndici()
    return new Agent({ connect: this.connector(options) })
  }

  /** fetch over the tailnet. Needs the package undici. */
  async fetch(input: string | URL | Request, init?: RequestInit): Promise<Response> {
    const { fetch } = await loadUndici()
    this.fetching ??= await this.dispatcher()
    return await fetch(input, { dispatcher: this.fetching, ...init })
  }

  /**
   * Who is behind `ip:port` (or `ip`) of a connection's remote end. Rejects with TSNET_NO_PEER for
   * an address outside the tailnet.
   */
  async whoIs(addr: string, options: WaitOptions = {}): Promise<WhoIs> {
    return await this.calls.call('whoIs', { addr }, options)
  }

  /**
   * Addresses of a name in the tailnet, IPv4 first; with or without the tailnet's suffix. All that
   * is not in the tailnet is TSNET_NO_PEER, as with {@link dial}.
   */
  async resolve(name: string, options: WaitOptions = {}): Promise<string[]> {
    return await this.calls.call('resolve', { name }, options)
  }

  /**
   * Asks Tailscale's LocalAPI, which tailscale.com/client/local does in Go: `localAPI('GET',
   * '/localapi/v0/prefs')`. `body`: text and bytes as they are, all else as JSON. A status other
   * than 2xx is TSNET_BACKEND, in its words. Answers without an end (watch-ipn-bus) are not for
   * this: {@link watch}. What is behind it may change with each release of Tailscale.
   */
  async localAPI(
    method: string,
    path: string,
    body?: unknown,
    options: WaitOptions = {},
  ): Promise<LocalAnswer> {
    const params = { name: method, path, body: encodeBody(body) }
    return decodeAnswer(method, path, await this.calls.call<RawAnswer>('localAPI', params, options))
  }

  /**
   * A certificate for one of {@link certDomains}, and its key: by Let's Encrypt, with the challenge
   * in the tailnet's DNS; kept below `dir`, and renewed when two thirds of its life are over. The
   * first takes some ten seconds.
   */
  async certPair(name: string, options: WaitOptions = {}): Promise<CertPair> {
    const path = `/localapi/v0/cert/${encodeURIComponent(name)}?type=pair`
    return splitPair((await this.localAPI('GET', path, undefined, options)).text())
  }

  /**
   * Has what is not in the tailnet go by a node that offers to be an exit node, given by name or
   * address: {@link dial} then reaches the internet through it. Undefined: none again.
   * TSNET_NO_PEER: there is none of that name.
   */
  async useExitNode(node: string | undefined, options: WaitOptions = {}): Promise<void> {
    await this.calls.call('useExitNode', { name: node ?? '' }, options)
  }

  /**
   * A proxy into the tailnet at a port of 127.0.0.1, for programs that can use one: SOCKS5, HTTP,
   * and the LocalAPI. Each wants a password that the answer has. It ends with its `close()`, and
   * with the Server.
   */
  async loopback(): Promise<Loopback> {
    await this.start()
    const loopback = await listenLoopback(this)
    this.once('close', () => void loopback.close())
    return loopback
  }

  /**
   * The packets of the tailnet as this node sends and receives them, in the clear, as a pcap file
   * (link type USER0, for Tailscale's Wireshark dissector) with no end: `destroy()` it. Whoever
   * reads it reads all the traffic.
   */
  async capturePcap(options: WaitOptions = {}): Promise<Readable> {
    const [conn] = await this.streams.dial('capture', {}, options)
    setImmediate(() => conn.release())
    return conn
  }

  /**
   * Names for which the control server publishes ACME challenges; empty when HTTPS is not enabled
   * on the tailnet.
   */
  async certDomains(options: WaitOptions = {}): Promise<string[]> {
    return (await this.status(options)).certDomains
  }

  /**
   * Publishes a TXT record by the control server, which takes only ACME challenges
   * (`_acme-challenge.<own name>`).
   */
  async setDNS(name: string, value: string, options: WaitOptions = {}): Promise<void> {
    await this.calls.call('setDNS', { name, value }, options)
  }

  /** The tailnet as this node sees it now. */
  async status(options: WaitOptions = {}): Promise<Status> {
    return await this.calls.call('status', {}, options)
  }

  /**
   * What happens to the node: first what holds now (state, login URL, key expiry, health), then
   * each change. Ends with the server, or when `signal` is aborted. Starts the server.
   */
  watch(options: WaitOptions = {}): AsyncGenerator<Notice, void, void> {
    this.start().catch(() => {}) // whoever waits for it, or the next call, has the error
    return this.notices.watch(options.signal)
  }

  /**
   * Gives the node's key up at the control server and forgets it. The state after it is NeedsLogin:
   * a `loginURL` comes, and a new Server with an auth key joins as a new login.
   */
  async logout(options: WaitOptions = {}): Promise<void> {
    await this.calls.call('logout', {}, options)
  }

  /** What the module and its host hold: for metrics, and for tests of growth. */
  async stats(options: WaitOptions = {}): Promise<Stats> {
    return await this.calls.call('stats', {}, options)
  }

  /**
   * The TCP connections of the tailnet, with sequence numbers, windows and timers: for debugging.
   */
  async debugConnections(options: WaitOptions = {}): Promise<ConnectionDebug[]> {
    return await this.calls.call('debugConnections', {}, options)
  }

  /** `await using`: {@link close}. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  /**
   * Leaves the network and ends the worker thread; every connection is reset. Safe to call again.
   */
  close(): Promise<void> {
    this.calls.closing = true
    this.closing ??= this.doClose()
    return this.closing
  }

  private async doClose(): Promise<void> {
    const { thread } = this
    void this.fetching?.destroy().catch(() => {})
    if (this.calls.ended) return
    if (!thread) return this.end(0, '')
    const gone = new Promise<void>((resolve) => (this.exited = resolve))
    // Tailscale takes up to 5 s for its farewells where the control server does not answer.
    const late = setTimeout(() => this.end(0, ''), CLOSE_MS)
    this.calls.call('close').catch(() => {})
    await gone
    clearTimeout(late)
    await thread.gone
  }

  /** What a wait that was given up waited for, as far as it was a person. */
  private why(): string {
    if (this.state === 'NeedsMachineAuth')
      return ': the node waits until an admin of the tailnet approves it'
    if (this.state === 'NeedsLogin') return ': the node is not logged in (see the event loginURL)'
    return ''
  }

  private post(m: ToWorker): void {
    if (!this.calls.ended) this.thread?.post(m)
  }

  private receive(m: ToUser): void {
    if (m.t === 'emit') this.event(m.body)
    else if (m.t === 'open') this.streams.opened(m.s, m.meta)
    else if (m.t === 'stats') this.calls.reply({ id: m.id, result: m.stats })
    else if (m.t === 'log') this.logged(m.line)
    else if (m.t === 'exit')
      this.end(m.code, m.reason, m.error && new TsnetError(m.error, m.reason))
    else this.streams.receive(m)
  }

  private logged(line: string): void {
    const { level, text } = logLevel(line)
    const { verbose } = this.options
    if (typeof verbose !== 'number' || level <= verbose) this.emit('log', text, level)
  }

  /** A reply to a call, or a piece of news. */
  private event(body: string): void {
    const e = JSON.parse(body) as Reply | { id?: undefined; event: string; value: never }
    if (e.id !== undefined) return this.calls.reply(e)
    const { event, value } = e
    if (event === 'state') this.tell({ type: 'state', state: (this.state = value) }, value)
    else if (event === 'loginURL') this.tell({ type: 'loginURL', url: value }, value)
    else if (event === 'keyExpiry') this.tell({ type: 'keyExpiry', expiry: value }, value)
    else if (event === 'health') this.tell({ type: 'health', warnings: value }, value)
    else if (event === 'message') this.tell({ type: 'message', message: value }, value)
    else if (event === 'save') void this.save(value)
  }

  private tell(notice: Notice, value: never): void {
    this.notices.add(notice)
    this.emit(notice.type, value)
  }

  /** The state for the caller's own store; the module waits for the answer. */
  private async save({ number, state }: { number: number; state: string }): Promise<void> {
    let error = ''
    try {
      await this.options.store!.write(state)
    } catch (err) {
      error = (err as Error)?.message || String(err)
    }
    const body = JSON.stringify({ id: number, method: 'saved', params: { error } })
    this.post({ t: 'rpc', body })
  }

  /** The module has ended, as asked or not. */
  private end(code: number, reason: string, error?: TsnetError): void {
    if (this.calls.ended) return
    const asked = this.calls.closing
    const why = reason ? `: ${reason}` : ''
    const died = `Tailscale's module ended by itself (code ${code})${why}; make a new Server`
    const ended = asked ? closedError() : (error ?? new TsnetError('TSNET_DIED', died))
    const heard = this.calls.end(ended)
    this.streams.end()
    this.notices.end()
    this.thread?.terminate()
    this.thread = undefined
    // Whoever waits has the error already; without anybody waiting an unheard 'error' would end the
    // process. A failed start is its caller's to know.
    if (!asked && !error && (this.listenerCount('error') > 0 || !heard)) this.emit('error', ended)
    this.emit('close')
    this.exited?.()
  }
}
