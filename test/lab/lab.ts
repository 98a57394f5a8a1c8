/**
 * The lab: a tailnet without the internet, in network namespaces of its own.
 *
 *     await using lab = await Lab.start()
 *     const client = await lab.client('laptop')
 *     const page = await client.fetch('https://gatehouse.tail0a1b2.ts.net/')
 *
 * One Ethernet segment, 10.77.0.0/24: the bridge br0 in the namespace `<id>-lab`, where
 * `out/bin/lab serve` is control server, DERP, STUN, DNS, NTP and ACME authority, and dnsmasq gives
 * addresses to virtual machines. Hosts are namespaces of their own. Nothing gets out of it: what
 * tries is dropped and counted ({@link Lab.leaked}).
 *
 * Needs root and the programs ip (iproute2), nft (nftables), dnsmasq (dnsmasq-base) and setpriv
 * (util-linux).
 */
import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process'
import { mkdir, mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises'
import http from 'node:http'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'
import type { Duplex } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'

const repository = path.resolve(import.meta.dirname, '../..')

/** What `lab serve` writes to ready.json once every service answers. */
export interface Ready {
  controlURL: string
  acmeDirectory: string
  /** PEM file: the authority of the ACME directory's own https. */
  acmeDirectoryCA: string
  /** PEM file: the authorities that issued certificates verify against. */
  acmeRoots: string
  authKey: string
  /** Of the right shape, and refused. */
  wrongAuthKey: string
  /** Of an OAuth client that may make auth keys; its API is at controlURL. */
  clientSecret: string
  /** The tailnet's MagicDNS suffix. */
  suffix: string
  /** Address of the DNS server. */
  dns: string
  /** Address of the NTP server. */
  ntp: string
}

export interface LabOptions {
  /** First part of the namespaces' names: 1–8 lower-case letters and digits. Default "lab". */
  name?: string
  /**
   * Directory of sockets, logs and state. Default: a new one in the temporary directory, removed by
   * {@link Lab.stop} unless LAB_KEEP is set.
   */
  dir?: string
  /** MagicDNS suffix. Default "tail0a1b2.ts.net". */
  suffix?: string
  /** The lab program. Default: out/bin/lab of this repository. */
  bin?: string
}

/** A node as the control server knows it. */
export interface LabNode {
  id: number
  /** Full name without the last dot. */
  name: string
  /** What the node asked to be called. */
  hostname: string
  addresses: string[]
  /** UDP addresses it said it can be reached at. */
  endpoints: string[]
  homeDERP: number
  os: string
  tags?: string[]
  expired: boolean
}

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

export interface FetchOptions {
  method?: string
  headers?: Record<string, string>
  body?: string | Uint8Array
  /** PEM file of the only authorities trusted. Default: the lab's ACME authority. */
  roots?: string
  /** Milliseconds until it fails. Default 30 000. */
  timeout?: number
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

export interface Result {
  code: number | null
  stdout: string
  stderr: string
}

let count = 0

/**
 * The IPv6 address on the segment of the host that has the IPv4 address `ip` (of the prefix for
 * documentation, RFC 3849).
 */
export function ipv6(ip: string): string {
  return `2001:db8:77::${ip.split('.')[3]}`
}

export class Lab {
  readonly id: string
  readonly dir: string
  /** The namespace of the servers and the bridge. QEMU runs here ({@link tap}). */
  readonly ns: string
  #ready: Ready | undefined
  readonly #bin: string
  readonly #ownDir: boolean
  readonly #children = new Set<ChildProcess>()
  readonly #servers = new Set<net.Server>()
  #dhcp: ChildProcess | undefined
  #reaper: ChildProcess | undefined
  #nextIP = 20
  #links = 0
  #stopping: Promise<void> | undefined

  private constructor(id: string, dir: string, ownDir: boolean, bin: string) {
    this.id = id
    this.dir = dir
    this.ns = `${id}-lab`
    this.#ownDir = ownDir
    this.#bin = bin
  }

  /**
   * Makes the segment and starts its servers. Rejects with what is missing or failed, having
   * cleaned up.
   */
  static async start(options: LabOptions = {}): Promise<Lab> {
    if (process.getuid?.() !== 0)
      throw new Error('the lab makes network namespaces: run it as root')
    const name = options.name ?? 'lab'
    if (!/^[a-z0-9]{1,8}$/.test(name))
      throw new Error(`lab name "${name}": use 1 to 8 lower-case letters and digits`)
    const bin = options.bin ?? path.join(repository, 'out/bin/lab')
    await open(bin).then(
      (f) => f.close(),
      () => {
        throw new Error(
          `${bin} is not built: run (cd test/lab && CGO_ENABLED=0 go build -o ../../out/bin/lab .)`,
        )
      },
    )
    const dir = options.dir
      ? path.resolve(options.dir)
      : await mkdtemp(path.join(os.tmpdir(), 'lab-'))
    await mkdir(dir, { recursive: true })
    const lab = new Lab(`${name}-${process.pid}-${++count}`, dir, !options.dir, bin)
    try {
      lab.#startReaper()
      await lab.#makeSegment()
      await lab.#startDHCP()
      await lab.#startServers(options.suffix)
    } catch (error) {
      await lab.stop()
      throw error
    }
    return lab
  }

  /** Addresses, keys and files of the servers. */
  get ready(): Ready {
    if (!this.#ready) throw new Error('the lab has not started')
    return this.#ready
  }

  /**
   * Removes the namespaces, and the directory if it is the lab's own, when this process has ended
   * in whatever way: it waits for the end of a pipe that only this process holds. It has a session
   * of its own, or Ctrl-C would end it before it has done its work.
   */
  #startReaper(): void {
    const script =
      'cat >/dev/null; for n in /run/netns/"$1"-*; do [ -e "$n" ] && ip netns del "${n##*/}"; done; rm -rf /etc/netns/"$1"-* "$2"'
    const remove = this.#ownDir && !process.env['LAB_KEEP'] ? this.dir : ''
    const reaper = spawn('sh', ['-c', script, 'lab-reaper', this.id, remove], {
      detached: true,
      stdio: ['pipe', 'ignore', 'ignore'],
    })
    reaper.unref()
    ;(reaper.stdin as net.Socket).unref()
    this.#reaper = reaper
  }

  async #makeSegment(): Promise<void> {
    await this.#makeNamespace(this.ns)
    // A fixed address: left to itself a bridge takes the lowest of its ports', so that it changes
    // as hosts join, and those that are there send to the old one until their ARP entries expire.
    await this.#ip(
      this.ns,
      'link',
      'add',
      'br0',
      'address',
      '02:00:0a:4d:00:01',
      'type',
      'bridge',
      'forward_delay',
      '0',
      'stp_state',
      '0',
      'mcast_snooping',
      '0',
    )
    for (const n of [1, 2, 3, 4])
      await this.#ip(this.ns, 'addr', 'add', `10.77.0.${n}/24`, 'dev', 'br0')
    for (const n of [1, 2, 3])
      await this.#ip(this.ns, 'addr', 'add', `${ipv6(`10.77.0.${n}`)}/64`, 'dev', 'br0', 'nodad')
    await this.#ip(this.ns, 'link', 'set', 'br0', 'up')
    // A route to nowhere: without one, what the servers send outside would fail before it is
    // counted.
    await this.#ip(this.ns, 'route', 'add', 'default', 'via', '10.77.0.254', 'dev', 'br0')
    must(await this.#run(['ip', 'netns', 'exec', this.ns, 'nft', '-f', '-'], ruleset), 'nft')
  }

  async #makeNamespace(ns: string): Promise<void> {
    // `ip netns exec` binds these files over those in /etc.
    await mkdir(`/etc/netns/${ns}`, { recursive: true })
    await writeFile(
      `/etc/netns/${ns}/resolv.conf`,
      'nameserver 10.77.0.1\noptions timeout:2 attempts:2\n',
    )
    must(await this.#run(['ip', 'netns', 'add', ns]), 'ip netns add')
    await this.#ip(ns, 'link', 'set', 'lo', 'up')
  }

  /** Starts DHCP anew, with or without a DNS server in its answers; leases go on. */
  async setDHCP({ dns }: { dns: boolean }): Promise<void> {
    if (this.#dhcp) await end(this.#dhcp)
    await this.#startDHCP(dns)
  }

  async #startDHCP(dns = true): Promise<void> {
    const child = (this.#dhcp = this.exec(
      this.ns,
      [
        'dnsmasq',
        '--keep-in-foreground',
        '--conf-file=/dev/null',
        '--port=0',
        '--interface=br0',
        '--bind-interfaces',
        '--user=root',
        '--group=root',
        '--pid-file=',
        '--no-ping',
        '--dhcp-authoritative',
        '--log-dhcp',
        `--log-facility=${this.dir}/dhcp.log`,
        `--dhcp-leasefile=${this.dir}/dhcp.leases`,
        '--dhcp-range=10.77.0.100,10.77.0.150,255.255.255.0,1h',
        '--dhcp-option=option:router,10.77.0.1',
        // Empty: not even the default, which is dnsmasq's own address.
        `--dhcp-option=option:dns-server${dns ? ',10.77.0.1' : ''}`,
        '--dhcp-option=option:ntp-server,10.77.0.1',
      ],
      { stdio: ['pipe', 'ignore', 'pipe'] },
    ))
    const failed = exited(child)
    // It says nothing when it is up; when something is wrong it ends at once.
    const early = await Promise.race([failed, sleep(100)])
    if (early) throw new Error(`dnsmasq ended: ${early.stderr.trim() || `code ${early.code}`}`)
  }

  async #startServers(suffix?: string): Promise<void> {
    const file = path.join(this.dir, 'ready.json')
    await rm(file, { force: true })
    const argv = [this.#bin, 'serve', '--dir', this.dir, ...(suffix ? ['--suffix', suffix] : [])]
    const child = this.exec(this.ns, argv, { stdio: ['pipe', 'ignore', 'pipe'] })
    const ended = exited(child)
    for (const deadline = Date.now() + 15_000; ;) {
      const text = await readFile(file, 'utf8').catch(() => undefined)
      if (text) {
        this.#ready = JSON.parse(text) as Ready
        return
      }
      const early = await Promise.race([ended, sleep(20)])
      if (early) throw new Error(`lab serve ended: ${early.stderr.trim() || `code ${early.code}`}`)
      if (Date.now() > deadline)
        throw new Error(`lab serve is not ready after 15 s: see the logs in ${this.dir}`)
    }
  }

  /**
   * Adds a host to the segment: a namespace with eth0, default route and resolver. Returns the
   * namespace's name. `ipv6`: it has {@link ipv6} of its number too.
   */
  async host(name: string, ip: string, { ipv6: both = false } = {}): Promise<string> {
    if (!/^[a-z0-9-]{1,24}$/.test(name) || name === 'lab')
      throw new Error(`host name "${name}": use lower-case letters, digits and dashes`)
    if (!/^10\.77\.0\.\d+$/.test(ip)) throw new Error(`address ${ip} is not in 10.77.0.0/24`)
    const ns = `${this.id}-${name}`
    const port = `v${++this.#links}`
    await this.#makeNamespace(ns)
    await this.#ip(
      this.ns,
      'link',
      'add',
      port,
      'type',
      'veth',
      'peer',
      'name',
      'eth0',
      'netns',
      ns,
    )
    await this.#ip(this.ns, 'link', 'set', port, 'master', 'br0', 'up')
    await this.#ip(ns, 'addr', 'add', `${ip}/24`, 'dev', 'eth0')
    await this.#ip(ns, 'link', 'set', 'eth0', 'up')
    await this.#ip(ns, 'route', 'add', 'default', 'via', '10.77.0.1')
    if (both) {
      await this.#ip(ns, 'addr', 'add', `${ipv6(ip)}/64`, 'dev', 'eth0', 'nodad')
      await this.#ip(ns, 'route', 'add', 'default', 'via', ipv6('10.77.0.1'))
    }
    return ns
  }

  /**
   * Makes a tap device on the bridge, in {@link ns}, for QEMU: `-netdev
   * tap,id=n0,ifname=NAME,script=no,downscript=no`. Returns its name.
   */
  async tap(name: string): Promise<string> {
    if (!/^[a-z0-9-]{1,15}$/.test(name))
      throw new Error(`tap name "${name}": use 1 to 15 lower-case letters, digits and dashes`)
    await this.#ip(this.ns, 'tuntap', 'add', name, 'mode', 'tap')
    await this.#ip(this.ns, 'link', 'set', name, 'master', 'br0', 'up')
    return name
  }

  /**
   * Starts a program in a namespace ({@link ns}, or what {@link host} returned). It dies with this
   * process (PDEATHSIG), and with {@link stop}. Its pid is the program's own: neither `setpriv` nor
   * `ip netns exec` forks.
   */
  exec(ns: string, argv: string[], options: SpawnOptions = {}): ChildProcess {
    const child = spawn(
      'setpriv',
      ['--pdeathsig', 'KILL', '--', 'ip', 'netns', 'exec', ns, ...argv],
      {
        stdio: ['pipe', 'pipe', 'pipe'],
        ...options,
      },
    )
    this.#children.add(child)
    child.once('exit', () => this.#children.delete(child))
    child.once('error', () => this.#children.delete(child))
    child.stdin?.on('error', () => {}) // EPIPE when it has ended: its exit says so
    return child
  }

  /** Runs a program in a namespace to its end. Rejects only if it cannot be started. */
  async run(ns: string, argv: string[], input?: string): Promise<Result> {
    const child = this.exec(ns, argv)
    const result = exited(child)
    child.stdin?.end(input)
    return await result
  }

  /** Starts a native tailnet client in a namespace of its own. */
  async client(hostname: string, options: ClientOptions = {}): Promise<LabClient> {
    const n = this.#nextIP++
    const ip = options.ip ?? `10.77.0.${n}`
    const dir = path.join(this.dir, `client-${n}`)
    await mkdir(dir, { mode: 0o700 })
    const ns = await this.host(`c${n}`, ip)
    const client = new LabClient(this, hostname, ns, ip, dir)
    await client.start(options)
    return client
  }

  /** The lab program, for {@link LabClient}. */
  get bin(): string {
    return this.#bin
  }

  /** Packets that tried to leave the segment, since the start. */
  async leaked(): Promise<number> {
    const { stdout } = must(
      await this.#run([
        'ip',
        'netns',
        'exec',
        this.ns,
        'nft',
        '-j',
        'list',
        'counter',
        'inet',
        'lab',
        'leaked',
      ]),
      'nft',
    )
    const packets = JSON.parse(stdout).nftables.find(
      (o: { counter?: { packets: number } }) => o.counter,
    )?.counter.packets
    if (typeof packets !== 'number') throw new Error(`nft shows no counter: ${stdout}`)
    return packets
  }

  /** Who tried to send where, for the message of a test that found {@link leaked} above zero. */
  async leaks(): Promise<{ from: string; to: string }[]> {
    const { stdout } = must(
      await this.#run([
        'ip',
        'netns',
        'exec',
        this.ns,
        'nft',
        '-j',
        'list',
        'table',
        'inet',
        'lab',
      ]),
      'nft',
    )
    const list: { from: string; to: string }[] = []
    for (const object of JSON.parse(stdout).nftables) {
      for (const element of object.set?.elem ?? []) {
        const [from, to] = (element.elem?.val ?? element).concat
        list.push({ from, to })
      }
    }
    return list
  }

  /** Registered nodes. */
  async nodes(): Promise<LabNode[]> {
    return (await this.#admin('GET', '/nodes')) as LabNode[]
  }

  /** TXT records nodes have set, by name. */
  async txt(): Promise<Record<string, string[]>> {
    return (await this.#admin('GET', '/txt')) as Record<string, string[]>
  }

  /**
   * Every question the DNS server was asked: a name that nobody ought to want shows who would have
   * called home.
   */
  async queries(): Promise<{ name: string; type: string; rcode: string; times: number }[]> {
    return (await this.#admin('GET', '/queries')) as {
      name: string
      type: string
      rcode: string
      times: number
    }[]
  }

  /**
   * Replaces the addresses of a name in the lab's DNS, IPv4 and IPv6; with none the name is gone.
   */
  async setHost(name: string, ...addresses: string[]): Promise<void> {
    await this.#admin(
      'POST',
      `/host?${new URLSearchParams([['name', name], ...addresses.map((ip) => ['ip', ip])])}`,
    )
  }

  /** Login URLs nobody has visited yet. */
  async logins(): Promise<string[]> {
    return (await this.#admin('GET', '/logins')) as string[]
  }

  /** Does what a person does who opens the login URL and agrees. */
  async completeLogin(url: string): Promise<void> {
    await this.#admin('POST', `/login?url=${encodeURIComponent(url)}`)
  }

  /** Takes the control server off the network: its connections end, new ones are refused. */
  async stopControl(): Promise<void> {
    await this.#admin('POST', '/control/stop')
  }

  /** Puts the control server back, knowing what it knew. */
  async startControl(): Promise<void> {
    await this.#admin('POST', '/control/start')
  }

  /** Expires the key of a node, by its name; or, with `seconds`, lets it be good for so long. */
  async expire(node: string, seconds?: number): Promise<void> {
    await this.#admin(
      'POST',
      `/expire?node=${encodeURIComponent(node)}${seconds === undefined ? '' : `&seconds=${seconds}`}`,
    )
  }

  /** An auth key that works once, or has expired; nodes that join with it get its tags. */
  async key(kind: 'once' | 'expired', tags: string[] = []): Promise<string> {
    return (await this.#admin(
      'POST',
      `/keys?${new URLSearchParams([['kind', kind], ...tags.map((t) => ['tag', t])])}`,
    )) as string
  }

  /** Whether nodes that join from now on must be approved ({@link approve}). */
  async requireApproval(on: boolean): Promise<void> {
    await this.#admin('POST', `/approval?on=${on}`)
  }

  /** Approves a node, as an admin does. */
  async approve(node: string): Promise<void> {
    await this.#admin('POST', `/approve?node=${encodeURIComponent(node)}`)
  }

  /** Gives a Tailscale Service (`svc:name`) an address, and lets a node host it. */
  async hostService(node: string, name: string, ip: string): Promise<void> {
    await this.#admin('POST', `/service?${new URLSearchParams({ node, name, ip })}`)
  }

  /**
   * Replaces the grants of the tailnet's policy. `src` and `dst` are node names, tags, login names
   * or "*"; `app` is capabilities by name, each with its values. Nodes are told at once.
   */
  async setGrants(
    grants: { src: string[]; dst: string[]; app: Record<string, unknown[]> }[],
  ): Promise<void> {
    await this.#admin('PUT', '/grants', JSON.stringify(grants))
  }

  /**
   * Gives a node to a person, by login name, or to nobody, with tags. Before, all nodes are one
   * person's.
   */
  async setOwner(node: string, owner: { user: string } | { tags: string[] }): Promise<void> {
    const query = new URLSearchParams({ node })
    if ('user' in owner) query.set('user', owner.user)
    else for (const tag of owner.tags) query.append('tag', tag)
    await this.#admin('POST', `/owner?${query}`)
  }

  /** DHCP leases given. */
  async leases(): Promise<{ mac: string; ip: string; hostname: string }[]> {
    const text = await readFile(path.join(this.dir, 'dhcp.leases'), 'utf8').catch(() => '')
    return text
      .split('\n')
      .filter(Boolean)
      .map((line) => {
        const [, mac = '', ip = '', hostname = ''] = line.split(' ')
        return { mac, ip, hostname }
      })
  }

  /**
   * Puts a port of 127.0.0.1, outside the lab, in front of a unix socket. Port 0 picks one. Returns
   * the port.
   */
  async forward(socket: string, port = 0): Promise<number> {
    const server = net.createServer((incoming) => {
      const outgoing = net.connect(socket)
      const end = (): void => {
        incoming.destroy()
        outgoing.destroy()
      }
      incoming.on('error', end).on('close', end)
      outgoing.on('error', end).on('close', end)
      incoming.pipe(outgoing).pipe(incoming)
      if (this.#stopping) end()
    })
    await new Promise<void>((resolve, reject) =>
      server.once('error', reject).listen(port, '127.0.0.1', resolve),
    )
    this.#servers.add(server)
    return (server.address() as net.AddressInfo).port
  }

  /** Ends every process of the lab and removes its namespaces. Safe to call twice. */
  async stop(): Promise<void> {
    await (this.#stopping ??= this.#stop())
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop()
  }

  async #stop(): Promise<void> {
    for (const server of this.#servers) server.close()
    await Promise.all([...this.#children].map((child) => end(child)))
    const reaper = this.#reaper
    if (reaper && reaper.exitCode === null && reaper.signalCode === null) {
      reaper.ref()
      await new Promise<void>((resolve) => {
        reaper.once('exit', () => resolve())
        reaper.stdin?.end()
      })
    }
  }

  async #ip(ns: string, ...args: string[]): Promise<void> {
    must(await this.#run(['ip', '-n', ns, ...args]), `ip ${args.join(' ')}`)
  }

  async #run(argv: string[], input?: string): Promise<Result> {
    const child = spawn(argv[0]!, argv.slice(1), { stdio: ['pipe', 'pipe', 'pipe'] })
    child.stdin.on('error', () => {})
    child.stdin.end(input)
    return await exited(child)
  }

  async #admin(method: string, url: string, content?: string): Promise<unknown> {
    const { status, body } = await request(
      path.join(this.dir, 'lab.sock'),
      method,
      url,
      content === undefined ? {} : { body: content },
    )
    if (status >= 400) throw new Error(body.toString().trim())
    return body.length ? JSON.parse(body.toString()) : undefined
  }
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
      this.#lab.ready.controlURL,
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
      env: { ...process.env, ...options.env },
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
    return await new Promise((resolve, reject) => {
      const addr = encodeURIComponent(host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`)
      const req = http.request({
        socketPath: this.#socket,
        path: `/dial?addr=${addr}`,
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

  async #json(method: string, url: string, options: FetchOptions = {}): Promise<unknown> {
    const { status, body } = await request(this.#socket, method, url, options)
    if (status >= 400) throw new Error(message(body))
    return body.length ? JSON.parse(body.toString()) : undefined
  }
}

/**
 * Drops, counts and remembers what would leave the segment. Broadcast and multicast stay on a
 * segment by nature. Dropped before routing, so that it makes no difference whether there is a
 * route. Traffic among hosts is bridged and comes by here, "forward" too, only on a machine that
 * has br_netfilter loaded (as Docker does).
 */
const ruleset = `
table inet lab {
  counter leaked { }
  set leaks { type ipv4_addr . ipv4_addr; size 1024; flags dynamic; }
  chain stray {
    counter name leaked
    meta nfproto ipv4 update @leaks { ip saddr . ip daddr }
    drop
  }
  chain judge {
    ip daddr { 10.77.0.0/24, 224.0.0.0/4, 255.255.255.255 } accept
    ip6 daddr { fe80::/10, ff00::/8, 2001:db8:77::/64 } accept
    goto stray
  }
  chain prerouting { type filter hook prerouting priority raw; policy drop; iifname "lo" accept; goto judge; }
  chain forward { type filter hook forward priority filter; policy drop; goto judge; }
  chain output { type filter hook output priority filter; policy drop; oifname "lo" accept; goto judge; }
}
`

/** How long a process may take to end after SIGTERM, in milliseconds. */
const endGrace = 5_000

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return
  const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()))
  child.kill('SIGTERM')
  const timer = setTimeout(() => child.kill('SIGKILL'), endGrace)
  await gone
  clearTimeout(timer)
}

/** The end of a process, with all it wrote. */
function exited(child: ChildProcess): Promise<Result> {
  const out: Buffer[] = []
  const err: Buffer[] = []
  child.stdout?.on('data', (b: Buffer) => out.push(b))
  child.stderr?.on('data', (b: Buffer) => err.push(b))
  const ended = new Promise<Result>((resolve, reject) => {
    child.once('error', (error: NodeJS.ErrnoException) => {
      reject(error.code === 'ENOENT' ? new Error(`${child.spawnfile} is not installed`) : error)
    })
    child.once('close', (code) =>
      resolve({
        code,
        stdout: Buffer.concat(out).toString(),
        stderr: Buffer.concat(err).toString(),
      }),
    )
  })
  ended.catch(() => {}) // whoever waits gets it; nobody need wait
  return ended
}

function must(result: Result, what: string): Result {
  if (result.code !== 0)
    throw new Error(`${what}: ${result.stderr.trim() || `code ${result.code}`}`)
  return result
}

async function request(
  socketPath: string,
  method: string,
  url: string,
  options: FetchOptions = {},
): Promise<{ status: number; body: Buffer }> {
  return await new Promise((resolve, reject) => {
    const timeout = options.timeout ?? 30_000
    const req = http.request({
      socketPath,
      method,
      path: url,
      headers: options.headers ?? {},
      agent: false,
    })
    const timer = setTimeout(
      () => req.destroy(new Error(`${method} ${url.split('?')[0]}: no answer in ${timeout} ms`)),
      timeout,
    )
    req.on('close', () => clearTimeout(timer))
    req.on('response', (res) =>
      read(res).then((body) => resolve({ status: res.statusCode ?? 0, body }), reject),
    )
    req.on('error', reject)
    req.end(options.body)
  })
}

async function read(res: http.IncomingMessage): Promise<Buffer> {
  const parts: Buffer[] = []
  for await (const part of res) parts.push(part as Buffer)
  return Buffer.concat(parts)
}

/** The words of an error answer. */
function message(body: Buffer): string {
  const text = body.toString().trim()
  try {
    return (JSON.parse(text) as { error: string }).error
  } catch {
    return text
  }
}
