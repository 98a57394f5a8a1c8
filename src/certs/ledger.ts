import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { writeFileAtomic } from '../config/files.ts'

/** What kind of failure it was: it decides how soon a new attempt is fair to the authority. */
export type Failure =
  /** Never got as far as asking: network, DNS, the gateway. */
  | 'unreachable'
  /** The authority said no, or validation failed: Let's Encrypt allows five such an hour for a name. */
  | 'refused'

interface Entry { failures: number, next: number, problem: string, directory: string }

/** First wait of each kind; it doubles up to {@link longest}. Milliseconds. */
const first: Record<Failure, number> = { unreachable: 30_000, refused: 15 * 60_000 }
const longest = 12 * 3_600_000
/** A wait further off than this comes from a clock that was wrong (Let's Encrypt's longest window is 7 days). */
const implausible = 8 * 86_400_000

/**
 * When each name may be tried again, kept on disk so that neither a restart of the unit nor a reboot is a way round it.
 */
export class Ledger {
  #path: string
  #directory: string
  #entries: Record<string, Entry>

  private constructor (path: string, directory: string, entries: Record<string, Entry>) {
    this.#path = path
    this.#directory = directory
    this.#entries = entries
  }

  /**
   * @param state the agent's state directory
   * @param directory URL of the ACME directory: waits for another one do not count
   */
  static async open (state: string, directory: string): Promise<Ledger> {
    const path = join(state, 'attempts.json')
    let entries: Record<string, Entry> = {}
    try {
      const parsed: unknown = JSON.parse(await readFile(path, 'utf8'))
      if (typeof parsed === 'object' && parsed !== null) entries = parsed as Record<string, Entry>
    } catch {
      // Missing or damaged: as if nothing had failed yet. The next failure writes it anew.
    }
    return new Ledger(path, directory, entries)
  }

  /** Why and until when a name is held back; undefined when it may be tried at `now`. */
  held (name: string, now: number): { next: Date, problem: string } | undefined {
    const entry = this.#entries[name]
    if (entry === undefined || entry.directory !== this.#directory || !(entry.next > now) || entry.next > now + implausible) return undefined
    return { next: new Date(entry.next), problem: entry.problem }
  }

  /**
   * Notes a failure, durably.
   *
   * @param retryAfter milliseconds the authority asked for, when it did: never tried sooner
   * @returns when the next attempt may be made
   */
  async failed (name: string, kind: Failure, problem: string, now: number, retryAfter?: number): Promise<Date> {
    const before = this.#entries[name]
    const failures = before !== undefined && before.directory === this.#directory ? before.failures + 1 : 1
    const full = Math.min(longest, first[kind] * 2 ** (failures - 1))
    // Up to a quarter later: a fleet that failed together must not come back together.
    const wait = Math.max(full * (1 + Math.random() / 4), Math.min(retryAfter ?? 0, implausible - 1))
    const next = now + wait
    this.#entries[name] = { failures, next, problem, directory: this.#directory }
    await this.#write()
    return new Date(next)
  }

  /** Forgets the failures of a name, durably. */
  async succeeded (name: string): Promise<void> {
    if (this.#entries[name] === undefined) return
    delete this.#entries[name]
    await this.#write()
  }

  async #write (): Promise<void> {
    await writeFileAtomic(this.#path, `${JSON.stringify(this.#entries)}\n`, 0o600)
  }
}
