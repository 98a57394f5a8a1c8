import { execFile } from 'node:child_process'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { withCard } from '../base/card.ts'
import { call, unreachable } from '../base/control-client.ts'
import type { Paths } from '../base/paths.ts'
import { readUpdateRecord, runningVersion, updatePaths, writeUpdateRecord } from './record.ts'

const bless = '/usr/lib/systemd/systemd-bless-boot'

/**
 * `gatehouse trial`, on the first boots of an update: waits until a peer's request would be served.
 * 0: it is, and boot-complete.target follows. 1: it was not in time; the reason is kept for the
 * version before, and the boot entry marked as bad here, since not every firmware lets the boot
 * loader count (U-Boot before 2025.04 cannot rename files).
 *
 * GATEHOUSE_TRIAL_SECONDS, default 900: a small board, a slow network, a first certificate.
 */
export async function runTrial(
  paths: Paths,
  env: NodeJS.ProcessEnv = process.env,
): Promise<number> {
  const where = updatePaths(env)
  const deadline = Date.now() + Number(env.GATEHOUSE_TRIAL_SECONDS ?? 900) * 1000
  let last = 'the gateway did not start'
  while (Date.now() < deadline) {
    try {
      const answer = await call(paths.admin, 'GET', '/readyz')
      if (answer.status === 200) return 0
      last =
        (answer.body as { error?: { message: string } }).error?.message ??
        `it answers ${answer.status}`
    } catch (err) {
      last = unreachable(err, paths.admin).message
    }
    await sleep(3_000)
  }
  const record = await readUpdateRecord(where)
  if (record !== undefined && record.to === (await runningVersion(where)))
    await writeUpdateRecord(where, { ...record, failure: `it did not serve in time: ${last}` })
  process.stderr.write(
    `gatehouse: this version did not serve in time (${last}), so the one before is started again\n`,
  )
  await withCard(paths.boot, async () => {
    await promisify(execFile)(bless, ['bad'])
  })
  return 1
}

/**
 * `gatehouse trial-good`, in place of systemd-bless-boot.service's own command, which could not
 * write to a read-only /efi.
 */
export async function runTrialGood(
  paths: Paths,
  env: NodeJS.ProcessEnv = process.env,
): Promise<number> {
  const where = updatePaths(env)
  await withCard(paths.boot, async () => {
    await promisify(execFile)(bless, ['good'])
  })
  const record = await readUpdateRecord(where)
  const running = await runningVersion(where)
  if (record?.to === running) await writeUpdateRecord(where, { ...record, good: true })
  process.stdout.write(`${running} has served: it stays\n`)
  return 0
}
