/**
 * poll_oneoff for the host's descriptors: Go's scheduler sleeps here, on Node's event loop.
 *
 * Layouts: WASI preview 1, `subscription` (48 bytes) and `event` (32 bytes).
 */
import type { HostFile } from './files.ts'
import { errno } from './errno.ts'
import type { Memory } from './memory.ts'

const CLOCK = 0
const FD_READ = 1
const FD_WRITE = 2

/** What Go's scheduler sleeps in, and what wakes it. */
export interface Sleeper {
  /** The import. A number at once, or a promise of one (JSPI). */
  readonly oneoff: (
    inPtr: number,
    outPtr: number,
    subs: number,
    countPtr: number,
  ) => number | Promise<number>
  /**
   * A descriptor may have become ready. Called from the event loop, never from within the module.
   */
  readonly wake: () => void
  /** The event loop has been given something to do from within the module. */
  readonly touch: () => void
  /** The other thread has been sent what it may answer at once. */
  readonly expect: () => void
}

/** The subscriptions of one call of poll_oneoff. */
export class Subscriptions {
  private readonly memory: Memory
  private readonly files: Map<number, HostFile>
  private readonly inPtr: number
  private readonly outPtr: number
  private readonly subs: number
  private readonly countPtr: number
  /** ms until the earliest clock; undefined without one. Go only gives relative monotonic ones. */
  readonly delay: number | undefined

  constructor(
    memory: Memory,
    files: Map<number, HostFile>,
    inPtr: number,
    outPtr: number,
    subs: number,
    countPtr: number,
  ) {
    this.memory = memory
    this.files = files
    this.inPtr = inPtr
    this.outPtr = outPtr
    this.subs = subs
    this.countPtr = countPtr
    const view = memory.data
    for (let i = 0, at = inPtr; i < subs; i++, at += 48) {
      if (view.getUint8(at + 8) !== CLOCK) continue
      // In halves, here and below: a bigint is made for each.
      const ms = (view.getUint32(at + 28, true) * 2 ** 32 + view.getUint32(at + 24, true)) / 1e6
      if (this.delay === undefined || ms < this.delay) this.delay = ms
    }
  }

  /** Whether a descriptor is ready. */
  anyReady(): boolean {
    const view = this.memory.data
    for (let i = 0, at = this.inPtr; i < this.subs; i++, at += 48) {
      if (this.ready(view.getUint8(at + 8), view.getUint32(at + 16, true))) return true
    }
    return false
  }

  private ready(tag: number, fd: number): boolean {
    if (tag === CLOCK) return false
    const file = this.files.get(fd)
    return !file || (tag === FD_READ ? file.readable : file.writable)
  }

  /** Writes the events for Go: what is ready and, when `timedOut`, the clocks. */
  report(timedOut: boolean): number {
    const view = this.memory.data
    let events = 0
    for (let i = 0, at = this.inPtr; i < this.subs; i++, at += 48) {
      const tag = view.getUint8(at + 8)
      const fd = view.getUint32(at + 16, true)
      if (
        tag === CLOCK ? !timedOut : !((tag === FD_READ || tag === FD_WRITE) && this.ready(tag, fd))
      )
        continue
      const out = this.outPtr + 32 * events++
      view.setUint32(out, view.getUint32(at, true), true)
      view.setUint32(out + 4, view.getUint32(at + 4, true), true)
      view.setUint16(out + 8, tag !== CLOCK && !this.files.has(fd) ? errno.EBADF : 0, true)
      view.setUint8(out + 10, tag)
      view.setUint32(out + 16, 0, true)
      view.setUint32(out + 20, 0, true)
      view.setUint16(out + 24, 0, true)
    }
    view.setUint32(this.countPtr, events, true)
    return 0
  }
}

/**
 * How long Go may keep asking without waiting before the event loop gets a turn all the same, in
 * ms: packets wait there.
 */
export const MAX_BUSY_MS = 2

/**
 * Sleeps on the event loop alone: the module is suspended (JSPI) until a callback calls {@link
 * wake}.
 */
export class LoopSleeper implements Sleeper {
  private pending:
    | { subs: Subscriptions; resolve: (result: number) => void; timer: NodeJS.Timeout | undefined }
    | undefined
  private scheduled = false
  private lastTurn = 0
  private readonly memory: Memory
  private readonly files: Map<number, HostFile>
  private readonly beforeSleep: () => void

  constructor(memory: Memory, files: Map<number, HostFile>, beforeSleep: () => void) {
    this.memory = memory
    this.files = files
    this.beforeSleep = beforeSleep
  }

  touch = (): void => {}
  expect = (): void => {}

  /** All that happens in one turn of the event loop is told to Go at once. */
  wake = (): void => {
    if (!this.pending || this.scheduled) return
    this.schedule(false)
  }

  oneoff = (
    inPtr: number,
    outPtr: number,
    count: number,
    countPtr: number,
  ): number | Promise<number> => {
    this.beforeSleep()
    const subs = new Subscriptions(this.memory, this.files, inPtr, outPtr, count, countPtr)
    const { delay } = subs
    const ready = delay === 0 || subs.anyReady()
    if (ready && performance.now() - this.lastTurn <= MAX_BUSY_MS) return subs.report(delay === 0)
    return new Promise<number>((resolve) => {
      this.pending = { subs, resolve, timer: undefined }
      if (ready) {
        this.schedule(delay === 0)
      } else if (delay !== undefined) {
        // Timers of Node fire up to 1 ms early; rounding up keeps Go from asking twice.
        this.pending.timer = setTimeout(
          () => this.finish(true),
          Math.min(Math.ceil(delay), 2 ** 31 - 1),
        )
      }
    })
  }

  private schedule(timedOut: boolean): void {
    this.scheduled = true
    setImmediate(() => {
      this.scheduled = false
      this.finish(timedOut)
    })
  }

  private finish(timedOut: boolean): void {
    const p = this.pending
    if (!p || (!timedOut && !p.subs.anyReady())) return
    this.pending = undefined
    clearTimeout(p.timer)
    this.lastTurn = performance.now()
    p.resolve(p.subs.report(timedOut))
  }
}
