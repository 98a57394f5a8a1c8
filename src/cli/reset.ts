import { spawnSync } from 'node:child_process'
import { askForReset } from '../broker/server.ts'

/**
 * `gatehouse reset --yes`, as root: leaves the file on the card that says so, and starts again. The
 * data partition is formatted on that boot, before anything uses it. The system's version stays.
 */
export async function runReset(
  { yes }: { yes: boolean },
  boot = process.env.GATEHOUSE_BOOT_DIR ?? '/efi',
): Promise<number> {
  if (!yes) {
    process.stderr.write(
      'gatehouse reset: flows, tailnet identity, certificates and settings would be lost for ' +
        'good. A backup first: gatehouse backup FILE. Then: gatehouse reset --yes\n',
    )
    return 64
  }
  await askForReset(boot)
  process.stdout.write('starting again, as new\n')
  return spawnSync('systemctl', ['--no-block', 'reboot'], { stdio: 'inherit' }).status ?? 1
}
