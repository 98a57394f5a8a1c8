import { constants } from 'node:fs'
import { open, rename, rm, stat } from 'node:fs/promises'
import type { FileHandle } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'

/**
 * Replaces a file so that after a power cut there is either the whole old one or the whole new one:
 * write a temporary file beside it, fsync it, rename it, fsync the directory. Without the last step
 * the rename itself may be lost, or the name may point to an empty file
 * (tailscale/tailscale#20515).
 *
 * The mode is exact: it is set with fchmod before any content is written, whatever the umask.
 */
export async function writeFileAtomic(
  path: string,
  data: string | Uint8Array,
  mode: number,
): Promise<void> {
  const temporary = join(dirname(path), `.${basename(path)}.${process.pid}.tmp`)
  // A file left over from a crash may carry another mode or owner: never write into it.
  await rm(temporary, { force: true })
  const file = await open(temporary, 'wx', 0o600)
  try {
    await file.chmod(mode)
    await file.writeFile(data)
    await file.sync()
    await file.close()
    await rename(temporary, path)
  } catch (err) {
    await file.close().catch(() => {})
    await rm(temporary, { force: true })
    throw err
  }
  await syncDirectory(dirname(path))
}

/**
 * One text for these files as they are, another as soon as one of them is written, replaced, made or
 * removed: for what is started when one of them has changed. While it runs, systemd takes no second
 * start (job_merge_into_installed(), src/core/job.c), so it looks once more at its end.
 */
export async function stamp(files: readonly string[]): Promise<string> {
  const one = async (file: string): Promise<string> =>
    await stat(file, { bigint: true }).then(
      ({ ino, mtimeNs, size }) => `${ino} ${mtimeNs} ${size}`,
      () => '',
    )
  return (await Promise.all(files.map(one))).join()
}

/** Makes renames and removals in a directory durable. */
export async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, 'r')
  try {
    await directory.sync()
  } finally {
    await directory.close()
  }
}

/**
 * Opens a file in a folder where another user writes, for reading: a regular file of one name and
 * of `most` bytes at most. No link is followed and no pipe waited for; and what is asked of the
 * descriptor is asked of this very file, whatever the name leads to by then.
 *
 * What it holds may still be changed by whoever has it open: copy before you judge.
 *
 * @throws Error that says what it is instead
 */
export async function openForeign(path: string, most: number): Promise<FileHandle> {
  const file = await open(
    path,
    constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK,
  ).catch((err: NodeJS.ErrnoException) => {
    throw err.code === 'ELOOP' ? new Error('it is a link', { cause: err }) : err
  })
  try {
    const stat = await file.stat()
    if (!stat.isFile()) throw new Error('it is not a file')
    if (stat.nlink !== 1) throw new Error(`it has ${stat.nlink} names`)
    if (stat.size > most) throw new Error(`it has ${stat.size} bytes, and ${most} are the most`)
    return file
  } catch (err) {
    await file.close()
    throw err
  }
}

/** What is in such a file. @throws Error as {@link openForeign} */
export async function readForeign(path: string, most: number): Promise<Buffer> {
  const file = await openForeign(path, most)
  try {
    // Not readFile(): it goes on for as long as the file grows. One byte more tells that it did.
    const content = Buffer.alloc(most + 1)
    let length = 0
    while (length <= most) {
      const { bytesRead } = await file.read(content, length, content.length - length, length)
      if (bytesRead === 0) return content.subarray(0, length)
      length += bytesRead
    }
    throw new Error(`it has more than ${most} bytes`)
  } finally {
    await file.close()
  }
}
