/**
 * Where things stand in a TOML text: smol-toml reads values and says nothing of places. Made for
 * two uses, the line that a message names and taking a secret out of a person's own file, so it
 * reads every spelling of TOML 1.0 and 1.1, and goes on behind a mistake at the next line.
 */

/** One key and its value. Offsets are UTF-16 code units from the beginning of the text. */
export interface TomlEntry {
  /** Tables, places in lists (`'0'`) and the key, unquoted: `['app', '0', 'path']`. */
  path: string[]
  /** Line of the key, from 1. */
  line: number
  /** Where the key begins. */
  start: number
  /** Where its value begins. */
  value: number
  /** Behind the value; equal to `value` where that is not understood. */
  end: number
  /** Whether it is within an inline table or a list, and not an expression of its own. */
  inline: boolean
  /** Where the expression begins that it is part of; equal to `start` unless `inline`. */
  expression: number
}

/** `[table]` or `[[list]]`. */
export interface TomlHeader {
  /** As for {@link TomlEntry}; the place in the list is part of it. */
  path: string[]
  line: number
}

/** What {@link scanToml} found, each in the order of the text. */
export interface TomlPlaces {
  headers: TomlHeader[]
  entries: TomlEntry[]
}

/** Brackets within brackets; nobody writes so many. */
const maxDepth = 200

/** Thrown and caught within: what follows is not TOML. */
class Mistake extends Error {}

/** Finds every table header and every key of a TOML text. Never throws. */
export function scanToml(text: string): TomlPlaces {
  return new Scanner(text).scan()
}

class Scanner {
  readonly #text: string
  readonly #places: TomlPlaces = { headers: [], entries: [] }
  /** How many entries each [[list]] has so far, by its path. */
  readonly #lists = new Map<string, number>()
  /** Where each line begins. */
  readonly #lines: number[] = [0]
  #at = 0
  #table: string[] = []
  #expression = 0
  #depth = 0

  constructor(text: string) {
    this.#text = text
    for (let i = text.indexOf('\n'); i !== -1; i = text.indexOf('\n', i + 1))
      this.#lines.push(i + 1)
  }

  scan(): TomlPlaces {
    if (this.#text.startsWith('\uFEFF')) this.#at = 1
    for (;;) {
      this.#space(true)
      if (this.#at >= this.#text.length) return this.#places
      this.#expression = this.#at
      this.#depth = 0
      try {
        if (this.#text[this.#at] === '[') this.#header()
        else this.#pair(this.#table, false)
      } catch (err) {
        if (!(err instanceof Mistake)) throw err
        // Not in the middle of a value that spans lines, or what is in it looks like keys.
        const end = this.#text.indexOf('\n', Math.max(this.#at, this.#expression))
        this.#at = end === -1 ? this.#text.length : end + 1
      }
    }
  }

  #header(): void {
    const list = this.#text.startsWith('[[', this.#at)
    this.#at += list ? 2 : 1
    this.#space(false)
    const path = this.#key()
    this.#space(false)
    if (!this.#text.startsWith(list ? ']]' : ']', this.#at)) throw new Mistake()
    this.#at += list ? 2 : 1
    if (list) {
      const name = [...this.#resolve(path.slice(0, -1)), path.at(-1)!]
      const key = JSON.stringify(name)
      const nth = this.#lists.get(key) ?? 0
      this.#lists.set(key, nth + 1)
      this.#table = [...name, String(nth)]
    } else this.#table = this.#resolve(path)
    this.#places.headers.push({ path: this.#table, line: this.#lineOf(this.#expression) })
  }

  /** A path in which each list stands for the last of its entries so far. */
  #resolve(path: readonly string[]): string[] {
    const found: string[] = []
    for (const part of path) {
      found.push(part)
      const count = this.#lists.get(JSON.stringify(found))
      if (count !== undefined) found.push(String(count - 1))
    }
    return found
  }

  #pair(table: readonly string[], inline: boolean): void {
    const start = this.#at
    const path = [...table, ...this.#key()]
    this.#space(false)
    if (this.#text[this.#at] !== '=') throw new Mistake()
    this.#at++
    this.#space(false)
    const entry: TomlEntry = {
      path,
      line: this.#lineOf(start),
      start,
      value: this.#at,
      end: this.#at,
      inline,
      expression: this.#expression,
    }
    // Before what is in it, and even when that is not understood.
    this.#places.entries.push(entry)
    this.#value(path)
    entry.end = this.#at
  }

  #key(): string[] {
    const path: string[] = []
    for (;;) {
      const first = this.#text[this.#at]
      if (first === '"' || first === "'") path.push(this.#string())
      else {
        const bare = this.#take(/[A-Za-z0-9_-]+/y)
        if (bare === '') throw new Mistake()
        path.push(bare)
      }
      const behind = this.#at
      this.#space(false)
      if (this.#text[this.#at] !== '.') {
        this.#at = behind
        return path
      }
      this.#at++
      this.#space(false)
    }
  }

  #value(path: readonly string[]): void {
    const first = this.#text[this.#at]
    if (first === '"' || first === "'") this.#string()
    else if (first === '{')
      this.#many('}', () => {
        this.#pair(path, true)
      })
    else if (first === '[')
      this.#many(']', (nth) => {
        this.#value([...path, String(nth)])
      })
    else if (this.#take(/[^\s,\]}#=]+(?: \d[^\s,\]}#]*)?/y) === '') throw new Mistake()
  }

  /** What is within brackets, with commas between. */
  #many(close: string, one: (nth: number) => void): void {
    this.#at++
    if (++this.#depth > maxDepth) throw new Mistake()
    for (let nth = 0; ; nth++) {
      this.#space(true)
      if (this.#text[this.#at] === close) break
      one(nth)
      this.#space(true)
      if (this.#text[this.#at] === close) break
      if (this.#text[this.#at] !== ',') throw new Mistake()
      this.#at++
    }
    this.#at++
    this.#depth--
  }

  /** A string of any of the four kinds, at its first quotation mark. */
  #string(): string {
    const quote = this.#text[this.#at]!
    const long = this.#text.startsWith(quote.repeat(3), this.#at)
    const escapes = quote === '"'
    const begin = this.#at + (long ? 3 : 1)
    for (let i = begin; i < this.#text.length; i++) {
      const c = this.#text[i]!
      if (escapes && c === '\\') i++
      else if (!long && c === '\n') break
      else if (c === quote && (!long || this.#text.startsWith(quote.repeat(3), i))) {
        // One or two quotation marks may stand before the three that end it.
        while (long && this.#text[i + 3] === quote) i++
        this.#at = i + (long ? 3 : 1)
        const inside = this.#text.slice(begin, i)
        return escapes ? unescape(inside) : inside
      }
    }
    throw new Mistake()
  }

  /** Over white space and comments; with `lines` over ends of lines too. */
  #space(lines: boolean): void {
    this.#take(lines ? /(?:\s|#[^\n]*)+/y : /[ \t]+/y)
  }

  #take(pattern: RegExp): string {
    pattern.lastIndex = this.#at
    const found = pattern.exec(this.#text)?.[0] ?? ''
    this.#at += found.length
    return found
  }

  #lineOf(offset: number): number {
    let [low, high] = [0, this.#lines.length]
    while (high - low > 1) {
      const middle = (low + high) >> 1
      if (this.#lines[middle]! <= offset) low = middle
      else high = middle
    }
    return low + 1
  }
}

const escaped: Record<string, string> = { b: '\b', t: '\t', n: '\n', f: '\f', r: '\r', e: '\x1b' }

function unescape(text: string): string {
  return text.replaceAll(
    /\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([^]))/g,
    (_all, x?: string, u?: string, U?: string, other?: string) => {
      const code = Number.parseInt(x ?? u ?? U ?? '', 16)
      if (other !== undefined) return escaped[other] ?? other
      return code <= 0x10ffff ? String.fromCodePoint(code) : '\uFFFD'
    },
  )
}
