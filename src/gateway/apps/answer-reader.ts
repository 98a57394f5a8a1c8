/**
 * What an app sends, made what HTTP/1.1 says it should have been: in front of undici's parser,
 * which refuses much that nginx, curl and browsers take, and cannot be told to be lenient.
 *
 * An answer in good order passes byte for byte. Of any other the head is written anew from what was
 * understood of it, its body is framed anew, and its connection is not used again; so whatever an
 * app sends, undici and the peer read one message, and the same one.
 *
 * Liberal, because a person has put the app behind the gate. Nothing of this is about what peers
 * send.
 */

/** An app sent something that cannot be read as HTTP. */
export class NotHTTP extends Error {
  readonly code = 'GH_NOT_HTTP'
}

/** Longest head, and longest trailers, of an answer. Bytes. As much as curl takes. */
export const maxHead = 300 * 1024

/** Longest line with the size of a chunk, extensions included. Bytes. */
const maxChunkLine = 16 * 1024

/** Most interim answers (1xx) before the answer; those that are passed on end sooner. */
const maxInterim = 200

const nothing = Buffer.alloc(0)
const cr = 0x0d
const lf = 0x0a

/**
 * A head in good order: RFC 9112 §4 and §5, without folded lines. No two parts of it match the same
 * character, so that it takes time in proportion to the length.
 */
const goodHead =
  /^HTTP\/1\.[01] [1-5]\d\d(?: [\t\x20-\x7e\x80-\xff]*)?\r\n(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n)*\r\n$/

/** Trailers in good order. */
const goodTrailers = /^(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n)*\r\n$/

/** Fields that say how long the body is. */
const framingFields = /\r\n(content-length|transfer-encoding):([^\r]*)/gi

const token = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/

/** Transfer codings that a peer can undo itself when it is told of them as content codings. */
const contentCodings: ReadonlySet<string> = new Set(['gzip', 'x-gzip', 'deflate', 'br', 'zstd'])

type State =
  /** No request is under way: nothing should come. */
  | 'idle'
  | 'head'
  /** A body of known length. */
  | 'fixed'
  | 'chunk size'
  | 'chunk'
  | 'chunk end'
  | 'trailers'
  /** A body that ends with the connection. */
  | 'until closed'
  /** No longer HTTP. */
  | 'tunnel'

/**
 * Reads what comes on one connection to an app. `expect()` tells it of each request, `push()` takes
 * what came and gives what undici is to read.
 */
export class AnswerReader {
  /** Why nothing more can be read of the connection. */
  fault: NotHTTP | undefined
  /** The connection is of no further use: something came that belongs to no answer. */
  surplus = false
  /** Requests that have gone over the connection. */
  requests = 0
  #state: State = 'idle'
  #method = 'GET'
  #upgrade = false
  /** Something of the answer has come. */
  #begun = false
  #interim = 0
  /** Something of this answer was not in order, an interim answer perhaps. */
  #odd = false
  /** Part of a head, of a chunk's line or of trailers. */
  #held: Buffer = nothing
  /** Bytes to come, of the body or of the chunk. */
  #left = 0

  /** A request has been sent, and nothing of its answer has come. */
  get waiting(): boolean {
    return this.#state === 'head' && !this.#begun
  }

  /** Bytes pass as they are from now on: the app agreed to another protocol. */
  get tunnelled(): boolean {
    return this.#state === 'tunnel'
  }

  /** A request goes out: what comes now answers it. */
  expect(method: string, upgrade: boolean): void {
    this.requests++
    this.#state = 'head'
    this.#method = method
    this.#upgrade = upgrade
    this.#begun = false
    this.#interim = 0
    this.#odd = false
    this.#held = nothing
  }

  /**
   * Takes a piece that came; gives what of it is to be read. Of a {@link fault} nothing is given,
   * and nothing after it.
   */
  push(piece: Buffer): Buffer {
    const out: Buffer[] = []
    let rest = piece
    while (rest.length > 0 && this.fault === undefined) rest = this.#step(rest, out)
    if (this.fault !== undefined || out.length === 0) return nothing
    // Nearly always one piece after the other of what came.
    let at = out[0]!.byteOffset
    if (
      out.every(({ buffer, byteOffset, length }) => {
        const follows = buffer === piece.buffer && byteOffset === at
        at += length
        return follows
      })
    )
      return Buffer.from(piece.buffer, out[0]!.byteOffset, at - out[0]!.byteOffset)
    return out.length === 1 ? out[0]! : Buffer.concat(out)
  }

  /** The connection has ended; gives what is still to be read. */
  end(): Buffer {
    if (this.fault !== undefined) return nothing
    if (this.#state === 'head' && this.#held.length > 0) {
      this.#fail('headers without an end,', this.#held)
      return nothing
    }
    // The last chunk was there; only the empty line after it is missing.
    if (this.#state !== 'trailers') return nothing
    this.#done()
    return Buffer.from('0\r\n\r\n')
  }

  /** Reads a part of a piece; gives the rest of it. */
  #step(piece: Buffer, out: Buffer[]): Buffer {
    switch (this.#state) {
      case 'idle':
        // Some add a line break to their bodies, and do not count it.
        if (piece.some((byte) => byte !== cr && byte !== lf)) this.surplus = true
        return nothing
      case 'head':
        return this.#readHead(piece, out)
      case 'fixed':
      case 'chunk': {
        const part = piece.length <= this.#left ? piece : piece.subarray(0, this.#left)
        out.push(part)
        this.#left -= part.length
        if (this.#left === 0) {
          if (this.#state === 'fixed') this.#done()
          else this.#state = 'chunk end'
        }
        return piece.subarray(part.length)
      }
      case 'chunk size':
        return this.#readSize(piece, out)
      case 'chunk end':
        return this.#readEnd(piece, out)
      case 'trailers':
        return this.#readTrailers(piece, out)
      case 'until closed':
      case 'tunnel':
        out.push(piece)
        return nothing
    }
  }

  #done(): void {
    this.#state = 'idle'
    this.#held = nothing
  }

  #fail(what: string, bytes: Buffer): void {
    this.fault = new NotHTTP(`${what} ${excerpt(bytes)}`.trim())
    this.#held = nothing
  }

  #readHead(piece: Buffer, out: Buffer[]): Buffer {
    let bytes = this.#held.length === 0 ? piece : Buffer.concat([this.#held, piece])
    this.#held = nothing
    // Line breaks in front of it (RFC 9112 §2.2).
    let start = 0
    while (bytes[start] === cr || bytes[start] === lf) start++
    if (start > 0) bytes = bytes.subarray(start)
    if (bytes.length === 0) return nothing
    this.#begun = true
    const good = bytes.indexOf('\r\n\r\n') + 4
    if (good >= 4 && good <= maxHead) {
      const text = bytes.toString('latin1', 0, good)
      if (!this.#odd && goodHead.test(text) && this.#takeGood(text, bytes.subarray(0, good), out))
        return bytes.subarray(good)
    }
    // What cannot be an answer is not waited for.
    const seen = bytes.toString('latin1', 0, 4).toLowerCase()
    if (!'http'.startsWith(seen) && !'icy '.startsWith(seen)) {
      this.#fail('', bytes)
      return nothing
    }
    const end = endOfHead(bytes)
    if (end > maxHead || (end < 0 && bytes.length > maxHead)) {
      this.#fail(`headers longer than ${maxHead / 1024} KiB,`, bytes)
      return nothing
    }
    if (end < 0) {
      this.#held = bytes
      return nothing
    }
    this.#takeOdd(bytes.toString('latin1', 0, end), bytes, out)
    return this.fault === undefined ? bytes.subarray(end) : nothing
  }

  /** Takes a head whose lines are in order, as it is; false when what they say is not. */
  #takeGood(text: string, head: Buffer, out: Buffer[]): boolean {
    const status = Number(text.slice(9, 12))
    if (status < 200 && (status <= 101 || ++this.#interim > maxInterim)) return false
    // The connection cannot end with an interim answer.
    if (status < 200 && /\r\nconnection:/i.test(text)) return false
    let length: string | undefined
    let coding: string | undefined
    for (const [, name, value] of text.matchAll(framingFields)) {
      if (name!.length === 14) {
        if (length !== undefined) return false
        length = value
      } else {
        if (coding !== undefined) return false
        coding = value
      }
    }
    if (length !== undefined && (coding !== undefined || !/^[\t ]*\d{1,15}$/.test(length)))
      return false
    if (coding !== undefined && (!/^[\t ]*chunked$/i.test(coding) || text[7] === '0')) return false
    const bodiless = status < 200 || status === 204 || status === 304
    if (bodiless && (coding !== undefined || (length !== undefined && status !== 304))) return false
    out.push(head)
    if (status < 200) return true
    if (bodiless || this.#method === 'HEAD') this.#done()
    else if (coding !== undefined) this.#state = 'chunk size'
    else if (length === undefined) this.#state = 'until closed'
    else this.#begin(Number(length))
    return true
  }

  /** A body of a length begins. */
  #begin(length: number): void {
    this.#left = length
    if (length === 0) this.#done()
    else this.#state = 'fixed'
  }

  /** Reads a head that is not in order, and writes one that is. */
  #takeOdd(text: string, bytes: Buffer, out: Buffer[]): void {
    const lines = text.split(/\r*\n/)
    const start = /^(?:HTTP\/\d(?:\.\d+)?|ICY)[\t ]+([1-5]\d\d)(?:[\t ]+(.*))?$/i.exec(
      printable(lines.shift()!).trim(),
    )
    if (start === null) {
      this.#fail('', bytes)
      return
    }
    const status = Number(start[1])
    if (status < 200 && ++this.#interim > maxInterim) {
      this.#fail('interim answers without end,', bytes)
      return
    }
    // Between the app and the gateway, which has asked for none (RFC 9110 §15.2); undici would end
    // the connection for it.
    if (status === 100) return
    this.#odd = true
    const { fields, take } = readFields(lines)
    const codings = take('transfer-encoding')
      .flatMap((value) => value.toLowerCase().split(','))
      .map((coding) => coding.split(';', 1)[0]!.trim())
      .filter((coding) => coding !== '' && coding !== 'identity')
    const lengths = take('content-length').flatMap((value) =>
      value.split(',').map((length) => length.trim().replace(/^0+(?=\d)/, '')),
    )
    take('keep-alive')
    const named = take('connection')
      .flatMap((value) => value.split(','))
      .map((name) => name.trim())
      .filter((name) => token.test(name) && !/^(?:close|keep-alive|upgrade)$/i.test(name))
    const length = lengths.every((one) => one === lengths[0]) ? lengths[0] : 'two'
    const known = length !== undefined && /^\d{1,15}$/.test(length)

    if (status === 101) {
      if (!this.#upgrade || !fields.some(([name]) => name.toLowerCase() === 'upgrade')) {
        this.#fail('a change to another protocol, which was not asked for,', bytes)
        return
      }
      this.#state = 'tunnel'
      out.push(writeHead(status, start[2], [...fields, ['Connection', 'upgrade']]))
      return
    }
    if (status < 200) {
      for (const name of named) take(name.toLowerCase())
      out.push(writeHead(status, start[2], fields))
      return
    }
    fields.push(['Connection', ['close', ...named].join(', ')])
    if (this.#method === 'HEAD' || status === 204 || status === 304) {
      if (known && codings.length === 0 && status !== 204) fields.push(['Content-Length', length])
      this.#done()
    } else if (codings.length > 0) {
      // RFC 9112 §6.3: it wins over Content-Length. Said twice it was done once.
      const last = codings.indexOf('chunked')
      const before = last < 0 ? codings : codings.slice(0, last)
      if (
        codings.slice(before.length).some((coding) => coding !== 'chunked') ||
        before.some((coding) => !contentCodings.has(coding))
      ) {
        this.#fail(
          `a body with the coding ${excerpt(Buffer.from(codings.join(', '), 'latin1'))},`,
          bytes,
        )
        return
      }
      if (before.length > 0)
        fields.push(['Content-Encoding', [...take('content-encoding'), ...before].join(', ')])
      if (last >= 0) fields.push(['Transfer-Encoding', 'chunked'])
      this.#state = last < 0 ? 'until closed' : 'chunk size'
    } else if (length === undefined) {
      this.#state = 'until closed'
    } else if (known) {
      fields.push(['Content-Length', length])
      this.#begin(Number(length))
    } else {
      this.#fail(
        length === 'two' ? 'two lengths of one body,' : 'a Content-Length that is not a length,',
        bytes,
      )
      return
    }
    out.push(writeHead(status, start[2], fields))
  }

  #readSize(piece: Buffer, out: Buffer[]): Buffer {
    const end = piece.indexOf(lf)
    if (end < 0 || this.#held.length > 0) {
      const line = Buffer.concat([this.#held, end < 0 ? piece : piece.subarray(0, end + 1)])
      if (line.length > maxChunkLine) {
        this.#fail('in a chunked body', line)
      } else if (end < 0) {
        this.#held = line
        // What cannot be a size is not waited for.
        if (!/^[\t ]*(?:[0-9a-f]|$)/i.test(line.toString('latin1', 0, 64)))
          this.#fail('in a chunked body', line)
      } else {
        this.#held = nothing
        this.#takeSize(line, out)
      }
      return end < 0 || this.fault !== undefined ? nothing : piece.subarray(end + 1)
    }
    this.#takeSize(piece.subarray(0, end + 1), out)
    return this.fault === undefined ? piece.subarray(end + 1) : nothing
  }

  /** Takes a line with the size of a chunk, its end included. */
  #takeSize(line: Buffer, out: Buffer[]): void {
    const text = line.toString('latin1')
    const [, zeros, digits, rest] = /^[\t ]*(0*)([0-9a-f]{0,13})(.*)$/is.exec(text)!
    const zero = digits === ''
    if ((zero && zeros === '') || !/^[\t ]*(?:;[^\n]*)?\r*\n$/.test(rest!)) {
      this.#fail('in a chunked body', line)
      return
    }
    if (zero) {
      // Given when what may follow it is there.
      this.#state = 'trailers'
      return
    }
    this.#left = Number.parseInt(digits!, 16)
    this.#state = 'chunk'
    out.push(/^[0-9a-f]+\r\n$/i.test(text) ? line : Buffer.from(`${digits}\r\n`))
  }

  /** The line break behind a chunk. */
  #readEnd(piece: Buffer, out: Buffer[]): Buffer {
    const held = this.#held.length > 0
    if (!held && piece[0] === cr && piece.length === 1) {
      this.#held = piece
      return nothing
    }
    const at = !held && piece[0] === cr ? 1 : 0
    if (piece[at] !== lf) {
      this.#fail('behind a chunk of a body', piece)
      return nothing
    }
    out.push(at === 1 ? piece.subarray(0, 2) : Buffer.from('\r\n'))
    this.#held = nothing
    this.#state = 'chunk size'
    return piece.subarray(at + 1)
  }

  #readTrailers(piece: Buffer, out: Buffer[]): Buffer {
    const bytes = this.#held.length === 0 ? piece : Buffer.concat([this.#held, piece])
    const end = endOfTrailers(bytes)
    if (end > maxHead || (end < 0 && bytes.length > maxHead)) {
      this.#fail(`trailers longer than ${maxHead / 1024} KiB,`, bytes)
      return nothing
    }
    if (end < 0) {
      this.#held = bytes
      return nothing
    }
    const text = bytes.toString('latin1', 0, end)
    const { fields } = goodTrailers.test(text)
      ? { fields: undefined }
      : readFields(text.split('\n'))
    out.push(
      Buffer.from(
        `0\r\n${fields === undefined ? text : `${fields.map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n`}`,
        'latin1',
      ),
    )
    this.#done()
    return bytes.subarray(end)
  }
}

/** Where a head ends: behind its first empty line. -1 when it is not there. */
function endOfHead(bytes: Buffer): number {
  const good = bytes.indexOf('\r\n\r\n')
  // An empty line of another kind may come before; in good order there is none.
  for (let at = bytes.indexOf(lf); at >= 0; at = bytes.indexOf(lf, at + 1)) {
    if (good >= 0 && at >= good) break
    let next = at + 1
    while (bytes[next] === cr) next++
    if (bytes[next] === lf) return next + 1
  }
  return good < 0 ? -1 : good + 4
}

/** Where trailers end, which may be none: behind the empty line. -1 when it is not there. */
function endOfTrailers(bytes: Buffer): number {
  if (bytes[0] === lf) return 1
  if (bytes[0] === cr && bytes[1] === lf) return 2
  return endOfHead(bytes)
}

/** Fields of a head or of trailers, what cannot be passed on left out. */
function readFields(lines: string[]): {
  fields: Array<[name: string, value: string]>
  take: (name: string) => string[]
} {
  const fields: Array<[string, string]> = []
  /** The line before was left out, and so is what continues it. */
  let skipped = true
  for (const line of lines) {
    // Folded (RFC 9112 §5.2).
    if (/^[\t ]/.test(line)) {
      const more = printable(line).trim()
      if (!skipped && more !== '') fields.at(-1)![1] = `${fields.at(-1)![1]} ${more}`.trim()
      continue
    }
    const colon = line.indexOf(':')
    const name = line.slice(0, Math.max(0, colon)).trimEnd()
    skipped = !token.test(name)
    if (!skipped) fields.push([name, printable(line.slice(colon + 1)).trim()])
  }
  return {
    fields,
    take: (wanted) => {
      const values = fields
        .filter(([name]) => name.toLowerCase() === wanted)
        .map(([, value]) => value)
      if (values.length > 0)
        fields.splice(0, fields.length, ...fields.filter(([name]) => name.toLowerCase() !== wanted))
      return values
    },
  }
}

/** Text with a space in the place of each character that no field may have (RFC 9110 §5.5). */
function printable(text: string): string {
  // eslint-disable-next-line no-control-regex
  return text.replace(/[\x00-\x08\x0a-\x1f\x7f]/g, ' ')
}

function writeHead(
  status: number,
  reason: string | undefined,
  fields: ReadonlyArray<readonly [name: string, value: string]>,
): Buffer {
  return Buffer.from(
    `HTTP/1.1 ${status} ${reason ?? ''}\r\n${fields.map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n`,
    'latin1',
  )
}

const escapes: Readonly<Record<string, string>> = {
  '\r': '\\r',
  '\n': '\\n',
  '"': '\\"',
  '\\': '\\\\',
}

/** The beginning of what came, fit for a log and for a page: one line, bounded, in quotes. */
export function excerpt(bytes: Buffer): string {
  const text = bytes
    .toString('latin1', 0, 40)
    .replace(
      /[^\x20-\x7e]|[\\"]/g,
      (character) =>
        escapes[character] ?? `\\x${character.charCodeAt(0).toString(16).padStart(2, '0')}`,
    )
  return `"${text}${bytes.length > 40 ? '…' : ''}"`
}
