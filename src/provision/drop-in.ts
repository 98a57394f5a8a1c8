import { execFile } from 'node:child_process'
import { mkdir, readFile, rm, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { writeFileAtomic } from '../base/files.ts'

/**
 * Puts a drop-in of a unit in force, by what gatehouse.toml says: systemd reads it anew, what the
 * drop-in wants is started, and a unit that runs is started again. Does nothing when it is in force.
 *
 * @param text the drop-in; the empty string: none
 * @param units systemd's directory for units of this boot
 */
export async function applyDropIn(unit: string, text: string, units: string): Promise<void> {
  if (!(await replace(join(units, `${unit}.d/50-gatehouse.conf`), text))) return
  await systemctl('daemon-reload')
  // At boot the unit's start is queued already, and systemd does not add to it what a drop-in wants
  // that comes later; After= it heeds.
  const wanted = /^Wants=(.+)$/m.exec(text)?.[1]?.split(' ') ?? []
  if (wanted.length > 0) await systemctl('--no-block', 'start', ...wanted)
  // One that is starting too, which has read the drop-in before. At boot it does nothing: there the
  // unit has yet to start, and waits for this very program.
  await systemctl('--no-block', 'try-restart', unit)
}

/**
 * Puts drop-ins of systemd-networkd's files in force, which has read the files before at boot;
 * cards that are not concerned keep what they have.
 *
 * @param dropIns texts by their paths; the empty string: none
 * @param directory systemd-networkd's directory for files of this boot
 */
export async function applyNetwork(
  dropIns: ReadonlyMap<string, string>,
  directory: string,
): Promise<void> {
  let changed = false
  for (const [path, text] of dropIns) if (await replace(join(directory, path), text)) changed = true
  // Not by `try-reload-or-restart` itself, which does nothing while the service is starting.
  if (changed) await systemctl('--no-block', 'start', 'gatehouse-network.service')
}

/**
 * Writes a file, or removes it where the text is empty.
 *
 * @returns whether it was another before
 */
export async function replace(path: string, text: string): Promise<boolean> {
  const before = await readFile(path, 'utf8').catch(() => '')
  if (text === before) return false
  if (text === '') {
    await rm(path)
  } else {
    await mkdir(dirname(path), { recursive: true, mode: 0o755 })
    await writeFileAtomic(path, text, 0o644)
  }
  return true
}

/** systemctl, where systemd runs. */
export async function systemctl(...args: string[]): Promise<unknown> {
  return await promisify(execFile)('systemctl', args).catch(async (err: unknown) => {
    // Where systemd does not run (sd_booted(3)) nobody has read the files before.
    const booted = await stat('/run/systemd/system').then(
      () => true,
      () => false,
    )
    if (booted) throw err
  })
}
