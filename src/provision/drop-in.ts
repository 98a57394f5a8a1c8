import { execFile } from 'node:child_process'
import { mkdir, readFile, rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { writeFileAtomic } from '../base/files.ts'

/**
 * Puts a drop-in of a unit in force, by what gatehouse.toml says: systemd reads it anew, and a unit
 * that runs is started again. Does nothing when it is in force.
 *
 * @param text the drop-in; the empty string: none
 * @param units systemd's directory for units of this boot
 */
export async function applyDropIn(unit: string, text: string, units: string): Promise<void> {
  const path = join(units, `${unit}.d/50-gatehouse.conf`)
  const before = await readFile(path, 'utf8').catch(() => '')
  if (text === before) return
  if (text === '') {
    await rm(path)
  } else {
    await mkdir(dirname(path), { recursive: true, mode: 0o755 })
    await writeFileAtomic(path, text, 0o644)
  }
  const systemctl = async (...args: string[]): Promise<unknown> =>
    await promisify(execFile)('systemctl', args)
  await systemctl('daemon-reload')
  // Not at boot, when it has yet to start and waits for this very program.
  if (
    await systemctl('is-active', '--quiet', unit).then(
      () => true,
      () => false,
    )
  )
    await systemctl('--no-block', 'restart', unit)
}
