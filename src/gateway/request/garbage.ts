import type { Readable } from 'node:stream'
import v8 from 'node:v8'
import vm from 'node:vm'

/**
 * So many bytes of bodies pass before the young generation is collected. V8 does that by what
 * JavaScript's heap holds, of which a piece of a body takes a hundredth. What bodies hold outside of
 * it counts as old instead, and V8's heap may grow by some 12 MB before all of it is marked: with 10
 * MB bodies that was done 28 times a second, on all of V8's threads (bench/README.md). The bindings do
 * the same in their thread, and must do without this file (src/tsnet/host/compact.ts).
 */
const batch = 4 * 1024 * 1024

let passed = 0

/** Counts bytes of a body that have passed, and collects what was of use for them alone. */
export function countBody(bytes: number): void {
  passed += bytes
  if (passed < batch) return
  passed = 0
  collector()({ type: 'minor' })
}

/** {@link countBody} of what comes of a stream. Not by a listener, which would have it flow. */
export function countBodyOf(body: Readable): void {
  const push = body.push.bind(body)
  body.push = (piece: Buffer | null, encoding?: BufferEncoding): boolean => {
    if (piece !== null) countBody(piece.length)
    return push(piece, encoding)
  }
}

/** Collects all garbage. Some ten milliseconds. */
export function collectGarbage(): void {
  // Without an argument: with one, be it undefined, V8 collects less.
  collector()()
}

type Collect = (options?: { type: 'minor' }) => void

let made: Collect | undefined

function collector(): Collect {
  return (made ??= exposed())
}

/** V8's own, which is there for a context that is made while its flag is on. */
function exposed(): Collect {
  v8.setFlagsFromString('--expose-gc')
  try {
    return vm.runInNewContext('gc') as Collect
  } finally {
    v8.setFlagsFromString('--no-expose-gc')
  }
}
