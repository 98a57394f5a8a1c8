import { isUtf8 } from 'node:buffer'
import type { LineCounter, Node, Scalar } from 'yaml'

/**
 * A YAML document as a person wrote it: every value is text, so that a country NO is no `false` and
 * a password 01234567 keeps its nought, and each knows its line.
 */
export interface Item {
  /** From 1. */
  line: number
  /** A single value. */
  text?: string
  /** Whether it stands there without quotation marks; then `~`, `null` and nothing are no value. */
  plain?: boolean
  /**
   * The bytes of a value in double quotes in which each byte from 0x80 on is written as `\xHH`.
   * That is how Raspberry Pi Imager (since 2.0.10) writes the name of a WiFi network; to YAML it
   * would be a character each.
   */
  bytes?: Buffer
  /** A mapping, in order. */
  map?: Array<{ key: Item & { text: string }; value: Item }>
  /** A sequence. */
  list?: Item[]
}

/** Why a text is not YAML; the message never quotes it, for there may be passwords in it. */
export class YamlError extends Error {
  /** From 1. */
  readonly line: number

  constructor(message: string, line: number) {
    super(message)
    this.line = line
  }
}

/** Values and keys a document may have, aliases counted as often as they are used. */
const maxItems = 10_000

const mistakes: Record<string, string> = {
  BAD_DQ_ESCAPE:
    'a backslash in double quotes means something else (in single quotes it stands for itself)',
  TAB_AS_INDENT: 'a tab stands where spaces belong',
  DUPLICATE_KEY: 'a key is there twice',
  BLOCK_AS_IMPLICIT_KEY: 'there are two colons in one line (a value with one belongs in quotes)',
  BAD_SCALAR_START: 'a value begins with a character that it may begin with in quotes alone',
  BAD_INDENT: 'the lines are not indented alike, or a bracket is missing',
  MISSING_CHAR: 'a quotation mark, bracket, colon or comma is missing',
  BAD_ALIAS: 'an alias has no anchor before it',
}

/**
 * Reads YAML (the first document of it).
 *
 * @throws YamlError with the line of the first mistake
 */
export async function parseYaml(text: string): Promise<Item> {
  // Only read where there is a file: YAML is large, and this is on the way of every boot.
  const yaml = await import('yaml')
  const lines: LineCounter = new yaml.LineCounter()
  const lineOf = (offset: number): number => Math.max(1, lines.linePos(offset).line)
  const document = yaml.parseDocument(text, {
    schema: 'failsafe',
    prettyErrors: false,
    keepSourceTokens: true,
    lineCounter: lines,
    logLevel: 'silent',
  })
  const [error] = document.errors
  if (error !== undefined)
    throw new YamlError(mistakes[error.code] ?? 'it is not YAML', lineOf(error.pos[0]))
  let count = 0
  const convert = (node: Node | null | undefined, from: number): Item => {
    if (++count > maxItems) throw new YamlError('it has more values than any such file', from)
    if (yaml.isAlias(node)) {
      const target = node.resolve(document)
      if (target === undefined)
        throw new YamlError(mistakes.BAD_ALIAS!, lineOf(node.range?.[0] ?? 0))
      return convert(target, from)
    }
    const start = node?.range?.[0]
    const line = start === undefined ? from : lineOf(start)
    if (yaml.isMap<Node, Node | null>(node)) {
      const map: NonNullable<Item['map']> = []
      for (const { key, value } of node.items) {
        const name = convert(key, line)
        const inner = convert(value, name.line)
        // `<<` takes over another mapping's keys; those that are there count.
        const merged = name.text === '<<' && name.plain === true
        const pairs = merged
          ? (inner.list ?? [inner]).flatMap((item) => item.map ?? [])
          : [{ key: { ...name, text: name.text ?? '' }, value: inner }]
        for (const pair of pairs) {
          const at = map.findIndex((other) => other.key.text === pair.key.text)
          if (at === -1) map.push(pair)
          else if (!merged) map[at] = pair
        }
      }
      return { line, map }
    }
    if (yaml.isSeq<Node | null>(node))
      return { line, list: node.items.map((item) => convert(item, line)) }
    return { line, ...(yaml.isScalar(node) ? scalar(node) : { text: '', plain: true }) }
  }
  try {
    return convert(document.contents, 1)
  } catch (err) {
    if (err instanceof YamlError) throw err
    // An alias that holds itself.
    throw new YamlError('it has no end', 1)
  }
}

function scalar({ value, type, srcToken }: Scalar): Pick<Item, 'text' | 'plain' | 'bytes'> {
  const text = Buffer.isBuffer(value) ? value.toString('utf8') : String(value)
  const source = srcToken !== undefined && 'source' in srcToken ? srcToken.source : ''
  if (type === 'QUOTE_DOUBLE' && /\\x[89a-f]/i.test(source)) {
    const bytes = octets(source.slice(1, -1))
    if (bytes !== undefined) return { text: isUtf8(bytes) ? bytes.toString('utf8') : text, bytes }
  }
  return { text, ...(type === 'PLAIN' ? { plain: true } : {}) }
}

const escapes: Record<string, string> = { '0': '\0', a: '\x07', b: '\b', t: '\t', n: '\n' }
Object.assign(escapes, { v: '\v', f: '\f', r: '\r', e: '\x1b', ' ': ' ', '"': '"', '/': '/' })
escapes['\\'] = '\\'

/** A value in double quotes with `\xHH` for bytes; undefined when it is written otherwise too. */
function octets(source: string): Buffer | undefined {
  const pieces: Buffer[] = []
  let at = 0
  for (const { 0: all, 1: hex, 2: other, index } of source.matchAll(
    /\\(?:x([0-9a-f]{2})|([^]))/gi,
  )) {
    pieces.push(Buffer.from(source.slice(at, index)))
    at = index + all.length
    const character = escapes[other ?? '']
    if (hex === undefined && character === undefined) return undefined
    pieces.push(hex === undefined ? Buffer.from(character!) : Buffer.from(hex, 'hex'))
  }
  pieces.push(Buffer.from(source.slice(at)))
  return Buffer.concat(pieces)
}
