import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { isFailureCode } from './failure.ts'
import type { FailureCode } from './failure.ts'
import { renewAt } from './pem.ts'
import type { Certificate } from './pem.ts'
import { day } from '../base/time.ts'

/**
 * How much a person need care: `info`: it will most likely pass; `warning`: look at it this week;
 * `error`: look at it now.
 */
export type Severity = 'info' | 'warning' | 'error'

/** Something that was put right, or passed, and that a person should know of all the same. */
export interface Note {
  /** RFC 3339. */
  at: string
  code: FailureCode
  message: string
}

/**
 * What the last run of the certificate agent left for `gatehouse status` and the metrics, in
 * status.json beside the certificates.
 */
export interface CertsRecord {
  /** RFC 3339. */
  checkedAt: string
  /**
   * `ok`: every name has a certificate that is not due; `waiting`: held back until {@link next};
   * `failed`.
   */
  result: 'ok' | 'waiting' | 'failed'
  names: string[]
  /** Set unless ok: cause and cure in one line. */
  problem?: string | undefined
  /** Set with {@link problem}. */
  code?: FailureCode | undefined
  /** Set with {@link problem}: the worst of all names. */
  severity?: Severity | undefined
  /**
   * Set with {@link problem} once certificates were looked at: whole days until the first
   * certificate that is due expires; 0 when there is none or it has.
   */
  daysLeft?: number | undefined
  /** Earliest next attempt, RFC 3339. */
  next?: string | undefined
  /** Those there are, with the moment (RFC 3339) each is renewed at and who chose it. */
  certificates?: Array<{
    name: string
    notAfter: string
    renewAt: string
    from: 'authority' | 'lifetime'
  }>
  /** DNS records that the person is to set, or has set; the agent waits for those not `there`. */
  records?: DNSRecord[]
  /** The device's own authority, with mode = "self". */
  authority?: Authority
  /**
   * What of the secrets handed over at this boot the agent has used and keeps, by the mark of their
   * handing over ({@link file://./secrets.ts}): they need not be on the card any more.
   */
  kept?: { mark: string; keys: string[] }
  /** Counted over all runs since the file was first written. */
  totals?: Totals
  /** The newest first, those of the last 30 days, 8 at most. */
  notes?: Note[]
  /** The last moment an authority confirmed, RFC 3339: a clock that says less is behind. */
  goodTime?: string
}

/** A DNS record for a person to set. */
export interface DNSRecord {
  name: string
  type: 'TXT' | 'CNAME'
  value: string
  /** Whether it was seen in DNS. */
  there: boolean
}

/** The root certificate of an authority made on the device. */
export interface Authority {
  /** SHA-256 of its DER, pairs of hexadecimal digits with colons between. */
  fingerprint: string
  /** RFC 3339. */
  notAfter: string
  /** Names it can issue for, and for nothing else. */
  names: string[]
}

/** What happened so far, over all runs. */
export interface Totals {
  /** Times an authority was asked for a certificate. */
  attempts: number
  /** Certificates that were put in place. */
  issued: number
  failures: Partial<Record<FailureCode, number>>
  /** RFC 3339. */
  lastAttempt?: string
  /** RFC 3339: the last certificate that was put in place. */
  lastSuccess?: string
}

/** What came of the last look at certificates ({@link CertsRecord}), beside them. */
export const recordFile = 'status.json'

/** The root certificate of the device's own authority, PEM, beside the record. */
export const authorityFile = 'ca.crt'

/** Reads the record; undefined when there is none, or none that can be read. */
export async function readRecord(tlsDirectory: string): Promise<CertsRecord | undefined> {
  try {
    const record = JSON.parse(await readFile(join(tlsDirectory, recordFile), 'utf8')) as CertsRecord
    return typeof record === 'object' && record !== null && typeof record.checkedAt === 'string'
      ? record
      : undefined
  } catch {
    return undefined
  }
}

const notesKept = { number: 8, span: 30 * day } as const

/** The counts and notes that go from record to record. */
export class History {
  readonly totals: Totals
  notes: Note[]

  /**
   * @param record the one before, of which nothing is believed that is not as this program writes
   *   it
   */
  constructor(record: CertsRecord | undefined) {
    const { attempts, issued, failures, lastAttempt, lastSuccess } = (record?.totals ??
      {}) as Partial<Totals>
    this.totals = {
      attempts: count(attempts),
      issued: count(issued),
      failures: Object.fromEntries(
        Object.entries(failures ?? {}).filter(
          ([code, times]) => isFailureCode(code) && count(times) > 0,
        ),
      ),
      ...(time(lastAttempt) === undefined ? {} : { lastAttempt: lastAttempt! }),
      ...(time(lastSuccess) === undefined ? {} : { lastSuccess: lastSuccess! }),
    }
    this.notes = (Array.isArray(record?.notes) ? record.notes : []).filter(
      (note) =>
        time(note?.at) !== undefined &&
        isFailureCode(note.code) &&
        typeof note.message === 'string',
    )
  }

  failed(code: FailureCode): void {
    this.totals.failures[code] = (this.totals.failures[code] ?? 0) + 1
  }

  /**
   * Counts a failure that was put right, and keeps it in mind for a while. One that is there
   * already takes the new time.
   */
  note(code: FailureCode, message: string, now: Date): void {
    this.failed(code)
    this.notes = [
      { at: now.toISOString(), code, message },
      ...this.notes.filter((note) => note.code !== code || note.message !== message),
    ]
  }

  /** What goes into the record. */
  parts(now: Date): Pick<CertsRecord, 'totals' | 'notes'> {
    const notes = this.notes
      .filter(({ at }) => Math.abs(now.getTime() - Date.parse(at)) < notesKept.span)
      .slice(0, notesKept.number)
    return { totals: this.totals, ...(notes.length === 0 ? {} : { notes }) }
  }
}

function count(value: unknown): number {
  return Number.isSafeInteger(value) && (value as number) > 0 ? (value as number) : 0
}

function time(value: unknown): number | undefined {
  const ms = typeof value === 'string' ? Date.parse(value) : NaN
  return Number.isNaN(ms) ? undefined : ms
}

/**
 * How bad it is that a certificate is in place still. Of its lifetime, nothing until three
 * quarters, a warning from then on, an error from five sixths: with 90 days, when 22 and 15 are
 * left. It is due at two thirds.
 */
export function urgency(
  certificate: Pick<Certificate, 'notBefore' | 'notAfter'>,
  now: Date,
): { severity: Severity; daysLeft: number; overdue: boolean } {
  const left = certificate.notAfter.getTime() - now.getTime()
  const life = certificate.notAfter.getTime() - certificate.notBefore.getTime()
  let severity: 'error' | 'warning' | 'info' = 'info'
  if (left <= life / 6) severity = 'error'
  else if (left <= life / 4) severity = 'warning'
  return {
    severity,
    daysLeft: Math.max(0, Math.floor(left / day)),
    overdue: now > renewAt(certificate),
  }
}
