/**
 * The unsafe part of the bindings, all of it but flock (lock.ts): system calls of Linux's C library
 * through node:ffi, on buffers of our own and on the module's memory. Whoever calls this gives
 * offsets into the module's memory that the module itself gave; native.ts makes addresses of them.
 *
 * Layouts are those of 64-bit little-endian Linux (x86-64 and arm64 alike): recvmsg(2), cmsg(3),
 * udp(7), poll(2).
 */
import type * as FFI from 'node:ffi'
import { errno } from './errno.ts'
import type { Memory } from './memory.ts'

const AF_INET = 2
const AF_INET6 = 10
const SOCK_DGRAM_NONBLOCK_CLOEXEC = 2 | 0o4000 | 0o2000000
const SOL_SOCKET = 1
const SO_SNDBUF = 7
const SO_RCVBUF = 8
const SO_SNDBUFFORCE = 32
const SO_RCVBUFFORCE = 33
const IPPROTO_IP = 0
const IP_MTU_DISCOVER = 10
const IP_PMTUDISC_DONT = 0
const IPPROTO_IPV6 = 41
const IPV6_V6ONLY = 26
const SOL_UDP = 17
const UDP_SEGMENT = 103
const UDP_GRO = 104
const O_RDWR_NONBLOCK_CLOEXEC = 2 | 0o4000 | 0o2000000
// linux/if_tun.h
const TUNSETIFF = 0x400454can
const TUNSETOFFLOAD = 0x400454d0n
const TUNSETVNETHDRSZ = 0x400454d8n
const IFF_TUN_NO_PI_VNET_HDR = 0x0001 | 0x1000 | 0x4000
/** TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6; and with TUN_F_USO4, TUN_F_USO6 (Linux 6.2). */
const TUN_OFFLOADS = 0x07
const TUN_OFFLOADS_UDP = 0x67
/** A virtio_net_hdr without its number of buffers. */
const VNET_HDR_SIZE = 10
const IFNAMSIZ = 16
const POLLIN = 1
const POLLOUT = 4
/**
 * Linux errno to WASI errno, of what these calls give; all else is EPROTO. EIO is for the kernel's
 * own alone: of a send it says that the network device cannot cut (udp(7)).
 */
const wasiErrno: Record<number, number> = {
  1: errno.EPERM,
  4: errno.EAGAIN,
  2: errno.ENOENT,
  5: errno.EIO,
  6: errno.ENXIO,
  9: errno.EBADF,
  11: errno.EAGAIN,
  12: errno.ENOMEM,
  13: errno.EACCES,
  16: errno.EBUSY,
  19: errno.ENODEV,
  22: errno.EINVAL,
  24: errno.EMFILE,
  77: errno.EBADF, // EBADFD: of a device that is gone
  90: errno.EMSGSIZE,
  97: errno.EAFNOSUPPORT,
  98: errno.EADDRINUSE,
  99: errno.EADDRNOTAVAIL,
  100: errno.ENETDOWN,
  101: errno.ENETUNREACH,
  105: errno.ENOBUFS,
  111: errno.ECONNREFUSED,
  113: errno.EHOSTUNREACH,
}

const signatures = {
  socket: { return: 'int32', arguments: ['int32', 'int32', 'int32'] },
  bind: { return: 'int32', arguments: ['int32', 'pointer', 'uint32'] },
  getsockname: { return: 'int32', arguments: ['int32', 'pointer', 'pointer'] },
  setsockopt: { return: 'int32', arguments: ['int32', 'int32', 'int32', 'pointer', 'uint32'] },
  close: { return: 'int32', arguments: ['int32'] },
  poll: { return: 'int32', arguments: ['pointer', 'uint64', 'int32'] },
  // Their ssize_t is below 2^31 here: the low half, which is a number and not a bigint.
  sendmsg: { return: 'int32', arguments: ['int32', 'pointer', 'int32'] },
  recvmsg: { return: 'int32', arguments: ['int32', 'pointer', 'int32'] },
  read: { return: 'int32', arguments: ['int32', 'pointer', 'uint64'] },
  write: { return: 'int32', arguments: ['int32', 'pointer', 'uint64'] },
  // These two take any arguments (...), which makes no difference for integers on x86-64 and arm64.
  open: { return: 'int32', arguments: ['pointer', 'int32', 'int32'] },
  ioctl: { return: 'int32', arguments: ['int32', 'uint64', 'pointer'] },
  __errno_location: { return: 'pointer', arguments: [] },
  uv_backend_fd: { return: 'int32', arguments: ['pointer'] },
} as const
type Functions = { [name in keyof typeof signatures]: (...args: (number | bigint)[]) => number }

// Offsets in the scratch buffer. A message has its header, iovec, control buffer and address, each
// at a place of its own.
const MSGHDR = 0
const IOVEC = 64
const CONTROL = 80
const CONTROL_SIZE = 64
const NAME = 144
const NAME_SIZE = 28
const OPTION = 176
const SCRATCH = 256

/** A fresh block of memory outside the JavaScript heap: it does not move. */
class Block {
  readonly view: DataView
  readonly bytes: Uint8Array
  readonly address: bigint
  constructor(ffi: typeof FFI, size: number) {
    const buffer = new ArrayBuffer(size)
    this.view = new DataView(buffer)
    this.bytes = new Uint8Array(buffer)
    this.address = ffi.getRawPointer(buffer)
  }
}

/** The system calls, for one module's memory. Results below zero are negated WASI error numbers. */
export class Native {
  private readonly ffi: typeof FFI
  private readonly lib: FFI.DynamicLibrary
  private readonly c: Functions
  private readonly memory: Memory
  private readonly errnoAt: bigint
  private readonly scratch: Block
  private pollFds: Block
  private buffer: ArrayBuffer | undefined
  private base = 0n

  private constructor(ffi: typeof FFI, memory: Memory) {
    this.ffi = ffi
    this.memory = memory
    const { lib, functions } = ffi.dlopen(null, signatures)
    this.lib = lib
    this.c = functions as unknown as Functions
    // One for each thread, at the same place all its life.
    this.errnoAt = this.c.__errno_location() as unknown as bigint
    this.scratch = new Block(ffi, SCRATCH)
    const { view, address } = this.scratch
    view.setBigUint64(MSGHDR, address + BigInt(NAME), true)
    view.setBigUint64(MSGHDR + 16, address + BigInt(IOVEC), true)
    view.setBigUint64(MSGHDR + 24, 1n, true)
    view.setBigUint64(MSGHDR + 32, address + BigInt(CONTROL), true)
    this.pollFds = new Block(ffi, 8)
  }

  /**
   * Undefined where there is no node:ffi (an older Node.js, switched off, refused by the permission
   * model) or not this kind of machine.
   */
  static async open(memory: Memory): Promise<Native | undefined> {
    if (process.platform !== 'linux' || !['x64', 'arm64'].includes(process.arch)) return undefined
    try {
      const ffi = await import('node:ffi')
      return new Native(ffi, memory)
    } catch {
      return undefined
    }
  }

  private failure(): number {
    return -(wasiErrno[this.ffi.getInt32(this.errnoAt)] ?? errno.EPROTO)
  }

  private setName(family: number, ip: Uint8Array, port: number): void {
    const { view, bytes } = this.scratch
    view.setUint16(NAME, family, true)
    view.setUint16(NAME + 2, port, false)
    if (family === AF_INET) {
      bytes.set(ip.subarray(12, 16), NAME + 4)
    } else {
      view.setUint32(NAME + 4, 0, true)
      bytes.set(ip.subarray(0, 16), NAME + 8)
      view.setUint32(NAME + 24, 0, true)
    }
  }

  /** The address in the scratch buffer, as the module has it: 16 bytes and a little-endian port. */
  private getName(out: Uint8Array): void {
    const { view, bytes } = this.scratch
    if (view.getUint16(NAME, true) === AF_INET) {
      out.fill(0, 0, 10)
      out[10] = out[11] = 0xff
      out.set(bytes.subarray(NAME + 4, NAME + 8), 12)
    } else {
      out.set(bytes.subarray(NAME + 8, NAME + 24))
    }
    const port = view.getUint16(NAME + 2, false)
    out[16] = port & 0xff
    out[17] = port >> 8
  }

  private option(fd: number, level: number, name: number, value: number): number {
    this.scratch.view.setInt32(OPTION, value, true)
    return this.c.setsockopt(fd, level, name, this.scratch.address + BigInt(OPTION), 4)
  }

  /**
   * A bound UDP socket that takes and gives segmented datagrams; its descriptor. `ip`: 16 bytes.
   * `buffer`: bytes asked for each way.
   */
  openUDP(family: 4 | 6, ip: Uint8Array, port: number, buffer: number): number {
    const af = family === 4 ? AF_INET : AF_INET6
    const fd = this.c.socket(af, SOCK_DGRAM_NONBLOCK_CLOEXEC, 0)
    if (fd < 0) return this.failure()
    if (family === 6) this.option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1)
    // Routers may cut what is too large for their line: where ICMP is filtered nobody says so, and
    // packets that must stay whole would be lost one and all (RFC 2923, section 2.1).
    else this.option(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
    this.setName(af, ip, port)
    if (this.c.bind(fd, this.scratch.address + BigInt(NAME), af === AF_INET ? 16 : 28) < 0) {
      const err = this.failure()
      this.c.close(fd)
      return err
    }
    // With CAP_NET_ADMIN as much as is asked for; otherwise what net.core.rmem_max and wmem_max
    // allow.
    if (this.option(fd, SOL_SOCKET, SO_RCVBUFFORCE, buffer) < 0)
      this.option(fd, SOL_SOCKET, SO_RCVBUF, buffer)
    if (this.option(fd, SOL_SOCKET, SO_SNDBUFFORCE, buffer) < 0)
      this.option(fd, SOL_SOCKET, SO_SNDBUF, buffer)
    this.option(fd, SOL_UDP, UDP_GRO, 1) // since Linux 5.0; without it, datagrams come one by one
    return fd
  }

  /** Its own address into `out` (18 bytes). */
  name(fd: number, out: Uint8Array): number {
    this.scratch.view.setUint32(OPTION, NAME_SIZE, true)
    if (
      this.c.getsockname(
        fd,
        this.scratch.address + BigInt(NAME),
        this.scratch.address + BigInt(OPTION),
      ) < 0
    )
      return this.failure()
    this.getName(out)
    return 0
  }

  /** Address of an offset in the module's memory. */
  private at(ptr: number): bigint {
    const { buffer } = this.memory.data
    if (buffer !== this.buffer) {
      this.buffer = buffer as ArrayBuffer
      this.base = this.ffi.getRawPointer(this.buffer)
    }
    return this.base + BigInt(ptr)
  }

  private checked(ptr: number, length: number): boolean {
    return ptr >= 0 && length >= 0 && ptr + length <= this.memory.data.byteLength
  }

  /**
   * Sends `length` bytes at `ptr` of the module's memory as datagrams of `segment` bytes each (the
   * last may be shorter); 0: as one. `ip`: 16 bytes. -EIO where the network device cannot cut them:
   * each is to be sent by itself.
   */
  send(
    fd: number,
    family: 4 | 6,
    ptr: number,
    length: number,
    ip: Uint8Array,
    port: number,
    segment: number,
  ): number {
    if (!this.checked(ptr, length)) return -errno.EINVAL
    const { view, address } = this.scratch
    this.setName(family === 4 ? AF_INET : AF_INET6, ip, port)
    view.setUint32(MSGHDR + 8, family === 4 ? 16 : 28, true)
    view.setBigUint64(IOVEC, this.at(ptr), true)
    view.setUint32(IOVEC + 8, length, true)
    if (segment > 0 && segment < length) {
      view.setUint32(MSGHDR + 40, 24, true) // CMSG_SPACE(2)
      view.setBigUint64(CONTROL, 18n, true) // CMSG_LEN(2)
      view.setInt32(CONTROL + 8, SOL_UDP, true)
      view.setInt32(CONTROL + 12, UDP_SEGMENT, true)
      view.setUint16(CONTROL + 16, segment, true)
    } else {
      view.setUint32(MSGHDR + 40, 0, true)
    }
    view.setInt32(MSGHDR + 48, 0, true)
    const n = this.c.sendmsg(fd, address, 0)
    return n < 0 ? this.failure() : n
  }

  /**
   * One datagram, or several of one sender and size that the kernel joined, to `ptr` of the
   * module's memory. `from` (20 bytes): the sender's address and port, and the size of each
   * datagram (0: it is one), little-endian.
   */
  receive(fd: number, ptr: number, length: number, from: Uint8Array): number {
    if (!this.checked(ptr, length)) return -errno.EINVAL
    const { view, address } = this.scratch
    view.setUint32(MSGHDR + 8, NAME_SIZE, true)
    view.setBigUint64(IOVEC, this.at(ptr), true)
    view.setUint32(IOVEC + 8, length, true)
    view.setUint32(MSGHDR + 40, CONTROL_SIZE, true)
    const n = this.c.recvmsg(fd, address, 0)
    if (n < 0) return this.failure()
    this.getName(from)
    let segment = 0
    // The one control message that was asked for; its value is an int.
    if (
      view.getUint32(MSGHDR + 40, true) >= 20 &&
      view.getInt32(CONTROL + 8, true) === SOL_UDP &&
      view.getInt32(CONTROL + 12, true) === UDP_GRO
    ) {
      segment = view.getInt32(CONTROL + 16, true)
    }
    if (segment >= n) segment = 0
    from[18] = segment & 0xff
    from[19] = segment >> 8
    return n
  }

  /**
   * The tun interface `name` with IFF_VNET_HDR (made where there is none and that is allowed); its
   * descriptor. The kernel takes from it, and gives it, TCP segments and, since Linux 6.2, UDP
   * datagrams of a flow as one.
   */
  openTUN(name: Uint8Array): number {
    if (name.length === 0 || name.length >= IFNAMSIZ) return -errno.EINVAL
    const { view, bytes, address } = new Block(this.ffi, 64)
    bytes.set(Buffer.from('/dev/net/tun\0'))
    const fd = this.c.open(address, O_RDWR_NONBLOCK_CLOEXEC, 0)
    if (fd < 0) return this.failure()
    bytes.fill(0) // an ifreq, of 40 bytes
    bytes.set(name)
    view.setUint16(IFNAMSIZ, IFF_TUN_NO_PI_VNET_HDR, true)
    let failed = this.c.ioctl(fd, TUNSETIFF, address) < 0
    view.setInt32(48, VNET_HDR_SIZE, true)
    failed ||= this.c.ioctl(fd, TUNSETVNETHDRSZ, address + 48n) < 0
    failed ||=
      this.c.ioctl(fd, TUNSETOFFLOAD, BigInt(TUN_OFFLOADS_UDP)) < 0 &&
      this.c.ioctl(fd, TUNSETOFFLOAD, BigInt(TUN_OFFLOADS)) < 0
    if (!failed) return fd
    const err = this.failure()
    this.c.close(fd)
    return err
  }

  /** read(2) to `ptr` of the module's memory. */
  read(fd: number, ptr: number, length: number): number {
    if (!this.checked(ptr, length)) return -errno.EINVAL
    const n = this.c.read(fd, this.at(ptr), BigInt(length))
    return n < 0 ? this.failure() : n
  }

  /** write(2) of what is at `ptr` of the module's memory. */
  write(fd: number, ptr: number, length: number): number {
    if (!this.checked(ptr, length)) return -errno.EINVAL
    const n = this.c.write(fd, this.at(ptr), BigInt(length))
    return n < 0 ? this.failure() : n
  }

  close(fd: number): void {
    this.c.close(fd)
  }

  /**
   * Waits until one of the descriptors can be read (or, where `writing` says so, written), at most
   * `timeout` ms; the thread does nothing else meanwhile. Calls `ready` for each that can. Returns
   * how many those are.
   */
  poll(
    fds: readonly number[],
    writing: (i: number) => boolean,
    timeout: number,
    ready: (i: number, readable: boolean, writable: boolean) => void,
  ): number {
    if (this.pollFds.bytes.length < fds.length * 8)
      this.pollFds = new Block(this.ffi, fds.length * 16)
    const { view, address } = this.pollFds
    for (let i = 0; i < fds.length; i++) {
      view.setInt32(i * 8, fds[i]!, true)
      view.setInt16(i * 8 + 4, writing(i) ? POLLIN | POLLOUT : POLLIN, true)
    }
    const n = this.c.poll(address, BigInt(fds.length), timeout)
    if (n <= 0) return 0 // nothing, or interrupted by a signal
    for (let i = 0; i < fds.length; i++) {
      const events = view.getUint16(i * 8 + 6, true)
      if (events) ready(i, (events & ~POLLOUT) !== 0, (events & ~POLLIN) !== 0)
    }
    return n
  }

  /**
   * Gives memory that the process has freed back to the system: malloc_trim(3), which glibc alone
   * has. Takes some ms.
   */
  trim(): void {
    try {
      this.lib.getFunction('malloc_trim', { return: 'int32', arguments: ['uint64'] })(0n)
    } catch {
      // Another C library: it keeps what it keeps.
    }
  }

  /**
   * The descriptor that can be read when the event loop of this thread has something to do
   * (uv_backend_fd).
   */
  loopFd(): number {
    return this.c.uv_backend_fd(this.ffi.getCurrentEventLoop())
  }
}
