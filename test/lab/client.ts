/** A native tailnet client, as a peer of what is tested and as its control. */
import type { ChildProcess } from 'node:child_process'
import { rm, writeFile } from 'node:fs/promises'
import http from 'node:http'
import net from 'node:net'
import path from 'node:path'
import type { Duplex } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Lab } from './lab.ts'
import { end, exited } from './processes.ts'
import { message, read, request, type RequestOptions } from './socket.ts'

/** The way packets take to a peer. */
export interface Path {
  direct: boolean
  /** The peer's UDP address, when direct. */
  endpoint?: string
  /** The relay's region code, when not. */
  derp?: string
}

export interface ClientStatus {
  /** "Running", "NeedsLogin", "Starting" … */
  state: string
  authURL?: string
  name: string
  ips: string[]
  certDomains: string[] | null
  health: string[] | null
  peers: { name: string; ips: string[]; online: boolean; expired: boolean; path: Path }[]
}

export interface FetchOptions extends RequestOptions {
  /** PEM file of the only authorities trusted. Default: the lab's ACME authority. */
  roots?: string
}

export interface FetchAnswer {
  status: number
  /** By canonical name ("Content-Type"), each with all its values. */
  headers: Record<string, string[]>
  body: Buffer
  /** Absent for http. An unverified certificate is an error, never an answer. */
  tls?: {
    issuer: string
    subject: string
    dnsNames: string[]
    notAfter: string
    version: string
    verified: true
  }
  path: Path
  /** Milliseconds from dialling to the last byte. */
  ms: number
}

export interface ClientOptions {
  /** Address on the segment. Default: the next one from 10.77.0.20 on. */
  ip?: string
  /** A namespace that is there already ({@link ip} then says nothing). Default: one of its own. */
  ns?: string
  /** Control server. Default: the lab's. */
  controlURL?: string
  /**
   * Default: the lab's. Null: none, so that the client needs a login ({@link Lab.completeLogin}).
   */
  authKey?: string | null
  /** Wait until it is on the tailnet. Default true, false when authKey is null. */
  up?: boolean
  /** UDP port of WireGuard. Default: any. */
  port?: number
  /** More environment, such as TS_DEBUG_ALWAYS_USE_DERP. */
  env?: Record<string, string>
}

/**
 * A native tailnet client, driven over its unix socket. Errors of the tailnet reject with the
 * client's words.
 */
export class LabClient {
  readonly hostname: string
  readonly ns: string
  /** Its address on the segment (not on the tailnet). */
  readonly ip: string
  readonly dir: string
  readonly #lab: Lab
  readonly #socket: string
  #child: ChildProcess | undefined
  #browsers = 0

  constructor(lab: Lab, hostname: string, ns: string, ip: string, dir: string) {
    this.#lab = lab
    this.hostname = hostname
    this.ns = ns
    this.ip = ip
    this.dir = dir
    this.#socket = path.join(dir, 'client.sock')
  }

  /** Starts it (again, after {@link stop}: it keeps its identity). */
  async start(options: ClientOptions = {}): Promise<void> {
    const key = options.authKey === undefined ? this.#lab.ready.authKey : options.authKey
    const argv = [
      this.#lab.bin,
      'client',
      '--dir',
      this.dir,
      '--control',
      options.controlURL ?? this.#lab.ready.controlURL,
      '--hostname',
      this.hostname,
      '--socket',
      this.#socket,
    ]
    if (key !== null) {
      const file = path.join(this.dir, 'authkey')
      await writeFile(file, key, { mode: 0o600 })
      argv.push('--authkey-file', file)
    }
    if (options.port) argv.push('--port', String(options.port))
    await rm(this.#socket, { force: true })
    const child = this.#lab.exec(this.ns, argv, {
      stdio: ['pipe', 'ignore', 'pipe'],
      env: { ...process.env, SSL_CERT_FILE: this.#lab.ready.authority, ...options.env },
    })
    this.#child = child
    const ended = exited(child)
    for (;;) {
      const there = await new Promise<boolean>((resolve) => {
        const probe = net
          .connect(this.#socket, () => resolve(true))
          .on('error', () => resolve(false))
        probe.unref().once('connect', () => probe.destroy())
      })
      if (there) break
      const early = await Promise.race([ended, sleep(20)])
      if (early)
        throw new Error(
          `client ${this.hostname} ended: ${early.stderr.trim() || `code ${early.code}`}`,
        )
    }
    if (options.up ?? key !== null) await this.up()
  }

  /** Waits until the client is on the tailnet. Timeout in milliseconds, default 30 000. */
  async up(timeout = 30_000): Promise<ClientStatus> {
    return (await this.#json('POST', `/up?timeout=${timeout}ms`, {
      timeout: timeout + 5_000,
    })) as ClientStatus
  }

  async status(): Promise<ClientStatus> {
    return (await this.#json('GET', '/status')) as ClientStatus
  }

  /** Pings a tailnet address once. Only disco tells the path. */
  async ping(
    ip: string,
    type: 'disco' | 'TSMP' | 'ICMP' = 'disco',
  ): Promise<Path & { node: string; ms: number }> {
    return (await this.#json('GET', `/ping?ip=${encodeURIComponent(ip)}&type=${type}`)) as Path & {
      node: string
      ms: number
    }
  }

  /**
   * Pings until the path is direct: the first pings go by DERP, and one sent before both sides know
   * one another's keys is lost. Timeout in milliseconds, default 30 000.
   */
  async pingDirect(ip: string, timeout = 30_000): Promise<Path & { node: string; ms: number }> {
    for (const deadline = Date.now() + timeout; ; await sleep(100)) {
      let last: string
      try {
        const pong = await this.ping(ip)
        if (pong.direct) return pong
        last = `it is reached by DERP (${pong.derp}) only`
      } catch (err) {
        last = (err as Error).message
      }
      if (Date.now() > deadline)
        throw new Error(`${ip} has no direct path after ${timeout} ms: ${last}`)
    }
  }

  /** One HTTP request through the tailnet; redirects are answered, not followed. */
  async fetch(url: string, options: FetchOptions = {}): Promise<FetchAnswer> {
    const query = new URLSearchParams({ url, roots: options.roots ?? this.#lab.ready.acmeRoots })
    const answer = (await this.#json(
      options.method ?? 'GET',
      `/fetch?${query}`,
      options,
    )) as FetchAnswer & { body: unknown }
    return { ...answer, body: Buffer.from(answer.body as unknown as string, 'base64') }
  }

  /** A raw TCP stream through the tailnet. */
  async dial(host: string, port: number): Promise<Duplex> {
    const addr = host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`
    return await this.#upgrade(new URLSearchParams({ addr }))
  }

  /**
   * A connection from the internet as a relay of Tailscale Funnel hands it to the node at `ip`: its
   * client is at `src` (`ip:port`) and asked for `target` (`name:port`).
   */
  async ingress(ip: string, target: string, src: string): Promise<Duplex> {
    return await this.#upgrade(new URLSearchParams({ addr: ip, ingress: target, src }))
  }

  /** Advertises networks (CIDR) that it forwards to by its machine's own network. */
  async advertise(...routes: string[]): Promise<void> {
    await this.#json('POST', `/advertise?${new URLSearchParams(routes.map((r) => ['route', r]))}`)
  }

  async #upgrade(query: URLSearchParams): Promise<Duplex> {
    return await new Promise((resolve, reject) => {
      const req = http.request({
        socketPath: this.#socket,
        path: `/dial?${query}`,
        headers: { Connection: 'Upgrade', Upgrade: 'tcp' },
      })
      req.on('upgrade', (_res, socket, head) => {
        if (head.length) socket.unshift(head)
        resolve(socket)
      })
      req.on('response', (res) => {
        read(res).then((body) => reject(new Error(message(body))), reject)
      })
      req.on('error', reject)
      req.end()
    })
  }

  /**
   * Sets a TXT record as this node. The control server accepts `_acme-challenge.<own name>` alone.
   */
  async setDNS(name: string, value: string): Promise<void> {
    await this.#json('POST', '/setdns', { body: JSON.stringify({ name, value }) })
  }

  /** Echoes datagrams that come to a UDP port of its tailnet addresses. */
  async echoPackets(port: number): Promise<void> {
    await this.#json('POST', `/udp-echo?port=${port}`)
  }

  /**
   * Sends one datagram after another to `addr` in the tailnet until one is answered, and gives the
   * answer.
   */
  async askPacket(addr: string, body: Uint8Array): Promise<Buffer> {
    const answer = (await this.#json('POST', `/udp-ask?addr=${encodeURIComponent(addr)}`, {
      body,
    })) as string
    return Buffer.from(answer, 'base64')
  }

  /**
   * Forwards a TCP port of its tailnet addresses to a unix socket, so that a server of the test's
   * own is a native peer.
   */
  async serve(port: number, socket: string): Promise<void> {
    await this.#json('POST', '/serve', { body: JSON.stringify({ port, socket }) })
  }

  /**
   * Who has a tailnet address ("100.64.0.1:1234" or without the port): Tailscale's WhoIsResponse.
   */
  async whoIs(
    addr: string,
  ): Promise<{ Node: { Name: string }; UserProfile: { LoginName: string } }> {
    return (await this.#json('GET', `/whois?addr=${encodeURIComponent(addr)}`)) as {
      Node: { Name: string }
      UserProfile: { LoginName: string }
    }
  }

  /**
   * Opens a port of 127.0.0.1, outside the lab, that forwards plain HTTP and WebSockets to an https
   * origin in the tailnet. The client verifies the origin against `roots` (default: the lab's ACME
   * authority). Port 0 picks one. Returns the URL.
   */
  async browse(origin: string, options: { port?: number; roots?: string } = {}): Promise<string> {
    return `http://127.0.0.1:${await this.#lab.forward(await this.proxy(origin, options.roots), options.port)}/`
  }

  /** The same on a unix socket: what {@link browse} puts a port in front of. */
  async proxy(origin: string, roots = this.#lab.ready.acmeRoots): Promise<string> {
    const socket = path.join(this.dir, `browser-${++this.#browsers}.sock`)
    await this.#json('POST', '/browser', { body: JSON.stringify({ socket, origin, roots }) })
    return socket
  }

  /**
   * Loads a node of bench/tsnet.ts: see load.go for the kinds. `ms` is how long, of down, up and
   * rtt.
   */
  async load(
    ip: string,
    kind: 'down' | 'up' | 'rtt' | 'many',
    options: { streams?: number; ms?: number } = {},
  ): Promise<{ bytes: number; ms: number; trips: number[] | null }> {
    const { streams = 1, ms = 3_000 } = options
    const query = new URLSearchParams({ ip, kind, streams: String(streams), ms: String(ms) })
    return (await this.#json('GET', `/load?${query}`, { timeout: 300_000 })) as {
      bytes: number
      ms: number
      trips: number[] | null
    }
  }

  /** Ends it; {@link start} starts it again with the same identity. */
  async stop(): Promise<void> {
    if (this.#child) await end(this.#child)
  }

  async #json(method: string, url: string, options: RequestOptions = {}): Promise<unknown> {
    const { status, body } = await request(this.#socket, method, url, options)
    if (status >= 400) throw new Error(message(body))
    return body.length ? JSON.parse(body.toString()) : undefined
  }
}
