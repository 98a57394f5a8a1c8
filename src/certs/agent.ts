import { chmod, lstat, open, readFile, readdir, rm } from 'node:fs/promises'
import { X509Certificate } from 'node:crypto'
import { join } from 'node:path'
import { checkClock, makeSpace } from '../base/cures.ts'
import { oneLine, reason } from '../base/errors.ts'
import type { GatehouseError } from '../base/errors.ts'
import { syncDirectory, writeFileAtomic } from '../base/files.ts'
import type { Issuer } from './acme.ts'
import { certificateId } from './ari.ts'
import type { Moment, Plans } from './ari.ts'
import { isFailureCode, IssueError } from './failure.ts'
import type { FailureCode } from './failure.ts'
import type { Ledger } from './ledger.ts'
import { certificateFile, certificateName, parseCertificate, renewAt } from './pem.ts'
import type { Certificate } from './pem.ts'
import { History, readRecord, recordFile, urgency } from './record.ts'
import type { CertsRecord, Severity } from './record.ts'
import { day } from '../base/time.ts'

/** What {@link renew} works with. */
export interface AgentOptions {
  /** Names to have certificates for. */
  names: string[]
  /** Directory of the certificates. */
  tls: string
  ledger: Ledger
  plans: Plans
  /** Made only when there is something to ask. */
  issuer: () => Promise<Issuer>
  /** One line at a time; severity `info` when not given. */
  say: (line: string, severity?: Severity) => void
  now?: () => Date
  /** The last moment an authority confirmed; undefined when none has yet. */
  goodTime?: () => Date | undefined
  /** What else the record is to say, asked at the end. Default: nothing. */
  more?: () => Pick<CertsRecord, 'records' | 'authority' | 'kept'>
}

const mode = 0o640
/**
 * Free space a run makes sure of before it asks for a certificate: several times a chain and key.
 * Bytes.
 */
const room = 64 * 1024
/**
 * How long the certificate of a name that is wanted no more is kept: a node renamed back the same
 * day needs no new one.
 */
const grace = day

/**
 * Sees to it that each name has a certificate that is not due, and leaves a record of it for
 * `gatehouse status`.
 *
 * A name whose turn has not come again after a failure is held back. A failure of one name does not
 * keep the others from being tried. A certificate in place is replaced by one that was proven, and
 * by nothing else.
 */
export async function renew({
  names,
  tls,
  ledger,
  plans,
  issuer,
  say,
  now = () => new Date(),
  goodTime = () => undefined,
  more = () => ({}),
}: AgentOptions): Promise<CertsRecord> {
  let made: Promise<Issuer> | undefined
  const ask = async (): Promise<Issuer> => await (made ??= issuer())
  let result: CertsRecord['result'] = 'ok'
  let problem: Judged | undefined
  let next: Date | undefined
  const certificates: NonNullable<CertsRecord['certificates']> = []
  const history = new History(await readRecord(tls))
  const later = (
    outcome: 'waiting' | 'failed',
    code: FailureCode,
    text: string,
    at: Date | undefined,
    certificate: Certificate | undefined,
  ): Judged => {
    if (outcome === 'failed' || result === 'ok') result = outcome
    if (outcome === 'failed') history.failed(code)
    const worse = judge(code, text, certificate, now())
    if (problem === undefined || rank[worse.severity] > rank[problem.severity])
      problem = { ...worse, daysLeft: Math.min(worse.daysLeft, problem?.daysLeft ?? Infinity) }
    problem.daysLeft = Math.min(problem.daysLeft, worse.daysLeft)
    if (at !== undefined && (next === undefined || at < next)) next = at
    return worse
  }
  await sweep(tls)
  await removeUnwanted(names, tls, plans, now().getTime(), say)
  for (const name of names) {
    const { certificate, why, found } = await look(tls, name)
    if (found?.code === 'GH_CERTS_TAMPERED') {
      history.note(found.code, found.message, now())
      say(found.message, 'warning')
    }
    let due = why
    let renewal: Moment | undefined
    if (certificate !== undefined) {
      if (certificate.notBefore.getTime() > now().getTime() + day) {
        // Nobody knows then whether it has expired. The authority's clock was right when it issued
        // it.
        const text =
          `the clock says ${now().toISOString()}, which is before the certificate for ${name} ` +
          `was issued (${certificate.notBefore.toISOString()}). ${checkClock}`
        later('failed', 'GH_CERTS_CLOCK', text, undefined, certificate)
        say(text, 'warning')
        continue
      }
      if (now() >= certificate.notAfter) due = 'the last one has expired'
      else {
        renewal = await plans.moment(
          certificate,
          now().getTime(),
          async (id) => await (await ask()).renewalInfo(id),
          say,
        )
        if (now() >= renewal.at)
          due =
            renewal.from === 'authority'
              ? 'the moment the authority suggested has come'
              : "two thirds of the last one's lifetime are over"
      }
      certificates.push({
        name,
        notAfter: certificate.notAfter.toISOString(),
        renewAt: (renewal?.at ?? certificate.notAfter).toISOString(),
        from: renewal?.from ?? 'lifetime',
      })
    }
    if (due === undefined) {
      await ledger.succeeded(name, now().getTime())
      continue
    }
    const held = ledger.held(name, now().getTime())
    if (held !== undefined) {
      later('waiting', held.code, held.problem, held.next, certificate)
      continue
    }
    try {
      const counted = async (note: () => Promise<void>): Promise<void> => {
        await note().catch((err: unknown) => {
          throw new IssueError(
            'GH_CERTS_DISK',
            `the attempt cannot be written down: ${reason(err)}`,
            makeSpace,
            { cause: err },
          )
        })
      }
      // Nothing is asked of the authority that could not be kept, or counted.
      await makeRoom(tls, name)
      let cut = false
      await counted(async () => {
        cut = await ledger.begin(name, now().getTime())
      })
      if (cut) history.note('GH_CERTS_INTERRUPTED', `an attempt for ${name} was cut short`, now())
      if (found?.code === 'GH_CERTS_MISMATCH') history.note(found.code, found.message, now())
      history.totals.attempts++
      history.totals.lastAttempt = now().toISOString()
      const pem = await (
        await ask()
      ).issue(name, {
        replaces:
          certificate === undefined
            ? undefined
            : certificateId(new X509Certificate(certificate.chain)),
        say,
        validating: async () => {
          await counted(async () => {
            await ledger.validating(name, now().getTime())
          })
        },
        issuing: async () => {
          await counted(async () => {
            await ledger.issuing(name, now().getTime())
          })
        },
      })
      const fresh = prove(pem, name, now())
      await counted(async () => {
        await ledger.issued(
          name,
          now().getTime(),
          fresh.notAfter.getTime() - fresh.notBefore.getTime(),
        )
      })
      await writeFileAtomic(join(tls, certificateFile(name)), pem, mode)
      await ledger.succeeded(name, now().getTime())
      await plans.forget(name)
      history.totals.issued++
      history.totals.lastSuccess = now().toISOString()
      certificates.splice(
        0,
        certificates.length,
        ...certificates.filter((one) => one.name !== name),
        {
          name,
          notAfter: fresh.notAfter.toISOString(),
          renewAt: renewAt(fresh).toISOString(),
          from: 'lifetime',
        },
      )
      say(
        `certificate for ${name} (${due}): ${fresh.serial} by ${fresh.issuer}, valid until ` +
          `${fresh.notAfter.toISOString()}`,
      )
    } catch (err) {
      const { code, retryAfter, cure } =
        err instanceof IssueError
          ? err
          : {
              code: 'GH_CERTS_DISK' as const,
              retryAfter: undefined,
              cure: makeSpace,
            }
      const text =
        `no certificate for ${name}: ${reason(err instanceof IssueError ? err.message : err)}. ` +
        `${oneLine(cure)}`
      // Where it cannot be written, nothing was asked for either: what holds is the wait in memory,
      // for as long as this run goes on.
      const at = await ledger
        .failed(name, code, text, now().getTime(), retryAfter)
        .catch(() => ledger.held(name, now().getTime())?.next ?? new Date(now().getTime() + 60_000))
      const judged = later('failed', code, text, at, certificate)
      say(`${judged.text}. Next attempt at ${at.toISOString()}`, judged.severity)
    }
  }
  const record: CertsRecord = {
    checkedAt: now().toISOString(),
    result,
    names,
    ...(problem === undefined
      ? {}
      : {
          problem: problem.text,
          code: problem.code,
          severity: problem.severity,
          daysLeft: problem.daysLeft,
        }),
    ...(next === undefined ? {} : { next: next.toISOString() }),
    certificates,
    ...more(),
    ...history.parts(now()),
    ...confirmed(goodTime()),
  }
  await writeRecord(tls, record)
  return record
}

/**
 * Leaves the record of a run for the gateway to read. On a full disk it takes the place of the old
 * one byte by byte: a block that is there can be written.
 */
export async function writeRecord(tls: string, record: CertsRecord): Promise<void> {
  const path = join(tls, recordFile)
  const text = `${JSON.stringify(record)}\n`
  await clear(path)
  try {
    await writeFileAtomic(path, text, mode)
  } catch (err) {
    if ((err as NodeJS.ErrnoException).code !== 'ENOSPC') throw err
    const file = await open(path, 'r+').catch(() => {
      throw err
    })
    try {
      await file.write(text, 0)
      await file.truncate(Buffer.byteLength(text))
    } finally {
      await file.close()
    }
  }
}

/**
 * Leaves the record of a run that never got to look at the names. What is in place may run out
 * meanwhile, which is what decides how loud it is.
 */
export async function writeFailure(
  tls: string,
  error: GatehouseError,
  now: Date,
  goodTime: Date | undefined,
): Promise<CertsRecord> {
  const before = await readRecord(tls)
  const history = new History(before)
  const code = isFailureCode(error.code) ? error.code : 'GH_CERTS'
  history.failed(code)
  const there = await Promise.all(
    (await readdir(tls).catch(() => []))
      .flatMap((file) => certificateName(file) ?? [])
      .map(
        async (name) =>
          await readFile(join(tls, certificateFile(name)), 'utf8')
            .then((text) => parseCertificate(text, name))
            .catch(() => undefined),
      ),
  )
  const judged = there
    .filter((one) => one !== undefined)
    .map((one) => judge(code, error.line, one, now))
    .toSorted((a, b) => a.daysLeft - b.daysLeft)[0]
  const record: CertsRecord = {
    checkedAt: now.toISOString(),
    result: 'failed',
    names: before?.names ?? [],
    problem: judged?.text ?? error.line,
    code,
    // A run that did not get as far as looking is never nothing: whatever it is, it does not pass
    // unless someone sees to it.
    severity: judged?.severity === 'error' ? 'error' : 'warning',
    ...(judged === undefined ? {} : { daysLeft: judged.daysLeft }),
    ...(before?.certificates === undefined ? {} : { certificates: before.certificates }),
    ...(before?.records === undefined ? {} : { records: before.records }),
    ...(before?.authority === undefined ? {} : { authority: before.authority }),
    ...(before?.kept === undefined ? {} : { kept: before.kept }),
    ...history.parts(now),
    ...confirmed(goodTime),
  }
  await writeRecord(tls, record)
  return record
}

function confirmed(time: Date | undefined): Pick<CertsRecord, 'goodTime'> {
  return time === undefined ? {} : { goodTime: time.toISOString() }
}

const rank: Record<Severity, number> = { info: 0, warning: 1, error: 2 }

interface Judged {
  code: FailureCode
  text: string
  severity: Severity
  daysLeft: number
}

/** How bad it is that a due certificate was not replaced. */
function judge(
  code: FailureCode,
  text: string,
  certificate: Certificate | undefined,
  now: Date,
): Judged {
  if (certificate === undefined) return { code, text, severity: 'error', daysLeft: 0 }
  const { severity, daysLeft } = urgency(certificate, now)
  if (certificate.notBefore.getTime() > now.getTime() + day)
    return { code, text, severity: 'warning', daysLeft }
  const left = certificate.notAfter.getTime() - now.getTime()
  const when =
    left <= 0
      ? `The one in use expired at ${certificate.notAfter.toISOString()}`
      : 'The one in use is good for ' +
        `${left < day ? `${(left / 3_600_000).toFixed(1)} hours` : `${daysLeft} ${daysLeft === 1 ? 'day' : 'days'}`} ` +
        'more'
  return { code, text: `${text.replace(/\.$/, '')}. ${when}`, severity, daysLeft }
}

/** Proves that what the authority sent is fit to replace what is in place. */
function prove(pem: string, name: string, now: Date): Certificate {
  let certificate: Certificate
  try {
    certificate = parseCertificate(pem, name)
  } catch (err) {
    throw new IssueError(
      'GH_CERTS_UNFIT',
      `what the authority sent is not used: ${reason(err)}`,
      'The one before stays in use',
      { cause: err },
    )
  }
  const { notBefore, notAfter } = certificate
  // Authorities and clocks differ by minutes; by a day it is a mistake of one of them.
  if (notAfter <= now || notBefore.getTime() > now.getTime() + day) {
    throw new IssueError(
      'GH_CERTS_UNFIT',
      `what the authority sent is not used: it is valid from ${notBefore.toISOString()} to ` +
        `${notAfter.toISOString()}, and now is ${now.toISOString()}`,
      checkClock,
    )
  }
  return certificate
}

/**
 * The certificate in place; why there is none that is usable, otherwise; and what is not as this
 * agent left it.
 */
async function look(
  tls: string,
  name: string,
): Promise<{
  certificate?: Certificate
  why?: string
  found?: { code: FailureCode; message: string }
}> {
  const path = join(tls, certificateFile(name))
  try {
    const stat = await lstat(path)
    if (!stat.isFile())
      return {
        why: 'what is in its place is not a file',
        found: {
          code: 'GH_CERTS_TAMPERED',
          message: `${path} is not a file, and makes room for one. Find out what put it there`,
        },
      }
    const certificate = parseCertificate(await readFile(path, 'utf8'), name)
    if ((stat.mode & 0o7777) === mode) return { certificate }
    await chmod(path, mode)
    return {
      certificate,
      found: {
        code: 'GH_CERTS_TAMPERED',
        message:
          `${path} had mode ${(stat.mode & 0o7777).toString(8)} and has ${mode.toString(8)} ` +
          'again. Find out what changed it',
      },
    }
  } catch (err) {
    if ((err as NodeJS.ErrnoException).code === 'ENOENT') return { why: 'the first' }
    const why = `the one on disk is not usable: ${reason(err)}`
    return {
      why,
      found: {
        code: 'GH_CERTS_MISMATCH',
        message: `the certificate for ${name} on disk was not usable: ${reason(err)}. It was replaced`,
      },
    }
  }
}

/**
 * Makes sure that a certificate can be kept: that there is space, permission and nothing in the
 * way.
 */
async function makeRoom(tls: string, name: string): Promise<void> {
  const probe = join(tls, `.${certificateFile(name)}.room.tmp`)
  try {
    await clear(join(tls, certificateFile(name)))
    await rm(probe, { recursive: true, force: true })
    const file = await open(probe, 'wx', 0o600)
    try {
      await file.writeFile(Buffer.alloc(room))
      await file.sync()
    } finally {
      await file.close()
      await rm(probe, { force: true })
    }
  } catch (err) {
    throw new IssueError(
      'GH_CERTS_DISK',
      `it could not be kept in ${tls}: ${reason(err)}`,
      makeSpace,
      { cause: err },
    )
  }
}

/**
 * Removes what is no regular file from where one is to be written: a rename does not replace a
 * directory.
 */
async function clear(path: string): Promise<void> {
  const stat = await lstat(path).catch(() => undefined)
  if (stat !== undefined && !stat.isFile()) await rm(path, { recursive: true })
}

/** Removes temporary files a power cut left behind in a directory: they may hold a key. */
export async function sweep(directory: string): Promise<void> {
  for (const file of await readdir(directory)) {
    if (/^\..*\.tmp$/.test(file)) await rm(join(directory, file), { recursive: true, force: true })
  }
}

/** Removes certificates, and with them keys, of names that have been wanted no more for a while. */
export async function removeUnwanted(
  names: string[],
  tls: string,
  plans: Plans,
  now: number,
  say: AgentOptions['say'],
): Promise<void> {
  const there = (await readdir(tls)).flatMap((file) => certificateName(file) ?? [])
  const away = await plans.away(
    there.filter((name) => !names.includes(name)),
    now,
  )
  let removed = false
  for (const [name, time] of Object.entries(away)) {
    if (time < grace) continue
    await rm(join(tls, certificateFile(name)), { recursive: true, force: true })
    await plans.forget(name)
    removed = true
    say(`certificate for ${name} removed: the node has not had that name for a day`)
  }
  if (removed) await syncDirectory(tls)
}
