/** gatehouse.toml.example, which lies on every card: it names every key there is, and no other. */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { schema, tomlName } from '../../../src/config/schema.ts'
import type { Keys } from '../../../src/config/schema.ts'

const text = readFileSync(
  join(import.meta.dirname, '../../../overlays/usr/share/gatehouse/gatehouse.toml.example'),
  'utf8',
)

test('every key of every table is in the example, and nothing that there is not', () => {
  const documented = new Set<string>()
  let table = ''
  for (const line of text.split('\n')) {
    const header = /^#?\[\[?([a-z_]+)\]\]?$/.exec(line)?.[1]
    if (header !== undefined) table = header
    const key = /^#?([a-z_0-9]+) = /.exec(line)?.[1]
    if (key !== undefined) documented.add(`${table}.${key}`)
  }
  // A table of its own.
  assert.match(text, /^#\[node_red\.env\]$/m)
  documented.add('node_red.env')
  const known = Object.entries(schema as Record<string, Keys | [Keys]>).flatMap(([name, keys]) =>
    Object.keys(Array.isArray(keys) ? keys[0] : keys).map((key) => `${name}.${tomlName(key)}`),
  )
  assert.deepEqual([...documented].toSorted(), known.toSorted())
})
