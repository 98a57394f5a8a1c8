import { access, constants, readFile, readlink, stat, statfs } from 'node:fs/promises'
import { basename } from 'node:path'
import { GatehouseError } from '../../base/errors.ts'
import { reservedFiles } from '../../base/room.ts'

/**
 * Less than this is too little for an update, a journal and Node-RED's flows; of a tenth of it the
 * gateway itself runs out. Bytes.
 */
const lowSpace = 100 * 2 ** 20

/** How the file system of a directory is. */
export interface Storage {
  /** For a person: how much is free. */
  found: string
  /** What is wrong with it, and whether to see to it now; absent when all is well. */
  problem?: { error: GatehouseError; severity: 'warning' | 'error' }
}

/** Looks at the file system a directory is on. Rejects when there is no such directory. */
export async function examineStorage(directory: string): Promise<Storage> {
  const { bsize, bavail, blocks, ffree, files } = await statfs(directory)
  const free = bsize * bavail
  const found = `${(free / 2 ** 20).toFixed(0)} MiB free of ${((bsize * blocks) / 2 ** 20).toFixed(0)}`
  const problem = (
    severity: 'warning' | 'error',
    code: string,
    message: string,
    cure: string,
  ): Storage => ({ found, problem: { error: new GatehouseError(code, message, cure), severity } })
  const readOnly = await access(directory, constants.W_OK).then(
    () => false,
    (err: NodeJS.ErrnoException) => err.code === 'EROFS',
  )
  if (readOnly || (await errorsOf(directory)) > 0)
    return problem(
      'error',
      'GH_DATA_READ_ONLY',
      'the data partition is damaged and therefore read-only: nothing new is kept',
      'Restart the device: it checks and repairs the partition. If it happens again the card ' +
        'is worn: make a backup (page Backup of the web console, port 10000), and use another',
    )
  const cure =
    'Flows that write files are the usual cause. Where Deploy fails, switch the device off ' +
    'and on: flows then stay stopped, and there is room to save. Change the flow that ' +
    'writes, have one remove what it wrote (an inject node, and an exec node with rm -r and ' +
    'the folder), and deploy'
  // What Node-RED cannot take is left, less what the others have of it.
  if (files > 0 && ffree < reservedFiles(files))
    return problem(
      'error',
      'GH_DATA_FULL',
      'flows have made as many files as the data partition has room for',
      cure,
    )
  // No figures in the messages: what is the same problem still is said once.
  if (free < lowSpace / 10)
    return problem('error', 'GH_DATA_FULL', 'the data partition is full', cure)
  return free < lowSpace
    ? problem('warning', 'GH_DATA_FULL', 'the data partition is nearly full', cure)
    : { found }
}

/**
 * Errors the kernel has found in an ext4 file system since it was last repaired; 0 of others. From
 * the first on nothing is written (errors=remount-ro, ext4(5)), though since Linux 6.12 the mount
 * still counts as writable: only writes say so, and a write a minute wears the card.
 */
async function errorsOf(directory: string): Promise<number> {
  const { dev } = await stat(directory)
  // makedev(3), as Linux packs it.
  const [major, minor] = [(dev >>> 8) & 0xfff, (dev & 0xff) | ((dev >>> 12) & 0xfff00)]
  try {
    const device = basename(await readlink(`/sys/dev/block/${major}:${minor}`))
    return Number(await readFile(`/sys/fs/ext4/${device}/errors_count`, 'utf8'))
  } catch {
    return 0
  }
}
