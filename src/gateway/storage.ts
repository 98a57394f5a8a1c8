import { access, constants, statfs } from 'node:fs/promises'
import { GatehouseError } from '../config/errors.ts'

/** Less than this is too little for an update, a journal and Node-RED's flows; of a tenth of it the gateway itself runs out. Bytes. */
const lowSpace = 100 * 2 ** 20

/** How the file system of a directory is. */
export interface Storage {
  /** For a person: how much is free. */
  found: string
  /** What is wrong with it, and whether to see to it now; absent when all is well. */
  problem?: { error: GatehouseError, level: 'warn' | 'error' }
}

/** Looks at the file system a directory is on. Rejects when there is no such directory. */
export async function examineStorage (directory: string): Promise<Storage> {
  const { bsize, bavail, blocks, ffree, files } = await statfs(directory)
  const free = bsize * bavail
  const found = `${(free / 2 ** 20).toFixed(0)} MiB free of ${(bsize * blocks / 2 ** 20).toFixed(0)}`
  const problem = (level: 'warn' | 'error', code: string, message: string, cure: string): Storage => ({ found, problem: { error: new GatehouseError(code, message, cure), level } })
  // Where one may write otherwise: the kernel takes away writing when it finds the file system damaged (ext4(5), errors=remount-ro).
  const readOnly = await access(directory, constants.W_OK).then(() => false, (err: NodeJS.ErrnoException) => err.code === 'EROFS')
  if (readOnly) return problem('error', 'GH_DATA_READ_ONLY', 'the data partition is read-only, since the card made errors: nothing new is kept', 'Restart the device: it checks and repairs the partition. If it happens again the card is worn: run gatehouse backup, and use another')
  const cure = 'Look at what is large: du -xsh /var/lib/* /var/log/*. Flows that write files are the usual cause'
  if (files > 0 && ffree < 1000) return problem('error', 'GH_DATA_FULL', 'the data partition has room for less than 1000 more files', cure)
  // No figures in the messages: what is the same problem still is said once.
  if (free < lowSpace / 10) return problem('error', 'GH_DATA_FULL', 'the data partition is full', cure)
  return free < lowSpace ? problem('warn', 'GH_DATA_FULL', 'the data partition is nearly full', cure) : { found }
}
