import { mkdir } from 'node:fs/promises'
import { dirname } from 'node:path'
import { GatehouseError, reason } from '../base/errors.ts'
import { paths } from '../base/paths.ts'
import { backup, quiet, restore } from '../broker/archive.ts'
import { askSecret } from './ask.ts'

/**
 * `gatehouse backup FILE` and `gatehouse restore FILE`, as root. The gateway and Node-RED are away
 * meanwhile: seconds.
 */
export async function runBackup(
  command: 'backup' | 'restore',
  file: string | undefined,
): Promise<number> {
  if (file === undefined) {
    process.stderr.write(
      `usage: gatehouse ${command} FILE   (the passphrase is asked for, or read from standard input)\n`,
    )
    return 64
  }
  const root = paths().data
  try {
    const passphrase = await askSecret('Passphrase: ')
    if (command === 'backup') {
      await mkdir(dirname(file), { recursive: true })
      await quiet(async () => {
        await backup(root, file, passphrase)
      })
      process.stdout.write(
        `${file} is written. Keep it and its passphrase apart from the device. (age -d ` +
          `${file} | tar tv shows what is in it)\n`,
      )
    } else {
      const names = await quiet(async () => await restore(root, file, passphrase))
      process.stdout.write(
        `restored: ${names.join(', ')}. This device is now the one of the backup: do not run both. Restart it now.\n`,
      )
    }
    return 0
  } catch (err) {
    process.stderr.write(
      `gatehouse ${command}: ${err instanceof GatehouseError ? err.line : reason(err)}\n`,
    )
    return 1
  }
}
