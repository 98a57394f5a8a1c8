import { isDeepStrictEqual } from 'node:util'
import { parse } from 'smol-toml'
import { GatehouseError } from '../base/errors.ts'
import { setKey } from '../base/toml-edit.ts'
import { scanToml } from '../base/toml-scan.ts'
import { schema, singles, tomlName } from './schema.ts'
import type { Keys } from './schema.ts'

/**
 * What stands in the place of a secret wherever settings are shown. Sent back, it means: as it is.
 * Secrets go in and never come out.
 */
export const keptSecret = '(kept)'

/** Names of keys with secrets, as in the file: `tailnet.auth_key`. */
const secrets: ReadonlySet<string> = new Set(
  Object.entries(schema as Record<string, Keys | [Keys]>).flatMap(([table, keys]) =>
    Object.entries(Array.isArray(keys) ? keys[0] : keys)
      .filter(([, { secret }]) => secret)
      .map(([name]) => `${table}.${tomlName(name)}`),
  ),
)

/** The key an entry is of, without places in lists: `app.path`. */
const keyOf = (path: readonly string[]): string =>
  path.filter((part) => !/^\d+$/.test(part)).join('.')

/** Whether an entry is a secret, or one of a table of them: `node_red.env.TOKEN`. */
const isSecret = (path: readonly string[]): boolean => {
  const parts = path.filter((part) => !/^\d+$/.test(part))
  return secrets.has(parts.join('.')) || secrets.has(parts.slice(0, 2).join('.'))
}

/** The places of secrets; of a table in braces the whole, and not what is in it. */
function secretsIn(text: string): ReturnType<typeof scanToml>['entries'] {
  const all = scanToml(text).entries.filter(({ path }) => isSecret(path))
  return all.filter(
    (entry) => !all.some(({ value, end }) => value < entry.value && end >= entry.end),
  )
}

/** A settings text in which each secret is {@link keptSecret}. */
export function withoutSecrets(text: string): string {
  let result = text
  for (const { value, end } of secretsIn(text).toReversed())
    if (end > value) result = `${result.slice(0, value)}"${keptSecret}"${result.slice(end)}`
  return result
}

/**
 * A settings text with the secrets of another in the places where it says {@link keptSecret}.
 *
 * @throws GatehouseError where the other has no such secret
 */
export function withSecretsOf(text: string, current: string): string {
  const known = new Map(
    scanToml(current).entries.map(({ path, value, end }) => [
      path.join('.'),
      current.slice(value, end),
    ]),
  )
  let result = text
  for (const { path, line, value, end } of secretsIn(text).toReversed()) {
    const written = text.slice(value, end)
    if (!new RegExp(`^(["'])${RegExp.escape(keptSecret)}\\1$`).test(written)) continue
    const secret = known.get(path.join('.'))
    if (secret === undefined)
      throw new GatehouseError(
        'GH_SETTINGS_SECRET',
        `line ${line}: ${keyOf(path)} is ${keptSecret}, but the device has no such secret`,
        'Write the secret itself, or remove the line',
      )
    result = `${result.slice(0, value)}${secret}${result.slice(end)}`
  }
  return result
}

/**
 * A settings text with one key set, in its place or at the end of its table; all else, comments
 * included, as it was.
 *
 * @param key as in the file: `node_red.timezone`
 * @param value as TOML writes it (`"Europe/Berlin"`, `true`); undefined removes the key
 */
export function withKey(text: string, key: string, value: string | undefined): string {
  return setKey(text, ...splitKey(key), value)
}

function splitKey(key: string): [table: string, name: string] {
  const parts = key.split('.')
  const known = (schema as Record<string, Keys | [Keys]>)[parts[0]!]
  const list = Array.isArray(known) && !singles.has(parts[0]!)
  if (parts.length !== 2 || known === undefined || list)
    throw new GatehouseError(
      'GH_SETTINGS_KEY',
      `${JSON.stringify(key)} is not a key that can be set alone`,
      'Write the table and the key, such as node_red.timezone; lists are changed as text',
    )
  return [parts[0]!, parts[1]!]
}

/** One key that a change adds, removes or gives another value. Secrets are {@link keptSecret}. */
export interface Difference {
  /** As in the file: `access.view`; a list of tables counts as one key. */
  key: string
  /** Undefined: it was not there. */
  before?: unknown
  /** Undefined: it is not there any more. */
  after?: unknown
}

/** What changes from one settings text to another. Both must be TOML. */
export function differences(before: string, after: string): Difference[] {
  const [was, is] = [flat(before), flat(after)]
  const [wasShown, isShown] = [flat(withoutSecrets(before)), flat(withoutSecrets(after))]
  return [...new Set([...was.keys(), ...is.keys()])].toSorted().flatMap((key) => {
    if (isDeepStrictEqual(was.get(key), is.get(key))) return []
    return [
      {
        key,
        ...(was.has(key) ? { before: wasShown.get(key) } : {}),
        ...(is.has(key) ? { after: isShown.get(key) } : {}),
      },
    ]
  })
}

function flat(text: string): Map<string, unknown> {
  const values = new Map<string, unknown>()
  for (const [table, keys] of Object.entries(parse(text.replace(/^\uFEFF/, '')))) {
    if (typeof keys !== 'object' || keys === null || Array.isArray(keys)) values.set(table, keys)
    else for (const [name, value] of Object.entries(keys)) values.set(`${table}.${name}`, value)
  }
  return values
}
