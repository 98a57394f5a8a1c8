import { isIPv6, type AddressInfo } from 'node:net'
import { Duplex } from 'node:stream'
import { joinHostPort, splitHostPort } from './options.ts'
import type { StreamMessage } from './protocol.ts'
import { WINDOW } from './protocol.ts'

/**
 * A connection closed by this side alone has this long to deliver what was written, in ms: the time
 * Linux gives one in FIN_WAIT2.
 */
const LINGER = 60_000

/**
 * A TCP connection in the tailnet. Half-close and resets pass through both ways; back-pressure too:
 * at most 512 KiB are under way each way between the threads.
 *
 * destroy() resets, unless end() was called and all of it was taken: then, as with close(2), what
 * was written still arrives, and what the peer sends is thrown away. (`tls.TLSSocket` destroys what
 * it is on top of as soon as it has ended it.)
 */
export class Conn extends Duplex {
  readonly remoteAddress: string
  readonly remotePort: number
  readonly localAddress: string
  readonly localPort: number
  /** Of a connection by Funnel: what its client asked for, `name:port`. */
  readonly target: string | undefined
  /** As net.Socket: false, as there is a Conn only when the connection is made. */
  readonly connecting = false
  /** As net.Socket: false, likewise. */
  readonly pending = false
  /** As net.Socket: bytes that have come, those not yet read included. */
  bytesRead = 0
  private credit = WINDOW
  private owed = 0
  private waiting: ((err?: Error | null) => void) | undefined
  private remoteDone = false
  private ended = false
  private linger: NodeJS.Timeout | undefined
  private readonly id: number
  private readonly post: (m: StreamMessage) => void
  private readonly gone: () => void
  /** What came before the caller had the connection: an error then would have no listener. */
  private held: StreamMessage[] | undefined = []
  /** Bytes of the caller's that have no credit yet, and whom to tell when they are gone. */
  private unsent: Buffer[] = []
  private idle: NodeJS.Timeout | undefined
  private idleMs = 0
  /** Bytes of writes that are done, and of the one that is not. */
  private written = 0
  private writing = 0

  /** @internal Made by Server, not by callers. */
  constructor(
    id: number,
    local: string,
    remote: string,
    post: (m: StreamMessage) => void,
    gone: () => void,
    target?: string,
  ) {
    super({ allowHalfOpen: true, emitClose: true })
    this.id = id
    this.post = post
    this.gone = gone
    this.target = target
    ;[this.remoteAddress, this.remotePort] = splitHostPort(remote)
    ;[this.localAddress, this.localPort] = splitHostPort(local)
  }

  /** `ip:port` of the peer, as whoIs wants it. */
  get remote(): string {
    return joinHostPort(this.remoteAddress, this.remotePort)
  }

  /** As net.Socket. */
  get remoteFamily(): 'IPv4' | 'IPv6' {
    return isIPv6(this.remoteAddress) ? 'IPv6' : 'IPv4'
  }

  /** As net.Socket. */
  get localFamily(): 'IPv4' | 'IPv6' {
    return isIPv6(this.localAddress) ? 'IPv6' : 'IPv4'
  }

  /** As net.Socket: the local end. */
  address(): AddressInfo {
    return { address: this.localAddress, family: this.localFamily, port: this.localPort }
  }

  /** As net.Socket: bytes that have been written, those that still wait here included. */
  get bytesWritten(): number {
    return this.written + this.writableLength
  }

  /** As net.Socket. */
  get readyState(): 'open' | 'readOnly' | 'writeOnly' | 'closed' {
    if (this.destroyed) return 'closed'
    const writable = !this.writableEnded
    if (this.readableEnded) return writable ? 'writeOnly' : 'closed'
    return writable ? 'open' : 'readOnly'
  }

  /** As net.Socket: what setTimeout was given, in ms; undefined for none. */
  get timeout(): number | undefined {
    return this.idleMs || undefined
  }

  /** As net.Socket: ends it when what was written is gone. */
  destroySoon(): void {
    if (this.writable) this.end()
    if (this.writableFinished) this.destroy()
    else this.once('finish', () => this.destroy())
  }

  /** As net.Socket: a reset at the peer, also where end() has been called. */
  resetAndDestroy(): this {
    if (!this.destroyed) {
      this.remoteDone = true
      this.post({ t: 'reset', s: this.id })
      this.destroy()
    }
    return this
  }

  /** @internal The caller has it now. */
  release(): void {
    const held = this.held ?? []
    this.held = undefined
    for (const m of held) this.receive(m)
  }

  /** @internal A message of the module's for this connection. */
  receive(m: StreamMessage): void {
    if (this.held) {
      this.held.push(m)
    } else if (this.linger) {
      if (m.t === 'data') this.post({ t: 'credit', s: this.id, n: m.b.length })
      else if (m.t !== 'credit') this.leave()
    } else if (this.destroyed) {
      // It came while the other thread had not heard of the end yet.
    } else if (m.t === 'data') {
      this.idle?.refresh()
      this.owed += m.b.length
      this.bytesRead += m.b.length
      if (this.push(Buffer.from(m.b.buffer, m.b.byteOffset, m.b.length))) this.repay()
    } else if (m.t === 'end') {
      this.ended = true
      this.push(null)
    } else if (m.t === 'reset') {
      this.remoteDone = true
      this.destroy(
        Object.assign(new Error('read ECONNRESET'), { code: 'ECONNRESET', syscall: 'read' }),
      )
    } else {
      this.idle?.refresh()
      this.credit += m.n
      this.pump()
    }
  }

  private repay(): void {
    if (this.owed < WINDOW / 8) return
    this.post({ t: 'credit', s: this.id, n: this.owed })
    this.owed = 0
  }

  /** @internal The stream has room again. */
  override _read(): void {
    this.repay()
  }

  /** @internal One chunk. */
  override _write(
    chunk: Buffer,
    _encoding: BufferEncoding,
    done: (err?: Error | null) => void,
  ): void {
    this._writev([{ chunk }], done)
  }

  /** @internal All chunks that wait. */
  override _writev(chunks: { chunk: Buffer }[], done: (err?: Error | null) => void): void {
    this.writing = 0
    for (const { chunk } of chunks) {
      this.writing += chunk.length
      if (chunk.length > 0) this.unsent.push(chunk)
    }
    this.waiting = done
    this.pump()
  }

  /** Sends what there is credit for, in one message, and asks for more when all of it is gone. */
  private pump(): void {
    const list = this.unsent
    let total = 0
    let whole = 0
    while (whole < list.length && total + list[whole]!.length <= this.credit)
      total += list[whole++]!.length
    const part = whole < list.length ? Math.max(0, this.credit - total) : 0
    if (total + part > 0) {
      // A copy of its own: it is transferred to the other thread, and the caller's buffer may be
      // part of a pool.
      const b = new Uint8Array(total + part)
      let at = 0
      for (const chunk of list.splice(0, whole)) {
        b.set(chunk, at)
        at += chunk.length
      }
      if (part > 0) {
        b.set(list[0]!.subarray(0, part), at)
        list[0] = list[0]!.subarray(part)
      }
      this.post({ t: 'data', s: this.id, b })
      this.credit -= b.length
    }
    const next = this.waiting
    if (!next || list.length > 0) return
    this.waiting = undefined
    this.written += this.writing
    next()
  }

  /** @internal end() has been called, and all is written. */
  override _final(done: () => void): void {
    this.post({ t: 'end', s: this.id })
    done()
  }

  /** @internal Resets or lingers: see {@link Conn}. */
  override _destroy(err: Error | null, done: (err: Error | null) => void): void {
    const clean = this.ended && this.writableFinished
    const lingers = !err && !clean && this.writableFinished && !this.remoteDone
    if (!clean && !lingers && !this.remoteDone) this.post({ t: 'reset', s: this.id })
    clearTimeout(this.idle)
    const next = this.waiting
    this.waiting = undefined
    this.unsent = []
    this.held = undefined
    next?.(
      err ??
        Object.assign(new Error('the connection was destroyed'), { code: 'ERR_STREAM_DESTROYED' }),
    )
    if (lingers) {
      if (this.owed > 0) this.post({ t: 'credit', s: this.id, n: this.owed })
      this.linger = setTimeout(() => {
        this.post({ t: 'reset', s: this.id })
        this.leave()
      }, LINGER).unref()
    } else {
      this.gone()
    }
    done(err)
  }

  /** The end of a connection that lingered. */
  private leave(): void {
    clearTimeout(this.linger)
    this.gone()
  }

  /**
   * As net.Socket's: an event `timeout` after so many ms with nothing to read and nothing that
   * could be written. 0: none.
   */
  setTimeout(ms: number, listener?: () => void): this {
    if (listener) {
      if (ms > 0) this.once('timeout', listener)
      else this.off('timeout', listener)
    }
    clearTimeout(this.idle)
    this.idleMs = ms
    this.idle = ms > 0 ? setTimeout(() => this.emit('timeout'), ms).unref() : undefined
    return this
  }

  /**
   * Does nothing: the tailnet's TCP never waits for more to send (Nagle's algorithm is off). There
   * because node:http calls it.
   */
  setNoDelay(_noDelay?: boolean): this {
    return this
  }
  /**
   * Does nothing: each connection is probed when it has been silent for a minute (TSNET_KEEPALIVE
   * sets how long). There because node:http calls it.
   */
  setKeepAlive(_enable?: boolean, _delay?: number): this {
    return this
  }
  /**
   * Does nothing: it is the Server that keeps the process alive. There because node:http calls it.
   */
  ref(): this {
    return this
  }
  /** Does nothing, as {@link ref}. */
  unref(): this {
    return this
  }
}
