/**
 * The host's descriptors: what Go reads from, writes to and polls. Numbers from 4096 on, so that
 * they never meet those of wasi.ts.
 */
import dgram from 'node:dgram'
import { once } from 'node:events'
import net from 'node:net'
import { errno, errnoOf } from './errno.ts'
import type { Memory } from './memory.ts'

/** A descriptor. Results below zero are negated WASI error numbers. */
export interface HostFile {
  readonly readable: boolean
  readonly writable: boolean
  read(into: Uint8Array[]): number
  write(from: Uint8Array[]): number
  shutdownWrite(): number
  close(): void
}

/** Address and port as they cross into the module: 16 bytes and a little-endian uint16. */
export function putSockName(out: Uint8Array, address: string, port: number): void {
  out.fill(0, 0, 16)
  if (net.isIPv4(address)) {
    out[10] = out[11] = 0xff
    address.split('.').forEach((part, i) => (out[12 + i] = Number(part)))
  } else {
    // An IPv4 tail and a zone are possible; `::` stands for as many zero groups as are missing.
    const [head, tail] = address.replace(/%.*$/, '').split('::') as [string, string?]
    const groups = (s: string | undefined) =>
      (s ?? '')
        .split(':')
        .filter(Boolean)
        .flatMap((g) => {
          if (!g.includes('.')) return [parseInt(g, 16)]
          const [a = 0, b = 0, c = 0, d = 0] = g.split('.').map(Number)
          return [(a << 8) | b, (c << 8) | d]
        })
    const left = groups(head)
    const right = groups(tail)
    ;[
      ...left,
      ...Array.from({ length: 8 - left.length - right.length }, () => 0),
      ...right,
    ].forEach((g, i) => {
      out[2 * i] = g >> 8
      out[2 * i + 1] = g & 0xff
    })
  }
  out[16] = port & 0xff
  out[17] = port >> 8
}

/** The text form of 16 bytes of address; IPv4-mapped ones as IPv4. */
export function ipText(a: Uint8Array): string {
  if (a[10] === 0xff && a[11] === 0xff && a.subarray(0, 10).every((b) => b === 0)) {
    return `${a[12]}.${a[13]}.${a[14]}.${a[15]}`
  }
  const groups: string[] = []
  for (let i = 0; i < 16; i += 2) groups.push(((a[i]! << 8) | a[i + 1]!).toString(16))
  return groups.join(':')
}

/** Bytes waiting to be read, taken in any portion. */
export class ByteQueue {
  length = 0
  private chunks: Uint8Array[] = []
  private offset = 0

  push(chunk: Uint8Array): void {
    if (chunk.length === 0) return
    this.chunks.push(chunk)
    this.length += chunk.length
  }

  /** Fills the buffers as far as there are bytes; how many it was. */
  take(into: Uint8Array[]): number {
    let total = 0
    for (let out of into) {
      while (out.length > 0 && this.length > 0) {
        const head = this.chunks[0]!
        const n = Math.min(out.length, head.length - this.offset)
        out.set(head.subarray(this.offset, this.offset + n))
        out = out.subarray(n)
        total += n
        this.length -= n
        this.offset += n
        if (this.offset === head.length) {
          this.chunks.shift()
          this.offset = 0
        }
      }
    }
    return total
  }
}

/** A UDP socket. Offsets are of the module's memory; addresses there are 16 bytes. */
export interface UDPSocket extends HostFile {
  readonly udp: true
  /** The socket's own address to `out`, as putSockName writes it. */
  name(out: Uint8Array): number
  /** Sends datagrams of `segment` bytes each, the last of which may be shorter; 0: all as one. */
  send(ptr: number, length: number, ip: number, port: number, segment: number): number
  /**
   * One datagram, or some of one sender and one size (but for the last): 20 bytes at `from` say of
   * whom, and of what size (0: it is one).
   */
  receive(ptr: number, length: number, from: number): number
}

/** Datagrams kept for Go while it is busy; more are dropped, as a full socket buffer would. */
const UDP_QUEUE = 4096

/**
 * Bytes that libuv may hold for a socket whose buffer the kernel says is full. Without a bound it
 * takes all that is sent, and its callers go on as fast as they can.
 */
const UDP_SEND_QUEUE = 1 << 20
/** What a datagram of WireGuard's is when there is much to send. */
const TYPICAL_DATAGRAM = 1280

/** UDP by node:dgram, for all platforms. */
export class DgramSocket implements UDPSocket {
  readonly udp = true
  private readonly memory: Memory
  private readonly socket: dgram.Socket
  private readonly queue: { data: Uint8Array; from: dgram.RemoteInfo }[] = []
  private readonly family: number
  private readonly wake: () => void
  private failed: Error | undefined
  private unsent = 0
  /** Go has been told that there is no room. */
  private full = false
  private closed = false

  /** Binds; at once, but for {@link bound}. Throws what bind gives. */
  constructor(memory: Memory, address: string, family: 4 | 6, port: number, wake: () => void) {
    this.memory = memory
    this.family = family
    this.wake = wake
    this.socket = dgram.createSocket({
      type: family === 4 ? 'udp4' : 'udp6',
      ipv6Only: family === 6,
      // Only literal addresses come here; a look-up that answers at once makes bind and send
      // synchronous.
      lookup: (host, _options, done) =>
        (done as (e: null, a: string, f: number) => void)(null, host, family),
    })
    this.socket.on('error', (err) => {
      this.failed = err as Error
    })
    this.socket.on('message', (data, from) => {
      if (this.queue.length < UDP_QUEUE) this.queue.push({ data, from })
      wake()
    })
    this.socket.bind({ address, port, exclusive: true })
    if (this.failed) {
      this.socket.close()
      throw this.failed
    }
    if (!process.versions.bun) this.enlarge()
  }

  /**
   * Undefined where the socket is bound already. Bun binds later: resolves when it has, rejects
   * with what bind gives.
   */
  bound(): Promise<void> | undefined {
    if (!process.versions.bun) return undefined
    return once(this.socket, 'listening').then(
      () => this.enlarge(),
      (err) => {
        this.socket.close()
        throw err
      },
    )
  }

  private enlarge(): void {
    for (const set of ['setRecvBufferSize', 'setSendBufferSize'] as const) {
      try {
        this.socket[set](7 << 20) // magicsock's figure; the kernel gives what it allows
      } catch {
        // The default size is only slower.
      }
    }
  }

  get readable(): boolean {
    return this.queue.length > 0
  }
  get writable(): boolean {
    return this.closed || this.queued() < UDP_SEND_QUEUE
  }

  /** Bytes that wait to be sent. Deno and Bun do not say: by the datagrams not yet called back. */
  private queued(): number {
    return this.socket.getSendQueueSize?.() ?? this.unsent * TYPICAL_DATAGRAM
  }

  name(out: Uint8Array): number {
    const { address, port } = this.socket.address()
    putSockName(out, address, port)
    return 0
  }

  send(ptr: number, length: number, ip: number, port: number, segment: number): number {
    const { bytes } = this.memory
    const address = ipText(bytes.subarray(ip, ip + 16))
    if ((this.family === 4) !== net.isIPv4(address)) return -errno.EAFNOSUPPORT
    // Port 0 comes by disco from a peer's endpoints; Node would throw at it, and a throw here ends
    // the module.
    if (port === 0) return -errno.EINVAL
    if (!this.writable) {
      this.full = true
      return -errno.EAGAIN
    }
    const data = bytes.slice(ptr, ptr + length)
    const step = segment || length
    let at = 0
    // Errors of sending are for the network to show (as a lost packet): the callback keeps them
    // from being thrown.
    do {
      this.unsent++
      this.socket.send(data, at, Math.min(step, length - at), port, address, this.sent)
    } while ((at += step) < length)
    return length
  }

  private readonly sent = (): void => {
    this.unsent--
    if (!this.full || !this.writable) return
    this.full = false
    this.wake()
  }

  receive(ptr: number, length: number, from: number): number {
    const m = this.queue.shift()
    if (!m) return -errno.EAGAIN
    const { bytes } = this.memory
    const n = Math.min(length, m.data.length)
    bytes.set(n === m.data.length ? m.data : m.data.subarray(0, n), ptr)
    putSockName(bytes.subarray(from, from + 18), m.from.address, m.from.port)
    bytes[from + 18] = bytes[from + 19] = 0
    return n
  }

  read(): number {
    return -errno.EINVAL
  }
  write(): number {
    return -errno.EINVAL
  }
  shutdownWrite(): number {
    return -errno.EINVAL
  }
  close(): void {
    this.closed = true
    this.socket.close()
  }
}

/** Bytes taken from the network before Go has read them: the socket is paused beyond. */
const TCP_WINDOW = 512 << 10

export class TCPFile implements HostFile {
  private readonly touch: () => void
  private readonly socket: net.Socket
  private readonly queue = new ByteQueue()
  private state: 'connecting' | 'open' | 'failed' = 'connecting'
  private error = 0
  private ended = false
  private gone = false
  private closed = false

  /** `touch` is called whenever this file has given Node's event loop something to do. */
  constructor(address: string, port: number, wake: () => void, touch: () => void) {
    this.touch = touch
    touch()
    this.socket = net.connect({
      host: address,
      port,
      noDelay: true,
      keepAlive: true,
      allowHalfOpen: true,
      autoSelectFamily: false,
    })
    this.socket.on('connect', () => {
      this.state = 'open'
      wake()
    })
    this.socket.on('data', (chunk) => {
      this.queue.push(chunk as Buffer)
      if (this.queue.length >= TCP_WINDOW) this.socket.pause()
      wake()
    })
    this.socket.on('end', () => {
      this.ended = true
      wake()
    })
    this.socket.on('drain', wake)
    this.socket.on('error', (err) => {
      this.state = 'failed'
      this.error = errnoOf(err)
      wake()
    })
    this.socket.on('close', () => {
      this.ended = this.gone = true
      wake()
    })
  }

  get readable(): boolean {
    return this.queue.length > 0 || this.ended || this.state === 'failed'
  }
  get writable(): boolean {
    return (
      this.state === 'failed' ||
      this.gone ||
      (this.state === 'open' && !this.socket.writableNeedDrain)
    )
  }

  /** 0 when connected, otherwise why not (or not yet), negated. */
  connectError(): number {
    return this.state === 'connecting' ? -errno.EINPROGRESS : -this.error
  }

  name(peer: boolean): { address: string; port: number } {
    return peer
      ? { address: this.socket.remoteAddress ?? '0.0.0.0', port: this.socket.remotePort ?? 0 }
      : { address: this.socket.localAddress ?? '0.0.0.0', port: this.socket.localPort ?? 0 }
  }

  read(into: Uint8Array[]): number {
    const n = this.queue.take(into)
    if (n > 0) {
      if (this.queue.length < TCP_WINDOW / 2 && this.socket.isPaused()) {
        this.socket.resume()
        this.touch()
      }
      return n
    }
    if (this.state === 'failed') return -this.error
    return this.ended ? 0 : -errno.EAGAIN
  }

  write(from: Uint8Array[]): number {
    if (this.state === 'failed') return -this.error
    if (this.gone) return -errno.EPIPE
    if (this.state === 'connecting' || this.socket.writableNeedDrain) return -errno.EAGAIN
    if (!this.socket.writable) return -errno.EPIPE
    // A copy: the module's memory changes before the kernel has all of it.
    const data = Buffer.concat(from)
    this.socket.write(data)
    this.touch()
    return data.length
  }

  shutdownWrite(): number {
    this.touch()
    this.socket.end()
    return 0
  }

  close(): void {
    if (this.closed) return
    this.closed = true
    this.touch()
    if (this.state !== 'open') {
      this.socket.destroy()
      return
    }
    // What was written still goes out; nothing more is read.
    this.socket.end()
    this.socket.resume()
    setTimeout(() => this.socket.destroy(), 5000).unref()
  }
}
