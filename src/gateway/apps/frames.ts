/**
 * Knows where a frame of a WebSocket (RFC 6455 §5.2) ends among the bytes that pass, so that a
 * Close frame of the gateway's own can be put between two of them.
 */
export class FrameGate {
  /** Bytes seen of a header that is not whole yet. */
  #header: number[] = []
  /** Bytes of payload that are still to come. */
  #payload = 0
  #last: Buffer | undefined
  #over = false

  /** True once the Close frame is given out: nothing passes any more. */
  get over(): boolean {
    return this.#over
  }

  /**
   * Ends what passes with a Close frame as soon as the frame under way is complete. `reason`: 123
   * bytes at most (§5.5).
   *
   * @returns the Close frame when that is now; else it comes with a later piece
   */
  close(code: number, reason: string): Buffer | undefined {
    if (this.#last !== undefined) return undefined
    const text = Buffer.from(reason)
    this.#last = Buffer.concat([Buffer.from([0x88, 2 + text.length, code >> 8, code & 0xff]), text])
    if (!this.#between) return undefined
    this.#over = true
    return this.#last
  }

  get #between(): boolean {
    return this.#header.length === 0 && this.#payload === 0
  }

  /**
   * Takes a piece that came; answers what is to go on of it, byte for byte, and behind it the Close
   * frame when its time has come.
   */
  pass(piece: Buffer): Buffer | undefined {
    if (this.#over) return undefined
    let at = 0
    while (at < piece.length && !(this.#last !== undefined && this.#between)) {
      if (this.#payload > 0) {
        const part = Math.min(this.#payload, piece.length - at)
        this.#payload -= part
        at += part
        continue
      }
      this.#header.push(piece[at++]!)
      const length = payloadLength(this.#header)
      if (length === undefined) continue
      this.#header.length = 0
      this.#payload = length
    }
    if (this.#last === undefined || !this.#between) return piece
    this.#over = true
    return Buffer.concat([piece.subarray(0, at), this.#last])
  }
}

/** Length of the payload after a header; undefined while the header is not whole. */
function payloadLength(header: number[]): number | undefined {
  if (header.length < 2) return undefined
  const short = header[1]! & 0x7f
  const extended = { 126: 2, 127: 8 }[short] ?? 0
  const mask = (header[1]! & 0x80) === 0 ? 0 : 4
  if (header.length < 2 + extended + mask) return undefined
  // Above 2^53 bytes the sum is inexact; such a frame would take a year.
  return extended === 0
    ? short
    : header.slice(2, 2 + extended).reduce((sum, byte) => sum * 256 + byte, 0)
}
