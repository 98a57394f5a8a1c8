/**
 * Taking the data off a module (host/module.ts): what remains compiles, and the memory is as it
 * would be.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { instantiate, splitData } from '../host/module.ts'

const header = [0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0]
const section = (id: number, ...body: number[]): number[] => [id, body.length, ...body]
/** A memory of one page, exported as "memory". */
const memory = [...section(5, 1, 0, 1), ...section(7, 1, 6, ...Buffer.from('memory'), 2, 0)]
const custom = section(0, 1, 0x78, 1, 2, 3)
const made = (...sections: number[][]): Uint8Array<ArrayBuffer> =>
  new Uint8Array([...header, ...memory, ...sections.flat()])
/** An active segment at `offset`, which is LEB128. */
const at = (offset: number[], ...bytes: number[]): number[] => [
  0,
  0x41,
  ...offset,
  0x0b,
  bytes.length,
  ...bytes,
]

const contents = async (bytes: Uint8Array<ArrayBuffer>): Promise<Buffer> => {
  const { exports } = await instantiate(bytes, {})
  return Buffer.from((exports.memory as WebAssembly.Memory).buffer)
}

test('the data is in the memory, in its order, and the bytes are given back', async () => {
  // At 64 (which as signed LEB128 takes two bytes), at 10, and over the first of them again.
  const bytes = made(
    section(11, 3, ...at([0xc0, 0x00], 1, 2, 3), ...at([10], 9, 9), ...at([0xc1, 0x00], 7)),
    custom,
  )
  const { code, segments } = splitData(bytes)
  assert.deepEqual(
    [...segments()].map((s) => [s.offset, ...s.bytes]),
    [
      [64, 1, 2, 3],
      [10, 9, 9],
      [65, 7],
    ],
  )
  assert.equal(code.length, header.length + memory.length)
  const reference = Buffer.from(bytes)
  const got = await contents(bytes)
  assert.deepEqual([...got.subarray(64, 67), ...got.subarray(10, 12)], [1, 7, 3, 9, 9])
  assert.equal(bytes.buffer.detached, true)
  const whole = await WebAssembly.instantiate(await WebAssembly.compile(reference), {})
  assert.ok(
    got.equals(Buffer.from((whole.exports.memory as WebAssembly.Memory).buffer)),
    'as V8 does it',
  )
})

test('what could not be done the same way is left to V8', () => {
  for (const [why, bytes] of Object.entries({
    'no data': made(custom),
    'a passive segment': made(section(11, 2, ...at([0], 1), 1, 1, 5)),
    'a segment of a memory by its number': made(section(11, 1, 2, 0, 0x41, 0, 0x0b, 1, 5)),
    'a place that is a global': made(section(11, 1, 0, 0x23, 0, 0x0b, 1, 5)),
    'code that refers to segments': made(section(12, 1), section(11, 1, ...at([0], 1))),
    'something behind the data': made(section(11, 1, ...at([0], 1)), section(10, 0)),
  })) {
    const { code, segments } = splitData(bytes)
    assert.equal(code, bytes, why)
    assert.deepEqual([...segments()], [], why)
  }
})

test('a module that is cut off, or whose data has no place, is an error', async () => {
  const bytes = made(section(11, 1, ...at([0], 1, 2, 3)))
  for (let n = bytes.length - 1; n > header.length + memory.length; n--)
    assert.throws(() => splitData(bytes.subarray(0, n)), /cut off/, `${n} bytes`)
  await assert.rejects(contents(made(section(11, 1, ...at([0xff, 0xff, 0x07], 1, 2)))), RangeError) // one byte over the end of the page
})

test('of the module itself, all data is taken off', () => {
  const bytes = readFileSync(path.resolve(import.meta.dirname, '../build/tsnet.wasm'))
  const { code, segments } = splitData(bytes)
  let size = 0
  for (const s of segments()) size += s.bytes.length
  assert.ok(
    size > 5e6 && code.length + size > 0.95 * bytes.length && code.length + size < bytes.length,
    `${code.length} and ${size} of ${bytes.length}`,
  )
})
