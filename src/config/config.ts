import { parse, stringify } from 'smol-toml'
import { GatehouseError, oneLine } from '../base/errors.ts'
import { locator } from './locate.ts'
import { migrate, moved } from './migrate.ts'
import type { Moved } from './migrate.ts'
import { singleQuotes } from './kinds.ts'
import { entryChecks, schema as tables, singles, tomlName } from './schema.ts'
import type { Config, Key, Keys } from './schema.ts'
import { suggest } from './suggest.ts'
import { builtAt } from '../base/version.ts'

export { letsEncrypt } from './schema.ts'
export type { Config } from './schema.ts'

// Typed by what every table has in common: the code below knows no key by name.
const schema: Record<string, Keys | [Keys]> = tables

/** The configuration of an empty file. */
export function defaults(): Config {
  return Object.fromEntries(
    Object.entries(schema).map(([name, keys]) => [
      name,
      Array.isArray(keys) ? [] : defaultsOf(keys),
    ]),
  ) as unknown as Config
}

function defaultsOf(keys: Keys): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(keys).map(([name, key]) => [name, structuredClone(key.default)]),
  )
}

/** One thing wrong in a configuration file. */
export interface ConfigIssue {
  code: string
  /** From 1. */
  line: number
  /** What is wrong. */
  message: string
  /** What to write instead. */
  cure: string
}

/**
 * Everything wrong in a configuration file; the message is one line about the first issue and a
 * count of the rest.
 */
export class ConfigError extends GatehouseError {
  override readonly name = 'ConfigError'
  readonly file: string
  readonly issues: readonly ConfigIssue[]

  constructor(file: string, issues: readonly [ConfigIssue, ...ConfigIssue[]]) {
    const [first, ...rest] = issues
    const more =
      rest.length === 0
        ? ''
        : ` And ${rest.length} more: line ${rest.map((issue) => issue.line).join(', line ')}.`
    super(first.code, `${file} line ${first.line}: ${first.message}`, `${first.cure}${more}`)
    this.file = file
    this.issues = issues
  }
}

/** How to read a configuration. */
export interface ParseOptions {
  /**
   * Told of keys that have another name now, or none ({@link migrate}), and of what {@link lenient}
   * leaves out. Default: nobody is.
   */
  note?: (text: string) => void
  /**
   * For a file that a later program wrote, before a fall-back: what is not understood is left out
   * and has its default, which is always the narrower; of a [[list]], the whole entry is left out,
   * since it may have been narrowed by what is not understood. Default: false, all of it is an
   * error.
   */
  lenient?: boolean
  /** Default: {@link moved}. */
  moves?: readonly Moved[]
}

/**
 * Reads a configuration whole: every mistake in it is found and reported with its line.
 *
 * A byte order mark and CRLF line ends are accepted (Windows editors write both). No message ever
 * holds the value of auth_key.
 *
 * @param data content of the file
 * @param file name used in messages
 * @throws ConfigError with every issue found
 */
export function parseConfig(
  data: string | Uint8Array,
  file: string,
  { note = () => {}, lenient = false, moves = moved }: ParseOptions = {},
): Config {
  const text = decode(data, file)
  let written: Record<string, unknown>
  try {
    written = parse(text)
  } catch (err) {
    throw new ConfigError(file, [syntaxIssue(err, text)])
  }
  const config = defaults() as unknown as Record<string, unknown>
  const issues: ConfigIssue[] = []
  const { document, notes, origins, twice } = migrate(written, moves)
  const locate = locator(text)
  const lineOf = (...path: string[]): number => {
    const origin = origins.get(path.filter((part) => !/^\d+$/.test(part)).join('.'))?.split('.')
    return (
      (origin === undefined ? undefined : locate([origin[0]!, ...path.slice(1, -1), origin[1]!])) ??
      locate(path) ??
      locate(path.slice(0, 1)) ??
      1
    )
  }
  for (const text of notes) note(text)
  for (const { from, to } of twice)
    issues.push({
      code: 'GH_CONFIG_VALUE',
      line: lineOf(...from.split('.')),
      message: `${from} is an old name of ${to}, and both are there`,
      cure: `Remove ${from}`,
    })
  for (const [table, content] of Object.entries(document)) {
    const keys = Object.hasOwn(schema, table) ? schema[table] : undefined
    if (keys === undefined) {
      issues.push({
        code: 'GH_CONFIG_UNKNOWN_KEY',
        line: lineOf(table),
        ...unknownTable(table, content),
      })
    } else if (Array.isArray(keys)) {
      const single = singles.has(table) && isTable(content)
      const given: unknown = single ? [content] : content
      const at = (index: number): string[] => (single ? [table] : [table, String(index)])
      if (Array.isArray(given) && given.every(isTable)) {
        const before = issues.length
        let entries = given.map((entry, index) => {
          const count = issues.length
          const values = readTable(
            table,
            keys[0],
            entry,
            (name) => lineOf(...at(index), name),
            issues,
          )
          return { index, values, well: issues.length === count }
        })
        if (lenient) entries = entries.filter((entry) => entry.well)
        const good: Array<Record<string, unknown>> = []
        for (const { index, values } of entries) {
          // What is wrong by itself would be wrong among others too.
          const wrong =
            issues.length > before && !lenient
              ? undefined
              : entryChecks[table as keyof Config]?.(values, good)
          if (wrong === undefined) good.push(values)
          else issues.push({ code: 'GH_CONFIG_VALUE', line: lineOf(...at(index)), ...wrong })
        }
        config[table] = good
      } else {
        issues.push({
          code: 'GH_CONFIG_TYPE',
          line: lineOf(table),
          message: `${table} must be a list of tables`,
          cure: `Write [[${table}]], in double brackets, on a line of its own and its keys below, once for each`,
        })
      }
    } else if (isTable(content)) {
      const before = issues.length
      config[table] = readTable(table, keys, content, (name) => lineOf(table, name), issues)
      const wrong =
        issues.length > before && !lenient
          ? undefined
          : entryChecks[table as keyof Config]?.(config[table], [])
      if (wrong !== undefined) {
        issues.push({ code: 'GH_CONFIG_VALUE', line: lineOf(table), ...wrong })
        config[table] = defaultsOf(keys)
      }
    } else {
      issues.push({
        code: 'GH_CONFIG_TYPE',
        line: lineOf(table),
        message: `${table} must be a table`,
        cure: `Write [${table}] on a line of its own and its keys below`,
      })
    }
  }
  issues.sort((a, b) => a.line - b.line)
  if (issues.length > 0 && !lenient)
    throw new ConfigError(file, issues as [ConfigIssue, ...ConfigIssue[]])
  for (const { line, message } of issues)
    note(`line ${line} is left out, which a later version wrote: ${message}`)
  return config as unknown as Config
}

/** Reads one table; what is wrong in it is added to `issues`. */
function readTable(
  table: string,
  keys: Keys,
  content: Record<string, unknown>,
  lineOf: (name: string) => number,
  issues: ConfigIssue[],
): Record<string, unknown> {
  const values = defaultsOf(keys)
  const byName = new Map(
    Object.entries(keys).map(([property, key]) => [tomlName(property), { property, key }]),
  )
  for (const [name, value] of Object.entries(content)) {
    const line = lineOf(name)
    const found = byName.get(name)
    if (found === undefined) {
      issues.push({ code: 'GH_CONFIG_UNKNOWN_KEY', line, ...unknownKey(table, name) })
      continue
    }
    const read = found.key.kind.read(value, { name, example: `${name} = ${found.key.example}` })
    if ('wrong' in read)
      issues.push({ code: read.type ? 'GH_CONFIG_TYPE' : 'GH_CONFIG_VALUE', line, ...read.wrong })
    else values[found.property] = read.value
  }
  return values
}

/**
 * Whether a later program than this one wrote what {@link serialize} gave: before a fall-back to
 * the version that runs now.
 */
export function isLater(text: string): boolean {
  return Date.parse(/^# Program of (\S+)$/m.exec(text)?.[1] ?? '') > builtAt.getTime()
}

/**
 * The configuration as TOML without its secrets: what every user of the machine may read. Keys that
 * have their default are left out.
 */
export function serialize(config: Config): string {
  const document = Object.fromEntries(
    Object.entries(schema).map(([name, keys]) => {
      const content = config[name as keyof Config] as unknown
      if (!Array.isArray(keys)) return [name, writeTable(keys, content as Record<string, unknown>)]
      const written = (content as Array<Record<string, unknown>>).map((values) =>
        writeTable(keys[0], values),
      )
      return [name, singles.has(name) && written.length === 1 ? written[0] : written]
    }),
  )
  return (
    '# Written by gatehouse provision from gatehouse.toml on the boot partition. Change that ' +
    'one: this file is replaced at each boot.\n' +
    `# Program of ${builtAt.toISOString()}\n` +
    stringify(document) +
    '\n'
  )
}

function writeTable(keys: Keys, values: Record<string, unknown>): Record<string, unknown> {
  const written = ([property, key]: [string, Key<unknown>]): Array<[string, unknown]> => {
    const value = values[property]
    return key.secret ||
      value === undefined ||
      JSON.stringify(value) === JSON.stringify(key.default)
      ? []
      : [[tomlName(property), key.kind.write(value)]]
  }
  return Object.fromEntries(Object.entries(keys).flatMap(written))
}

function isTable(value: unknown): value is Record<string, unknown> {
  return (
    typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof Date)
  )
}

function decode(data: string | Uint8Array, file: string): string {
  if (typeof data === 'string') return data.replace(/^\uFEFF/, '')
  const encoding = (message: string): ConfigError =>
    new ConfigError(file, [
      {
        code: 'GH_CONFIG_ENCODING',
        line: 1,
        message,
        cure: 'Save it again as plain text with the encoding UTF-8',
      },
    ])
  if ((data[0] === 0xff && data[1] === 0xfe) || (data[0] === 0xfe && data[1] === 0xff))
    throw encoding('the file is saved as UTF-16')
  if (data.includes(0))
    throw encoding(
      'the file holds zero bytes: it is not text, or it was damaged when the card was pulled out',
    )
  try {
    // TextDecoder drops a byte order mark by itself.
    return new TextDecoder('utf-8', { fatal: true }).decode(data)
  } catch {
    throw encoding('the file is not UTF-8 text')
  }
}

function syntaxIssue(err: unknown, text: string): ConfigIssue {
  const line = (err as { line?: number }).line ?? 1
  // The rest of smol-toml's message quotes the lines around the error, and with them perhaps the
  // key.
  const what = oneLine(
    (err as Error).message.split('\n')[0]!.replace(/^Invalid TOML document: /, ''),
  )
  const source = text.split(/\r?\n/)[line - 1] ?? ''
  const name = /([A-Za-z0-9_]+)\s*=/.exec(source)?.[1] ?? 'key'
  let cure = 'Write each setting on a line of its own as key = "value"'
  if (/=\s*\[?\s*[“”„‘’«»]/.test(source)) cure = 'Use straight quotes: key = "value", not “value”'
  else if (/[\u00a0\u2000-\u200b\u202f\u2060\u3000\ufeff]/.test(source))
    cure = 'Type the line anew: it has a special space, as text copied from a web page may have'
  // A backslash in double quotes, or a quotation mark too many between them.
  else if (/=\s*\[?\s*"(?:[^"]*\\|[^"]*"[^\s,\]}#"])/.test(source)) cure = singleQuotes(name)
  else if (/=\s*\[?\s*'[^']*'[^\s,\]}#']/.test(source))
    cure = /["\\]/.test(source)
      ? `Use three single quotes, in which all else stands for itself: ${name} = '''…'''`
      : `Use double quotes, in which a single one stands for itself: ${name} = "…"`
  else if (/^\s*[A-Za-z_]+\s*:/.test(source))
    cure = 'Write key = "value": an equals sign, not a colon'
  else if (/^\s*[A-Za-z_]+\s*=\s*\[/.test(source))
    cure =
      'Write a list as key = ["one", "two"]: each entry in quotes, commas between, brackets around'
  else if (/^\s*[A-Za-z_]+\s*=\s*[^"'\s]/.test(source))
    cure = 'Put the value in quotes: key = "value"'
  else if (/=\s*"[^"]*$/.test(source)) cure = 'Close the quotes: key = "value"'
  return { code: 'GH_CONFIG_SYNTAX', line, message: `this is not TOML: ${what}`, cure }
}

function unknownTable(table: string, content: unknown): { message: string; cure: string } {
  const home = Object.keys(schema).find((name) => keysOf(name).includes(table))
  if (home !== undefined) {
    return {
      message: `${table} stands outside its table`,
      cure: `Write ${header(home)} on the line before it`,
    }
  }
  const what = isTable(content) ? `table [${table}]` : `key ${table}`
  const near = suggest(table, Object.keys(schema))
  return {
    message: `unknown ${what}`,
    cure:
      near === undefined
        ? `Remove it; tables are ${list(Object.keys(schema).map(header))}`
        : `Did you mean ${header(near)}?`,
  }
}

function unknownKey(table: string, name: string): { message: string; cure: string } {
  const elsewhere = Object.keys(schema).find(
    (other) => other !== table && keysOf(other).includes(name),
  )
  const near = suggest(name, keysOf(table))
  let cure = `Remove it; keys of ${header(table)} are ${list(keysOf(table))}`
  if (elsewhere !== undefined) cure = `Move it below ${header(elsewhere)}`
  else if (near !== undefined) cure = `Did you mean ${near}?`
  return { message: `unknown key ${name} in ${header(table)}`, cure }
}

/** The names of a table's keys as written in the file. */
function keysOf(table: string): string[] {
  const keys = schema[table]!
  return Object.keys(Array.isArray(keys) ? keys[0] : keys).map(tomlName)
}

/** A table's header as written in the file. */
function header(table: string): string {
  return Array.isArray(schema[table]) && !singles.has(table) ? `[[${table}]]` : `[${table}]`
}

function list(words: string[]): string {
  return words.length < 2 ? words.join('') : `${words.slice(0, -1).join(', ')} and ${words.at(-1)}`
}
