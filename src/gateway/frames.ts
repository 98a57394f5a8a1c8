import { Transform } from 'node:stream'
import type { TransformCallback } from 'node:stream'

/**
 * Passes the frames of a WebSocket (RFC 6455 §5.2) on byte for byte and knows where one ends, so that a Close frame of the gateway's
 * own can be put between two of them.
 */
export class FrameGate extends Transform {
  /** Bytes seen of a header that is not whole yet. */
  #header: number[] = []
  /** Bytes of payload that are still to come. */
  #payload = 0
  #last: Buffer | undefined
  #ended = false

  /** Ends the stream with a Close frame as soon as the frame under way is complete. `reason`: 123 bytes at most (§5.5). */
  close (code: number, reason: string): void {
    if (this.#last !== undefined) return
    const text = Buffer.from(reason)
    this.#last = Buffer.concat([Buffer.from([0x88, 2 + text.length, code >> 8, code & 0xff]), text])
    if (this.#between) this.#end()
  }

  get #between (): boolean { return this.#header.length === 0 && this.#payload === 0 }

  #end (): void {
    this.#ended = true
    this.push(this.#last)
    this.push(null)
  }

  override _transform (chunk: Buffer, _encoding: BufferEncoding, done: TransformCallback): void {
    if (this.#ended) {
      done()
      return
    }
    let at = 0
    while (at < chunk.length && !(this.#last !== undefined && this.#between)) {
      if (this.#payload > 0) {
        const piece = Math.min(this.#payload, chunk.length - at)
        this.#payload -= piece
        at += piece
        continue
      }
      this.#header.push(chunk[at++]!)
      const length = payloadLength(this.#header)
      if (length === undefined) continue
      this.#header = []
      this.#payload = length
    }
    this.push(at === chunk.length ? chunk : chunk.subarray(0, at))
    if (this.#last !== undefined && this.#between) this.#end()
    done()
  }
}

/** Length of the payload after a header; undefined while the header is not whole. */
function payloadLength (header: number[]): number | undefined {
  if (header.length < 2) return undefined
  const short = header[1]! & 0x7f
  const extended = short === 126 ? 2 : short === 127 ? 8 : 0
  const mask = (header[1]! & 0x80) === 0 ? 0 : 4
  if (header.length < 2 + extended + mask) return undefined
  // Above 2^53 bytes the sum is inexact; such a frame would take a year.
  return extended === 0 ? short : header.slice(2, 2 + extended).reduce((sum, byte) => sum * 256 + byte, 0)
}
