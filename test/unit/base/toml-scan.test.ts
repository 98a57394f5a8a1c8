/** Where things stand in a TOML text, against what smol-toml reads there. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parse } from 'smol-toml'
import { scanToml } from '../../../src/base/toml-scan.ts'

const text = `\uFEFF# a comment with [brackets] and = "signs"
top = 1
"quoted \\"key\\"" = 'a # no comment'
a.b . "c.d" = [1, 2, # here too: x = 1
  { x = "}", y = [] } ]
date = 1979-05-27 07:32:00Z
long = """
[table]
key = "x" \\""" and ""five"""""
raw = '''
auth_key = "x"'''

[ table . "sub" ]
key = true
[[list]]
name = "one"
[list.inner]
deep = { er = { est = 'x' } }
[[list]]
name = "two"
[[list.more]]
n = 0xff
[[list.more]]
n = -1.5e3
\ttabbed\t=\t"x"
`

/** A value of a document by its path. */
const at = (document: unknown, path: readonly string[]): unknown =>
  path.reduce((found, part) => (found as Record<string, unknown>)[part], document)

test('each key is found with its path, line and value, as a parser reads them', () => {
  const document = parse(text.slice(1))
  const { entries, headers } = scanToml(text)
  for (const { path, line, start, value, end } of entries) {
    assert.deepEqual(at(document, path), parse(`x = ${text.slice(value, end)}`).x, path.join('.'))
    assert.equal(line, text.slice(0, start).split('\n').length)
  }
  assert.deepEqual(
    entries.map(({ path, line, inline }) => [path.join('/'), line, inline]),
    [
      ['top', 2, false],
      ['quoted "key"', 3, false],
      ['a/b/c.d', 4, false],
      ['a/b/c.d/2/x', 5, true],
      ['a/b/c.d/2/y', 5, true],
      ['date', 6, false],
      ['long', 7, false],
      ['raw', 10, false],
      ['table/sub/key', 14, false],
      ['list/0/name', 16, false],
      ['list/0/inner/deep', 18, false],
      ['list/0/inner/deep/er', 18, true],
      ['list/0/inner/deep/er/est', 18, true],
      ['list/1/name', 20, false],
      ['list/1/more/0/n', 22, false],
      ['list/1/more/1/n', 24, false],
      ['list/1/more/1/tabbed', 25, false],
    ],
  )
  assert.deepEqual(
    headers.map(({ path, line }) => [path.join('/'), line]),
    [
      ['table/sub', 13],
      ['list/0', 15],
      ['list/0/inner', 17],
      ['list/1', 19],
      ['list/1/more/0', 21],
      ['list/1/more/1', 23],
    ],
  )
})

test('a mistake costs its own line, whatever it is', () => {
  for (const mistake of ['x', 'x =', '= 1', '[x', 'x = "open', '"x" "y"', '@', "x = '"])
    for (const eol of ['\n', '\r\n']) {
      const { entries } = scanToml(`a = 1${eol}${mistake}${eol}[t]${eol}b = 2${eol}`)
      assert.deepEqual(entries[0]!.path, ['a'], mistake)
      assert.deepEqual(entries.at(-1)!.path, ['t', 'b'], mistake)
    }
})

test('no text makes it fail, or take long', () => {
  const begun = Date.now()
  for (const piece of ['[', '{a=', 'a=[', '"""', "'''", 'a.', '[[a]]\n', 'a=1\n', '\\', '\0', '#'])
    scanToml(piece.repeat(100_000))
  assert.ok(Date.now() - begun < 30_000)
  // Cut anywhere.
  for (let i = 0; i < text.length; i++) scanToml(text.slice(0, i))
})
