import { EventEmitter } from 'node:events'
import { isIP, isIPv6, SocketAddress, type AddressInfo } from 'node:net'
import type { Conn } from './conn.ts'
import { TsnetError } from './errors.ts'
import { ipText, putSockName } from './host/files.ts'
import { splitHostPort } from './options.ts'

/** Length, address and port before each datagram (../go/packet.go, packetHeader). */
const HEADER = 20
/** The most that UDP carries. */
const MAX_DATAGRAM = 65535 - 8
/**
 * The most that fits into one packet of IPv6: Tailscale's packet filter lets no IPv6 fragments
 * through.
 */
const MAX_IPV6 = 1280 - 40 - 8
/**
 * Bytes on the way to the module beyond which datagrams are dropped, as a full socket buffer would.
 */
const SEND_BUFFER = 1 << 20

/** Where a datagram came from, as with node:dgram. */
export interface RemoteInfo {
  address: string
  family: 'IPv4' | 'IPv6'
  port: number
  size: number
}

interface Events {
  message: [Buffer, RemoteInfo]
  error: [Error]
  close: []
}

/**
 * A UDP socket in the tailnet, shaped as a bound (or connected) node:dgram.Socket. Events:
 * `message` (Buffer, RemoteInfo), `close`, `error`. Datagrams may be lost, as UDP's always may.
 * Those above the tailnet's MTU (1,280 with headers) go in fragments over IPv4; over IPv6, where
 * Tailscale carries none, they are EMSGSIZE.
 */
export class PacketSocket extends EventEmitter<Events> {
  private readonly conn: Conn
  private readonly locals: AddressInfo[]
  private readonly peer: AddressInfo | undefined
  private rest: Buffer = Buffer.alloc(0)
  private last: [Buffer, string] = [Buffer.alloc(0), '']

  /**
   * @internal Made by Server.listenPacket and Server.dialPacket. `conn` carries the datagrams from
   *   and to the module.
   */
  constructor(conn: Conn, locals: string[], connected: boolean) {
    super()
    const info = (address: string, port: number): AddressInfo => ({
      address,
      port,
      family: isIPv6(address) ? 'IPv6' : 'IPv4',
    })
    this.conn = conn
    this.locals = locals.map((l) => info(...splitHostPort(l)))
    this.peer = connected ? info(conn.remoteAddress, conn.remotePort) : undefined
    conn.on('data', (part: Buffer) => this.take(part))
    conn.on('error', (err: NodeJS.ErrnoException) => {
      // Only whoever listens wants to know: its end is an event of its own.
      if (this.listenerCount('error') > 0) this.emit('error', err)
    })
    conn.on('close', () => this.emit('close'))
    conn.on('end', () => conn.destroy())
  }

  /** The local address and port; of a socket on both addresses of the node, the IPv4 one. */
  address(): AddressInfo {
    return this.locals[0]!
  }

  /** All local addresses. */
  addresses(): AddressInfo[] {
    return this.locals
  }

  /** The peer of a socket made by dialPacket. */
  remoteAddress(): AddressInfo | undefined {
    return this.peer
  }

  /**
   * Sends one datagram, from a socket made by listenPacket to an IP address of the tailnet. `done`
   * is called when it is on its way to the network, or with the error that kept it from there:
   * TSNET_OPTIONS, TSNET_CLOSED, EMSGSIZE, or ENOBUFS when too many wait.
   */
  send(message: string | Uint8Array, done?: (err: Error | null) => void): void
  send(
    message: string | Uint8Array,
    port: number,
    address: string,
    done?: (err: Error | null) => void,
  ): void
  send(message: string | Uint8Array, ...args: unknown[]): void {
    const done = (typeof args.at(-1) === 'function' ? args.pop() : () => {}) as (
      err: Error | null,
    ) => void
    const { port, address } = this.peer ?? { port: args[0] as number, address: String(args[1]) }
    const bytes = typeof message === 'string' ? Buffer.from(message) : message
    const problem = this.problem(bytes, port, address)
    if (problem) {
      queueMicrotask(() => done(problem))
      return
    }
    const frame = Buffer.allocUnsafe(HEADER + bytes.length)
    frame.writeUInt16LE(bytes.length)
    putSockName(frame.subarray(2), address, port)
    frame.set(bytes, HEADER)
    this.conn.write(frame, (err) => done(err ?? null))
  }

  private problem(bytes: Uint8Array, port: number, address: string): Error | undefined {
    if (this.conn.destroyed || this.conn.writableEnded)
      return new TsnetError('TSNET_CLOSED', 'the UDP socket is closed')
    if (bytes.length > MAX_DATAGRAM)
      return new TsnetError(
        'TSNET_OPTIONS',
        `a datagram of ${bytes.length} bytes: ${MAX_DATAGRAM} at most`,
      )
    if (!isIP(address)) return new TsnetError('TSNET_OPTIONS', `"${address}" is not an IP address`)
    if (isIPv6(address) && bytes.length > MAX_IPV6)
      return Object.assign(
        new Error(`send EMSGSIZE: ${bytes.length} bytes; ${MAX_IPV6} at most over IPv6`),
        { code: 'EMSGSIZE', syscall: 'send' },
      )
    if (!Number.isInteger(port) || port < 1 || port > 65535)
      return new TsnetError('TSNET_OPTIONS', `port ${port}: use 1 to 65535`)
    if (this.conn.writableLength > SEND_BUFFER)
      return Object.assign(new Error('send ENOBUFS'), { code: 'ENOBUFS', syscall: 'send' })
    return undefined
  }

  private take(part: Buffer): void {
    let b = this.rest.length ? Buffer.concat([this.rest, part]) : part
    while (b.length >= HEADER && b.length >= HEADER + b.readUInt16LE()) {
      const size = b.readUInt16LE()
      const address = this.name(b.subarray(2, 18))
      this.emit('message', b.subarray(HEADER, HEADER + size), {
        address,
        port: b.readUInt16LE(18),
        family: isIPv6(address) ? 'IPv6' : 'IPv4',
        size,
      })
      b = b.subarray(HEADER + size)
    }
    this.rest = b
  }

  /** Mostly the same peer as before: its name is kept. */
  private name(bytes: Buffer): string {
    const [known, text] = this.last
    if (bytes.equals(known)) return text
    const address = ipText(bytes)
    // The shortest form (RFC 5952), as everywhere else.
    const name = isIPv6(address) ? new SocketAddress({ address, family: 'ipv6' }).address : address
    this.last = [Buffer.from(bytes), name]
    return name
  }

  /** Frees the port. Datagrams given to send before still go out. */
  close(done?: () => void): this {
    if (done) {
      if (this.conn.closed) queueMicrotask(done)
      else this.once('close', done)
    }
    this.conn.end()
    return this
  }

  /** `await using`: {@link close}, and its end. */
  async [Symbol.asyncDispose](): Promise<void> {
    await new Promise<void>((resolve) => this.close(resolve))
  }
}
