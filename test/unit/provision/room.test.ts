import assert from 'node:assert/strict'
import { test } from 'node:test'
import { reservedBytes, reservedFiles } from '../../../src/base/room.ts'
import { Quotas, extensionLimit, limits, short } from '../../../src/provision/room.ts'

const MiB = 2 ** 20

test('files are left to the others as bytes are: a twentieth, 1000 at least, half of what is tiny', () => {
  assert.deepEqual([1_000_000, 47_040, 16_384, 1500].map(reservedFiles), [50_000, 2352, 1000, 750])
})

test('Node-RED has a usual limit; found full it gets a little more each time, and never half of the reserve', () => {
  const all = { files: 47_040, bytes: 640 * MiB }
  const usual = limits(all)
  assert.deepEqual(usual, { files: 44_688, bytes: 632 * MiB })
  assert.deepEqual(limits(all, { files: 100, bytes: MiB }), usual, 'not by its own doing')
  let limit = usual
  const given: number[] = []
  for (let i = 0; i < 100; i++) {
    limit = limits(all, limit)
    given.push(limit.files - usual.files)
  }
  assert.deepEqual(given.slice(0, 3), [64, 128, 192])
  assert.equal(limit.files, all.files - reservedFiles(all.files) / 2)
  assert.equal(limit.bytes, all.bytes - reservedBytes / 2)
})

test('flows stay stopped until what fills the disk is gone, also with what was given before', () => {
  const all = { files: 47_040, bytes: 640 * MiB }
  const usual = limits(all)
  // Found full at the start before, and given 64 files more, of which it has used some.
  assert.equal(short(all, usual), true)
  assert.equal(short(all, { files: usual.files + 9, bytes: MiB }), true)
  assert.equal(short(all, { files: 100, bytes: usual.bytes }), true)
  assert.equal(short(all, { files: 100, bytes: 300 * MiB }), false)
})

test('a file system that does not count what users have is named, with the error', async () => {
  const quotas = await Quotas.open('/dev/null')
  for (const asked of [() => quotas.has(603), () => quotas.limit(603, { files: 1, bytes: 1 })])
    assert.throws(asked, { code: 'GH_ROOM_QUOTA', message: /^\/dev\/null does not count .* \d+$/ })
})

test('an extension may store an eighth of what there is, up to 256 MiB', () => {
  assert.deepEqual(extensionLimit({ files: 47_040, bytes: 640 * MiB }), {
    files: 5_880,
    bytes: 80 * MiB,
  })
  assert.deepEqual(extensionLimit({ files: 1_000_000, bytes: 30_000 * MiB }), {
    files: 10_000,
    bytes: 256 * MiB,
  })
})
