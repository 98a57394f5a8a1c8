import { parse } from 'smol-toml'
import { setKey } from '../base/toml-edit.ts'
import { scanToml } from '../base/toml-scan.ts'

/** What stands in the place of a secret in settings that are shown (src/config/edit.ts). */
export const keptSecret = '(kept)'

/** How a key is asked for. */
export type Field = 'flag' | 'list' | 'number' | 'table' | 'text'

/** The field for a key, by its example: its value as TOML writes it. */
export function fieldOf(example: string): Field {
  const value = read(example)
  if (typeof value === 'boolean') return 'flag'
  if (Array.isArray(value)) return 'list'
  if (typeof value === 'object' && value !== null) return 'table'
  return typeof value === 'number' ? 'number' : 'text'
}

/** Keys of a settings text, `table.name`, with the text of their values and their lines. */
export function valuesOf(text: string): Map<string, { written: string; line: number }> {
  return new Map(
    scanToml(text).entries.map(({ path, value, end, line }) => [
      path.join('.'),
      { written: text.slice(value, end), line },
    ]),
  )
}

/** A value as a field shows it; undefined where the field cannot: it is changed as text then. */
export function shown(written: string | undefined, field: Field): string | undefined {
  if (field === 'table') return undefined
  if (written === undefined) return ''
  const value = read(written)
  switch (field) {
    case 'flag':
      return typeof value === 'boolean' ? String(value) : undefined
    case 'number':
      return typeof value === 'number' || typeof value === 'bigint' ? String(value) : undefined
    case 'list':
      return Array.isArray(value) && value.every((one) => typeof one === 'string')
        ? value.join('\n')
        : undefined
    case 'text':
      return typeof value === 'string' ? value : undefined
  }
}

/** What a field holds, as TOML writes it; undefined when it is empty: the default holds. */
export function written(entered: string, field: Field): string | undefined {
  if (entered.trim() === '') return undefined
  switch (field) {
    case 'flag':
    case 'number':
      return entered.trim()
    case 'list': {
      const items = entered.split('\n').map((item) => item.trim())
      return `[${items
        .filter((item) => item !== '')
        .map(quoted)
        .join(', ')}]`
    }
    case 'table':
      return undefined
    case 'text':
      return quoted(entered)
  }
}

/** The settings text with one more word in a list, `node_red.devices` for one. */
export function withWord(text: string, table: string, name: string, word: string): string {
  const before = shown(valuesOf(text).get(`${table}.${name}`)?.written, 'list') ?? ''
  const words = new Set([...before.split('\n'), word])
  return setKey(text, table, name, written([...words].join('\n'), 'list'))
}

// A basic string of TOML has JSON's escapes, and wants DEL escaped too (toml.io v1.0.0, String).
const quoted = (value: string): string => JSON.stringify(value).replaceAll('\u007f', '\\u007F')

function read(written: string): unknown {
  try {
    return parse(`value = ${written}`)['value']
  } catch {
    return undefined
  }
}

export { setKey }
