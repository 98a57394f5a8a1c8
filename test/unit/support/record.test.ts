/** The page that a long run of tests leaves (test/record.ts). */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { record } from '../../record.ts'

const about = { date: '2026-11-27 01:00', commit: 'abc', changed: false, command: 'make test-long' }
const folder = { name: 'vm', files: 3, passed: 7, failed: 1, skipped: 2, seconds: 630 }

test('counts, minutes and what failed', () => {
  const text = record(about, [folder, { ...folder, name: 'tsnet', failed: 0 }], ['a.test.ts: b'])
  assert.match(text, /2026-11-27 01:00 UTC, of commit abc:/)
  assert.match(text, /\*\*14 passed, 1 failed, 4 skipped\*\* in 21 minutes/)
  assert.match(text, /^\| vm \| 3 \| 7 \| 1 \| 2 \| 11 \|$/m)
  assert.match(text, /^- a\.test\.ts: b$/m)
})

test('a run of a changed checkout says so, and one without failures lists none', () => {
  const text = record({ ...about, changed: true }, [{ ...folder, failed: 0 }], [])
  assert.match(text, /of commit abc with changes:/)
  assert.doesNotMatch(text, /Failed/)
})
