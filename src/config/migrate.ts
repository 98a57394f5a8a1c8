/**
 * Keys of gatehouse.toml that have another name now, or none any more. There are no versions of the
 * file: whoever wrote a key once may leave it as it is, and is told the new name (`gatehouse
 * status`, the journal).
 *
 * An entry stays for good. It is not an entry's business to change what a key means: a new meaning
 * gets a new name, for after a fall-back to the version before (docs/updates.md) the same file is
 * read by that one.
 */
export interface Moved {
  /**
   * Table and key as written in the file: `tailnet.name`; `app.target` for a key of each [[app]].
   */
  from: string
  /**
   * Where it is now, likewise; in the same table for a key of [[…]]. Undefined: it has no effect
   * any more.
   */
  to?: string
  /** Of the old key's value, the new one's. Default: the same. */
  convert?: (value: unknown) => unknown
  /** Why, for the person: half a sentence, without a stop. Default: none. */
  why?: string
}

/** All there are. */
export const moved: readonly Moved[] = [
  // HTTP's own word for what comes back (RFC 9110 §3.4).
  { from: 'app.answer_remove', to: 'app.response_remove' },
  { from: 'app.answer_set', to: 'app.response_set' },
  { from: 'app.answer_add', to: 'app.response_add' },
]

/** What {@link migrate} found. */
export interface Migrated {
  /** With new names alone. */
  document: Record<string, unknown>
  /** For the person, one each. */
  notes: string[]
  /** Old names by new ones: where a mistake in a value is to be looked for. */
  origins: Map<string, string>
  /** Keys that stand there under both names. */
  twice: Moved[]
}

/** A parsed gatehouse.toml in today's words. The one handed in is left as it is. */
export function migrate(
  document: Record<string, unknown>,
  moves: readonly Moved[] = moved,
): Migrated {
  const result: Migrated = {
    document: structuredClone(document),
    notes: [],
    origins: new Map(),
    twice: [],
  }
  for (const move of moves) {
    const [table] = split(move.from)
    const content = result.document[table]
    // What is no table is for whoever reads it to complain about.
    for (const entry of Array.isArray(content) ? content : [content])
      if (isTable(entry)) moveKey(entry, move, result)
    // A table of which nothing else is known any more.
    if (isTable(content) && Object.keys(content).length === 0) delete result.document[table]
  }
  result.notes = [...new Set(result.notes)]
  return result
}

function moveKey(content: Record<string, unknown>, move: Moved, result: Migrated): void {
  const [table, key] = split(move.from)
  if (!Object.hasOwn(content, key)) return
  const value = content[key]
  delete content[key]
  const why = move.why === undefined ? '' : `: ${move.why}`
  if (move.to === undefined) {
    result.notes.push(`${move.from} has no effect any more${why}; the line may be removed`)
    return
  }
  const [newTable, newKey] = split(move.to)
  const target = newTable === table ? content : (result.document[newTable] ??= {})
  if (!isTable(target)) return
  if (Object.hasOwn(target, newKey)) {
    result.twice.push(move)
    return
  }
  target[newKey] = move.convert === undefined ? value : move.convert(value)
  result.origins.set(move.to, move.from)
  result.notes.push(
    `${move.from} is called ${move.to} now${why}; the old name goes on being understood`,
  )
}

function split(name: string): [string, string] {
  const dot = name.indexOf('.')
  return [name.slice(0, dot), name.slice(dot + 1)]
}

function isTable(value: unknown): value is Record<string, unknown> {
  return (
    typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof Date)
  )
}
