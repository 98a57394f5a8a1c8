import { mkdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { call } from '../base/control-client.ts'
import { GatehouseError, reason } from '../base/errors.ts'
import { loadConfig, readBindingKey } from '../config/load.ts'
import type { Paths } from '../base/paths.ts'
import { createIssuer } from './acme.ts'
import { renew, sweep, writeFailure } from './agent.ts'
import { Plans } from './ari.ts'
import { GoodTime } from './clock.ts'
import { IssueError } from './failure.ts'
import { lock, ownsState } from './lock.ts'
import type { FailureCode } from './failure.ts'
import { Ledger } from './ledger.ts'
import type { Severity } from './record.ts'

/**
 * `gatehouse certs`: gets or renews what is due, once. A failure that may be tried again soon is
 * tried again in the same run.
 *
 * @param env GATEHOUSE_CERTS_WAIT: seconds to wait for the node to have names, default 300;
 *   GATEHOUSE_CERTS_PATIENCE: seconds a run may go on trying, default 600
 * @returns 0 when every name has a certificate that is not due, or nothing may be tried yet; 1 on
 *   failure
 */
export async function runCerts(
  paths: Paths,
  env: NodeJS.ProcessEnv = process.env,
  now: () => Date = () => new Date(),
): Promise<number> {
  // The number is syslog's severity, which journald takes off the line and colours it by
  // (sd-daemon(3)).
  const prefix: Record<Severity, string> =
    env.JOURNAL_STREAM === undefined
      ? { info: '', warning: '', error: '' }
      : { info: '', warning: '<4>', error: '<3>' }
  const say = (line: string, severity: Severity = 'info'): void => {
    process.stdout.write(`${prefix[severity]}${line}\n`)
  }
  const fail = async (error: GatehouseError): Promise<number> => {
    process.stderr.write(`gatehouse certs: ${error.line}\n`)
    await writeFailure(paths.tls, error, now(), goodTime?.time).catch(() => {})
    return 1
  }
  const state = paths.state('/var/lib/gatehouse-certs')
  let goodTime: GoodTime | undefined
  let unlock: () => Promise<void>
  try {
    await mkdir(state, { recursive: true, mode: 0o700 })
    await ownsState(state)
    unlock = await lock(state)
  } catch (err) {
    // Not in the record: that is the other run's.
    const error =
      err instanceof GatehouseError
        ? err
        : new GatehouseError(
            'GH_CERTS',
            `${state} cannot be used: ${reason(err)}`,
            'Run systemctl start gatehouse-certs',
            { cause: err },
          )
    process.stderr.write(`gatehouse certs: ${error.line}\n`)
    return 1
  }
  try {
    goodTime = await GoodTime.open(state)
    goodTime.check(now())
    const config = await loadConfig(paths.config)
    const { directory, caFile, email, profile, eabKeyId } = config.certificates
    const hmacKey = await readBindingKey(paths.credentials)
    const binding =
      eabKeyId === undefined || hmacKey === undefined ? undefined : { keyId: eabKeyId, hmacKey }
    const authorities =
      caFile === undefined ? undefined : await readAuthorities(join(paths.config, caFile))
    const names = await askNames(paths.certs, seconds(env.GATEHOUSE_CERTS_WAIT, 300))
    await sweep(state)
    const ledger = await Ledger.open(state, directory)
    const plans = await Plans.open(state, directory)
    const end = Date.now() + seconds(env.GATEHOUSE_CERTS_PATIENCE, 600)
    let issuer: ReturnType<typeof createIssuer> | undefined
    const clock = goodTime
    for (;;) {
      const record = await renew({
        names,
        tls: paths.tls,
        ledger,
        plans,
        now,
        say,
        goodTime: () => clock.time,
        issuer: async () =>
          await (issuer ??= createIssuer({
            directory,
            authorities,
            email,
            binding,
            profile,
            state,
            now,
            heard: async (told) => {
              await clock.confirm(now(), told)
            },
            publish: async (name, value) => {
              await publish(paths.certs, name, value)
            },
          })),
      })
      if (record.result === 'ok') return 0
      const wait = record.next === undefined ? Infinity : Date.parse(record.next) - now().getTime()
      if (Date.now() + wait > end) {
        if (record.result === 'waiting')
          say(`nothing may be tried before ${record.next}: ${record.problem}`)
        return record.result === 'waiting' ? 0 : 1
      }
      await sleep(Math.max(0, wait) + 100)
    }
  } catch (err) {
    if (err instanceof GatehouseError) return await fail(err)
    const code = /^(?:ENOSPC|EDQUOT|EROFS|EACCES|EPERM|EIO)$/.test(
      (err as NodeJS.ErrnoException).code ?? '',
    )
      ? 'GH_CERTS_DISK'
      : 'GH_CERTS'
    return await fail(
      new GatehouseError(
        code,
        `certificates cannot be looked after: ${reason(err)}`,
        `Check free space and permissions of ${paths.tls} and /var/lib/gatehouse-certs`,
        { cause: err },
      ),
    )
  } finally {
    await unlock()
  }
}

function seconds(value: string | undefined, fallback: number): number {
  const number = Number(value ?? fallback)
  return (Number.isFinite(number) && number >= 0 ? number : fallback) * 1000
}

async function readAuthorities(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8')
  } catch (err) {
    throw new GatehouseError(
      'GH_CONFIG_CA_FILE',
      `${path} cannot be read: ${reason(err)}`,
      'Run systemctl restart gatehouse-provision',
      { cause: err },
    )
  }
}

/** Asks the gateway for the node's names until it has some. */
async function askNames(socket: string, patience: number): Promise<string[]> {
  const end = Date.now() + patience
  for (;;) {
    let problem: string
    let code: FailureCode = 'GH_CERTS_NAMES'
    try {
      const { status, body } = await call(socket, 'GET', '/v1/names')
      const {
        names,
        problem: told,
        code: why,
      } = (body ?? {}) as { names?: unknown; problem?: unknown; code?: unknown }
      if (status !== 200 || !Array.isArray(names)) throw new Error(`it answers ${status}`)
      // They become file names.
      const valid = names.filter(
        (name): name is string =>
          typeof name === 'string' && /^(?!.*\.\.)[a-z0-9][a-z0-9.-]*$/.test(name),
      )
      if (valid.length > 0) return valid
      problem = typeof told === 'string' ? told : 'the node has not joined its tailnet yet'
      if (why === 'GH_HTTPS_DISABLED') code = 'GH_CERTS_HTTPS_DISABLED'
    } catch (err) {
      problem = `the gateway cannot be asked: ${reason(err)}`
    }
    if (Date.now() >= end)
      throw new GatehouseError(
        code,
        `there is no name to get a certificate for: ${problem.replace(/\.$/, '')}`,
        'It is tried again by the timer, and as soon as the node has joined',
      )
    await sleep(Math.min(2_000, Math.max(100, end - Date.now())))
  }
}

async function publish(socket: string, name: string, value: string): Promise<void> {
  let answer
  try {
    answer = await call(socket, 'PUT', '/v1/challenge', { name, value }, 60_000)
  } catch (err) {
    throw new IssueError(
      'GH_CERTS_CHALLENGE',
      `the gateway does not publish the challenge: ${reason(err)}`,
      'Look at journalctl -u gatehouse',
      { cause: err },
    )
  }
  if (answer.status === 204) return
  const error = (answer.body as { error?: { message?: string; cure?: string } } | undefined)?.error
  throw new IssueError(
    'GH_CERTS_CHALLENGE',
    error?.message ?? `the gateway answers ${answer.status} to the challenge`,
    error?.cure ?? 'Look at journalctl -u gatehouse',
  )
}
