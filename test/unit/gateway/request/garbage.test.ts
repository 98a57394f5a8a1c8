import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { Readable } from 'node:stream'
import { test } from 'node:test'
import path from 'node:path'
import { countBodyOf } from '../../../../src/gateway/request/garbage.ts'

const module = path.resolve(import.meta.dirname, '../../../../src/gateway/request/garbage.ts')

/** How often all of the heap was marked while 512 MB came in pieces of 64 KiB. */
function marked(counted: boolean): number {
  const program = `
    import { PerformanceObserver, constants } from 'node:perf_hooks'
    import { setImmediate } from 'node:timers/promises'
    import { countBody } from ${JSON.stringify(module)}
    let marked = 0
    const seen = (list) => {
      for (const { detail } of list.getEntries())
        if (detail.kind === constants.NODE_PERFORMANCE_GC_MAJOR) marked++
    }
    const observer = new PerformanceObserver(seen)
    observer.observe({ entryTypes: ['gc'] })
    for (let i = 0; i < 8_192; i++) {
      const piece = Buffer.allocUnsafeSlow(64 << 10)
      piece[0] = i
      if (${counted}) countBody(piece.length)
      if (i % 4 === 0) await setImmediate()
    }
    await setImmediate()
    seen({ getEntries: () => observer.takeRecords() })
    console.log(marked)`
  const { stdout, stderr, status } = spawnSync(
    process.execPath,
    ['--max-semi-space-size=4', '--input-type=module', '-e', program],
    { encoding: 'utf8', timeout: 60_000 },
  )
  assert.equal(status, 0, stderr)
  return Number(stdout)
}

test('bodies that pass do not have all of the heap marked again and again', (t) => {
  const [uncounted, counted] = [marked(false), marked(true)]
  t.diagnostic(`all of the heap was marked ${counted} times, uncounted ${uncounted}`)
  // If V8 learns to do it by itself, countBody() may go.
  assert.ok(uncounted >= 3, `uncounted it was marked ${uncounted} times`)
  assert.ok(counted <= uncounted / 2, `${counted} times, uncounted ${uncounted}`)
})

test('a body is counted as it comes, and passes as it is', async () => {
  const body = new Readable({ read() {} })
  countBodyOf(body)
  const pieces = [Buffer.alloc(70_000, 1), Buffer.alloc(3 << 20, 2), Buffer.from('end')]
  for (const piece of [...pieces, null]) body.push(piece)
  assert.deepEqual(Buffer.concat(await body.toArray()), Buffer.concat(pieces))
})
