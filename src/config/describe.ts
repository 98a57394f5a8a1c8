import { schema, tomlName } from './schema.ts'
import type { Keys } from './schema.ts'

/** A key of gatehouse.toml, as a form or a reference shows it. */
export interface DescribedKey {
  /** As in the file. */
  name: string
  /** What it is without it; absent when there is no default. */
  default?: unknown
  /** A value as TOML writes it. */
  example: string
  /** Goes in and never comes out. */
  secret: boolean
}

/** A table of gatehouse.toml. */
export interface DescribedTable {
  table: string
  /** Whether it may come several times: `[[app]]`. */
  list: boolean
  keys: DescribedKey[]
}

/** All tables and keys that there are, in the order of the schema. */
export function describe(): DescribedTable[] {
  return Object.entries(schema as Record<string, Keys | [Keys]>).map(([table, keys]) => ({
    table,
    list: Array.isArray(keys),
    keys: Object.entries(Array.isArray(keys) ? keys[0] : keys).map(([name, key]) => ({
      name: tomlName(name),
      ...(key.default === undefined ? {} : { default: key.default as unknown }),
      example: key.example,
      secret: key.secret,
    })),
  }))
}
