import { readFile, readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { oneLine, reason } from '../config/errors.ts'
import { writeFileAtomic } from '../config/files.ts'
import { IssueError } from './acme.ts'
import type { Issuer } from './acme.ts'
import type { Ledger } from './ledger.ts'
import { parseCertificate, renewAt } from './pem.ts'
import type { Certificate } from './pem.ts'
import type { CertsRecord } from './record.ts'

/** What {@link renew} works with. */
export interface AgentOptions {
  /** Names to have certificates for. */
  names: string[]
  /** Directory of the certificates. */
  tls: string
  ledger: Ledger
  /** Made only when there is something to get. */
  issuer: () => Promise<Issuer>
  /** One line at a time. */
  say: (line: string) => void
  now?: () => Date
}

/**
 * Sees to it that each name has a certificate that is not due, and leaves a record of it for `gatehouse status`.
 *
 * A name whose turn has not come again after a failure is held back. A failure of one name does not keep the others
 * from being tried.
 */
export async function renew ({ names, tls, ledger, issuer, say, now = () => new Date() }: AgentOptions): Promise<CertsRecord> {
  let made: Promise<Issuer> | undefined
  let result: CertsRecord['result'] = 'ok'
  let problem: string | undefined
  let next: Date | undefined
  const later = (outcome: 'waiting' | 'failed', text: string, at: Date | undefined): void => {
    if (outcome === 'failed' || result === 'ok') result = outcome
    problem ??= text
    if (at !== undefined && (next === undefined || at < next)) next = at
  }
  await sweep(tls)
  for (const name of names) {
    const due = await whyDue(tls, name, now())
    if (due === undefined) {
      await ledger.succeeded(name)
      continue
    }
    const held = ledger.held(name, now().getTime())
    if (held !== undefined) {
      later('waiting', held.problem, held.next)
      continue
    }
    try {
      made ??= issuer()
      const pem = await (await made).issue(name)
      const certificate = parseCertificate(pem, name)
      await writeFileAtomic(join(tls, `${name}.pem`), pem, 0o640)
      await ledger.succeeded(name)
      say(`certificate for ${name} (${due}): ${certificate.serial} by ${certificate.issuer}, valid until ${certificate.notAfter.toISOString()}`)
    } catch (err) {
      const { kind, retryAfter, cure } = err instanceof IssueError ? err : { kind: 'unreachable' as const, retryAfter: undefined, cure: 'Check free space and permissions' }
      const text = `no certificate for ${name}: ${reason(err instanceof IssueError ? err.message : err)}. ${oneLine(cure)}`
      const at = await ledger.failed(name, kind, text, now().getTime(), retryAfter)
      later('failed', text, at)
      say(`${text}. Next attempt at ${at.toISOString()}`)
    }
  }
  const record: CertsRecord = {
    checkedAt: now().toISOString(),
    result,
    names,
    ...(problem === undefined ? {} : { problem }),
    ...(next === undefined ? {} : { next: next.toISOString() }),
  }
  await writeRecord(tls, record)
  return record
}

/** Leaves the record of a run for the gateway to read. */
export async function writeRecord (tls: string, record: CertsRecord): Promise<void> {
  await writeFileAtomic(join(tls, 'status.json'), `${JSON.stringify(record)}\n`, 0o640)
}

/** Why a new certificate is due; undefined when the one on disk does. */
async function whyDue (tls: string, name: string, now: Date): Promise<string | undefined> {
  let certificate: Certificate
  try {
    certificate = parseCertificate(await readFile(join(tls, `${name}.pem`), 'utf8'), name)
  } catch (err) {
    return (err as NodeJS.ErrnoException).code === 'ENOENT' ? 'the first' : `the one on disk is not usable: ${reason(err)}`
  }
  if (now >= certificate.notAfter) return 'the last one has expired'
  if (now >= renewAt(certificate)) return 'two thirds of the last one\'s lifetime are over'
  return undefined
}

/** Removes temporary files a power cut left behind: they may hold a key. */
async function sweep (tls: string): Promise<void> {
  for (const file of await readdir(tls)) {
    if (/^\..*\.tmp$/.test(file)) await rm(join(tls, file), { force: true })
  }
}
