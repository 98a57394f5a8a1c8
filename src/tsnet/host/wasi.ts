/**
 * WASI preview 1, as far as the Go module imports it: arguments, environment, clocks, random bytes,
 * and files below directories that it is given. Sockets and the wait for them are imports.ts's.
 *
 * Not node:wasi: that is experimental, and Bun and Deno have only parts of it. Here it is the same
 * on each of them, and no more than what is used: `functions` has exactly the imports of a module
 * that Go's compiler makes for GOOS=wasip1 (syscall/fs_wasip1.go, runtime/os_wasip1.go).
 *
 * Specification: WASI preview 1, witx/wasi_snapshot_preview1.witx (layouts, numbers).
 */
import { randomFillSync } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { errno, errnoOf } from './errno.ts'
import type { Memory } from './memory.ts'

/** `filetype`. */
const UNKNOWN = 0
const CHARACTER_DEVICE = 2
const DIRECTORY = 3
const REGULAR_FILE = 4
const SYMBOLIC_LINK = 7
/** `rights`: fd_read and fd_write, of the lower 32. */
const RIGHT_READ = 1 << 1
const RIGHT_WRITE = 1 << 6
/** `oflags`. */
const CREAT = 1
const MUST_BE_DIRECTORY = 2
const EXCL = 4
const TRUNC = 8
/** `fdflags`. */
const APPEND = 1
/** `lookupflags`. */
const SYMLINK_FOLLOW = 1
/** `clockid`. */
const REALTIME = 0
const MONOTONIC = 1
/** `whence`. */
const SEEK_SET = 0
const SEEK_CUR = 1
/** Size of a `dirent` without its name. */
const DIRENT = 24

/** Descriptors 0 to 2 are a terminal with nobody at it; files and directories follow. */
const FIRST_FD = 3

/** A file, with the place of the next read or write. */
interface OpenFile {
  kind: 'file'
  fd: number
  at: number
  append: boolean
}
interface OpenDirectory {
  kind: 'directory'
  /** The real path. Nothing outside it can be reached. */
  dir: string
  /** What the module calls it, of one that it is given at the start. */
  name?: string
  /** What is in it, from the last time it was read from the start. */
  entries?: fs.Dirent[]
}
type Open = OpenFile | OpenDirectory

/** What the module is given. */
export interface WasiOptions {
  args: string[]
  env: Record<string, string>
  /** Directories: by the module's name for each, the path. They must exist. */
  preopens: Record<string, string>
}

/** A path that leads out of its directory; a descriptor that is of another kind. */
class WasiError extends Error {
  readonly code: string
  constructor(code: keyof typeof errno) {
    super(code)
    this.code = code
  }
}

function filetype(of: fs.Stats | fs.BigIntStats | fs.Dirent): number {
  if (of.isDirectory()) return DIRECTORY
  if (of.isFile()) return REGULAR_FILE
  if (of.isSymbolicLink()) return SYMBOLIC_LINK
  return of.isCharacterDevice() ? CHARACTER_DEVICE : UNKNOWN
}

export class Wasi {
  /** The import `wasi_snapshot_preview1`. Each returns an `errno`. */
  readonly functions: Record<string, (...args: never[]) => number>
  private readonly memory: Memory
  private readonly open = new Map<number, Open>()
  private next = FIRST_FD

  constructor(memory: Memory, { args, env, preopens }: WasiOptions) {
    this.memory = memory
    for (const [name, dir] of Object.entries(preopens))
      this.open.set(this.next++, { kind: 'directory', dir: fs.realpathSync(dir), name })
    const environ = Object.entries(env).map(([name, value]) => `${name}=${value}`)
    this.functions = {
      args_get: (list: number, text: number) => this.strings(args, list, text),
      args_sizes_get: (count: number, size: number) => this.sizes(args, count, size),
      environ_get: (list: number, text: number) => this.strings(environ, list, text),
      environ_sizes_get: (count: number, size: number) => this.sizes(environ, count, size),
      sched_yield: () => 0,
      clock_time_get: this.clock,
      random_get: (at: number, n: number) => {
        randomFillSync(memory.bytes, at, n)
        return 0
      },
      ...this.descriptors(),
      ...this.paths(),
    }
  }

  /** Strings with a zero after each, and pointers to them. */
  private strings(all: string[], list: number, text: number): number {
    for (const s of all) {
      this.memory.data.setUint32(list, text, true)
      const bytes = Buffer.from(`${s}\0`)
      this.memory.bytes.set(bytes, text)
      list += 4
      text += bytes.length
    }
    return 0
  }

  private sizes(all: string[], count: number, size: number): number {
    const bytes = all.reduce((sum, s) => sum + Buffer.byteLength(s) + 1, 0)
    this.memory.data.setUint32(count, all.length, true)
    this.memory.data.setUint32(size, bytes, true)
    return 0
  }

  /**
   * Go asks for the time with each packet: no more than this, and the monotonic one without the
   * bigint that process.hrtime would make, in halves. Exact to 2 ns for half a year. The precision
   * that is asked for plays no part.
   */
  private readonly clock = (id: number, _precision: bigint, out: number): number => {
    const view = this.memory.data
    if (id === MONOTONIC) {
      const now = Math.floor(performance.now() * 1e6)
      view.setUint32(out, now % 2 ** 32, true)
      view.setUint32(out + 4, now / 2 ** 32, true)
    } else if (id === REALTIME) view.setBigUint64(out, BigInt(Date.now()) * 1_000_000n, true)
    else return errno.EINVAL
    return 0
  }

  private file(fd: number): OpenFile {
    const file = this.open.get(fd)
    if (file?.kind === 'file') return file
    throw new WasiError(file ? 'EISDIR' : 'EBADF')
  }

  private directory(fd: number): OpenDirectory {
    const dir = this.open.get(fd)
    if (dir?.kind === 'directory') return dir
    throw new WasiError(dir ? 'ENOTDIR' : 'EBADF')
  }

  /**
   * The path of a name below a directory. Neither `..` nor a link leads out of it: ENOTCAPABLE, as
   * with every WASI. `follow`: of a link, where it leads.
   */
  private resolve(fd: number, at: number, n: number, follow: boolean): string {
    const { dir } = this.directory(fd)
    const inside = (place: string): string => {
      const relative = path.relative(dir, place)
      if (relative === '..' || relative.startsWith(`..${path.sep}`) || path.isAbsolute(relative))
        throw new WasiError('ENOTCAPABLE')
      return place
    }
    const name = Buffer.from(this.memory.bytes.subarray(at, at + n)).toString()
    if (path.isAbsolute(name) || name.includes('\0')) throw new WasiError('ENOTCAPABLE')
    const place = inside(path.join(dir, name))
    if (place === dir) return dir
    const real = path.join(inside(fs.realpathSync(path.dirname(place))), path.basename(place))
    if (!follow || !fs.lstatSync(real, { throwIfNoEntry: false })?.isSymbolicLink()) return real
    return inside(fs.realpathSync(real))
  }

  private putStat(out: number, stat: fs.BigIntStats): number {
    const { data } = this.memory
    data.setBigUint64(out, stat.dev, true)
    data.setBigUint64(out + 8, stat.ino, true)
    data.setBigUint64(out + 16, 0n, true)
    data.setUint8(out + 16, filetype(stat))
    data.setBigUint64(out + 24, stat.nlink, true)
    data.setBigUint64(out + 32, stat.size, true)
    data.setBigUint64(out + 40, stat.atimeNs, true)
    data.setBigUint64(out + 48, stat.mtimeNs, true)
    data.setBigUint64(out + 56, stat.ctimeNs, true)
    return 0
  }

  /** Calls `f` for each buffer until one is not filled; how many bytes it was, at `out`. */
  private transfer(iovs: number, count: number, out: number, f: (b: Uint8Array) => number): number {
    let total = 0
    for (const buffer of this.memory.iovecs(iovs, count)) {
      const n = f(buffer)
      total += n
      if (n < buffer.length) break
    }
    this.memory.data.setUint32(out, total, true)
    return 0
  }

  private descriptors(): Wasi['functions'] {
    return wrapped({
      fd_close: (fd: number) => {
        const file = this.open.get(fd)
        if (!file) return errno.EBADF
        this.open.delete(fd)
        if (file.kind === 'file') fs.closeSync(file.fd)
        return 0
      },
      fd_read: (fd: number, iovs: number, count: number, out: number) => {
        if (fd === 0) return this.transfer(iovs, 0, out, () => 0) // the end of the input
        const file = this.file(fd)
        return this.transfer(iovs, count, out, (buffer) => {
          const n = fs.readSync(file.fd, buffer, 0, buffer.length, file.at)
          file.at += n
          return n
        })
      },
      fd_write: (fd: number, iovs: number, count: number, out: number) => {
        const file = this.file(fd)
        return this.transfer(iovs, count, out, (buffer) => {
          const n = fs.writeSync(file.fd, buffer, 0, buffer.length, file.append ? null : file.at)
          file.at += n
          return n
        })
      },
      fd_seek: (fd: number, offset: bigint, whence: number, out: number) => {
        const file = this.file(fd)
        let from = 0
        if (whence === SEEK_CUR) from = file.at
        else if (whence !== SEEK_SET) from = fs.fstatSync(file.fd).size
        const at = from + Number(offset)
        if (at < 0) return errno.EINVAL
        file.at = at
        this.memory.data.setBigUint64(out, BigInt(at), true)
        return 0
      },
      fd_sync: (fd: number) => {
        // A directory cannot be synced everywhere; the node's identity does not come here.
        const file = this.open.get(fd)
        if (!file) return errno.EBADF
        if (file.kind === 'file') fs.fsyncSync(file.fd)
        return 0
      },
      fd_filestat_get: (fd: number, out: number) => {
        if (fd < FIRST_FD) {
          this.memory.bytes.fill(0, out, out + 64)
          this.memory.data.setUint8(out + 16, CHARACTER_DEVICE)
          return 0
        }
        const file = this.open.get(fd)
        if (!file) return errno.EBADF
        const options = { bigint: true } as const
        return this.putStat(
          out,
          file.kind === 'file' ? fs.fstatSync(file.fd, options) : fs.statSync(file.dir, options),
        )
      },
      fd_fdstat_get: (fd: number, out: number) => {
        const file = this.open.get(fd)
        if (!file && fd >= FIRST_FD) return errno.EBADF
        const { data } = this.memory
        let type = CHARACTER_DEVICE
        if (file) type = file.kind === 'file' ? REGULAR_FILE : DIRECTORY
        data.setUint8(out, type)
        data.setUint16(out + 2, file?.kind === 'file' && file.append ? APPEND : 0, true)
        data.setBigUint64(out + 8, ~0n, true)
        data.setBigUint64(out + 16, ~0n, true)
        return 0
      },
      fd_fdstat_set_flags: (fd: number) => (fd < FIRST_FD || this.open.has(fd) ? 0 : errno.EBADF),
      fd_prestat_get: (fd: number, out: number) => {
        const { name } = this.directory(fd)
        if (name === undefined) return errno.EBADF
        this.memory.data.setUint32(out, 0, true) // a directory
        this.memory.data.setUint32(out + 4, Buffer.byteLength(name), true)
        return 0
      },
      fd_prestat_dir_name: (fd: number, at: number, n: number) => {
        const name = Buffer.from(this.directory(fd).name ?? '')
        if (name.length > n) return errno.ENAMETOOLONG
        this.memory.bytes.set(name, at)
        return 0
      },
      fd_readdir: (fd: number, at: number, size: number, cookie: bigint, out: number) => {
        const dir = this.directory(fd)
        if (cookie === 0n || !dir.entries)
          dir.entries = fs.readdirSync(dir.dir, { withFileTypes: true })
        let used = 0
        // An entry that is cut off says that there are more.
        for (let i = Number(cookie); i < dir.entries.length && used < size; i++) {
          const entry = dir.entries[i]!
          const name = Buffer.from(entry.name)
          const bytes = Buffer.alloc(DIRENT + name.length)
          bytes.writeBigUInt64LE(BigInt(i + 1))
          bytes.writeUInt32LE(name.length, 16)
          bytes.writeUInt8(filetype(entry), 20)
          name.copy(bytes, DIRENT)
          const part = bytes.subarray(0, size - used)
          this.memory.bytes.set(part, at + used)
          used += part.length
        }
        this.memory.data.setUint32(out, used, true)
        return 0
      },
      // Sockets are tsnet_host's.
      sock_accept: () => errno.ENOTSUP,
      sock_shutdown: () => errno.ENOTSUP,
    })
  }

  private paths(): Wasi['functions'] {
    return wrapped({
      path_open: (
        fd: number,
        lookup: number,
        at: number,
        n: number,
        oflags: number,
        rights: bigint,
        _inheriting: bigint,
        fdflags: number,
        out: number,
      ) => {
        const place = this.resolve(fd, at, n, (lookup & SYMLINK_FOLLOW) !== 0)
        const add = (file: Open): number => {
          this.open.set(this.next, file)
          this.memory.data.setUint32(out, this.next++, true)
          return 0
        }
        const there = fs.lstatSync(place, { throwIfNoEntry: false })
        if (there?.isSymbolicLink()) return errno.ELOOP
        const wanted = Number(BigInt.asUintN(32, rights))
        const writes = (wanted & RIGHT_WRITE) !== 0
        if (there?.isDirectory()) {
          if ((oflags & CREAT) !== 0 && (oflags & EXCL) !== 0) return errno.EEXIST
          return writes ? errno.EISDIR : add({ kind: 'directory', dir: place })
        }
        if (oflags & MUST_BE_DIRECTORY) return there ? errno.ENOTDIR : errno.ENOENT
        const { O_RDONLY, O_RDWR, O_WRONLY, O_CREAT, O_EXCL, O_TRUNC, O_APPEND } = fs.constants
        let flags = O_RDONLY
        if (writes) flags = wanted & RIGHT_READ ? O_RDWR : O_WRONLY
        if (oflags & CREAT) flags |= O_CREAT
        if (oflags & EXCL) flags |= O_EXCL
        if (oflags & TRUNC) flags |= O_TRUNC
        const append = (fdflags & APPEND) !== 0
        if (append) flags |= O_APPEND
        // The mode that Go asks for does not come through: nobody else's to read.
        return add({ kind: 'file', fd: fs.openSync(place, flags, 0o600), at: 0, append })
      },
      path_filestat_get: (fd: number, lookup: number, at: number, n: number, out: number) => {
        const place = this.resolve(fd, at, n, (lookup & SYMLINK_FOLLOW) !== 0)
        return this.putStat(out, fs.lstatSync(place, { bigint: true }))
      },
      path_create_directory: (fd: number, at: number, n: number) => {
        fs.mkdirSync(this.resolve(fd, at, n, false), 0o700)
        return 0
      },
      path_remove_directory: (fd: number, at: number, n: number) => {
        fs.rmdirSync(this.resolve(fd, at, n, false))
        return 0
      },
      path_unlink_file: (fd: number, at: number, n: number) => {
        const place = this.resolve(fd, at, n, false)
        // Windows and macOS say EPERM; Go then tries to remove the directory by either.
        if (fs.lstatSync(place).isDirectory()) return errno.EISDIR
        fs.unlinkSync(place)
        return 0
      },
      path_rename: (fd: number, at: number, n: number, to: number, toAt: number, toN: number) => {
        fs.renameSync(this.resolve(fd, at, n, false), this.resolve(to, toAt, toN, false))
        return 0
      },
      path_readlink: (
        fd: number,
        at: number,
        n: number,
        into: number,
        size: number,
        out: number,
      ) => {
        const target = fs.readlinkSync(this.resolve(fd, at, n, false), 'buffer')
        const part = target.subarray(0, size)
        this.memory.bytes.set(part, into)
        this.memory.data.setUint32(out, part.length, true)
        return 0
      },
    })
  }
}

/** Functions whose errors are returned as `errno`. */
function wrapped(functions: Wasi['functions']): Wasi['functions'] {
  return Object.fromEntries(
    Object.entries(functions).map(([name, f]) => [
      name,
      (...args: never[]) => {
        try {
          return f(...args)
        } catch (err) {
          return errnoOf(err)
        }
      },
    ]),
  )
}
