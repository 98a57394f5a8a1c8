import assert from 'node:assert/strict'
import { test } from 'node:test'
import { printable } from '../../../src/base/errors.ts'

test('what a terminal would obey is not passed on; text of any language and line breaks are', () => {
  const escape = String.fromCharCode(0x1b)
  assert.equal(printable(`a${escape}[2Jb`), 'a\uFFFD[2Jb')
  assert.equal(printable('a\rb\tc\bd\u0007e\u007f'), 'a\uFFFDb\uFFFDc\uFFFDd\uFFFDe\uFFFD')
  // CSI as one character of C1, a change of direction, a line separator, half a surrogate pair.
  assert.equal(printable('\u009b2J\u202egnp\u2028\ud800'), '\uFFFD2J\uFFFDgnp\uFFFD\uFFFD')
  assert.equal(printable('Küche\n  → 温室 ▀█ 🌱\n'), 'Küche\n  → 温室 ▀█ 🌱\n')
})
