import { createSocket } from 'node:dgram'
import type { Socket as DatagramSocket } from 'node:dgram'
import { EventEmitter, once } from 'node:events'
import { connect, createServer } from 'node:net'
import type { Server, Socket } from 'node:net'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Duplex } from 'node:stream'
import { allRights, capability } from '../../../src/gateway/access/access.ts'
import type { Tailnet, TailnetConn, TailnetListener } from '../../../src/gateway/tailnet/tailnet.ts'
import type { Status, WhoIs } from '@gatehouse/tsnet'

/** Everything, by grant. */
export const everything = { [capability]: [{ may: [...allRights] }] }

/** A person's node, as WhoIs answers. */
export const alice: WhoIs = {
  node: {
    id: 'n1',
    name: 'laptop.tail.ts.net',
    hostName: 'laptop',
    addresses: ['100.64.0.7'],
    tags: [],
  },
  user: {
    id: 1,
    loginName: 'alice@example.com',
    displayName: 'Alicé Löwe',
    profilePicURL: 'https://example.com/a.png',
  },
  capMap: everything,
}

/** A tagged node, which has no user. */
export const tagged: WhoIs = {
  node: {
    id: 'n2',
    name: 'ci.tail.ts.net',
    hostName: 'ci',
    addresses: ['100.64.0.8'],
    tags: ['tag:ci'],
  },
  // A control server may still send one: it must not be believed.
  user: { id: 2, loginName: 'tagged-devices', displayName: 'Tagged Devices', profilePicURL: '' },
  capMap: everything,
}

/** A socket as a Duplex that is no net.Socket, which is what the real bindings hand out. */
class Conn extends Duplex implements TailnetConn {
  remoteAddress: string
  remotePort: number
  #socket: Socket

  constructor(socket: Socket, address: string, port: number) {
    super({ allowHalfOpen: true })
    this.#socket = socket
    this.remoteAddress = address
    this.remotePort = port
    socket.on('data', (data) => {
      if (!this.push(data)) socket.pause()
    })
    socket.on('end', () => this.push(null))
    socket.on('error', (err) => this.destroy(err))
    socket.on('close', () => this.destroy())
  }

  override _read(): void {
    this.#socket.resume()
  }
  override _write(
    data: Buffer,
    _encoding: BufferEncoding,
    done: (err?: Error | null) => void,
  ): void {
    this.#socket.write(data, done)
  }
  override _final(done: () => void): void {
    this.#socket.end(done)
  }
  override _destroy(err: Error | null, done: (err: Error | null) => void): void {
    this.#socket.destroy()
    done(err)
  }
}

class Port extends EventEmitter implements TailnetListener {
  readonly server: Server
  constructor(server: Server) {
    super()
    this.server = server
  }

  async close(): Promise<void> {
    this.server.close()
  }
}

/**
 * The gateway's Tailnet over unix sockets: a double for unit tests of what is above it. The real
 * one is tested in the lab. Every peer has the address 100.64.0.7, unless told otherwise.
 */
export class LoopbackTailnet extends EventEmitter implements Tailnet {
  readonly directory: string = mkdtempSync(join(tmpdir(), 'gh-tailnet-'))
  readonly dns: Array<[string, string]> = []
  peer: WhoIs | Error = alice
  /** Where connections come from, from now on. */
  from = '100.64.0.7'
  /** Who is at which address; at all others it is `peer`. */
  readonly peers: Map<string, WhoIs> = new Map()
  /** The node itself: tagged, unless told otherwise. */
  self: WhoIs = {
    node: {
      id: 'self',
      name: 'gatehouse.tail.ts.net',
      hostName: 'gatehouse',
      addresses: ['100.64.0.1'],
      tags: ['tag:gatehouse'],
    },
    capMap: {},
  }

  /** Of peers. */
  whoIsCalls: string[] = []
  /** What start rejects with, as long as it is set. */
  startError: Error | undefined
  /** What up rejects with, as long as it is set. */
  upError: Error | undefined
  /** Up waits for this. */
  online: Promise<void> = Promise.resolve()
  /** What the LocalAPI was asked for; `onLocal` does what the backend would. */
  locals: string[] = []
  onLocal: (path: string) => void = () => {}
  ups = 0
  current: Status = {
    backendState: 'NeedsLogin',
    authURL: '',
    tailscaleIPs: [],
    peers: [],
    health: [],
    certDomains: [],
    magicDNSSuffix: 'tail.ts.net',
    services: {},
  }

  #ports = new Map<number | string, Port>()
  /** Services that are advertised: name to ports. */
  readonly advertised: Map<string, Set<number>> = new Map()
  /** Where a UDP port of the node is on 127.0.0.1. */
  readonly packetPorts = new Map<number, number>()
  /** What listenService rejects with, as long as it is set. */
  serviceError: Error | undefined

  static running(name = 'gatehouse.tail.ts.net'): Status {
    return {
      backendState: 'Running',
      authURL: '',
      tailscaleIPs: ['100.64.0.1', 'fd7a:115c:a1e0::1'],
      self: {
        id: 'self',
        hostName: 'gatehouse',
        dnsName: name,
        tailscaleIPs: ['100.64.0.1'],
        online: true,
        curAddr: '',
        relay: '',
        tags: ['tag:gatehouse'],
      },
      peers: [
        {
          id: 'n1',
          hostName: 'laptop',
          dnsName: 'laptop.tail.ts.net',
          tailscaleIPs: ['100.64.0.7'],
          online: true,
          curAddr: '10.0.0.2:41641',
          relay: '',
          tags: [],
        },
      ],
      health: [],
      certDomains: [name],
      magicDNSSuffix: 'tail.ts.net',
      services: {},
    }
  }

  async start(): Promise<void> {
    if (this.startError !== undefined) throw this.startError
  }

  async up({ signal }: { signal?: AbortSignal } = {}): Promise<Status> {
    this.ups++
    if (this.upError !== undefined) throw this.upError
    await Promise.race([
      this.online,
      new Promise((_resolve, reject) =>
        signal?.addEventListener('abort', () => {
          reject(new Error('aborted'))
        }),
      ),
    ])
    this.become(this.current.backendState === 'Running' ? this.current : LoopbackTailnet.running())
    return this.current
  }

  become(status: Status): void {
    this.current = status
    this.emit('state', status.backendState)
  }

  async listenService(service: string, port: number): Promise<Port> {
    if (this.serviceError !== undefined) throw this.serviceError
    const listener = await this.listen(`${service}-${port}`)
    const ports = this.advertised.get(service) ?? new Set()
    this.advertised.set(service, ports.add(port))
    const close = listener.close.bind(listener)
    listener.close = async () => {
      ports.delete(port)
      if (ports.size === 0) this.advertised.delete(service)
      await close()
    }
    return listener
  }

  async listen(port: number | string): Promise<Port> {
    const server = createServer({ allowHalfOpen: true })
    const listener = new Port(server)
    server.on('connection', (socket) =>
      listener.emit('connection', new Conn(socket, this.from, 40_000 + this.#ports.size)),
    )
    await new Promise<void>((resolve, reject) =>
      server.once('error', reject).listen(this.path(port), resolve),
    )
    this.#ports.set(port, listener)
    return listener
  }

  /** A UDP port, on the loopback interface: {@link packetPorts}. */
  async listenPacket(port: number): Promise<DatagramSocket> {
    const socket = createSocket('udp4')
    socket.bind(0, '127.0.0.1')
    await once(socket, 'listening')
    this.packetPorts.set(port, socket.address().port)
    socket.once('close', () => this.packetPorts.delete(port))
    return socket
  }

  path(port: number | string): string {
    return join(this.directory, String(port))
  }

  /** A connection of the peer to a port of the node, or of a Service: `svc:name-443`. */
  connect(port: number | string): Socket {
    return connect(this.path(port))
  }

  async whoIs(addr: string): Promise<WhoIs> {
    if (addr === '100.64.0.1') return this.self
    this.whoIsCalls.push(addr)
    const known = this.peers.get(addr.replace(/^\[?(.+?)\]?:\d+$/, '$1'))
    if (known !== undefined) return known
    if (this.peer instanceof Error) throw this.peer
    return this.peer
  }

  async localAPI(_method: string, path: string): Promise<void> {
    const what = path.replace('/localapi/v0/', '')
    this.locals.push(what)
    this.onLocal(what)
  }

  /** Where dialled addresses lead: `address:port` to a port of 127.0.0.1. */
  readonly targets: Map<string, number> = new Map()
  /** Names of the tailnet, beside those of {@link current}'s peers. */
  readonly names: Map<string, string[]> = new Map()
  dialled: string[] = []

  async dial(host: string, port: number): Promise<Socket> {
    this.dialled.push(`${host}:${port}`)
    const to = this.targets.get(`${host}:${port}`)
    if (to === undefined) throw new Error(`no answer from ${host}`)
    const socket = connect({ port: to, host: '127.0.0.1', allowHalfOpen: true })
    await once(socket, 'connect')
    return socket
  }

  async resolve(name: string): Promise<string[]> {
    const found =
      this.names.get(name) ??
      this.current.peers.find(({ dnsName }) => dnsName === name)?.tailscaleIPs
    if (found === undefined) throw new Error(`${name} is not in the tailnet`)
    return found
  }

  async setDNS(name: string, value: string): Promise<void> {
    this.dns.push([name, value])
  }
  async status(): Promise<Status> {
    return this.current
  }

  async close(): Promise<void> {
    for (const port of this.#ports.values()) port.server.close()
  }

  remove(): void {
    rmSync(this.directory, { recursive: true, force: true })
  }
}
