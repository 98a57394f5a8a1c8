import { readFile } from 'node:fs/promises'
import { join } from 'node:path'

/** How much a person need care: `info`: it will most likely pass; `warning`: look at it this week; `error`: look at it now. */
export type Severity = 'info' | 'warning' | 'error'

/** What the last run of the certificate agent left for `gatehouse status`, in status.json beside the certificates. */
export interface CertsRecord {
  /** RFC 3339. */
  checkedAt: string
  /** `ok`: every name has a certificate that is not due; `waiting`: held back until {@link next}; `failed`. */
  result: 'ok' | 'waiting' | 'failed'
  names: string[]
  /** Set unless ok: cause and cure in one line. */
  problem?: string
  /** Set with {@link problem}: the worst of all names. */
  severity?: Severity
  /** Set with {@link problem} once certificates were looked at: whole days until the first certificate that is due expires; 0 when there is none or it has. */
  daysLeft?: number
  /** Earliest next attempt, RFC 3339. */
  next?: string
  /** Those there are, with the moment (RFC 3339) each is renewed at and who chose it. */
  certificates?: Array<{ name: string, notAfter: string, renewAt: string, from: 'authority' | 'lifetime' }>
}

/** Reads the record; undefined when there is none, or none that can be read. */
export async function readRecord (tlsDirectory: string): Promise<CertsRecord | undefined> {
  try {
    const record = JSON.parse(await readFile(join(tlsDirectory, 'status.json'), 'utf8')) as CertsRecord
    return typeof record === 'object' && record !== null && typeof record.checkedAt === 'string' ? record : undefined
  } catch {
    return undefined
  }
}
