/** A whole ClientHello may be this large, in bytes, with its records: browsers send 2 KiB at most. */
const most = 64 * 1024

/**
 * It may be spread over this many records. Clients use one or two; some cut the name in two to get
 * past filters. A record costs its sender six bytes and whoever reads it a round.
 */
const mostRecords = 32

/**
 * The name a TLS client asks for (SNI), read from the first bytes of its connection without taking
 * part in the handshake (RFC 8446 §4.1.2, §5.1, RFC 6066 §3). Takes the bytes as they come, and
 * looks at each once.
 */
export class ClientHello {
  /** All that came; the first {@link #length} bytes count. */
  #bytes: Buffer = Buffer.allocUnsafe(2_048)
  #length = 0
  /** Where the next record begins. */
  #at = 0
  #records = 0
  /** What the records carry; they are moved together within {@link #message}. */
  #message: Buffer = Buffer.allocUnsafe(2_048)
  #carried = 0
  #result: string | 'more' | 'refused' | undefined = 'more'

  /** All the bytes that came, for whoever takes the connection on. */
  get bytes(): Buffer {
    return this.#bytes.subarray(0, this.#length)
  }

  /**
   * Takes the next bytes of the connection.
   *
   * @returns the name in lower case; `more` when the bytes are the beginning of a ClientHello;
   *   undefined when there is no name or no TLS; `refused` when no client sends it so: more bytes or
   *   records than any needs, or records that carry nothing
   */
  push(piece: Buffer): string | 'more' | 'refused' | undefined {
    if (this.#result !== 'more') return this.#result
    if (this.#length + piece.length > most) {
      // What does not fit is not looked at. It is not needed for an answer that is no name either.
      this.#result = 'refused'
      return this.#result
    }
    this.#bytes = append(this.#bytes, this.#length, piece)
    this.#length += piece.length
    this.#result = this.#read()
    return this.#result
  }

  #read(): string | 'more' | 'refused' | undefined {
    const bytes = this.#bytes
    while (this.#at < this.#length) {
      // 22: handshake.
      if (bytes[this.#at] !== 22) return undefined
      if (this.#at + 5 > this.#length) return 'more'
      const length = bytes.readUInt16BE(this.#at + 3)
      const end = this.#at + 5 + length
      // Empty fragments are not allowed.
      if (length === 0) return 'refused'
      // 1: ClientHello. Seen early, since nothing else is worth the wait.
      if (this.#carried === 0 && this.#at + 5 < this.#length && bytes[this.#at + 5] !== 1)
        return undefined
      if (end > this.#length) return this.#records >= mostRecords ? 'refused' : 'more'
      if (++this.#records > mostRecords) return 'refused'
      this.#message = append(this.#message, this.#carried, bytes.subarray(this.#at + 5, end))
      this.#carried += length
      this.#at = end
      if (this.#carried < 4) continue
      const needed = 4 + this.#message.readUIntBE(1, 3)
      if (needed > most) return 'refused'
      if (this.#carried >= needed) return nameIn(this.#message.subarray(0, this.#carried))
    }
    return 'more'
  }
}

/** Puts a piece behind the first `length` bytes, in a buffer of twice the size where it is full. */
function append(bytes: Buffer, length: number, piece: Buffer): Buffer {
  let room = bytes
  if (length + piece.length > bytes.length) {
    room = Buffer.allocUnsafe(Math.max(2 * bytes.length, length + piece.length))
    bytes.copy(room, 0, 0, length)
  }
  piece.copy(room, length)
  return room
}

/** The name in a whole ClientHello. */
function nameIn(message: Buffer): string | undefined {
  try {
    let at = 4 + 2 + 32
    at += 1 + message.readUInt8(at)
    at += 2 + message.readUInt16BE(at)
    at += 1 + message.readUInt8(at)
    const end = at + 2 + message.readUInt16BE(at)
    at += 2
    while (at + 4 <= end) {
      const [type, length] = [message.readUInt16BE(at), message.readUInt16BE(at + 2)]
      at += 4
      if (type === 0) {
        // A list, of which only host names (type 0) were ever defined.
        if (message.readUInt8(at + 2) !== 0) return undefined
        return message
          .toString('latin1', at + 5, at + 5 + message.readUInt16BE(at + 3))
          .toLowerCase()
      }
      at += length
    }
    return undefined
  } catch {
    // It ends before what it says it holds.
    return undefined
  }
}
