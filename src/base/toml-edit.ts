import { GatehouseError } from './errors.ts'
import { scanToml } from './toml-scan.ts'

/**
 * A TOML text with one key set, in its place or at the end of its table; all else, comments
 * included, as it was. It runs in browsers too: the web console's form is made with it.
 *
 * @param table without dots, and not a list of tables
 * @param value as TOML writes it (`"Europe/Berlin"`, `true`); undefined removes the key
 * @throws GatehouseError where the key is within braces and so cannot be removed alone
 */
export function setKey(
  text: string,
  table: string,
  name: string,
  value: string | undefined,
): string {
  const key = `${table}.${name}`
  const { entries, headers } = scanToml(text)
  const entry = entries.find(({ path }) => path.join('.') === key)
  const eol = text.includes('\r\n') ? '\r\n' : '\n'
  if (entry !== undefined) {
    if (value !== undefined) return `${text.slice(0, entry.value)}${value}${text.slice(entry.end)}`
    if (entry.inline)
      throw new GatehouseError(
        'GH_SETTINGS_INLINE',
        `line ${entry.line}: ${key} is within braces, where it cannot be removed alone`,
        `Write [${table}] and ${name} on lines of their own`,
      )
    const next = text.indexOf('\n', entry.end)
    return text.slice(0, entry.start) + (next === -1 ? '' : text.slice(next + 1))
  }
  if (value === undefined) return text
  const line = `${name} = ${value}${eol}`
  const header = headers.find(({ path }) => path.join('.') === table)
  if (header === undefined) {
    const gap = text === '' || text.endsWith('\n') ? '' : eol
    return `${text}${gap}${text === '' ? '' : eol}[${table}]${eol}${line}`
  }
  // Right behind the last key of the table, or behind its header.
  const own = entries.filter(
    ({ path, inline }) => path[0] === table && path.length === 2 && !inline,
  )
  const after = own.length > 0 ? text.indexOf('\n', own.at(-1)!.end) : endOfLine(text, header.line)
  if (after === -1) return `${text}${eol}${line}`
  return `${text.slice(0, after + 1)}${line}${text.slice(after + 1)}`
}

/** Offset of the line feed that ends a line, counted from 1; -1 for the last without one. */
function endOfLine(text: string, line: number): number {
  let at = -1
  for (let i = 0; i < line; i++) {
    at = text.indexOf('\n', at + 1)
    if (at === -1) return -1
  }
  return at
}
