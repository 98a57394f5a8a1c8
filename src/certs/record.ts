import { readFile } from 'node:fs/promises'
import { join } from 'node:path'

/** What the last run of the certificate agent left for `gatehouse status`, in status.json beside the certificates. */
export interface CertsRecord {
  /** RFC 3339. */
  checkedAt: string
  /** `ok`: every name has a certificate that is not due; `waiting`: held back until {@link next}; `failed`. */
  result: 'ok' | 'waiting' | 'failed'
  names: string[]
  /** Set unless ok: cause and cure in one line. */
  problem?: string
  /** Earliest next attempt, RFC 3339. */
  next?: string
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
