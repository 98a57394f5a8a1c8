import { totalmem } from 'node:os'
import { GatehouseError } from '../../base/errors.ts'
import type { Logger } from '../shared/log.ts'
import { collectGarbage } from './garbage.ts'

/** Milliseconds. */
const after = {
  /** What is free is given back to the system no more often than this: it takes a moment. */
  givingBack: 5_000,
  /** So often it is given back in any case: how much is free cannot be asked. */
  givingBackAnyway: 60_000,
  /** By then the device has joined, and has its certificate. */
  start: 45_000,
  /** Memory that is short for so long is a problem. */
  problem: 10_000,
  /** So long with nothing under way that could be the reason, and a new start is the cure. */
  idle: 120_000,
  /** So long, whatever is under way: nobody new has been let in all the while. */
  whole: 600_000,
}

/** More than this since what is free was given back last, and it is again. Bytes. */
const growth = 8 * 1024 * 1024

/** Short of memory no more below this part of the limit. */
const enough = 0.95

/** What {@link Memory} tells; each may be left out. */
export interface MemoryEvents {
  /** It is short: what can be given back should be. Again each second. */
  short?: () => void
  /** It has been short for a while; undefined: no longer. */
  problem?: (error: GatehouseError | undefined) => void
  /** It is short without a reason, and stays so: only a new start helps. Once. */
  stuck?: (error: GatehouseError) => void
}

/** What a {@link Memory} goes by. */
export interface MemoryMeasured {
  /** Bytes the process has. */
  rss: () => number
  /** Milliseconds. */
  now: () => number
  /** Gives back what the C library holds free: some milliseconds. */
  trim: () => void
  /** Collects what the start has left: some fifteen milliseconds, on a slow board ten times that. */
  settle: () => void
  /** Gives back all that is free; asks before the second half, which takes longer. */
  giveBack: (stillTooMuch: () => boolean) => void
}

/** That it is short, and since when; without a request under way since `idleSince`. */
interface Shortage {
  since: number
  idleSince: number | undefined
  said: boolean
}

/** Looks at how much memory the process has, and at how long it has been too much. */
export class Memory {
  events: MemoryEvents = {}
  #log: Logger
  #short: Shortage | undefined
  #gaveBack = -Infinity
  /** When {@link MemoryMeasured.trim} was last called, and what the process had then. */
  #trimmed = { at: -Infinity, rss: 0 }
  #stuck = false
  /** When it was first looked at, and whether what the start left has been collected since. */
  #firstLook: number | undefined
  #settled = false
  #measured: MemoryMeasured

  /** @param measured for tests */
  constructor(log: Logger, measured: Partial<MemoryMeasured> = {}) {
    this.#log = log
    this.#measured = {
      rss: () => process.memoryUsage.rss(),
      now: () => performance.now(),
      trim,
      settle: collectGarbage,
      giveBack,
      ...measured,
    }
  }

  /** True while it is short. */
  get short(): boolean {
    return this.#short !== undefined
  }

  /**
   * To be called each second.
   *
   * @param setMiB as {@link memoryLimit} has it
   * @param underWay requests that are
   */
  look(setMiB: number, underWay: number): void {
    const most = memoryLimit(setMiB)
    const bound = this.#short === undefined ? most : most * enough
    const now = this.#measured.now()
    this.#settle(now, underWay)
    let rss = this.#measured.rss()
    if (rss > bound && now - this.#gaveBack >= after.givingBack) {
      this.#gaveBack = now
      this.#measured.giveBack(() => this.#measured.rss() > bound)
      rss = this.#measured.rss()
      this.#trimmed = { at: now, rss }
    } else if (this.#isToTrim(rss, now)) {
      this.#measured.trim()
      rss = this.#measured.rss()
      this.#trimmed = { at: now, rss }
    }
    if (rss <= bound) {
      if (this.#short !== undefined) this.#pass(rss, most)
      return
    }
    if (this.#short === undefined) {
      this.#short = { since: now, idleSince: undefined, said: false }
      this.#log.error(
        { code: 'GH_MEMORY', rss, most },
        `memory is short: ${mib(rss)} MiB of ${mib(most)} in use. New connections and ` +
          'requests are refused until it is less',
      )
    }
    this.events.short?.()
    this.#judge(this.#short, now, underWay, rss, most)
  }

  /**
   * V8 keeps the pages that the start has filled, a third of its heap, until garbage is collected;
   * and with nothing to do it never is. Once, with no request under way that would wait for it.
   */
  #settle(now: number, underWay: number): void {
    this.#firstLook ??= now
    if (this.#settled || underWay > 0 || now - this.#firstLook < after.start) return
    this.#settled = true
    this.#measured.settle()
  }

  /**
   * What a burst leaves behind (handshakes, V8's compiler in its threads) is not kept: soon after
   * the process has grown, and from time to time, for what has become free since.
   */
  #isToTrim(rss: number, now: number): boolean {
    const since = now - this.#trimmed.at
    return (
      (rss - this.#trimmed.rss > growth && since >= after.givingBack) ||
      since >= after.givingBackAnyway
    )
  }

  #pass(rss: number, most: number): void {
    const said = this.#short?.said === true
    this.#short = undefined
    this.#log.info({ rss, most }, 'memory is no longer short')
    if (said) this.events.problem?.(undefined)
  }

  #judge(short: Shortage, now: number, underWay: number, rss: number, most: number): void {
    short.idleSince = underWay > 0 ? undefined : (short.idleSince ?? now)
    if (now - short.since >= after.problem && !short.said) {
      short.said = true
      this.events.problem?.(
        new GatehouseError(
          'GH_MEMORY',
          `the gateway is short of memory: ${mib(rss)} MiB of ${mib(most)} in use; nobody new is let in`,
          'Wait: it passes, or the gateway restarts within ten minutes; if it comes back, ' +
            'lower connections in [limits] of gatehouse.toml, or use a board with more memory',
        ),
      )
    }
    const idle = short.idleSince === undefined ? 0 : now - short.idleSince
    if (this.#stuck || (idle < after.idle && now - short.since < after.whole)) return
    this.#stuck = true
    this.events.stuck?.(
      new GatehouseError(
        'GH_MEMORY_STUCK',
        `memory has been short for ${Math.round((now - short.since) / 1_000)} s, with ` +
          `${underWay} requests under way: ${mib(rss)} MiB of ${mib(most)} in use`,
        'The gateway restarts',
      ),
    )
  }
}

/**
 * The most memory the process may have, in bytes: as set, or three quarters of what the unit
 * (MemoryMax) or else the machine has.
 */
export function memoryLimit(setMiB: number): number {
  if (setMiB > 0) return setMiB * 1024 * 1024
  const constrained = process.constrainedMemory()
  return (constrained > 0 && constrained < totalmem() ? constrained : totalmem()) * 0.75
}

/**
 * Gives back to the system what the process has freed. glibc's allocator keeps it: after 200
 * stalled downloads of 2 MiB that were encrypted at once the process went on having 980 MiB, of
 * which 850 were free. Garbage of JavaScript's, which holds buffers, is collected where that is not
 * enough.
 */
function giveBack(stillTooMuch: () => boolean): void {
  trim()
  if (!stillTooMuch()) return
  collectGarbage()
  trim()
}

/** A function of the C library's: malloc_trim(3). */
let mallocTrim: ((pad: bigint) => number) | undefined | null

function trim(): void {
  if (mallocTrim === undefined)
    try {
      const { functions } = process
        .getBuiltinModule('node:ffi')
        .dlopen('libc.so.6', { malloc_trim: { return: 'int32', arguments: ['uint64'] } })
      mallocTrim = functions.malloc_trim
    } catch {
      // Another C library, or a Node.js without node:ffi: it keeps what it keeps.
      mallocTrim = null
    }
  mallocTrim?.(0n)
}

function mib(bytes: number): number {
  return Math.round(bytes / 1024 / 1024)
}
