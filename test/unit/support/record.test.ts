/** The page that long runs of tests leave (test/record.ts). */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { record } from '../../record.ts'

const result = {
  ...{ test: 'test/vm/names', at: '2026-01-02 03:04', commit: 'abc', passed: 6, failed: 0 },
  ...{ skipped: 1, minutes: 12.34, failures: [] },
}

test('each file of tests has a line, which says when, of what and how many', () => {
  const page = record('', [result])
  assert.match(page, /^# [^\n]+\n/)
  assert.match(
    page,
    /^\| test\/vm\/names \| 2026-01-02 03:04 \| abc \| 6 \| 0 \| 1 \| 12\.3 \|  \|$/m,
  )
})

test('a later run takes the place of the line of its file, and leaves the others', () => {
  const before = record('', [result, { ...result, test: 'src/tsnet/test/loss' }])
  const page = record(before, [
    { ...result, at: '2026-02-02 03:04', failed: 4, failures: ['a | b', 'c', 'd\ne', 'f'] },
  ])
  assert.doesNotMatch(page, /names \| 2026-01-02/)
  assert.match(page, /names \| 2026-02-02 .* \| a b; c; d e; and 1 more \|$/m)
  assert.match(page, /^\| src\/tsnet\/test\/loss \| 2026-01-02/m)
  assert.equal(page.split('\n').filter((line) => line.startsWith('| ')).length, 3)
})
