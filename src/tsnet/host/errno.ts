/**
 * WASI error numbers (preview 1, witx `errno`) of the errors that sockets and files give in
 * Node.js, and of those that wasi.ts gives by itself.
 */
export const errno = {
  EACCES: 2,
  EADDRINUSE: 3,
  EADDRNOTAVAIL: 4,
  EAFNOSUPPORT: 5,
  EAGAIN: 6,
  EBADF: 8,
  EBUSY: 10,
  ECONNABORTED: 13,
  ECONNREFUSED: 14,
  ECONNRESET: 15,
  EDQUOT: 19,
  EEXIST: 20,
  EHOSTUNREACH: 23,
  EINPROGRESS: 26,
  EINVAL: 28,
  EIO: 29,
  EISDIR: 31,
  ELOOP: 32,
  EMFILE: 33,
  EMSGSIZE: 35,
  ENAMETOOLONG: 37,
  ENETDOWN: 38,
  ENETUNREACH: 40,
  ENOBUFS: 42,
  ENODEV: 43,
  ENOENT: 44,
  ENOMEM: 48,
  ENOSPC: 51,
  ENOSYS: 52,
  ENOTCONN: 53,
  ENOTDIR: 54,
  ENOTEMPTY: 55,
  ENOTSUP: 58,
  ENXIO: 60,
  EPERM: 63,
  EPIPE: 64,
  EPROTO: 65,
  EROFS: 69,
  ETIMEDOUT: 73,
  EXDEV: 75,
  ENOTCAPABLE: 76,
} as const

/** The WASI number for an error of Node.js's; EIO where there is no better one. */
export function errnoOf(err: unknown): number {
  const code = (err as NodeJS.ErrnoException | null)?.code
  return (code !== undefined && (errno as Record<string, number>)[code]) || errno.EIO
}
