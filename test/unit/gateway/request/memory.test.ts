import assert from 'node:assert/strict'
import { request as httpRequest } from 'node:http'
import type { IncomingMessage } from 'node:http'
import { once } from 'node:events'
import { text } from 'node:stream/consumers'
import { test } from 'node:test'
import { pino } from 'pino'
import { defaults } from '../../../../src/config/config.ts'
import { Memory } from '../../../../src/gateway/request/memory.ts'
import { Bench } from '../../support/bench.ts'

const mib = 1024 * 1024

/** A process of 50 MiB whose limit is 100, and its clock. */
function measured(): {
  memory: Memory
  has: { mib: number; free: number; trims: number; settled: number }
  told: string[]
  pass: (seconds: number, underWay: number) => void
} {
  const [has, told] = [{ mib: 50, free: 0, trims: 0, settled: 0 }, [] as string[]]
  let now = 0
  const memory = new Memory(pino({ level: 'silent' }), {
    rss: () => has.mib * mib,
    now: () => now,
    trim: () => {
      has.trims++
      has.mib -= has.free
      has.free = 0
    },
    settle: () => has.settled++,
    giveBack: () => {},
  })
  memory.events = {
    problem: (error) => told.push(error?.code ?? 'well'),
    stuck: (error) => told.push(error.code),
  }
  return {
    memory,
    has,
    told,
    pass: (seconds, underWay) => {
      for (let i = 0; i < seconds; i++) {
        now += 1_000
        memory.look(100, underWay)
      }
    },
  }
}

test('what the start leaves is collected once, when nobody waits for an answer', () => {
  const { has, pass } = measured()
  pass(40, 0)
  assert.equal(has.settled, 0, 'not while it may still be starting')
  pass(20, 1)
  assert.equal(has.settled, 0)
  pass(1, 0)
  assert.equal(has.settled, 1)
  pass(600, 0)
  assert.equal(has.settled, 1)
})

test('what is free is given back soon after growth, and once a minute', () => {
  const { has, pass } = measured()
  pass(1, 0)
  assert.equal(has.trims, 1)
  // A burst, half of which is free again.
  has.mib += 20
  has.free = 10
  pass(2, 0)
  assert.equal(has.trims, 1, 'not more often than every five seconds')
  pass(3, 0)
  assert.deepEqual([has.trims, has.mib], [2, 60])
  has.mib += 7
  has.free = 5
  pass(50, 0)
  assert.equal(has.trims, 2, 'little growth')
  pass(10, 0)
  assert.deepEqual([has.trims, has.mib], [3, 62])
})

test('memory that is short for a moment is no problem, for ten seconds it is one, and over when it is enough', () => {
  const { memory, has, told, pass } = measured()
  has.mib = 101
  pass(5, 0)
  assert.ok(memory.short)
  has.mib = 94
  pass(1, 0)
  assert.ok(!memory.short)
  assert.deepEqual(told, [])
  has.mib = 101
  pass(11, 0)
  assert.deepEqual(told, ['GH_MEMORY'])
  has.mib = 97
  pass(30, 0)
  assert.ok(memory.short, 'enough is somewhat less than the limit')
  has.mib = 90
  pass(30, 0)
  assert.deepEqual(told, ['GH_MEMORY', 'well'])
})

test('short without a reason for two minutes, it wants a new start; with requests under way it waits, but not for ever', () => {
  const idle = measured()
  idle.has.mib = 200
  idle.pass(120, 0)
  assert.deepEqual(idle.told, ['GH_MEMORY'])
  idle.pass(2, 0)
  assert.deepEqual(idle.told, ['GH_MEMORY', 'GH_MEMORY_STUCK'])
  idle.pass(600, 0)
  assert.equal(idle.told.length, 2, 'once')

  const busy = measured()
  busy.has.mib = 200
  busy.pass(500, 3)
  busy.pass(60, 0)
  assert.deepEqual(busy.told, ['GH_MEMORY'])
  busy.pass(45, 3)
  assert.deepEqual(busy.told, ['GH_MEMORY', 'GH_MEMORY_STUCK'])
})

test('what was freed is given back before anybody is refused', async () => {
  const memory = new Memory(pino({ level: 'silent' }))
  // In a function of its own, so that nothing of it stays on the stack.
  const full = (): number => {
    const held = Array.from({ length: 200 }, () => Buffer.alloc(mib, 'x'))
    const rss = process.memoryUsage.rss()
    assert.equal(held.length, 200)
    return rss
  }
  const before = full()
  // What the stack or a page half in use holds is another matter at each run: a fifth is enough.
  await new Promise((resolve) => setTimeout(resolve, 50))
  // V8 gives back what buffers held on a thread of its own: at the next look at the latest.
  for (let looks = 0; looks < 2; looks++) {
    memory.look((before - 40 * mib) / mib, 0)
    if (!memory.short) break
    await new Promise((resolve) => setTimeout(resolve, 1_000))
  }
  assert.ok(!memory.short, `${(process.memoryUsage.rss() - before) / mib} MiB`)
})

test(
  'in status and /readyz while it lasts, and then the process ends',
  { timeout: 60_000 },
  async (t) => {
    await using bench = await Bench.start()
    const admin = async (path: string): Promise<[number, string]> => {
      const request = httpRequest({ socketPath: bench.admin, path }).end()
      const [response] = (await once(request, 'response')) as [IncomingMessage]
      return [response.statusCode!, await text(response)]
    }
    await bench.until(async () => (await admin('/readyz'))[0] === 200)
    const real = performance.now.bind(performance)
    let later = 0
    t.mock.method(performance, 'now', () => real() + later)
    const short = { ...defaults(), limits: { ...defaults().limits, memoryMib: 1 } }
    bench.gateway.configure(short)
    await bench.until(() => bench.log('memory is short').length === 1)
    later = 15_000
    await bench.until(() => bench.gateway.problems.get('memory') !== undefined)
    const [status, body] = await admin('/readyz')
    assert.deepEqual(
      [status, (JSON.parse(body) as { error: { code: string } }).error.code],
      [503, 'GH_MEMORY'],
    )
    assert.match((await admin('/v1/status'))[1], /the gateway is short of memory/)
    assert.match(bench.states.at(-1)!, /short of memory/)
    // It passes.
    bench.gateway.configure(defaults())
    await bench.until(async () => (await admin('/readyz'))[0] === 200)
    assert.deepEqual(bench.fatal, [])
    // It does not.
    bench.gateway.configure(short)
    await bench.until(() => bench.log('memory is short').length === 2)
    later += 125_000
    await bench.until(() => bench.fatal.length === 1)
    const [fatal] = bench.fatal as Error[]
    assert.match(String(fatal), /memory has been short for 12\d s, with 0 requests under way/)
  },
)
