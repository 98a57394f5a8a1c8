/**
 * What loading and starting the module leaves behind is given back to the system: most of it would
 * otherwise stay for as long as the process lives.
 */
import v8 from 'node:v8'
import vm from 'node:vm'
import type { Native } from './native.ts'

/** When a node has joined, as a rule, and when a slow machine has; ms after the start. */
const WHEN = [3000, 30_000]

type Collect = (
  options:
    | { type: 'major'; execution: 'sync'; flavor: 'last-resort' }
    | { type: 'minor'; execution: 'sync' },
) => void

/**
 * Runs `source` with a flag of V8's. The flags are the whole process's, which may have been started
 * with this one: it is switched off again only where the source cannot be run without it.
 */
export function withFlag<T>(flag: string, source: string): T {
  try {
    return vm.runInNewContext(source) as T
  } catch {
    // It is off (or there is no such thing, which the second time tells).
  }
  v8.setFlagsFromString(`--${flag}`)
  try {
    return vm.runInNewContext(source) as T
  } finally {
    v8.setFlagsFromString(`--no-${flag}`)
  }
}

/** V8's own, of this thread. */
function collector(): Collect {
  return withFlag<Collect>('expose-gc', 'gc')
}

/**
 * Once: JavaScript's garbage of this thread (some 20 MB, whose pages V8 keeps); the baseline code
 * of functions of the module that ran at the start (10 MB; one that is called again is compiled
 * again, in some microseconds); what the C library's allocator keeps (5 to 10 MB). The thread does
 * nothing else meanwhile: 0.1 to 0.2 s beside much other work, for 40 MB the first time and 10 the
 * second.
 */
export function compact(native: Native | undefined): void {
  try {
    // What V8 does when memory is short, by the name its own tests have for it: there is no other
    // way to ask for it.
    withFlag('allow-natives-syntax', '%FlushLiftoffCode()')
  } catch {
    // Another V8: it keeps what it keeps.
  }
  try {
    collector()({ type: 'major', execution: 'sync', flavor: 'last-resort' })
  } catch {
    // Bun has another engine, with flags of its own.
  }
  native?.trim()
}

/** Does it when there is most to gain. Keeps no process alive. */
export function compactLater(native: Native | undefined): void {
  for (const ms of WHEN) setTimeout(() => compact(native), ms).unref()
}

/** So many bytes come from the other thread before the young generation is collected. */
const BATCH = 4 * 1024 * 1024

let received = 0
let collectYoung: (() => void) | undefined

/**
 * Counts bytes that have come from the other thread. Their buffers lie outside of JavaScript's heap,
 * and V8 takes them for old: it would mark all of the heap anew every 12 MB or so, on threads of its
 * own (bench/README.md).
 */
export function countReceived(bytes: number): void {
  received += bytes
  if (received < BATCH) return
  received = 0
  collectYoung ??= young()
  collectYoung()
}

function young(): () => void {
  try {
    const collect = collector()
    return () => collect({ type: 'minor', execution: 'sync' })
  } catch {
    // Another engine, which sees to it by itself or not.
    return () => {}
  }
}
