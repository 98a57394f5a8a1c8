import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { fieldOf, setKey, shown, valuesOf, withWord, written } from '../../../src/console/form.ts'
import type { Field } from '../../../src/console/form.ts'
import { describe } from '../../../src/config/describe.ts'
import { explanations } from '../../../tools/console.ts'
import { parseConfig } from '../../../src/config/config.ts'
import { schema } from '../../../src/config/schema.ts'
import type { Keys } from '../../../src/config/schema.ts'

test('every example of the schema is shown by its field and written back as the same value', () => {
  let count = 0
  for (const [table, keys] of Object.entries(schema as Record<string, Keys | [Keys]>))
    for (const [name, { example }] of Object.entries(Array.isArray(keys) ? keys[0] : keys)) {
      const field = fieldOf(example)
      const content = shown(example, field)
      // A table has no field: it is changed as text.
      if (field === 'table') {
        assert.equal(content, undefined)
        continue
      }
      assert.notEqual(content, undefined, `${table}.${name} = ${example}`)
      assert.equal(shown(written(content!, field), field), content, `${table}.${name}`)
      count++
    }
  assert.ok(count > 50, `${count} keys`)
})

test('what a field holds becomes TOML that says the same, whatever is typed', () => {
  for (const [field, entered, expected] of [
    ['text', 'a "quoted" \\ word', '"a \\"quoted\\" \\\\ word"'],
    ['text', 'tab\tand\u007f', '"tab\\tand\\u007F"'],
    ['text', '  ', undefined],
    ['list', 'one\n\n two \n', '["one", "two"]'],
    ['list', '\n', undefined],
    ['flag', 'true', 'true'],
    ['flag', '', undefined],
    ['number', ' 8444 ', '8444'],
  ] as Array<[Field, string, string | undefined]>)
    assert.equal(written(entered, field), expected, entered)
})

test('a value that its field cannot show is left to the text', () => {
  assert.equal(shown('{ a = 1 }', 'text'), undefined)
  assert.equal(shown('[1, 2]', 'list'), undefined)
  assert.equal(shown('"yes"', 'flag'), undefined)
  assert.equal(shown('not toml', 'text'), undefined)
  assert.equal(shown(undefined, 'text'), '')
})

test('a word joins a list once, in its place, and comments stay', () => {
  const text = '# mine\n[node_red]\ndevices = ["serial"] # the meter\n'
  const more = withWord(text, 'node_red', 'devices', 'i2c')
  assert.equal(more, '# mine\n[node_red]\ndevices = ["serial", "i2c"] # the meter\n')
  assert.equal(withWord(more, 'node_red', 'devices', 'i2c'), more)
  assert.deepEqual(parseConfig(withWord('', 'node_red', 'devices', 'gpio'), 'x').node_red.devices, [
    'gpio',
  ])
})

test('keys are found with their lines, set and removed', () => {
  const text = '[tailnet]\nhostname = "shed"\n'
  assert.deepEqual(valuesOf(text).get('tailnet.hostname'), { written: '"shed"', line: 2 })
  const both = setKey(text, 'node_red', 'timezone', '"Europe/Berlin"')
  assert.equal(both, `${text}\n[node_red]\ntimezone = "Europe/Berlin"\n`)
  assert.equal(
    setKey(both, 'tailnet', 'hostname', undefined),
    '[tailnet]\n\n[node_red]\ntimezone = "Europe/Berlin"\n',
  )
})

test('the form explains every key in the words of gatehouse.toml.example', () => {
  const example = join(
    import.meta.dirname,
    '../../../overlays/usr/share/gatehouse/gatehouse.toml.example',
  )
  const found = explanations(readFileSync(example, 'utf8'))
  assert.match(found['node_red.timezone']!, /^The time zone of flows/)
  assert.equal(found['access.edit'], 'Change flows. Default: nobody.')
  const missing = describe()
    .flatMap(({ table, keys }) => keys.map(({ name }) => `${table}.${name}`))
    .filter((key) => !(key in found))
  // The example names some keys in passing.
  assert.ok(missing.length <= 5, missing.join())
})
