import { createHmac, randomInt, timingSafeEqual } from 'node:crypto'
import { connect } from 'node:net'

/** Key that messages are signed with (RFC 8945). */
export interface TSIGKey {
  /** Its name, with or without the last dot. */
  name: string
  /** `hmac-sha256` and the like. */
  algorithm: string
  /** The secret, base64. */
  secret: string
}

/** Response codes by name (RFC 1035 §4.1.1, RFC 2136 §2.2, RFC 8945 §3). */
const codes: Record<number, string> = {
  0: 'NOERROR',
  1: 'FORMERR',
  2: 'SERVFAIL',
  3: 'NXDOMAIN',
  4: 'NOTIMP',
  5: 'REFUSED',
  6: 'YXDOMAIN',
  7: 'YXRRSET',
  8: 'NXRRSET',
  9: 'NOTAUTH',
  10: 'NOTZONE',
  16: 'BADSIG',
  17: 'BADKEY',
  18: 'BADTIME',
  22: 'BADTRUNC',
}

/** A name server's refusal. */
export class DNSRefusal extends Error {
  /** `REFUSED`, `BADSIG`, …; `UNSIGNED` for an answer that proves nothing. */
  readonly code: string
  constructor(code: string) {
    super(`it answers ${code}`)
    this.code = code
  }
}

const types = { soa: 6, txt: 16, tsig: 250 } as const
const classes = { in: 1, none: 254, any: 255 } as const
/** Seconds that the clocks of both may differ (RFC 8945 §10). */
const fudge = 300

/** A name in wire format, lower case, uncompressed (RFC 1035 §3.1). */
export function wireName(name: string): Buffer {
  const labels = name.toLowerCase().replace(/\.$/, '').split('.').filter(Boolean)
  return Buffer.concat([
    ...labels.map((label) => {
      const bytes = Buffer.from(label, 'latin1')
      if (bytes.length > 63) throw new Error(`${JSON.stringify(label)} is longer than 63 bytes`)
      return Buffer.concat([Buffer.of(bytes.length), bytes])
    }),
    Buffer.of(0),
  ])
}

function uint(value: number, bytes: number): Buffer {
  const buffer = Buffer.alloc(bytes)
  buffer.writeUIntBE(value, 0, bytes)
  return buffer
}

function record(name: string, type: number, of: number, ttl: number, data: Buffer): Buffer {
  return Buffer.concat([
    wireName(name),
    uint(type, 2),
    uint(of, 2),
    uint(ttl, 4),
    uint(data.length, 2),
    data,
  ])
}

/** Text as a TXT record's data: pieces of 255 bytes at most (RFC 1035 §3.3.14). */
function txtData(text: string): Buffer {
  const bytes = Buffer.from(text, 'latin1')
  const pieces: Buffer[] = []
  for (let at = 0; at === 0 || at < bytes.length; at += 255) {
    const piece = bytes.subarray(at, at + 255)
    pieces.push(Buffer.of(piece.length), piece)
  }
  return Buffer.concat(pieces)
}

/** A TXT record to be there from now on, or no longer. */
export interface Change {
  what: 'add' | 'remove'
  name: string
  value: string
}

/** How long resolvers may keep a challenge. Seconds. */
const ttl = 60

/** An UPDATE message (RFC 2136 §2), unsigned. */
export function updateMessage(id: number, zone: string, changes: readonly Change[]): Buffer {
  return Buffer.concat([
    uint(id, 2),
    uint(5 << 11, 2),
    uint(1, 2),
    uint(0, 2),
    uint(changes.length, 2),
    uint(0, 2),
    wireName(zone),
    uint(types.soa, 2),
    uint(classes.in, 2),
    ...changes.map(({ what, name, value }) =>
      what === 'add'
        ? record(name, types.txt, classes.in, ttl, txtData(value))
        : record(name, types.txt, classes.none, 0, txtData(value)),
    ),
  ])
}

/** A question for the SOA record at or above a name. */
function soaQuery(id: number, name: string): Buffer {
  return Buffer.concat([
    uint(id, 2),
    uint(0, 2),
    uint(1, 2),
    uint(0, 6),
    wireName(name),
    uint(types.soa, 2),
    uint(classes.in, 2),
  ])
}

/** The TSIG record's part that is signed (RFC 8945 §4.3.3). */
function tsigVariables(
  key: TSIGKey,
  time: number,
  error: number,
  other: Buffer,
  span = fudge,
): Buffer {
  return Buffer.concat([
    wireName(key.name),
    uint(classes.any, 2),
    uint(0, 4),
    wireName(key.algorithm),
    uint(time, 6),
    uint(span, 2),
    uint(error, 2),
    uint(other.length, 2),
    other,
  ])
}

function hmac(key: TSIGKey, ...parts: Buffer[]): Buffer {
  const digest = createHmac(key.algorithm.replace(/^hmac-/, ''), Buffer.from(key.secret, 'base64'))
  for (const part of parts) digest.update(part)
  return digest.digest()
}

/**
 * A message with a TSIG record at its end.
 *
 * @param time seconds since 1970
 */
export function sign(
  message: Buffer,
  key: TSIGKey,
  time: number,
): { message: Buffer; mac: Buffer } {
  const mac = hmac(key, message, tsigVariables(key, time, 0, Buffer.alloc(0)))
  const data = Buffer.concat([
    wireName(key.algorithm),
    uint(time, 6),
    uint(fudge, 2),
    uint(mac.length, 2),
    mac,
    message.subarray(0, 2),
    uint(0, 2),
    uint(0, 2),
  ])
  const signed = Buffer.concat([message, record(key.name, types.tsig, classes.any, 0, data)])
  signed.writeUInt16BE(message.readUInt16BE(10) + 1, 10)
  return { message: signed, mac }
}

interface Parsed {
  id: number
  code: number
  records: Array<{ name: string; type: number; at: number; data: Buffer }>
}

/** Header and records of a message; throws RangeError where it ends early. */
function parse(message: Buffer): Parsed {
  const counts = [4, 6, 8, 10].map((at) => message.readUInt16BE(at))
  let at = 12
  const name = (): string => {
    const labels: string[] = []
    let from = at
    let jumped = false
    for (let steps = 0; ; steps++) {
      if (steps > 128) throw new RangeError('a name without end')
      const length = message.readUInt8(from)
      if (length >= 0xc0) {
        if (!jumped) at = from + 2
        jumped = true
        from = message.readUInt16BE(from) & 0x3fff
        continue
      }
      from++
      if (!jumped) at = from + length
      if (length === 0) return labels.join('.').toLowerCase()
      labels.push(message.toString('latin1', from, from + length))
      from += length
    }
  }
  for (let i = 0; i < counts[0]!; i++) {
    name()
    at += 4
  }
  const records: Parsed['records'] = []
  for (let i = 0; i < counts[1]! + counts[2]! + counts[3]!; i++) {
    const start = at
    const owner = name()
    const type = message.readUInt16BE(at)
    const length = message.readUInt16BE(at + 8)
    const begin = at + 10
    if (begin + length > message.length) throw new RangeError('a record ends early')
    records.push({
      name: owner,
      type,
      at: start,
      data: message.subarray(begin, begin + length),
    })
    at = begin + length
  }
  return { id: message.readUInt16BE(0), code: message.readUInt16BE(2) & 0xf, records }
}

/**
 * Proves that an answer is of the server that has the key, to this request (RFC 8945 §5.3, §5.4).
 *
 * @throws DNSRefusal with what the server says is wrong, or `UNSIGNED`
 */
export function verify(answer: Buffer, key: TSIGKey, requestMac: Buffer): void {
  const { code, records } = parse(answer)
  const last = records.at(-1)
  if (last?.type !== types.tsig) throw new DNSRefusal(code === 0 ? 'UNSIGNED' : name(code))
  const algorithmLength = wireLength(last.data)
  const time = last.data.readUIntBE(algorithmLength, 6)
  const span = last.data.readUInt16BE(algorithmLength + 6)
  const macLength = last.data.readUInt16BE(algorithmLength + 8)
  const macAt = algorithmLength + 10
  const mac = last.data.subarray(macAt, macAt + macLength)
  const originalID = last.data.subarray(macAt + macLength, macAt + macLength + 2)
  const error = last.data.readUInt16BE(macAt + macLength + 2)
  const other = last.data.subarray(macAt + macLength + 6)
  // A server that cannot check the request cannot sign its answer (§5.2): only what is good news
  // must be proven.
  if (error !== 0) throw new DNSRefusal(name(error))
  if (code !== 0) throw new DNSRefusal(name(code))
  const unsigned = Buffer.from(answer.subarray(0, last.at))
  originalID.copy(unsigned, 0)
  unsigned.writeUInt16BE(answer.readUInt16BE(10) - 1, 10)
  const expected = hmac(
    key,
    uint(requestMac.length, 2),
    requestMac,
    unsigned,
    tsigVariables(key, time, error, other, span),
  )
  if (mac.length !== expected.length || !timingSafeEqual(mac, expected))
    throw new DNSRefusal('UNSIGNED')
}

function name(code: number): string {
  return codes[code] ?? `code ${code}`
}

function wireLength(data: Buffer): number {
  let at = 0
  while (data.readUInt8(at) !== 0) at += data.readUInt8(at) + 1
  return at + 1
}

/** Where a name server is. */
export interface NameServer {
  host: string
  port: number
}

/** `host`, `host:port`, `[address]` or `[address]:port`. */
export function nameServer(text: string): NameServer {
  const [, bracketed, plain, port = '53'] = /^(?:\[([^\]]+)\]|([^:]+))(?::(\d+))?$/.exec(text) ?? []
  return { host: (bracketed ?? plain)!, port: Number(port) }
}

/** One exchange over TCP (RFC 1035 §4.2.2): no answer is too long for it, no source forged. */
async function ask({ host, port }: NameServer, message: Buffer, timeout: number): Promise<Buffer> {
  return await new Promise((resolve, reject) => {
    const socket = connect({ host, port })
    const timer = setTimeout(
      () => socket.destroy(Object.assign(new Error('no answer'), { code: 'ETIMEDOUT' })),
      timeout,
    )
    let received = Buffer.alloc(0)
    socket.once('connect', () => socket.write(Buffer.concat([uint(message.length, 2), message])))
    socket.on('data', (data: Buffer) => {
      received = Buffer.concat([received, data])
      if (received.length < 2 || received.length < 2 + received.readUInt16BE(0)) return
      const answer = received.subarray(2, 2 + received.readUInt16BE(0))
      if (answer.length >= 12 && answer.readUInt16BE(0) === message.readUInt16BE(0)) resolve(answer)
      else reject(new Error('its answer does not belong to this question'))
      socket.destroy()
    })
    socket.once('error', reject)
    socket.once('close', () => {
      clearTimeout(timer)
      reject(new Error('it closed the connection without an answer'))
    })
  })
}

/**
 * The zone that a name is in, as a name server says: the owner of the SOA record in its answer.
 *
 * @throws DNSRefusal when it has none
 */
export async function findZone(server: NameServer, of: string, timeout = 15_000): Promise<string> {
  const { code, records } = parse(await ask(server, soaQuery(randomInt(65_536), of), timeout))
  const zone = records.find(({ type }) => type === types.soa)?.name
  if (zone === undefined || zone === '' || !`.${of.toLowerCase()}`.endsWith(`.${zone}`))
    throw new DNSRefusal(code === 0 ? 'NOTZONE' : name(code))
  return zone
}

/**
 * Has a name server change TXT records of a zone (RFC 2136), all or none.
 *
 * @throws DNSRefusal when it does not, or cannot be believed; the system's error when it is not there
 */
export async function update(
  server: NameServer,
  zone: string,
  key: TSIGKey,
  changes: readonly Change[],
  { now = Date.now(), timeout = 15_000 }: { now?: number; timeout?: number } = {},
): Promise<void> {
  const message = updateMessage(randomInt(65_536), zone, changes)
  const signed = sign(message, key, Math.floor(now / 1000))
  verify(await ask(server, signed.message, timeout), key, signed.mac)
}
