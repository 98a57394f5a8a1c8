/**
 * Direct jumps (jumps.ts): functions in the shape that Go's compiler gives them, by chance, do the
 * same before and after, from each of their blocks.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { generator } from '../../../test/unit/support/random.ts'
import { directJumps } from '../jumps.ts'

const [get, set, constant] = [0x20, 0x21, 0x41]
/** Locals: the block to go on with, steps that are left, what came of it. */
const [block, fuel, sum] = [0, 1, 2]

const vector = (...items: number[][]): number[] => [items.length, ...items.flat()]
const sized = (bytes: number[]): number[] => [...leb(bytes.length), ...bytes]
function leb(value: number): number[] {
  return value < 0x80 ? [value] : [(value & 0x7f) | 0x80, ...leb(value >>> 7)]
}
/** Signed. */
function sleb(value: number): number[] {
  return value < 0x40 ? [value] : [(value & 0x7f) | 0x80, ...sleb(value >>> 7)]
}

/** A module with one function `f(block, fuel)` of this body. */
function moduleOf(body: number[]): Buffer {
  const code = sized([...vector([1, 0x7f]), ...body, 0x0b])
  return Buffer.from([
    ...[0, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
    ...[1, ...sized(vector([0x60, 2, 0x7f, 0x7f, 1, 0x7f]))],
    ...[3, ...sized(vector([0]))],
    ...[7, ...sized(vector([1, 0x66, 0, 0]))],
    ...[10, ...sized(vector(code))],
  ])
}

/** The function that such a module has. */
function functionOf(module: Buffer): (block: number, fuel: number) => number {
  const instance = new WebAssembly.Instance(new WebAssembly.Module(new Uint8Array(module)), {})
  return instance.exports['f'] as (block: number, fuel: number) => number
}

interface Shape {
  blocks: number
  /** Where a block may go on, by its number; default: anywhere. */
  to?: (from: number, at: number) => number
}

/** A body in Go's shape: blocks one behind the other, in a loop with a table at its head. */
function bodyOf(
  { blocks, to = (_from, at) => at }: Shape,
  below: (limit: number) => number,
): number[] {
  const target = (from: number): number => to(from, below(blocks))
  const jump = (number: number, depth: number): number[] => [
    ...[constant, ...sleb(number), set, block],
    ...[0x0c, ...leb(depth)],
  ]
  const all: number[] = [0x03, 0x40]
  for (let i = 0; i < blocks; i++) all.push(0x02, 0x40)
  all.push(get, block, 0x0e, ...leb(blocks - 1))
  for (let i = 0; i < blocks; i++) all.push(...leb(i))
  for (let i = 0; i < blocks; i++) {
    const depth = blocks - 1 - i // of the loop, within this block
    all.push(0x0b)
    // sum = sum * 31 + i; no fuel: done.
    all.push(get, sum, constant, 31, 0x6c, constant, ...sleb(i), 0x6a, set, sum)
    all.push(get, fuel, 0x45, 0x04, 0x40, get, sum, 0x0f, 0x0b)
    all.push(get, fuel, constant, 1, 0x6b, set, fuel)
    const way = i === blocks - 1 ? 2 : below(3)
    // Where the sum is odd.
    if (way > 0)
      all.push(get, sum, constant, 1, 0x71, 0x04, 0x40, ...jump(target(i), depth + 1), 0x0b)
    if (way > 1) all.push(...jump(target(i), depth))
  }
  return [...all, 0x0b, 0x00]
}

test('what it makes does the same, from each block on', () => {
  const below = generator(7)
  let [direct, all] = [0, 0]
  for (let i = 0; i < 400; i++) {
    const blocks = 1 + below(i % 10 === 0 ? 200 : 12)
    const before = moduleOf(
      bodyOf({ blocks, to: (from, at) => (i % 3 ? at : Math.max(from, at)) }, below),
    )
    let after: Buffer
    try {
      const made = directJumps(before)
      after = made.module
      direct += made.jumps.direct
      all += made.jumps.jumps
    } catch (err) {
      assert.match(String(err), /no jump of it can be made direct/)
      continue
    }
    const [was, is] = [functionOf(before), functionOf(after)]
    for (let at = 0; at <= blocks; at++)
      for (const steps of [0, 1, 5, 50])
        assert.equal(is(at, steps), was(at, steps), `${i}: ${at}, ${steps}`)
  }
  assert.ok(direct > all / 4 && direct < all, `${direct} of ${all}`)
})

test('jumps forwards need no loop, one backwards keeps it', () => {
  const forwards = bodyOf({ blocks: 9, to: (from) => Math.min(from + 1, 8) }, generator(1))
  // The last block goes on with itself.
  const { jumps } = directJumps(moduleOf(forwards))
  assert.ok(jumps.jumps - jumps.direct <= 2 && jumps.unlooped === 0, JSON.stringify(jumps))
  const [loop, label, end, unreachable, jump] = [
    0x03,
    0x02,
    0x0b,
    0x00,
    [constant, 1, set, 0, 0x0c],
  ]
  const two = [loop, 0x40, label, 0x40, label, 0x40, get, 0, 0x0e, 1, 0, 1, end, ...jump, 1, end]
  const once = directJumps(moduleOf([...two, get, fuel, 0x0f, end, unreachable]))
  assert.deepEqual(once.jumps, { functions: 1, unlooped: 1, jumps: 1, direct: 1 })
  assert.equal(functionOf(once.module)(0, 42), 42)
})

test('what it does not know is told, and a module that has nothing of it', () => {
  assert.throws(
    () => directJumps(moduleOf([0xfd, 0x0f])),
    /instruction 0xfd at byte \d+ is not known/,
  )
  assert.throws(() => directJumps(moduleOf([get, 0])), /no jump of it can be made direct/)
})
