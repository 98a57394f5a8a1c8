import { spawnSync } from 'node:child_process'
import { readdir, rm, writeFile } from 'node:fs/promises'
import { GatehouseError, printable } from '../base/errors.ts'
import type { Paths } from '../base/paths.ts'
import { runInstall } from '../update/install.ts'
import { attemptLine } from '../update/outcome.ts'
import { updatePaths } from '../update/record.ts'

/**
 * Links to what udev takes for a USB stick (75-gatehouse-stick.rules), each with the kernel's name
 * for it.
 */
const sticks = '/dev/gatehouse-stick'

const install = 'gatehouse-update-install.service'

/**
 * `gatehouse update [--force] [usb | FOLDER]`, as root: installs what updates.url offers, or what
 * is on the USB stick, by the units that do it by themselves (each with its own rights), and shows
 * what they say; or the update in FOLDER.
 *
 * @returns 0 done or nothing to do, 1 not done
 */
export async function runUpdate(
  paths: Paths,
  { from, force }: { from: string | undefined; force: boolean },
): Promise<number> {
  if (from !== undefined && from !== 'usb') return await runInstall(paths, { folder: from, force })
  const units = from === 'usb' ? await stickUnits() : ['gatehouse-update.service']
  const where = updatePaths()
  await writeFile(where.asked, force ? 'force' : '')
  try {
    const cursor = spawnSync('journalctl', ['-q', '-n', '0', '--show-cursor'], { encoding: 'utf8' })
      .stdout.replace('-- cursor: ', '')
      .trim()
    let status = 0
    for (const unit of [...units, install]) {
      if (status === 0)
        status = spawnSync('systemctl', ['start', unit], { stdio: 'ignore' }).status ?? 1
    }
    process.stdout.write(printable(said([...units, install], cursor)))
    return status === 0 && (await attemptLine(where))?.failed !== true ? 0 : 1
  } finally {
    await rm(where.asked, { force: true })
  }
}

/**
 * What the processes of these units have written since. By the unit, which journald sees for itself
 * (systemd.journal-fields(7)): an identifier (-t) is what a line says of itself.
 */
function said(units: readonly string[], cursor: string): string {
  return spawnSync(
    'journalctl',
    [
      '-q',
      '-o',
      'cat',
      `--after-cursor=${cursor}`,
      ...units.map((unit) => `_SYSTEMD_UNIT=${unit}`),
    ],
    { encoding: 'utf8' },
  ).stdout
}

async function stickUnits(): Promise<string[]> {
  const names = (await readdir(sticks).catch(() => [])).filter((name) => /^[a-z0-9]+$/.test(name))
  if (names.length === 0)
    throw new GatehouseError(
      'GH_UPDATE_NO_STICK',
      'no USB stick with a file system is plugged in',
      'Plug it in; FAT32 and ext4 are read',
    )
  return names.map((name) => `gatehouse-stick@${name}.service`)
}
