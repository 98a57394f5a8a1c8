/**
 * The two messages of DNS that Node-RED's resolver reads and writes (RFC 1035, 4): a question with
 * one name, and the addresses that answer it. Names come in whole, without compression: a pointer in
 * a question is refused, so there is nothing here that could loop.
 */

/** Types of records that are looked up (https://www.iana.org/assignments/dns-parameters). */
export const types = { A: 1, AAAA: 28 } as const

/** Codes of an answer (RFC 1035, 4.1.1; NOTIMP and REFUSED of the same list). */
export const codes = { ok: 0, badFormat: 1, failed: 2, noName: 3, notDone: 4 } as const

/** A question, understood. */
export interface Question {
  id: number
  /** Whether the asker wants recursion; comes back in the answer. */
  recursion: boolean
  /** In small letters, without a dot at the end: upper and lower case carry nothing further. */
  name: string
  type: number
  /** The question's own bytes, which the answer repeats. */
  bytes: Buffer
}

/**
 * Reads a question; undefined for what is no question at all, and is not worth an answer.
 *
 * Labels are letters, digits, hyphens and underscores; others make a name that is not on any list.
 */
export function readQuestion(message: Buffer): Question | undefined {
  if (message.length < 12 || message.length > 512) return undefined
  const flags = message.readUInt16BE(2)
  // QR and Opcode 0: a plain query, with one question and no answers.
  if ((flags & 0xf800) !== 0 || message.readUInt16BE(4) !== 1 || message.readUInt16BE(6) !== 0)
    return undefined
  const labels: string[] = []
  let at = 12
  for (;;) {
    const length = message[at]
    if (length === undefined || length > 63) return undefined
    at++
    if (length === 0) break
    labels.push(message.toString('latin1', at, at + length).toLowerCase())
    at += length
    if (at - 12 > 254) return undefined
  }
  if (at + 4 > message.length || message.readUInt16BE(at + 2) !== 1) return undefined
  return {
    id: message.readUInt16BE(0),
    recursion: (flags & 0x0100) !== 0,
    name: labels.join('.'),
    type: message.readUInt16BE(at),
    bytes: message.subarray(12, at + 4),
  }
}

/**
 * The answer to a question. At most as many addresses as fit into 512 bytes, so that nobody has to
 * ask again by TCP.
 *
 * @param addresses of the type that was asked for
 * @param ttl seconds
 */
export function answer(
  question: Question,
  code: (typeof codes)[keyof typeof codes],
  addresses: readonly string[] = [],
  ttl = 0,
): Buffer {
  const size = question.type === types.A ? 4 : 16
  const room = Math.floor((512 - 12 - question.bytes.length) / (12 + size))
  const records = addresses.slice(0, room).map((address) => {
    const record = Buffer.alloc(12 + size)
    record.writeUInt16BE(0xc00c, 0) // the name in the question
    record.writeUInt16BE(question.type, 2)
    record.writeUInt16BE(1, 4)
    record.writeUInt32BE(ttl, 6)
    record.writeUInt16BE(size, 10)
    addressBytes(address).copy(record, 12)
    return record
  })
  const header = Buffer.alloc(12)
  header.writeUInt16BE(question.id, 0)
  header.writeUInt16BE(0x8080 | (question.recursion ? 0x0100 : 0) | code, 2)
  header.writeUInt16BE(1, 4)
  header.writeUInt16BE(records.length, 6)
  return Buffer.concat([header, question.bytes, ...records])
}

function addressBytes(address: string): Buffer {
  if (!address.includes(':')) return Buffer.from(address.split('.').map(Number))
  const [head, tail] = address.split('::') as [string, string?]
  const groups = (text: string): number[] =>
    text === ''
      ? []
      : text.split(':').flatMap((group) => {
          if (group.includes('.')) {
            const [a, b, c, d] = group.split('.').map(Number) as [number, number, number, number]
            return [a * 256 + b, c * 256 + d]
          }
          return [Number.parseInt(group, 16)]
        })
  const [first, last] = [groups(head), tail === undefined ? [] : groups(tail)]
  const all = [...first, ...Array<number>(8 - first.length - last.length).fill(0), ...last]
  const bytes = Buffer.alloc(16)
  for (const [i, group] of all.entries()) bytes.writeUInt16BE(group, i * 2)
  return bytes
}
