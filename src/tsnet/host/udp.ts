/** UDP, tun and sleeping by system calls (native.ts): the fast way of Linux. */
import os from 'node:os'
import { errno } from './errno.ts'
import type { HostFile, UDPSocket } from './files.ts'
import type { Memory } from './memory.ts'
import type { Native } from './native.ts'
import { MAX_BUSY_MS, type Sleeper, Subscriptions } from './poll.ts'

/** magicsock's figure, in bytes; the kernel gives what it allows. */
const SOCKET_BUFFER = 7 << 20

/**
 * A UDP socket of the kernel's that cuts what it sends and joins what it receives (UDP_SEGMENT,
 * UDP_GRO).
 */
export class NativeSocket implements UDPSocket {
  readonly udp = true
  readonly fd: number
  /** As the last poll or call found it. */
  readable = false
  writable = true
  private segments = true
  private readonly native: Native
  private readonly memory: Memory
  private readonly family: 4 | 6
  private readonly gone: (socket: NativeSocket) => void

  /** `fd` as Native.openUDP gave it. */
  constructor(
    native: Native,
    memory: Memory,
    fd: number,
    family: 4 | 6,
    gone: (socket: NativeSocket) => void,
  ) {
    this.native = native
    this.memory = memory
    this.fd = fd
    this.family = family
    this.gone = gone
  }

  name(out: Uint8Array): number {
    return this.native.name(this.fd, out)
  }

  send(ptr: number, length: number, ip: number, port: number, segment: number): number {
    const address = this.memory.bytes.subarray(ip, ip + 16)
    const mapped =
      address[10] === 0xff && address[11] === 0xff && address.subarray(0, 10).every((b) => b === 0)
    if ((this.family === 4) !== mapped) return -errno.EAFNOSUPPORT
    if (port === 0) return -errno.EINVAL
    if (segment > 0 && segment < length) {
      if (this.segments) {
        const n = this.native.send(this.fd, this.family, ptr, length, address, port, segment)
        if (n >= 0) return n
        if (n === -errno.EAGAIN || n === -errno.ENOBUFS) return this.full(n, length)
        if (n === -errno.EIO)
          this.segments = false // the device cannot do it, as udp(7) says
        else if (n !== -errno.EINVAL && n !== -errno.EMSGSIZE) return n
      }
      for (let at = 0; at < length; at += segment) {
        const n = this.native.send(
          this.fd,
          this.family,
          ptr + at,
          Math.min(segment, length - at),
          address,
          port,
          0,
        )
        // What has gone is not sent again: the rest is lost, as on a full queue of a network
        // device.
        if (n < 0) return at > 0 ? length : this.full(n, length)
      }
      return length
    }
    return this.full(this.native.send(this.fd, this.family, ptr, length, address, port, 0), length)
  }

  /**
   * What Go is to hear of a send. EAGAIN: the socket's buffer is full, and poll(2) tells when it no
   * longer is. ENOBUFS is of what is behind it (a device's queue, memory), of which poll tells
   * nothing: Go would ask again at once, without end. The packet is lost, as on the way.
   */
  private full(n: number, length: number): number {
    if (n === -errno.ENOBUFS) return length
    if (n === -errno.EAGAIN) this.writable = false
    return n
  }

  receive(ptr: number, length: number, from: number): number {
    const n = this.native.receive(this.fd, ptr, length, this.memory.bytes.subarray(from, from + 20))
    if (n === -errno.EAGAIN) this.readable = false
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
    this.gone(this)
    this.native.close(this.fd)
  }
}

/** What is polled beside the event loop. */
interface Polled {
  readonly fd: number
  readable: boolean
  writable: boolean
}

/**
 * Bytes of a packet that has a payload, and of one that is likely to be a question and not a part
 * of much data: IPv4 and TCP with timestamps take 52, with the virtio_net_hdr 62.
 */
const QUESTION = { above: 62, upTo: 1200 }

/** A tun interface: packets with their virtio_net_hdr, to the kernel and from it. */
export class TUNFile implements HostFile, Polled {
  readonly fd: number
  /** As the last poll or call found it. */
  readable = false
  writable = true
  private readonly native: Native
  private readonly gone: (file: TUNFile) => void
  private readonly expect: () => void

  /** `fd` as Native.openTUN gave it. `expect`: a packet has gone that may be answered at once. */
  constructor(native: Native, fd: number, gone: (file: TUNFile) => void, expect: () => void) {
    this.native = native
    this.fd = fd
    this.gone = gone
    this.expect = expect
  }

  packetIn(ptr: number, length: number): number {
    const n = this.native.read(this.fd, ptr, length)
    if (n === -errno.EAGAIN) this.readable = false
    return n
  }

  packetOut(ptr: number, length: number): number {
    const n = this.native.write(this.fd, ptr, length)
    if (n === -errno.EAGAIN) this.writable = false
    else if (length > QUESTION.above && length <= QUESTION.upTo) this.expect()
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
    this.gone(this)
    this.native.close(this.fd)
  }
}

/**
 * The longest that the thread sleeps without a turn of the event loop, in ms: timers of Node's may
 * be that late.
 */
const MAX_SLEEP_MS = 200

/**
 * How long the thread goes on asking when an answer of the other thread may come at once, in ms,
 * before it sleeps. To be woken up takes it 50 µs and more, and costs as much processor time as the
 * asking (bench/README.md).
 */
const SPIN_MS = 0.15
/**
 * Where answers take longer, one chance in two is left out, then three in four, at last all but one
 * in 2 to the power of this.
 */
const MAX_MISSES = 6
/** With one processor the other thread could not answer meanwhile. */
const maySpin = os.availableParallelism() > 1

/**
 * Sleeps in poll(2) on the UDP sockets, a tun device and on what the event loop itself sleeps on.
 * While nothing but packets comes, neither the event loop nor the suspension of the module has part
 * in it. The event loop gets a turn when it has something to do, and one more before every sleep
 * after it had something to do: what callbacks asked for is registered with the kernel at the start
 * of its next turn.
 */
export class NativeSleeper implements Sleeper {
  private readonly native: Native
  private readonly memory: Memory
  private readonly files: Map<number, HostFile>
  private readonly beforeSleep: () => void
  private readonly receive: () => void
  private readonly loopFd: number
  private sockets: Polled[] = []
  private fds: number[]
  /** The event loop has something to do. */
  private loopReady = false
  /** Nothing was given to the event loop, nor done by it, since its last turn began. */
  private quiet = false
  /**
   * Since when the event loop has had something to do, which it has not had its turn for; a time of
   * performance.now().
   */
  private waitsSince: number | undefined
  /** An answer of the other thread may come at once. */
  private expecting = false
  /** How often in a row no answer came in SPIN_MS, and how many chances are left out for that. */
  private misses = 0
  private leftOut = 0

  /** `receive` takes in what the other thread has sent by now. */
  constructor(
    native: Native,
    memory: Memory,
    files: Map<number, HostFile>,
    beforeSleep: () => void,
    receive: () => void,
  ) {
    this.receive = receive
    this.native = native
    this.memory = memory
    this.files = files
    this.beforeSleep = beforeSleep
    this.loopFd = native.loopFd()
    this.fds = [this.loopFd]
  }

  wake = (): void => {}

  touch = (): void => {
    this.quiet = false
  }

  expect = (): void => {
    if (this.leftOut > 0) this.leftOut--
    else this.expecting = maySpin
  }

  /** A socket for the module. Below zero: a negated WASI error number. */
  open(family: 4 | 6, ip: number, port: number): NativeSocket | number {
    const fd = this.native.openUDP(
      family,
      this.memory.bytes.subarray(ip, ip + 16),
      port,
      SOCKET_BUFFER,
    )
    if (fd < 0) return fd
    const socket = new NativeSocket(this.native, this.memory, fd, family, this.remove)
    this.watch([...this.sockets, socket])
    return socket
  }

  /** A tun interface for the module. Below zero: a negated WASI error number. */
  openTUN(name: Uint8Array): TUNFile | number {
    const fd = this.native.openTUN(name)
    if (fd < 0) return fd
    const file = new TUNFile(this.native, fd, this.remove, this.expect)
    this.watch([...this.sockets, file])
    return file
  }

  private remove = (socket: Polled): void => this.watch(this.sockets.filter((s) => s !== socket))

  private watch(sockets: Polled[]): void {
    this.sockets = sockets
    this.fds = [this.loopFd, ...sockets.map((s) => s.fd)]
  }

  private isFull = (i: number): boolean => i > 0 && !this.sockets[i - 1]!.writable

  private isReady = (i: number, readable: boolean, writable: boolean): void => {
    if (i === 0) {
      this.loopReady = true
      return
    }
    const socket = this.sockets[i - 1]!
    if (readable) socket.readable = true
    if (writable) socket.writable = true
  }

  private poll(timeout: number): void {
    this.loopReady = false
    this.native.poll(this.fds, this.isFull, timeout, this.isReady)
    // What it has to do is most often a message of the other thread: that needs no turn.
    if (!this.loopReady) return
    this.expecting = false
    this.receive()
    if (this.waitsSince === undefined) this.waitsSince = performance.now()
  }

  oneoff = (
    inPtr: number,
    outPtr: number,
    count: number,
    countPtr: number,
  ): number | Promise<number> => {
    this.beforeSleep()
    const subs = new Subscriptions(this.memory, this.files, inPtr, outPtr, count, countPtr)
    const deadline = subs.delay === undefined ? Infinity : performance.now() + subs.delay
    this.poll(0)
    if (this.mayWait()) {
      const now = this.tryNow(subs, deadline)
      if (now !== undefined) return now
    }
    return new Promise<number>((resolve) => this.turn(subs, deadline, resolve))
  }

  /**
   * Whether Go goes before the event loop, though that has something to do: not for long, and not
   * to sleep.
   */
  private mayWait(): boolean {
    return this.waitsSince === undefined || performance.now() - this.waitsSince < MAX_BUSY_MS
  }

  /**
   * What to tell Go now, having slept if need be; undefined when the event loop is to have its turn
   * first.
   */
  private tryNow(subs: Subscriptions, deadline: number): number | undefined {
    if (subs.anyReady()) return subs.report(performance.now() >= deadline)
    let left = deadline - performance.now()
    if (left > 0) {
      if (!this.quiet || this.loopReady) return undefined
      if (!this.expecting || !this.spin(subs, left))
        this.poll(Math.min(Math.ceil(left), MAX_SLEEP_MS))
      if (subs.anyReady()) return subs.report(false)
      left = deadline - performance.now()
      if (left > 0) return undefined
    }
    return subs.report(true)
  }

  /** Asks without sleeping, at most `left` ms. Returns whether there is something to do. */
  private spin(subs: Subscriptions, left: number): boolean {
    this.expecting = false
    const until = performance.now() + Math.min(left, SPIN_MS)
    do {
      this.poll(0)
      if (this.loopReady) this.misses = 0
      if (this.loopReady || subs.anyReady()) return true
    } while (performance.now() < until)
    this.misses = Math.min(this.misses + 1, MAX_MISSES)
    this.leftOut = 2 ** this.misses - 1
    return false
  }

  /** One turn of the event loop, then on. */
  private turn(subs: Subscriptions, deadline: number, resolve: (result: number) => void): void {
    this.quiet = !this.loopReady
    setImmediate(() => {
      this.waitsSince = undefined
      this.poll(0)
      // Whatever the turn brought, Go hears of it now; the loop's next turn comes when Go has
      // nothing to do.
      const result = this.tryNow(subs, deadline)
      if (result === undefined) this.turn(subs, deadline, resolve)
      else resolve(result)
    })
  }
}
