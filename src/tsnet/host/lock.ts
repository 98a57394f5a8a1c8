/**
 * One process for one state directory: two with the same identity would take the tailnet's packets
 * from one another. flock(2) on the directory itself leaves no file behind that would go stale or
 * be copied, and ends with the process, whatever way it ends. Through node:ffi; where that or flock
 * is missing (a file system that has none) there is no lock.
 */
import fs from 'node:fs'

const LOCK_EX = 2
const LOCK_NB = 4
/** A Server that has died may still be giving the directory up. */
const PATIENCE_MS = 2000

/** Locks `dir`. Returns what unlocks it. Throws when another process (or Server) holds it. */
export function lockDirectory(dir: string): () => void {
  const ffi = process.platform === 'win32' ? undefined : process.getBuiltinModule?.('node:ffi')
  if (!ffi) return () => {}
  const [errnoName, EWOULDBLOCK] =
    process.platform === 'darwin' ? ['__error', 35] : ['__errno_location', 11]
  let functions
  try {
    ;({ functions } = ffi.dlopen(null, {
      flock: { arguments: ['int32', 'int32'], return: 'int32' },
      [errnoName]: { arguments: [], return: 'pointer' },
    }))
  } catch {
    return () => {} // node:ffi may be forbidden (--permission)
  }
  const flock = functions.flock as (fd: number, op: number) => number
  const location = functions[errnoName] as () => bigint
  const fd = fs.openSync(dir, 'r')
  const unlock = (): void => fs.closeSync(fd)
  for (const deadline = Date.now() + PATIENCE_MS; flock(fd, LOCK_EX | LOCK_NB) !== 0;) {
    if (ffi.getInt32(location()) !== EWOULDBLOCK) break
    if (Date.now() > deadline) {
      unlock()
      throw new Error(
        `${dir} is in use by another Server: give each a directory of its own, or end the other`,
      )
    }
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 50)
  }
  return unlock
}
