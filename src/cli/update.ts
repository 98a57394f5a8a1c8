import { spawnSync } from 'node:child_process'
import { rm, writeFile } from 'node:fs/promises'
import type { Paths } from '../config/paths.ts'
import { runInstall } from '../update/install.ts'
import { updatePaths } from '../update/record.ts'

/**
 * `gatehouse update [--force] [FOLDER]`, as root: installs the update in FOLDER, a USB stick's for one; without FOLDER what updates.url
 * offers, by the units that do it every night (each with its own rights), and shows what they say.
 *
 * @returns 0 done or nothing to do, 1 not done
 */
export async function runUpdate (paths: Paths, { folder, force }: { folder: string | undefined, force: boolean }): Promise<number> {
  if (folder !== undefined) return await runInstall(paths, { folder, force })
  const { asked } = updatePaths()
  await writeFile(asked, force ? 'force' : '')
  try {
    const cursor = spawnSync('journalctl', ['-q', '-n', '0', '--show-cursor'], { encoding: 'utf8' }).stdout.replace('-- cursor: ', '').trim()
    let status = 0
    for (const unit of ['gatehouse-update.service', 'gatehouse-update-install.service']) {
      if (status === 0) status = spawnSync('systemctl', ['start', unit], { stdio: 'ignore' }).status ?? 1
    }
    process.stdout.write(spawnSync('journalctl', ['-q', '-o', 'cat', `--after-cursor=${cursor}`, '-t', 'gatehouse-update'], { encoding: 'utf8' }).stdout)
    return status === 0 ? 0 : 1
  } finally {
    await rm(asked, { force: true })
  }
}
