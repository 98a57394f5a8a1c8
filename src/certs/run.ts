import { mkdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { isDeepStrictEqual } from 'node:util'
import { call } from '../base/control-client.ts'
import { makeSpace, restartDevice, seeLogs } from '../base/cures.ts'
import { GatehouseError, reason } from '../base/errors.ts'
import { hour } from '../base/time.ts'
import type { Config } from '../config/config.ts'
import { loadConfig, readBindingKey, readCertificateSecret } from '../config/load.ts'
import type { Paths } from '../base/paths.ts'
import { createIssuer } from './acme.ts'
import type { Issuer } from './acme.ts'
import { removeUnwanted, renew, sweep, writeFailure, writeRecord } from './agent.ts'
import type { AgentOptions } from './agent.ts'
import { Plans } from './ari.ts'
import { GoodTime } from './clock.ts'
import { IssueError } from './failure.ts'
import { lock, ownsState } from './lock.ts'
import type { FailureCode } from './failure.ts'
import { Ledger } from './ledger.ts'
import { chainFile } from './chain.ts'
import { installFiles } from './install.ts'
import { ownProver, tailnetProver } from './proof.ts'
import type { Prover } from './proof.ts'
import type { Severity } from './record.ts'
import { Secrets, credentials, readHanded } from './secrets.ts'
import type { SecretKey } from './secrets.ts'

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
        : new GatehouseError('GH_CERTS', `${state} cannot be used: ${reason(err)}`, restartDevice, {
            cause: err,
          })
    process.stderr.write(`gatehouse certs: ${error.line}\n`)
    return 1
  }
  try {
    goodTime = await GoodTime.open(state)
    goodTime.check(now())
    const config = await loadConfig(paths.config)
    await sweep(state)
    return await look({ paths, config, state, env, now, say, goodTime })
  } catch (err) {
    if (err instanceof GatehouseError) return await fail(err)
    const code = /^(?:ENOSPC|EDQUOT|EROFS|EACCES|EPERM|EIO)$/.test(
      (err as NodeJS.ErrnoException).code ?? '',
    )
      ? 'GH_CERTS_DISK'
      : 'GH_CERTS'
    return await fail(
      new GatehouseError(code, `certificates cannot be looked after: ${reason(err)}`, makeSpace, {
        cause: err,
      }),
    )
  } finally {
    await unlock()
  }
}

interface Run {
  paths: Paths
  config: Config
  state: string
  env: NodeJS.ProcessEnv
  now: () => Date
  say: (line: string, severity?: Severity) => void
  goodTime: GoodTime
}

/** Looks after certificates as [certificates] mode says; as {@link runCerts}. */
async function look(run: Run): Promise<number> {
  const { paths, config, env } = run
  const { mode, name } = config.certificates
  if (mode === 'files') return await install(run)
  if (mode === 'acme') return await lookAfter(run, name)
  const wait = seconds(env.GATEHOUSE_CERTS_WAIT, 300)
  for (let rounds = 0; ; rounds++) {
    const names = await askNames(paths.certs, wait)
    const code = await lookAfter(run, names)
    // A name that came meanwhile would wait for the timer: systemd does not watch the gateway's names
    // while this runs (path_enter_running() in src/core/path.c).
    const { valid } = await namesNow(paths.certs).catch(() => ({ valid: names }))
    if (code !== 0 || rounds === 4 || valid.length === 0 || isDeepStrictEqual(valid, names))
      return code
  }
}

/** Looks after the certificates of these names; as {@link runCerts}. */
async function lookAfter(run: Run, names: string[]): Promise<number> {
  const { paths, config, state, now, say, goodTime } = run
  const { mode } = config.certificates
  if (mode === 'self') {
    // Loaded where it is used alone: it is large.
    const { ownAuthority } = await import('./self.ts')
    const { authority, issuer } = await ownAuthority({ names, state, tls: paths.tls, now, say })
    return await goOn(run, names, 'self', async () => issuer, {
      more: () => ({ authority }),
    })
  }
  const { directory, caFile, email, profile, eabKeyId } = config.certificates
  const hmacKey = await readBindingKey(paths.credentials)
  const binding =
    eabKeyId === undefined || hmacKey === undefined ? undefined : { keyId: eabKeyId, hmacKey }
  const authorities =
    caFile === undefined ? undefined : await readAuthorities(join(paths.config, caFile))
  const own = mode === 'acme' ? await proofOf(run, authorities) : undefined
  const prover =
    own?.prover ??
    tailnetProver(async (record, value) => {
      await publish(paths.certs, record, value)
    })
  let issuer: ReturnType<typeof createIssuer> | undefined
  return await goOn(
    run,
    names,
    directory,
    async () =>
      await (issuer ??= createIssuer({
        directory,
        authorities,
        email,
        binding,
        profile,
        state,
        now,
        heard: async (told) => {
          await goodTime.confirm(now(), told)
        },
        prover,
      })),
    own === undefined ? {} : { more: own.more, tryOut: own.tryOut },
  )
}

/** How names of one's own are proven, and what the record says of it. */
async function proofOf(
  { paths, config: { certificates }, state, say }: Run,
  authorities: string | undefined,
): Promise<{
  prover: Prover
  more: NonNullable<AgentOptions['more']>
  tryOut: () => Promise<void>
}> {
  const secrets = await Secrets.open(state)
  const handed = await readHanded(paths)
  const [tsigKey, acmeDnsPassword] = await Promise.all([
    readCertificateSecret(paths.credentials, credentials.tsig_key),
    readCertificateSecret(paths.credentials, credentials.acme_dns_password),
  ])
  const prover = await ownProver({
    settings: certificates,
    authorities,
    handed: { tsigKey, acmeDnsPassword },
    secrets,
    state,
    say,
  })
  const given = [
    { key: 'tsig_key', of: certificates.tsigName, value: tsigKey },
    { key: 'acme_dns_password', of: certificates.acmeDnsUser, value: acmeDnsPassword },
  ] as const
  const kept = (): SecretKey[] =>
    given.flatMap(({ key, of, value }) =>
      of !== undefined && value !== undefined && secrets.has(key, of, value) ? [key] : [],
    )
  return {
    prover,
    more: () => ({
      records: prover.records(),
      ...(handed === undefined ? {} : { kept: { mark: handed.mark, keys: kept() } }),
    }),
    tryOut: async () => {
      const waiting = given.some(({ value }) => value !== undefined) && kept().length === 0
      if (waiting) await prover.tryOut(certificates.name[0]!.replace(/^\*\./, ''))
    },
  }
}

/** mode = "files". */
async function install({ paths, config, state, now, say, goodTime }: Run): Promise<number> {
  const handed = await readHanded(paths)
  const key = await readCertificateSecret(paths.credentials, credentials.key_file)
  const chain = await readFile(join(paths.config, chainFile), 'utf8').catch((err: unknown) => {
    throw new GatehouseError(
      'GH_CERTS_FILES',
      `the certificate that provisioning took from the card cannot be read: ${reason(err)}`,
      'Restart the device',
      { cause: err },
    )
  })
  const record = await installFiles({
    names: config.certificates.name,
    chain,
    key,
    tls: paths.tls,
    say,
    now: now(),
    goodTime: goodTime.time,
  })
  const plans = await Plans.open(state, 'files')
  await removeUnwanted(config.certificates.name, paths.tls, plans, now().getTime(), say)
  if (handed !== undefined && key !== undefined)
    await writeRecord(paths.tls, { ...record, kept: { mark: handed.mark, keys: ['key_file'] } })
  return 0
}

/** Renews what is due, and tries again as long as a run may. */
async function goOn(
  { paths, state, env, now, say, goodTime }: Run,
  names: string[],
  directory: string,
  issuer: () => Promise<Issuer>,
  { more, tryOut }: { more?: AgentOptions['more']; tryOut?: () => Promise<void> },
): Promise<number> {
  const ledger = await Ledger.open(state, directory)
  const plans = await Plans.open(state, directory)
  const end = Date.now() + seconds(env.GATEHOUSE_CERTS_PATIENCE, 600)
  for (;;) {
    const record = await renew({
      names,
      tls: paths.tls,
      ledger,
      plans,
      now,
      say,
      goodTime: () => goodTime.time,
      issuer,
      ...(more === undefined ? {} : { more }),
    })
    if (record.result === 'ok') {
      await tryOut?.().then(
        async () => {
          if (more !== undefined) await writeRecord(paths.tls, { ...record, ...more() })
        },
        async (err: unknown) => {
          // Nothing is due: there is time, and somebody has just written it.
          const { code, message, cure } =
            err instanceof IssueError ? err : new IssueError('GH_CERTS', reason(err), 'Wait')
          const problem = `${message}. ${cure}`
          say(problem, 'warning')
          const next = new Date(now().getTime() + hour).toISOString()
          const worse = { result: 'waiting', problem, code, severity: 'warning', next } as const
          await writeRecord(paths.tls, { ...record, ...more?.(), ...worse })
        },
      )
      return 0
    }
    const wait = record.next === undefined ? Infinity : Date.parse(record.next) - now().getTime()
    if (Date.now() + wait > end) {
      if (record.result === 'waiting')
        say(`nothing may be tried before ${record.next}: ${record.problem}`)
      return record.result === 'waiting' ? 0 : 1
    }
    await sleep(Math.max(0, wait) + 100)
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
      restartDevice,
      { cause: err },
    )
  }
}

/** The node's names as the gateway says them now, and what it says where it has none. */
async function namesNow(
  socket: string,
): Promise<{ valid: string[]; told?: unknown; why?: unknown }> {
  const { status, body } = await call(socket, 'GET', '/v1/names')
  const { names, problem, code } = (body ?? {}) as {
    names?: unknown
    problem?: unknown
    code?: unknown
  }
  if (status !== 200 || !Array.isArray(names)) throw new Error(`it answers ${status}`)
  // They become file names.
  const valid = names.filter(
    (name): name is string =>
      typeof name === 'string' && /^(?!.*\.\.)(?:\*\.)?[a-z0-9][a-z0-9.-]*$/.test(name),
  )
  return { valid, told: problem, why: code }
}

/** Asks the gateway for the node's names until it has some. */
async function askNames(socket: string, patience: number): Promise<string[]> {
  const end = Date.now() + patience
  for (;;) {
    let problem: string
    let code: FailureCode = 'GH_CERTS_NAMES'
    try {
      const { valid, told, why } = await namesNow(socket)
      if (valid.length > 0) return valid
      problem = typeof told === 'string' ? told : 'the node has not joined its tailnet yet'
      if (why === 'GH_HTTPS_DISABLED' || why === 'GH_HTTPS_NAMES') code = 'GH_CERTS_HTTPS_DISABLED'
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
      seeLogs('gatehouse'),
      { cause: err },
    )
  }
  if (answer.status === 204) return
  const error = (answer.body as { error?: { message?: string; cure?: string } } | undefined)?.error
  throw new IssueError(
    'GH_CERTS_CHALLENGE',
    error?.message ?? `the gateway answers ${answer.status} to the challenge`,
    error?.cure ?? seeLogs('gatehouse'),
  )
}
