import { once } from 'node:events'
import { constants } from 'node:http2'
import type { ClientHttp2Session, ClientHttp2Stream, IncomingHttpHeaders } from 'node:http2'
import { Readable } from 'node:stream'
import type { TLSSocket } from 'node:tls'
import { name } from './bench.ts'
import type { Bench } from './bench.ts'

/** What came of a request over HTTP/2: `error` is the code it was reset with. */
export interface Answer {
  status: number | undefined
  headers: IncomingHttpHeaders
  text: string
  interim: IncomingHttpHeaders[]
  trailers: IncomingHttpHeaders
  error: string | undefined
}

/** Opens a request; GET / of the gateway's own name unless the headers say otherwise. */
export function open(
  session: ClientHttp2Session,
  headers: Record<string, string | number> = {},
  endStream = true,
): ClientHttp2Stream {
  return session.request({ ':authority': name, ':path': '/', ...headers }, { endStream })
}

/** One request and all that came back. */
export async function ask(
  session: ClientHttp2Session,
  headers: Record<string, string | number> = {},
  body?: string | Buffer | Readable,
): Promise<Answer> {
  return await answerTo(open(session, headers, body === undefined), body)
}

/** What comes back on a stream, until it closes. */
export async function answerTo(
  stream: ClientHttp2Stream,
  body?: string | Buffer | Readable,
): Promise<Answer> {
  const answer: Answer = {
    status: undefined,
    headers: {},
    text: '',
    interim: [],
    trailers: {},
    error: undefined,
  }
  stream.on('response', (headers) => {
    answer.status = Number(headers[':status'])
    answer.headers = headers
  })
  stream.on('headers', (headers) => {
    answer.interim.push(headers)
  })
  stream.on('trailers', (headers) => {
    answer.trailers = headers
  })
  stream.on('error', () => {})
  stream.setEncoding('utf8').on('data', (piece: string) => {
    answer.text += piece
  })
  if (body instanceof Readable) body.pipe(stream)
  else if (body !== undefined) stream.end(body)
  if (!stream.destroyed) await new Promise((resolve) => stream.once('close', resolve))
  if (stream.rstCode !== 0)
    answer.error =
      Object.entries(constants).find(
        ([code, value]) =>
          /^NGHTTP2_[A-Z_]+$/.test(code) &&
          !/^NGHTTP2_(?:ERR|FLAG|SESSION|STREAM|HCAT|NV|DEFAULT|SETTINGS)_/.test(code) &&
          value === stream.rstCode,
      )?.[0] ?? String(stream.rstCode)
  return answer
}

export const frame = {
  data: 0,
  headers: 1,
  priority: 2,
  reset: 3,
  settings: 4,
  push: 5,
  ping: 6,
  goaway: 7,
  window: 8,
  continuation: 9,
} as const
export const flag = { endStream: 1, ack: 1, endHeaders: 4 } as const

/**
 * HPACK (RFC 7541) without table and Huffman code: every header literal, in any order, with any
 * bytes.
 */
export function block(headers: Array<[string, string]>): Buffer {
  const text = (value: string): Buffer => {
    const bytes = Buffer.from(value, 'latin1')
    const length = [Math.min(bytes.length, 127)]
    for (let rest = bytes.length - 127; rest >= 0; rest = Math.floor(rest / 128) || -1)
      length.push(rest < 128 ? rest : 128 | (rest % 128))
    return Buffer.concat([Buffer.from(length), bytes])
  }
  return Buffer.concat(
    headers.map(([header, value]) => Buffer.concat([Buffer.from([0]), text(header), text(value)])),
  )
}

/** Headers of an ordinary request, with others in their place or beside them. */
export function request(
  headers: Record<string, string> = {},
  method = 'GET',
): Array<[string, string]> {
  return Object.entries({
    ':method': method,
    ':scheme': 'https',
    ':authority': name,
    ':path': '/outer',
    ...headers,
  })
}

/**
 * A peer that writes HTTP/2 frames as it likes. Collects what comes back by stream: `200`, `RST 1`;
 * and of the connection `GOAWAY 1`, `closed`.
 */
export class RawPeer {
  readonly socket: TLSSocket
  readonly seen: string[] = []
  pings = 0
  #bytes: Buffer = Buffer.alloc(0)

  private constructor(socket: TLSSocket) {
    this.socket = socket
    socket.on('data', (piece: Buffer) => {
      this.#read(piece)
    })
    socket.on('error', () => {})
    socket.once('close', () => {
      this.seen.push('closed')
    })
  }

  static async connect(bench: Bench, settings: Buffer = Buffer.alloc(0)): Promise<RawPeer> {
    const peer = new RawPeer(await bench.connect(443, name, ['h2']))
    peer.socket.write('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n')
    peer.send(frame.settings, 0, 0, settings)
    return peer
  }

  send(type: number, flags: number, stream: number, payload: Buffer | string = ''): boolean {
    const bytes = Buffer.from(payload as string)
    const head = Buffer.alloc(9)
    head.writeUIntBE(bytes.length, 0, 3)
    head[3] = type
    head[4] = flags
    head.writeUInt32BE(stream, 5)
    return !this.socket.destroyed && this.socket.write(Buffer.concat([head, bytes]))
  }

  /** What was seen first that starts with one of these, within some seconds. */
  async see(...starts: string[]): Promise<string | undefined> {
    for (
      const end = Date.now() + 5_000;
      Date.now() < end;
      await new Promise((resolve) => setTimeout(resolve, 5))
    ) {
      const found = this.seen.find((entry) => starts.some((start) => entry.startsWith(start)))
      if (found !== undefined) return found
    }
    return undefined
  }

  #read(piece: Buffer): void {
    this.#bytes = Buffer.concat([this.#bytes, piece])
    for (;;) {
      if (this.#bytes.length < 9) return
      const length = this.#bytes.readUIntBE(0, 3)
      if (this.#bytes.length < 9 + length) return
      const [type, flags, stream] = [this.#bytes[3], this.#bytes[4]!, this.#bytes.readUInt32BE(5)]
      const payload = this.#bytes.subarray(9, 9 + length)
      this.#bytes = this.#bytes.subarray(9 + length)
      if (type === frame.settings && (flags & flag.ack) === 0)
        this.send(frame.settings, flag.ack, 0)
      else if (type === frame.headers) this.seen.push(`${stream}: ${status(payload)}`)
      else if (type === frame.reset) this.seen.push(`${stream}: RST ${payload.readUInt32BE(0)}`)
      else if (type === frame.goaway) this.seen.push(`GOAWAY ${payload.readUInt32BE(4)}`)
      else if (type === frame.ping) this.pings++
    }
  }
}

/**
 * :status, which comes first: in the static table, or as digits under the name there (RFC 7541
 * appendices A and B).
 */
function status(payload: Buffer): string {
  let at = 0
  // A change of the table's size may come before.
  while ((payload[at]! & 0xe0) === 0x20) at++
  const known: Record<number, string> = {
    0x88: '200',
    0x89: '204',
    0x8a: '206',
    0x8b: '304',
    0x8c: '400',
    0x8d: '404',
    0x8e: '500',
  }
  if (known[payload[at]!] !== undefined) return known[payload[at]!]!
  const length = payload[at + 1]! & 0x7f
  const value = payload.subarray(at + 2, at + 2 + length)
  if ((payload[at + 1]! & 0x80) === 0) return value.toString('latin1')
  let bits = [...value].map((byte) => byte.toString(2).padStart(8, '0')).join('')
  const codes = [
    '00000',
    '00001',
    '00010',
    '011001',
    '011010',
    '011011',
    '011100',
    '011101',
    '011110',
    '011111',
  ]
  let digits = ''
  while (digits.length < 3) {
    const digit = codes.findIndex((code) => bits.startsWith(code))
    if (digit < 0) return `? ${payload.toString('hex')}`
    digits += digit
    bits = bits.slice(codes[digit]!.length)
  }
  return digits
}

/** Waits for a session to have ended. */
export async function ended(session: ClientHttp2Session): Promise<void> {
  if (!session.destroyed) await once(session, 'close')
}
