import { open, rename, rm } from 'node:fs/promises'
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

/** Makes renames and removals in a directory durable. */
export async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, 'r')
  try {
    await directory.sync()
  } finally {
    await directory.close()
  }
}
