import { chmod, lstat, open, readFile, readdir, rm } from 'node:fs/promises'
import { X509Certificate } from 'node:crypto'
import { join } from 'node:path'
import { oneLine, reason } from '../config/errors.ts'
import { syncDirectory, writeFileAtomic } from '../config/files.ts'
import { IssueError } from './acme.ts'
import type { Issuer } from './acme.ts'
import { certificateId } from './ari.ts'
import type { Moment, Plans } from './ari.ts'
import type { Ledger } from './ledger.ts'
import { parseCertificate } from './pem.ts'
import type { Certificate } from './pem.ts'
import type { CertsRecord, Severity } from './record.ts'

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
}

const day = 86_400_000
const mode = 0o640
/** Free space a run makes sure of before it asks for a certificate: several times a chain and key. Bytes. */
const room = 64 * 1024
/** How long the certificate of a name that is wanted no more is kept: a node renamed back the same day needs no new one. */
const grace = day

/**
 * Sees to it that each name has a certificate that is not due, and leaves a record of it for `gatehouse status`.
 *
 * A name whose turn has not come again after a failure is held back. A failure of one name does not keep the others
 * from being tried. A certificate in place is replaced by one that was proven, and by nothing else.
 */
export async function renew ({ names, tls, ledger, plans, issuer, say, now = () => new Date() }: AgentOptions): Promise<CertsRecord> {
  let made: Promise<Issuer> | undefined
  const ask = async (): Promise<Issuer> => await (made ??= issuer())
  let result: CertsRecord['result'] = 'ok'
  let problem: { text: string, severity: Severity, daysLeft: number } | undefined
  let next: Date | undefined
  const certificates: NonNullable<CertsRecord['certificates']> = []
  const later = (outcome: 'waiting' | 'failed', text: string, at: Date | undefined, certificate: Certificate | undefined): { text: string, severity: Severity } => {
    if (outcome === 'failed' || result === 'ok') result = outcome
    const worse = judge(text, certificate, now())
    if (problem === undefined || rank[worse.severity] > rank[problem.severity]) problem = worse
    problem.daysLeft = Math.min(problem.daysLeft, worse.daysLeft)
    if (at !== undefined && (next === undefined || at < next)) next = at
    return worse
  }
  await sweep(tls)
  await removeUnwanted(names, tls, plans, now().getTime(), say)
  for (const name of names) {
    const { certificate, why } = await look(tls, name, say)
    let due = why
    let renewal: Moment | undefined
    if (certificate !== undefined) {
      if (certificate.notBefore.getTime() > now().getTime() + day) {
        // Nobody knows then whether it has expired. The authority's clock was right when it issued it.
        const text = `the clock says ${now().toISOString()}, which is before the certificate for ${name} was issued (${certificate.notBefore.toISOString()}). Check the network: the clock is set from it (timedatectl)`
        later('failed', text, undefined, certificate)
        say(text, 'warning')
        continue
      }
      if (now() >= certificate.notAfter) due = 'the last one has expired'
      else {
        renewal = await plans.moment(certificate, now().getTime(), async (id) => await (await ask()).renewalInfo(id), say)
        if (now() >= renewal.at) due = renewal.from === 'authority' ? 'the moment the authority suggested has come' : 'two thirds of the last one\'s lifetime are over'
      }
      certificates.push({ name, notAfter: certificate.notAfter.toISOString(), renewAt: (renewal?.at ?? certificate.notAfter).toISOString(), from: renewal?.from ?? 'lifetime' })
    }
    if (due === undefined) {
      await ledger.succeeded(name, now().getTime())
      continue
    }
    const held = ledger.held(name, now().getTime())
    if (held !== undefined) {
      later('waiting', held.problem, held.next, certificate)
      continue
    }
    try {
      // Nothing is asked of the authority that could not be kept, or counted.
      await makeRoom(tls, name)
      await ledger.begin(name, now().getTime())
      const counted = async (note: () => Promise<void>): Promise<void> => {
        await note().catch((err: unknown) => { throw new IssueError('unreachable', `the attempt cannot be written down: ${reason(err)}`, 'Check free space and permissions of /var/lib/gatehouse-certs', undefined, { cause: err }) })
      }
      const pem = await (await ask()).issue(name, {
        replaces: certificate === undefined ? undefined : certificateId(new X509Certificate(certificate.chain)),
        say,
        validating: async () => { await counted(async () => { await ledger.validating(name, now().getTime()) }) },
        issuing: async () => { await counted(async () => { await ledger.issuing(name, now().getTime()) }) },
      })
      const fresh = prove(pem, name, now())
      await counted(async () => { await ledger.issued(name, now().getTime(), fresh.notAfter.getTime() - fresh.notBefore.getTime()) })
      await writeFileAtomic(join(tls, `${name}.pem`), pem, mode)
      await ledger.succeeded(name, now().getTime())
      await plans.forget(name)
      certificates.splice(0, certificates.length, ...certificates.filter((one) => one.name !== name))
      say(`certificate for ${name} (${due}): ${fresh.serial} by ${fresh.issuer}, valid until ${fresh.notAfter.toISOString()}`)
    } catch (err) {
      const { kind, retryAfter, cure } = err instanceof IssueError ? err : { kind: 'unreachable' as const, retryAfter: undefined, cure: 'Check free space and permissions' }
      const text = `no certificate for ${name}: ${reason(err instanceof IssueError ? err.message : err)}. ${oneLine(cure)}`
      const at = await ledger.failed(name, kind, text, now().getTime(), retryAfter)
      const judged = later('failed', text, at, certificate)
      say(`${judged.text}. Next attempt at ${at.toISOString()}`, judged.severity)
    }
  }
  const record: CertsRecord = {
    checkedAt: now().toISOString(),
    result,
    names,
    ...(problem === undefined ? {} : { problem: problem.text, severity: problem.severity, daysLeft: problem.daysLeft }),
    ...(next === undefined ? {} : { next: next.toISOString() }),
    certificates,
  }
  await writeRecord(tls, record)
  return record
}

/** Leaves the record of a run for the gateway to read. */
export async function writeRecord (tls: string, record: CertsRecord): Promise<void> {
  await clear(join(tls, 'status.json'))
  await writeFileAtomic(join(tls, 'status.json'), `${JSON.stringify(record)}\n`, mode)
}

const rank: Record<Severity, number> = { info: 0, warning: 1, error: 2 }

/**
 * How bad it is that a due certificate was not replaced. Of a lifetime, a warning at three quarters and an error at five
 * sixths: with 90 days, when 22 and 15 are left.
 */
function judge (text: string, certificate: Certificate | undefined, now: Date): { text: string, severity: Severity, daysLeft: number } {
  if (certificate === undefined) return { text, severity: 'error', daysLeft: 0 }
  const left = certificate.notAfter.getTime() - now.getTime()
  const daysLeft = Math.max(0, Math.floor(left / day))
  if (certificate.notBefore.getTime() > now.getTime() + day) return { text, severity: 'warning', daysLeft }
  const life = certificate.notAfter.getTime() - certificate.notBefore.getTime()
  const when = left <= 0
    ? `The one in use expired at ${certificate.notAfter.toISOString()}`
    : `The one in use is good for ${left < day ? `${(left / 3_600_000).toFixed(1)} hours` : `${daysLeft} ${daysLeft === 1 ? 'day' : 'days'}`} more`
  return { text: `${text.replace(/\.$/, '')}. ${when}`, severity: left <= life / 6 ? 'error' : left <= life / 4 ? 'warning' : 'info', daysLeft }
}

/** Proves that what the authority sent is fit to replace what is in place. */
function prove (pem: string, name: string, now: Date): Certificate {
  let certificate: Certificate
  try {
    certificate = parseCertificate(pem, name)
  } catch (err) {
    throw new IssueError('refused', `what the authority sent is not used: ${reason(err)}`, 'The one before stays in use', undefined, { cause: err })
  }
  const { notBefore, notAfter } = certificate
  // Authorities and clocks differ by minutes; by a day it is a mistake of one of them.
  if (notAfter <= now || notBefore.getTime() > now.getTime() + day) {
    throw new IssueError('refused', `what the authority sent is not used: it is valid from ${notBefore.toISOString()} to ${notAfter.toISOString()}, and now is ${now.toISOString()}`, 'Check the clock (timedatectl)')
  }
  return certificate
}

/** The certificate in place; why there is none that is usable, otherwise. */
async function look (tls: string, name: string, say: AgentOptions['say']): Promise<{ certificate?: Certificate, why?: string }> {
  const path = join(tls, `${name}.pem`)
  try {
    const stat = await lstat(path)
    if (!stat.isFile()) return { why: 'what is in its place is no file' }
    const certificate = parseCertificate(await readFile(path, 'utf8'), name)
    if ((stat.mode & 0o7777) !== mode) {
      await chmod(path, mode)
      say(`${path} had mode ${(stat.mode & 0o7777).toString(8)} and has ${mode.toString(8)} again. Find out what changed it`, 'warning')
    }
    return { certificate }
  } catch (err) {
    return { why: (err as NodeJS.ErrnoException).code === 'ENOENT' ? 'the first' : `the one on disk is not usable: ${reason(err)}` }
  }
}

/** Makes sure that a certificate can be kept: that there is space, permission and nothing in the way. */
async function makeRoom (tls: string, name: string): Promise<void> {
  const probe = join(tls, `.${name}.room.tmp`)
  try {
    await clear(join(tls, `${name}.pem`))
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
    throw new IssueError('unreachable', `it could not be kept in ${tls}: ${reason(err)}`, 'Check free space and permissions (df, ls -l)', undefined, { cause: err })
  }
}

/** Removes what is no regular file from where one is to be written: a rename does not replace a directory. */
async function clear (path: string): Promise<void> {
  const stat = await lstat(path).catch(() => undefined)
  if (stat !== undefined && !stat.isFile()) await rm(path, { recursive: true })
}

/** Removes temporary files a power cut left behind in a directory: they may hold a key. */
export async function sweep (directory: string): Promise<void> {
  for (const file of await readdir(directory)) {
    if (/^\..*\.tmp$/.test(file)) await rm(join(directory, file), { recursive: true, force: true })
  }
}

/** Removes certificates, and with them keys, of names that have been wanted no more for a while. */
async function removeUnwanted (names: string[], tls: string, plans: Plans, now: number, say: AgentOptions['say']): Promise<void> {
  const there = (await readdir(tls)).filter((file) => file.endsWith('.pem') && !file.startsWith('.')).map((file) => file.slice(0, -'.pem'.length))
  const away = await plans.away(there.filter((name) => !names.includes(name)), now)
  let removed = false
  for (const [name, time] of Object.entries(away)) {
    if (time < grace) continue
    await rm(join(tls, `${name}.pem`), { recursive: true, force: true })
    await plans.forget(name)
    removed = true
    say(`certificate for ${name} removed: the node has not had that name for a day`)
  }
  if (removed) await syncDirectory(tls)
}
