import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { writeFileAtomic } from '../base/files.ts'
import { failures, isFailureCode } from './failure.ts'
import type { FailureCode } from './failure.ts'
import { hour } from '../base/time.ts'
import { seeLogs } from '../base/cures.ts'

/** A certificate that was asked for. */
interface Issue {
  /** When the authority was asked to issue it. */
  at: number
  /** Milliseconds it is valid; undefined when the answer never came. */
  lifetime?: number
}

interface Entry {
  /** Attempts since the last success. */
  failures: number
  /** Not before. */
  next: number
  problem: string
  code: FailureCode
  /** Validations asked for within the last hour. */
  validations: number[]
  /** Certificates asked for within the last week. */
  issues: Issue[]
}

const week = 7 * 24 * hour
/** First wait of each kind; it doubles up to the longest. Milliseconds. */
const first = { often: 60_000, soon: 30_000, later: 15 * 60_000 } as const
/** Longest wait for what a person does. Milliseconds. */
const patience = 5 * 60_000
/**
 * A certificate of 6 days or more leaves two days to fail in. One that lives shorter leaves less: a
 * twelfth of its lifetime, yet never below the shorter one.
 */
const longest = { least: 15 * 60_000, most: 12 * hour, part: 1 / 12 } as const
/**
 * A wait further off than this comes from a clock that was wrong (Let's Encrypt's longest window is
 * 7 days).
 */
const implausible = week + 24 * hour

/**
 * What an authority is asked at most, for one name. One below what Let's Encrypt allows, since what
 * was asked by another machine of that name, before its card was flashed anew, is not known here
 * (https://letsencrypt.org/docs/rate-limits/: 5 failed validations in an hour, 5 certificates of
 * the same names in 7 days, of which one comes back every 34 hours).
 */
export const limits = { validationsAnHour: 4, certificatesAWeek: 4, refill: 34 * hour } as const

/**
 * When each name may be tried again, kept on disk so that neither a restart of the unit nor a
 * reboot nor a power cut is a way round it: what counts is written down before the authority is
 * asked, not after it has answered.
 */
export class Ledger {
  #path: string
  #directory: string
  /** By directory, then by name. */
  #all: Record<string, Record<string, Entry>>

  private constructor(path: string, directory: string, all: Record<string, Record<string, Entry>>) {
    this.#path = path
    this.#directory = directory
    this.#all = all
  }

  /**
   * @param state the agent's state directory
   * @param directory URL of the ACME directory: each has its own waits and limits
   */
  static async open(state: string, directory: string): Promise<Ledger> {
    const path = join(state, 'attempts.json')
    let all: Record<string, Record<string, Entry>> = {}
    try {
      all = understand(JSON.parse(await readFile(path, 'utf8')))
    } catch {
      // Missing or damaged: as if nothing had been tried yet. The next attempt writes it anew.
    }
    return new Ledger(path, directory, all)
  }

  /** Why and until when a name is held back; undefined when it may be tried at `now`. */
  held(name: string, now: number): { next: Date; problem: string; code: FailureCode } | undefined {
    const entry = this.#entry(name)
    if (entry === undefined) return undefined
    const waits: Array<{ next: number; problem: string; code: FailureCode }> = []
    if (entry.next > now && entry.next <= now + implausible)
      waits.push({ next: entry.next, problem: entry.problem, code: entry.code })
    const validations = entry.validations
      .filter((at) => near(at, now, hour))
      .toSorted((a, b) => a - b)
    if (validations.length >= limits.validationsAnHour) {
      const problem =
        `${validations.length} validations were asked for within an hour, and the authority ` +
        'counts. Wait; restarting does not help'
      waits.push({
        next: validations.at(-limits.validationsAnHour)! + hour,
        ...(entry.problem === ''
          ? { problem, code: 'GH_CERTS_RATE_LIMITED' }
          : { problem: entry.problem, code: entry.code }),
      })
    }
    const issues = entry.issues
      .filter(({ at }) => near(at, now, week))
      .toSorted((a, b) => a.at - b.at)
    if (issues.length >= limits.certificatesAWeek) {
      // Certificates that live for a day or less are renewed more often than that, and their
      // authority means it.
      const { at, lifetime } = issues.at(-1)!
      const wait = Math.min(limits.refill, (lifetime ?? Infinity) / 2)
      if (at + wait > now)
        waits.push({
          next: at + wait,
          problem:
            `${issues.length} certificates for ${name} were asked for within a week, and the ` +
            `authority counts. Find out why so many. ${seeLogs('gatehouse-certs')}`,
          code: 'GH_CERTS_RATE_LIMITED',
        })
    }
    const last = waits.toSorted((a, b) => a.next - b.next).at(-1)
    return last === undefined ? undefined : { ...last, next: new Date(last.next) }
  }

  /**
   * Notes that an attempt begins, durably: one that is cut short counts as a failure.
   *
   * @returns whether the one before was cut short
   * @throws Error when it cannot be written: then nothing must be asked
   */
  async begin(name: string, now: number): Promise<boolean> {
    const entry = this.#make(name)
    const cut = entry.failures > 0 && entry.code === 'GH_CERTS_INTERRUPTED'
    entry.failures++
    entry.code = 'GH_CERTS_INTERRUPTED'
    entry.next = now + this.#wait(entry)
    entry.problem =
      `the attempt for ${name} begun at ${new Date(now).toISOString()} was cut short. It is ` +
      'made again by itself'
    await this.#write(now)
    return cut
  }

  /** Notes, durably, that the authority is about to be asked to validate a name. */
  async validating(name: string, now: number): Promise<void> {
    this.#make(name).validations.push(now)
    await this.#write(now)
  }

  /** Notes, durably, that the authority is about to be asked to issue a certificate. */
  async issuing(name: string, now: number): Promise<void> {
    this.#make(name).issues.push({ at: now })
    await this.#write(now)
  }

  /** Notes, durably, how long the certificate issued last is valid, milliseconds. */
  async issued(name: string, now: number, lifetime: number): Promise<void> {
    const entry = this.#make(name)
    const last = entry.issues.at(-1)
    if (last === undefined) entry.issues.push({ at: now, lifetime })
    else last.lifetime = lifetime
    // A validation that succeeded is none that counts.
    entry.validations.pop()
    await this.#write(now)
  }

  /**
   * Notes the failure of the attempt that {@link begin} began, durably.
   *
   * @param retryAfter milliseconds the authority asked for, when it did: never tried sooner
   * @returns when the next attempt may be made
   */
  async failed(
    name: string,
    code: FailureCode,
    problem: string,
    now: number,
    retryAfter?: number,
  ): Promise<Date> {
    const entry = this.#make(name)
    entry.failures = Math.max(1, entry.failures)
    entry.code = code
    entry.next = now + Math.max(this.#wait(entry), Math.min(retryAfter ?? 0, implausible - 1))
    entry.problem = problem
    await this.#write(now)
    return this.held(name, now)?.next ?? new Date(entry.next)
  }

  /** Forgets the failures of a name, durably; what the authority counts is not forgotten. */
  async succeeded(name: string, now: number): Promise<void> {
    const entry = this.#entry(name)
    if (entry === undefined || (entry.failures === 0 && entry.next === 0)) return
    Object.assign(entry, {
      failures: 0,
      next: 0,
      problem: '',
      code: 'GH_CERTS' satisfies FailureCode,
    })
    await this.#write(now)
  }

  #wait({ code, failures: count, issues }: Entry): number {
    const lifetime = issues.at(-1)?.lifetime ?? Infinity
    const most =
      failures[code] === 'often'
        ? patience
        : Math.min(longest.most, Math.max(longest.least, lifetime * longest.part))
    const full = Math.min(most, first[failures[code]] * 2 ** Math.min(count - 1, 20))
    // Up to a quarter later: a fleet that failed together must not come back together.
    return Math.ceil(full * (1 + Math.random() / 4))
  }

  #entry(name: string): Entry | undefined {
    const names = this.#all[this.#directory]
    return names !== undefined && Object.hasOwn(names, name) ? names[name] : undefined
  }

  #make(name: string): Entry {
    return ((this.#all[this.#directory] ??= {})[name] ??= {
      failures: 0,
      next: 0,
      problem: '',
      code: 'GH_CERTS',
      validations: [],
      issues: [],
    })
  }

  async #write(now: number): Promise<void> {
    for (const [directory, names] of Object.entries(this.#all)) {
      for (const [name, entry] of Object.entries(names)) {
        entry.validations = entry.validations.filter((at) => near(at, now, hour))
        entry.issues = entry.issues.filter(({ at }) => near(at, now, week))
        if (
          entry.failures === 0 &&
          entry.next === 0 &&
          entry.validations.length + entry.issues.length === 0
        )
          delete names[name]
      }
      if (Object.keys(names).length === 0) delete this.#all[directory]
    }
    await writeFileAtomic(this.#path, `${JSON.stringify(this.#all)}\n`, 0o600)
  }
}

/**
 * Whether two times are less than a span apart, whichever comes first: a clock that was set back
 * must not wipe out what was counted.
 */
function near(at: number, now: number, span: number): boolean {
  return Math.abs(at - now) < span
}

/** What of a parsed file is as this program writes it. */
function understand(value: unknown): Record<string, Record<string, Entry>> {
  const all: Record<string, Record<string, Entry>> = {}
  for (const [directory, names] of Object.entries(table(value))) {
    for (const [name, raw] of Object.entries(table(names))) {
      const { failures: count, next, problem, code, validations, issues } = table(raw)
      ;(all[directory] ??= {})[name] = {
        failures: number(count) ?? 0,
        next: number(next) ?? 0,
        problem: typeof problem === 'string' ? problem : '',
        code: isFailureCode(code) ? code : 'GH_CERTS',
        validations: (Array.isArray(validations) ? validations : []).filter(
          (at) => number(at) !== undefined,
        ),
        issues: (Array.isArray(issues) ? issues : [])
          .map(table)
          .filter(({ at }) => number(at) !== undefined)
          .map(({ at, lifetime }) => ({
            at: at as number,
            ...(number(lifetime) === undefined ? {} : { lifetime: lifetime as number }),
          })),
      }
    }
  }
  return all
}

function table(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
    ? (value as Record<string, unknown>)
    : {}
}

function number(value: unknown): number | undefined {
  return typeof value === 'number' && Number.isFinite(value) && value >= 0 ? value : undefined
}
