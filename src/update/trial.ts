import { setTimeout as sleep } from 'node:timers/promises'
import { call, unreachable } from '../base/control-client.ts'
import type { Paths } from '../base/paths.ts'
import { nameEntry } from './back.ts'
import { readUpdateRecord, runningVersion, updatePaths, writeUpdateRecord } from './record.ts'

/**
 * `gatehouse trial`, on the first boot of an update: waits until a peer's request would be served.
 * 0: it is, and from now on the boot loader takes this version. 1: it was not in time; the reason
 * is kept for the version before, which the next start takes, as it would have in any case.
 *
 * Nothing here asks whether the boot loader has counted: U-Boot before 2025.04 cannot rename files,
 * and systemd-boot then says nothing of a trial to the system (LoaderBootCountPath).
 *
 * GATEHOUSE_TRIAL_SECONDS, default 900: a small board, a slow network, a first certificate.
 */
export async function runTrial(
  paths: Paths,
  env: NodeJS.ProcessEnv = process.env,
): Promise<number> {
  const where = updatePaths(env)
  const running = await runningVersion(where)
  const deadline = Date.now() + Number(env.GATEHOUSE_TRIAL_SECONDS ?? 900) * 1000
  let last = 'the gateway did not start'
  while (Date.now() < deadline) {
    try {
      const answer = await call(paths.admin, 'GET', '/readyz')
      if (answer.status === 200) {
        await stays(running, paths.boot, where)
        return 0
      }
      last =
        (answer.body as { error?: { message: string } }).error?.message ??
        `it answers ${answer.status}`
    } catch (err) {
      last = unreachable(err, paths.admin).message
    }
    await sleep(3_000)
  }
  const record = await readUpdateRecord(where)
  if (record !== undefined && record.to === running)
    await writeUpdateRecord(where, { ...record, failure: `it did not serve in time: ${last}` })
  process.stderr.write(
    `gatehouse: this version did not serve in time (${last}), so the one before is started again\n`,
  )
  // One that an older version installed has tries left.
  await nameEntry(paths.boot, running, '+0')
  return 1
}

async function stays(
  running: string,
  boot: string,
  where: ReturnType<typeof updatePaths>,
): Promise<void> {
  await nameEntry(boot, running, '')
  const record = await readUpdateRecord(where)
  if (record?.to === running) await writeUpdateRecord(where, { ...record, good: true })
  process.stdout.write(`${running} has served: it stays\n`)
}
