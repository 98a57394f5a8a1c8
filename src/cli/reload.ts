import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { promisify } from 'node:util'
import { asRoot, seeLogs } from '../base/cures.ts'
import { reason } from '../base/errors.ts'
import type { Paths } from '../base/paths.ts'
import { call, unreachable } from '../base/control-client.ts'
import type { Reloaded } from '../gateway/operate/reload.ts'

/**
 * `gatehouse reload`: takes gatehouse.toml from the boot partition anew and has the gateway put it
 * in force. Nothing that is open is dropped. A file that is wrong changes nothing.
 *
 * @returns 0 done, 1 the configuration was refused, 2 the gateway cannot be reached
 */
export async function runReload(
  paths: Paths,
  env: NodeJS.ProcessEnv = process.env,
): Promise<number> {
  try {
    // By its own unit, which may write where it must and nowhere else.
    if (existsSync('/run/systemd/system') && env.GATEHOUSE_CONFIG_DIR === undefined)
      await promisify(execFile)('systemctl', ['restart', 'gatehouse-provision.service'])
  } catch (err) {
    process.stderr.write(
      `gatehouse reload: the boot partition's file cannot be taken over: ${reason(err)}.\n  ` +
        `→ ${asRoot}. ${seeLogs('gatehouse-provision')}.\n`,
    )
    return 1
  }
  const problem = (await readFile(paths.problem, 'utf8').catch(() => '')).trim()
  if (problem !== '') {
    process.stderr.write(`Refused: ${problem}\n`)
    return 1
  }
  let answer
  try {
    answer = await call(paths.admin, 'POST', '/v1/reload')
  } catch (err) {
    const { message, cure } = unreachable(err, paths.admin)
    process.stderr.write(`The gateway cannot be reached: ${message}.\n  → ${cure}.\n`)
    return 2
  }
  if (answer.status !== 200) {
    const { error } = answer.body as { error: { message: string; cure: string } }
    process.stderr.write(
      `Refused: ${error.message}. The configuration before stays in force.\n  → ${error.cure}.\n`,
    )
    return 1
  }
  const { changed, restart } = answer.body as Reloaded
  process.stdout.write(
    changed.length === 0 ? 'Nothing has changed.\n' : `In force: ${changed.join(', ')}.\n`,
  )
  if (restart.length > 0)
    process.stdout.write(`Not yet: ${restart.join(', ')}. For these, restart the device.\n`)
  return 0
}
