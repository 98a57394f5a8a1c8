/**
 * Finds the line on which a key stands, for error messages: smol-toml gives positions of syntax
 * errors alone.
 *
 * `path` is ['table', 'key'] or ['table'], or in the nth [[table]] ['table', 'n', 'key'], n from 0.
 * Returns a line number from 1, or undefined for a key that is not written out in one of the usual
 * forms (an inline table, say).
 */
export function locate(text: string, path: readonly string[]): number | undefined {
  const wanted = path.join('.')
  let table = ''
  const seen = new Map<string, number>()
  for (const [index, line] of text.split(/\r?\n/).entries()) {
    const header = /^\s*\[\[?\s*([^\]]+?)\s*\]/.exec(line)
    if (header !== null) {
      table = plain(header[1]!)
      if (table === wanted) return index + 1
      if (line.trimStart().startsWith('[[')) {
        const nth = seen.get(table) ?? 0
        seen.set(table, nth + 1)
        table = `${table}.${nth}`
        if (table === wanted) return index + 1
      }
      continue
    }
    const key =
      /^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=/.exec(
        line,
      )
    if (key === null) continue
    const full = table === '' ? plain(key[1]!) : `${table}.${plain(key[1]!)}`
    if (full === wanted || full.startsWith(`${wanted}.`)) return index + 1
  }
  return undefined
}

function plain(key: string): string {
  return key
    .split('.')
    .map((part) => part.trim().replace(/^(["'])(.*)\1$/, '$2'))
    .join('.')
}
