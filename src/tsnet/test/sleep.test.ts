/**
 * How the module's thread waits for the other one (../host/udp.ts): it asks for a while before it
 * sleeps, where that has paid.
 */
import assert from 'node:assert/strict'
import os from 'node:os'
import { test } from 'node:test'
import { Memory } from '../host/memory.ts'
import type { Native } from '../host/native.ts'
import { NativeSleeper } from '../host/udp.ts'

/**
 * A sleeper whose system calls are counted: polls that do not wait, and sleeps. `answer`: at which
 * poll of a call the other thread's message is there.
 */
function sleeper(): {
  wait: (answer?: number) => Promise<{ asked: number; slept: number }>
  expect: () => void
} {
  const memory = new Memory()
  memory.attach({ buffer: new ArrayBuffer(65536) } as WebAssembly.Memory)
  // One subscription: a clock, in 20 ms.
  memory.data.setUint8(8, 0)
  memory.data.setUint32(24, 20e6, true)
  let asked = 0
  let slept = 0
  let answerAt: number | undefined
  const native = {
    loopFd: () => 3,
    poll: (
      _fds: number[],
      _writing: unknown,
      timeout: number,
      ready: (i: number, readable: boolean, writable: boolean) => void,
    ) => {
      if (timeout === 0) asked++
      else slept++
      if (asked === answerAt) {
        ready(0, true, false)
        return 1
      }
      if (timeout > 0) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, timeout)
      return 0
    },
  } as unknown as Native
  const made = new NativeSleeper(
    native,
    memory,
    new Map(),
    () => {},
    () => {},
  )
  return {
    expect: made.expect,
    wait: async (answer) => {
      asked = slept = 0
      answerAt = answer
      await made.oneoff(0, 256, 1, 1024)
      return { asked, slept }
    },
  }
}

test(
  'an answer that is expected is asked for before the thread sleeps; one that is not, is not',
  { skip: os.availableParallelism() < 2 && 'with one processor nothing is asked' },
  async () => {
    const { wait, expect } = sleeper()
    await wait() // the event loop's first turn
    const unexpected = await wait()
    assert.deepEqual([unexpected.asked <= 3, unexpected.slept], [true, 1])
    expect()
    const expected = await wait()
    assert.deepEqual([expected.asked > 10, expected.slept], [true, 1])
    const after = await wait()
    assert.ok(after.asked <= 3, 'it was expected once')
  },
)

test(
  'where answers do not come in time chances are left out: 1, 3, 7 … 63; where one does, none',
  { skip: os.availableParallelism() < 2 && 'with one processor nothing is asked' },
  async () => {
    const { wait, expect } = sleeper()
    await wait()
    const chance = async (answer?: number): Promise<boolean> => {
      expect()
      return (await wait(answer)).asked > 10
    }
    const taken: number[] = []
    for (let i = 0; i < 200; i++) if (await chance()) taken.push(i)
    assert.deepEqual(taken, [0, 2, 6, 14, 30, 62, 126, 190])
    for (let i = 200; i < 254; i++) await chance()
    // The answer comes at the 20th poll.
    assert.equal(await chance(20), true)
    assert.equal(await chance(), true)
  },
)
