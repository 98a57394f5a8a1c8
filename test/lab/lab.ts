/**
 * The lab: a tailnet without the internet, in network namespaces of its own.
 *
 *     await using lab = await Lab.start()
 *     const client = await lab.client('laptop')
 *     const page = await client.fetch('https://gatehouse.tail0a1b2.ts.net/')
 *
 * One Ethernet segment, 10.77.0.0/24 (segment.ts): the bridge br0 in the namespace `<id>-lab`,
 * where `out/bin/lab serve` is control server, DERP, STUN, DNS, NTP and ACME authority
 * (control.ts), all of them known by name and verified by an authority of the lab's own, and
 * dnsmasq gives addresses to virtual machines. Hosts are namespaces of their own, on the segment or
 * behind routers (networks.ts). Nothing gets out of it: what tries is dropped and counted ({@link
 * Lab.leaked}).
 *
 * Needs root and the programs ip (iproute2), nft (nftables), dnsmasq (dnsmasq-base) and setpriv
 * (util-linux).
 */
import { mkdir, mkdtemp, open, readFile, rm } from 'node:fs/promises'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { type ClientOptions, LabClient } from './client.ts'
import { type Ready, Services } from './control.ts'
import { exited } from './processes.ts'

export { LabClient } from './client.ts'
export type { ClientOptions, ClientStatus, FetchAnswer, FetchOptions, Path } from './client.ts'
export type { LabNode, Manner, Ready } from './control.ts'
export type { Result } from './processes.ts'
export { ipv6, resolver, secondResolver } from './segment.ts'
export type { HostOptions } from './segment.ts'

const repository = path.resolve(import.meta.dirname, '../..')

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
  /** A control server that behaves as Headscale does. Default false. */
  headscale?: boolean
  /** The lab program. Default: out/bin/lab of this repository. */
  bin?: string
}

let count = 0

export class Lab extends Services {
  /** The lab program. */
  readonly bin: string
  #ready: Ready | undefined
  readonly #servers = new Set<net.Server>()
  #nextIP = 20
  #stopping: Promise<void> | undefined

  private constructor(id: string, dir: string, ownDir: boolean, bin: string) {
    super(id, dir, ownDir)
    this.bin = bin
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
      await lab.makeSegment()
      await lab.#startServers(options)
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

  async #startServers({ suffix, headscale = false }: LabOptions): Promise<void> {
    const file = path.join(this.dir, 'ready.json')
    await rm(file, { force: true })
    const argv = [this.bin, 'serve', '--dir', this.dir, ...(suffix ? ['--suffix', suffix] : [])]
    if (headscale) argv.push('--headscale')
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

  /** Starts a native tailnet client in a namespace of its own. */
  async client(hostname: string, options: ClientOptions = {}): Promise<LabClient> {
    const n = this.#nextIP++
    const ip = options.ip ?? `10.77.0.${n}`
    const dir = path.join(this.dir, `client-${n}`)
    await mkdir(dir, { mode: 0o700 })
    const ns = options.ns ?? (await this.host(`c${n}`, ip))
    const client = new LabClient(this, hostname, ns, ip, dir)
    await client.start(options)
    return client
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
    await this.endAll()
    await this.removeSegment()
  }
}
