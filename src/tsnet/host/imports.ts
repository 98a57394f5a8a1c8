/**
 * The functions that the module imports: those of WASI (wasi.ts), with those for sockets replaced,
 * and our own (`tsnet_host`, described in ../go/host.go).
 */
import { SMALL, type StreamMeta, type StreamMessage, type ToUser } from '../protocol.ts'
import type { Network, Stats } from '../types.ts'
import { type Aead, loadAead } from './aead.ts'
import { compactLater } from './compact.ts'
import { errno, errnoOf } from './errno.ts'
import {
  ByteQueue,
  DgramSocket,
  type HostFile,
  ipText,
  putSockName,
  TCPFile,
  type UDPSocket,
} from './files.ts'
import { Memory } from './memory.ts'
import { Native } from './native.ts'
import { LoopSleeper, type Sleeper } from './poll.ts'
import type { StateFile } from './state.ts'
import { StreamFile } from './stream.ts'
import { machine } from './machine.ts'
import { interfaces, nameservers } from './system.ts'
import { NativeSleeper, TUNFile } from './udp.ts'
import type { Wasi } from './wasi.ts'

const FIRST_FD = 4096
/** WASI `filetype` socket_stream, `fdflags` nonblock. */
const SOCKET_STREAM = 6
const NONBLOCK = 4

/** What the module asks for by number (../go/host.go), but for its state. */
const answers: Record<number, () => unknown> = { 0: interfaces, 1: nameservers, 3: machine }

/** Thrown out of the module by proc_exit. */
export class ModuleExit extends Error {
  readonly code: number
  constructor(code: number) {
    super(`the module ended with code ${code}`)
    this.code = code
  }
}

/** Requests for the module, as bytes it reads. */
class ControlFile implements HostFile {
  readonly writable = false
  private readonly queue = new ByteQueue()
  get readable(): boolean {
    return this.queue.length > 0
  }
  push(body: string): void {
    const bytes = Buffer.from(body)
    const size = Buffer.alloc(4)
    size.writeUInt32LE(bytes.length)
    this.queue.push(size)
    this.queue.push(bytes)
  }
  read(into: Uint8Array[]): number {
    return this.queue.take(into) || -errno.EAGAIN
  }
  write(): number {
    return -errno.EINVAL
  }
  shutdownWrite(): number {
    return -errno.EINVAL
  }
  close(): void {}
}

export class Host {
  readonly memory = new Memory()
  /** How UDP goes and the module sleeps: by system calls, or by Node's own modules. */
  network: 'ffi' | 'node' = 'node'
  private aead: Aead | undefined
  private readonly files = new Map<number, HostFile>()
  private sleeper: Sleeper
  private readonly controlFile = new ControlFile()
  private nextFd = FIRST_FD
  private outbox: ToUser[] = []
  private transfers: ArrayBuffer[] = []
  /** A small message may go at once. */
  private early = true
  private line = ''
  private recent: string[] = []
  private readonly send: (messages: ToUser[], transfers: ArrayBuffer[]) => void
  private readonly state: StateFile

  /** `send` takes all messages of one turn of the module at once. */
  constructor(state: StateFile, send: (messages: ToUser[], transfers: ArrayBuffer[]) => void) {
    this.state = state
    this.send = send
    this.sleeper = new LoopSleeper(this.memory, this.files, this.flush)
  }

  /**
   * Takes the fast way where there is one. To be called before {@link imports}. Rejects when `ffi`
   * is asked for and there is none. `receive` takes in what the other thread has sent by now.
   */
  async choose(network: Network, receive: () => void): Promise<void> {
    const native = network === 'node' ? undefined : await Native.open(this.memory)
    compactLater(native)
    if (native) {
      this.sleeper = new NativeSleeper(native, this.memory, this.files, this.flush, receive)
      this.network = 'ffi'
    } else if (network === 'ffi') {
      throw new Error(
        'network "ffi" needs Linux on x86-64 or arm64 and a Node.js whose node:ffi may be used; ' +
          '"auto" takes what there is',
      )
    }
  }

  /** Sends what is waiting. Called whenever the module has nothing to do. */
  flush = (): void => {
    this.early = true
    if (this.outbox.length === 0) return
    const [messages, transfers] = [this.outbox, this.transfers]
    this.outbox = []
    this.transfers = []
    this.send(messages, transfers)
  }

  private post = (message: ToUser, transfer?: ArrayBuffer): void => {
    this.outbox.push(message)
    if (transfer) this.transfers.push(transfer)
    // Few bytes are most likely a question or its answer: the other thread wakes up while the
    // module goes on. Once between two sleeps.
    if (this.early && message.t === 'data' && message.b.length <= SMALL) {
      this.flush()
      this.early = false
      this.sleeper.expect()
    }
  }

  /** A request for the module, as JSON. */
  request(body: string): void {
    this.controlFile.push(body)
    this.sleeper.wake()
  }

  /** The answer to state_write; `error` is empty when the state is on the disk. */
  private saved(id: number, error: string): void {
    this.request(JSON.stringify({ id, method: 'saved', params: { error } }))
  }

  /** Something from the user's side of a stream. */
  stream(m: StreamMessage): void {
    const file = this.files.get(m.s)
    if (file instanceof StreamFile) file.receive(m)
  }

  /** Ends every socket: after the module has ended, nothing of it stays open. */
  closeAll(): void {
    for (const file of this.files.values()) file.close()
    this.files.clear()
  }

  private add(make: (fd: number) => HostFile): number {
    const fd = this.nextFd++
    try {
      this.files.set(fd, make(fd))
      return fd
    } catch (err) {
      return -errnoOf(err)
    }
  }

  private udp(fd: number): UDPSocket | undefined {
    const file = this.files.get(fd)
    return file && 'udp' in file ? (file as UDPSocket) : undefined
  }

  private tun(fd: number): TUNFile | undefined {
    const file = this.files.get(fd)
    return file instanceof TUNFile ? file : undefined
  }

  private bytes(ptr: number, length: number): Uint8Array {
    return this.memory.bytes.subarray(ptr, ptr + length)
  }

  private json<T>(ptr: number, length: number): T {
    return JSON.parse(Buffer.from(this.bytes(ptr, length)).toString()) as T
  }

  private log(parts: Uint8Array[]): number {
    let n = 0
    for (const part of parts) {
      this.line += Buffer.from(part).toString()
      n += part.length
    }
    const lines = this.line.split('\n')
    this.line = lines.pop()!
    for (const line of lines) {
      this.post({ t: 'log', line })
      this.recent.push(line)
    }
    // A panic prints its cause and then every goroutine: the cause is kept, what follows is not
    // needed.
    const cause = this.recent.findIndex((line) => /^(panic|fatal error|runtime): /.test(line))
    this.recent = cause < 0 ? this.recent.slice(-3) : this.recent.slice(cause, cause + 3)
    return n
  }

  /** What the module said last before it ended: the cause of its death. */
  lastWords(): string {
    return [...this.recent, this.line]
      .map((line) => line.trim())
      .filter(Boolean)
      .join(' | ')
  }

  stats(): Stats {
    let streams = 0
    let sockets = 0
    for (const file of this.files.values()) {
      if (file instanceof StreamFile) streams++
      else if (file instanceof TCPFile || 'udp' in file) sockets++
    }
    return {
      streams,
      sockets,
      memory: this.memory.data.byteLength,
      network: this.network,
      cipher: this.aead ? 'simd' : 'go',
    }
  }

  /** The import object for WebAssembly.instantiate. */
  imports(wasi: Wasi): WebAssembly.Imports {
    const builtin = wasi.functions as unknown as Record<string, (...args: number[]) => number>
    const { fd_read, fd_write, fd_close, fd_fdstat_get, fd_fdstat_set_flags } = builtin
    const setSize = (ptr: number, n: number): number => {
      if (n < 0) return -n
      this.memory.data.setUint32(ptr, n, true)
      return 0
    }
    const own = {
      fd_read: (fd: number, iovs: number, count: number, out: number) => {
        const file = this.files.get(fd)
        if (!file) return fd >= FIRST_FD ? errno.EBADF : fd_read!(fd, iovs, count, out)
        return setSize(out, file.read(this.memory.iovecs(iovs, count)))
      },
      fd_write: (fd: number, iovs: number, count: number, out: number) => {
        if (fd === 1 || fd === 2) return setSize(out, this.log(this.memory.iovecs(iovs, count)))
        const file = this.files.get(fd)
        if (!file) return fd >= FIRST_FD ? errno.EBADF : fd_write!(fd, iovs, count, out)
        return setSize(out, file.write(this.memory.iovecs(iovs, count)))
      },
      fd_close: (fd: number) => {
        const file = this.files.get(fd)
        if (!file) return fd >= FIRST_FD ? errno.EBADF : fd_close!(fd)
        this.files.delete(fd)
        file.close()
        return 0
      },
      fd_fdstat_get: (fd: number, out: number) => {
        if (fd < FIRST_FD) return fd_fdstat_get!(fd, out)
        if (!this.files.has(fd)) return errno.EBADF
        const view = this.memory.data
        view.setUint8(out, SOCKET_STREAM)
        view.setUint16(out + 2, NONBLOCK, true)
        view.setBigUint64(out + 8, ~0n, true)
        view.setBigUint64(out + 16, ~0n, true)
        return 0
      },
      fd_fdstat_set_flags: (fd: number, flags: number) =>
        fd < FIRST_FD ? fd_fdstat_set_flags!(fd, flags) : 0,
      sock_shutdown: (fd: number) => -(this.files.get(fd)?.shutdownWrite() ?? -errno.EBADF),
      proc_exit: (code: number): never => {
        throw new ModuleExit(code)
      },
      poll_oneoff: new WebAssembly.Suspending(this.sleeper.oneoff),
    }
    const { wake, touch } = this.sleeper
    const named = (fd: number, peer: number, out: number): number => {
      const file = this.files.get(fd)
      if (file instanceof TCPFile) {
        const { address, port } = file.name(peer === 1)
        putSockName(this.bytes(out, 18), address, port)
        return 0
      }
      return this.udp(fd)?.name(this.bytes(out, 18)) ?? -errno.EBADF
    }
    const host = {
      // Suspends the module where binding takes a turn of the event loop.
      udp_open: new WebAssembly.Suspending((addr: number, family: number, port: number) => {
        if (this.sleeper instanceof NativeSleeper) {
          const socket = this.sleeper.open(family as 4 | 6, addr, port)
          return typeof socket === 'number' ? socket : this.add(() => socket)
        }
        try {
          const address = ipText(this.bytes(addr, 16))
          const socket = new DgramSocket(this.memory, address, family as 4 | 6, port, wake)
          const add = (): number => this.add(() => socket)
          return socket.bound()?.then(add, (err) => -errnoOf(err)) ?? add()
        } catch (err) {
          return -errnoOf(err)
        }
      }),
      udp_send: (fd: number, buf: number, n: number, addr: number, port: number, segment: number) =>
        this.udp(fd)?.send(buf, n, addr, port, segment) ?? -errno.EBADF,
      udp_recv: (fd: number, buf: number, n: number, from: number) =>
        this.udp(fd)?.receive(buf, n, from) ?? -errno.EBADF,
      tun_open: (name: number, n: number) => {
        if (!(this.sleeper instanceof NativeSleeper)) return -errno.ENOSYS
        const file = this.sleeper.openTUN(this.bytes(name, n))
        return typeof file === 'number' ? file : this.add(() => file)
      },
      tun_read: (fd: number, buf: number, n: number) =>
        this.tun(fd)?.packetIn(buf, n) ?? -errno.EBADF,
      tun_write: (fd: number, buf: number, n: number) =>
        this.tun(fd)?.packetOut(buf, n) ?? -errno.EBADF,
      tcp_open: (addr: number, port: number) =>
        this.add(() => new TCPFile(ipText(this.bytes(addr, 16)), port, wake, touch)),
      sock_error: (fd: number) => {
        const file = this.files.get(fd)
        return file instanceof TCPFile ? file.connectError() : -errno.EBADF
      },
      sock_name: named,
      stream_open: (meta: number, n: number) => {
        const about = this.json<StreamMeta>(meta, n)
        return this.add((s) => {
          this.post({ t: 'open', s, meta: about })
          return new StreamFile(s, this.post, wake)
        })
      },
      stream_reset: (fd: number) => {
        const file = this.files.get(fd)
        return file instanceof StreamFile ? file.sendReset() : -errno.EBADF
      },
      query: (what: number, buf: number, n: number) => {
        let answer: Uint8Array
        try {
          answer = what === 2 ? this.state.read() : Buffer.from(JSON.stringify(answers[what]!()))
        } catch (err) {
          return -errnoOf(err)
        }
        if (answer.length <= n) this.bytes(buf, n).set(answer)
        return answer.length
      },
      state_write: (number: number, buf: number, n: number) => {
        touch()
        // A copy: the module's memory changes before all of it is on the disk.
        this.state.write(this.bytes(buf, n).slice()).then(
          () => this.saved(number, ''),
          (err) => this.saved(number, String((err as Error).message || err)),
        )
      },
      emit: (buf: number, n: number) =>
        this.post({ t: 'emit', body: Buffer.from(this.bytes(buf, n)).toString() }),
      control: () => this.add(() => this.controlFile),
      aead_load: (module: number, n: number) => {
        this.aead = loadAead(this.bytes(module, n), this.memory.object)
        return this.aead ? 0 : -errno.ENOSYS
      },
      // Only called when that has given 0. Through JavaScript: the memory exists only when these
      // imports have been given.
      aead_seal: (ctx: number, dst: number, src: number, n: number, ad: number, adN: number) =>
        this.aead!.seal(ctx, dst, src, n, ad, adN),
      aead_open: (ctx: number, dst: number, src: number, n: number, ad: number, adN: number) =>
        this.aead!.open(ctx, dst, src, n, ad, adN),
      copy_sum: (dst: number, src: number, n: number) => this.aead!.copySum(dst, src, n),
    }
    return {
      wasi_snapshot_preview1: { ...builtin, ...own },
      tsnet_host: host,
    } as unknown as WebAssembly.Imports
  }
}
