import { SMALL, type StreamMessage, type ToUser, WINDOW } from '../protocol.ts'
import { countReceived } from './compact.ts'
import { errno } from './errno.ts'
import { ByteQueue, type HostFile } from './files.ts'

/**
 * A stream between the module and the thread that uses the bindings. Each side may have WINDOW
 * bytes under way.
 */
export class StreamFile implements HostFile {
  private readonly queue = new ByteQueue()
  private credit = WINDOW
  private unreported = 0
  private ended = false
  private reset = false
  private closed = false
  private readonly id: number
  private readonly post: (message: ToUser, transfer?: ArrayBuffer) => void
  private readonly wake: () => void

  constructor(
    id: number,
    post: (message: ToUser, transfer?: ArrayBuffer) => void,
    wake: () => void,
  ) {
    this.id = id
    this.post = post
    this.wake = wake
  }

  get readable(): boolean {
    return this.queue.length > 0 || this.ended || this.reset
  }
  get writable(): boolean {
    return this.credit > 0 || this.reset
  }

  receive(m: StreamMessage): void {
    if (m.t === 'data') {
      this.queue.push(m.b)
      countReceived(m.b.length)
    } else if (m.t === 'end') this.ended = true
    else if (m.t === 'reset') this.reset = true
    else this.credit += m.n
    this.wake()
  }

  read(into: Uint8Array[]): number {
    if (this.reset) return -errno.ECONNRESET
    const n = this.queue.take(into)
    if (n === 0) return this.ended ? 0 : -errno.EAGAIN
    this.unreported += n
    if (this.unreported >= WINDOW / 4) {
      this.post({ t: 'credit', s: this.id, n: this.unreported })
      this.unreported = 0
    }
    return n
  }

  write(from: Uint8Array[]): number {
    if (this.reset) return -errno.ECONNRESET
    if (this.credit <= 0) return -errno.EAGAIN
    let n = 0
    for (const part of from) {
      const b = part.slice(0, Math.max(0, this.credit - n)) as Uint8Array<ArrayBuffer>
      if (b.length === 0) continue
      n += b.length
      // What is transferred is no longer this thread's.
      this.post({ t: 'data', s: this.id, b }, b.length > SMALL ? b.buffer : undefined)
    }
    this.credit -= n
    return n
  }

  shutdownWrite(): number {
    if (!this.reset) this.post({ t: 'end', s: this.id })
    return 0
  }

  /** The other side sees an error. */
  sendReset(): number {
    if (!this.reset) this.post({ t: 'reset', s: this.id })
    this.reset = true
    return 0
  }

  /** Without an end or reset before, this is a reset: bytes may be missing. */
  close(): void {
    if (this.closed) return
    this.closed = true
    if (!this.reset && !this.ended) this.post({ t: 'reset', s: this.id })
  }
}
