import { EventEmitter } from 'node:events';
import { Duplex } from 'node:stream';
import type { StreamMessage } from './protocol.ts';
import { WINDOW } from './protocol.ts';

const addrPort = (s: string): [string, number] => {
  const at = s.lastIndexOf(':');
  return [s.slice(0, at).replace(/^\[|\]$/g, ''), Number(s.slice(at + 1))];
};

/**
 * A TCP connection in the tailnet. Half-close and resets pass through both ways; back-pressure too: at most 512 KiB are
 * under way each way between the threads.
 */
export class Conn extends Duplex {
  readonly remoteAddress: string;
  readonly remotePort: number;
  readonly localAddress: string;
  readonly localPort: number;
  private credit = WINDOW;
  private owed = 0;
  private waiting: (() => void) | undefined;
  private remoteDone = false;
  private readonly id: number;
  private readonly post: (m: StreamMessage) => void;
  private readonly gone: () => void;

  /** Made by Server, not by callers. */
  constructor(id: number, local: string, remote: string, post: (m: StreamMessage) => void, gone: () => void) {
    super({ allowHalfOpen: true, emitClose: true });
    this.id = id;
    this.post = post;
    this.gone = gone;
    [this.remoteAddress, this.remotePort] = addrPort(remote);
    [this.localAddress, this.localPort] = addrPort(local);
  }

  /** `ip:port` of the peer, as whoIs wants it. */
  get remote(): string {
    return this.remoteAddress.includes(':') ? `[${this.remoteAddress}]:${this.remotePort}` : `${this.remoteAddress}:${this.remotePort}`;
  }

  /** @internal */
  receive(m: StreamMessage): void {
    if (m.t === 'data') {
      this.owed += m.b.length;
      if (this.push(Buffer.from(m.b.buffer, m.b.byteOffset, m.b.length))) this.repay();
    } else if (m.t === 'end') {
      this.push(null);
    } else if (m.t === 'reset') {
      this.remoteDone = true;
      this.destroy(Object.assign(new Error('read ECONNRESET'), { code: 'ECONNRESET', syscall: 'read' }));
    } else {
      this.credit += m.n;
      const next = this.waiting;
      if (next && this.credit > 0) {
        this.waiting = undefined;
        next();
      }
    }
  }

  private repay(): void {
    if (this.owed < WINDOW / 8) return;
    this.post({ t: 'credit', s: this.id, n: this.owed });
    this.owed = 0;
  }

  override _read(): void {
    this.repay();
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (err?: Error) => void): void {
    this._writev([{ chunk }], done);
  }

  override _writev(chunks: { chunk: Buffer }[], done: (err?: Error) => void): void {
    let total = 0;
    for (const { chunk } of chunks) total += chunk.length;
    // A copy of its own: it is transferred to the other thread, and the caller's buffer may be part of a pool.
    const b = new Uint8Array(total);
    let at = 0;
    for (const { chunk } of chunks) {
      b.set(chunk, at);
      at += chunk.length;
    }
    this.post({ t: 'data', s: this.id, b });
    this.credit -= total;
    if (this.credit > 0) done();
    else this.waiting = done;
  }

  override _final(done: () => void): void {
    this.post({ t: 'end', s: this.id });
    done();
  }

  override _destroy(err: Error | null, done: (err: Error | null) => void): void {
    const clean = this.readableEnded && this.writableFinished;
    if (!clean && !this.remoteDone) this.post({ t: 'reset', s: this.id });
    const next = this.waiting;
    this.waiting = undefined;
    next?.();
    this.gone();
    done(err);
  }

  // What node:http and node:tls call on a net.Socket; the tailnet's TCP has its own timers, and no delay.
  setNoDelay(): this {
    return this;
  }
  setKeepAlive(): this {
    return this;
  }
  ref(): this {
    return this;
  }
  unref(): this {
    return this;
  }
}

/** Listens on a port of the node, on all its tailnet addresses. Events: `connection` (Conn), `close`. */
export class Listener extends EventEmitter<{ connection: [Conn]; close: [] }> {
  readonly port: number;
  private readonly end: () => Promise<void>;
  private closed = false;

  /** Made by Server.listen. */
  constructor(port: number, end: () => Promise<void>) {
    super();
    this.port = port;
    this.end = end;
  }

  /** No new connections; those that are open stay. */
  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    await this.end();
    this.emit('close');
  }
}
