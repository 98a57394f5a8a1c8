import { appendFile, readFile, rename, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { reason } from '../../base/errors.ts'
import type { Logger } from '../shared/log.ts'

/** One thing that somebody did through the console or its API. */
export interface AuditEntry {
  /** RFC 3339. */
  at: string
  /** Login name, or the node's name for a tagged one. */
  who: string
  /** `settings.try`, `device.restart`. */
  what: string
  /** What was before and after, and the like; never a secret. */
  detail?: unknown
}

/** The file is begun anew beyond this; one before it is kept. Bytes. */
const most = 256 * 1024

/**
 * Who did what, kept on /var within a bound and told to the log. Written before the thing is done:
 * what cuts the device off is in it too.
 */
export class Audit {
  readonly #file: string | undefined
  readonly #log: Logger
  readonly #recent: AuditEntry[] = []

  /** @param directory undefined: kept in memory alone */
  constructor(directory: string | undefined, log: Logger) {
    this.#file = directory === undefined ? undefined : join(directory, 'audit.jsonl')
    this.#log = log
  }

  /** Notes it. A full disk keeps nobody from mending things: that it is not kept is said. */
  async note(who: string, what: string, detail?: unknown): Promise<void> {
    const entry = {
      at: new Date().toISOString(),
      who,
      what,
      ...(detail === undefined ? {} : { detail }),
    }
    this.#log.info({ code: 'GH_AUDIT', ...entry }, `${who}: ${what}`)
    this.#recent.push(entry)
    if (this.#recent.length > 500) this.#recent.shift()
    const file = this.#file
    if (file === undefined) return
    try {
      if ((await stat(file).catch(() => ({ size: 0 }))).size > most) await rename(file, `${file}.1`)
      await appendFile(file, `${JSON.stringify(entry)}\n`, { mode: 0o600 })
    } catch (err) {
      this.#log.warn({ code: 'GH_AUDIT_WRITE' }, `the audit log cannot be written: ${reason(err)}`)
    }
  }

  /** The newest first, 500 at most. */
  async entries(): Promise<AuditEntry[]> {
    if (this.#file === undefined) return this.#recent.toReversed()
    const texts = await Promise.all(
      [`${this.#file}.1`, this.#file].map(
        async (file) => await readFile(file, 'utf8').catch(() => ''),
      ),
    )
    const lines = texts.join('').trimEnd().split('\n')
    const read = lines.slice(-500).flatMap((line) => {
      try {
        return [JSON.parse(line) as AuditEntry]
      } catch {
        return []
      }
    })
    return read.toReversed()
  }
}
