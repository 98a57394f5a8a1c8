import assert from 'node:assert/strict'
import { test } from 'node:test'
import { duration, flag, integer, listOf, oneOf, text } from '../../../src/config/kinds.ts'
import type { Kind } from '../../../src/config/kinds.ts'
import { locate } from '../../../src/config/locate.ts'

const key = { name: 'wait', example: 'wait = "30 s"' }

const good: Array<[string, Kind<any>, unknown, unknown]> = [
  ['text', text(), 'x', 'x'],
  ['one of some words', oneOf('on', 'off'), 'off', 'off'],
  ['a flag', flag(), false, false],
  ['a whole number at its bound', integer(1, 5), 5, 5],
  ['seconds', duration(0, 60_000), '30 s', 30_000],
  ['minutes, no space', duration(0, 3_600_000), '5min', 300_000],
  ['days', duration(0, 864_000_000), '7 d', 604_800_000],
  ['a list', listOf(text()), ['a', 'b'], ['a', 'b']],
  ['an empty list', listOf(text()), [], []],
]
for (const [name, kind, toml, value] of good) {
  test(`${name} is read, and what is written reads the same`, () => {
    assert.deepEqual(kind.read(toml, key), { value })
    assert.deepEqual(kind.read(kind.write(value), key), { value })
  })
}

const bad: Array<[string, Kind<any>, unknown, RegExp]> = [
  ['a number for text', text(), 5, /wait must be text in quotes/],
  ['a word that is none of those', oneOf('on', 'off'), 'of', /wait is "of"/],
  ['a flag in quotes', flag(), 'true', /true or false, without quotes/],
  ['a fraction', integer(1, 5), 1.5, /whole number/],
  ['a number out of range', integer(1, 5), 6, /6, outside 1 to 5/],
  ['a time without unit', duration(0, 1_000), '30', /length of time/],
  ['a time out of range', duration(1_000, 60_000), '2 h', /"2 h", outside 1 s to 1 min/],
  ['a single text for a list', listOf(text()), 'a', /a list in square brackets/],
  ['a wrong entry', listOf(integer(1, 5)), [1, 'x'], /an entry of wait must be a whole number/],
  ['too many entries', listOf(text(), 2), ['a', 'b', 'c'], /3 entries; 2 are the most/],
]
for (const [name, kind, toml, says] of bad) {
  test(`${name} is refused in words, with a cure`, () => {
    const read = kind.read(toml, key)
    assert.ok('wrong' in read)
    assert.match(read.wrong.message, says)
    assert.match(read.wrong.cure, /^(Write|Remove) /)
  })
}

test('keys in the second of several like tables are found on their line', () => {
  const toml = '[[app]]\nname = "a"\n\n[[app]]\nname = "b"\n[tailnet]\nname = "c"\n'
  assert.deepEqual(
    [
      locate(toml, ['app']),
      locate(toml, ['app', '0', 'name']),
      locate(toml, ['app', '1', 'name']),
      locate(toml, ['tailnet', 'name']),
    ],
    [1, 2, 5, 7],
  )
})
