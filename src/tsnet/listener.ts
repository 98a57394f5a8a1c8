import { EventEmitter } from 'node:events'
import { isIPv6, type AddressInfo } from 'node:net'
import type { Conn } from './conn.ts'

/**
 * Listens on a TCP port of the node: as net.Server after `listening`. Events: `connection` (Conn),
 * `close`. `for await (const conn of listener)` works too, until the listener is closed.
 */
export class Listener
  extends EventEmitter<{ connection: [Conn]; close: []; error: [Error] }>
  implements AsyncIterable<Conn>
{
  /** The port; the one that was chosen, where 0 was asked for. */
  readonly port: number
  /** False once it is closed. */
  listening = true
  /** Connections beyond this number are reset, as with net.Server. Default: no limit. */
  maxConnections = Infinity
  /** Of a listener for a Tailscale Service: its full name. */
  readonly fqdn: string | undefined
  private readonly host: string
  private readonly end: () => Promise<void>
  private readonly conns = new Set<Conn>()
  private closing: Promise<void> | undefined

  /** @internal Made by Server.listen and Server.listenService. */
  constructor(host: string, port: number, end: () => Promise<void>, fqdn?: string) {
    super()
    this.host = host
    this.port = port
    this.end = end
    this.fqdn = fqdn
  }

  /** As net.Server.address(). `::` for all addresses of the node, of both kinds. */
  address(): AddressInfo {
    return {
      address: this.host || '::',
      port: this.port,
      family: !this.host || isIPv6(this.host) ? 'IPv6' : 'IPv4',
    }
  }

  /** As net.Server.getConnections(). */
  getConnections(done: (err: Error | null, count: number) => void): this {
    queueMicrotask(() => done(null, this.conns.size))
    return this
  }

  /**
   * @internal Gives a connection to whoever listens. False when nobody does, or there are too many:
   *   it is to be reset.
   */
  give(conn: Conn): boolean {
    if (this.conns.size >= this.maxConnections || !this.emit('connection', conn)) return false
    this.conns.add(conn)
    conn.once('close', () => this.conns.delete(conn))
    return true
  }

  /** @internal The server has ended. */
  ended(): void {
    if (!this.listening) return
    this.listening = false
    this.emit('close')
  }

  /**
   * No new connections; those that are open stay. Resolves (and calls back) when the port is free
   * again. Safe to call again.
   */
  close(done?: (err?: Error) => void): Promise<void> {
    this.closing ??= this.end().then(() => this.ended())
    if (done) this.closing.then(() => done(), done)
    return this.closing
  }

  /** `await using`: {@link close}. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  /**
   * Each connection, until the listener is closed; those that nobody takes any more when the loop
   * is left are reset.
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<Conn, void, void> {
    const waiting: Conn[] = []
    let wake = (): void => {}
    const take = (conn: Conn): void => {
      waiting.push(conn)
      wake()
    }
    const ended = (): void => wake()
    this.on('connection', take).on('close', ended)
    try {
      while (this.listening || waiting.length > 0) {
        const conn = waiting.shift()
        if (conn) yield conn
        else await new Promise<void>((resolve) => (wake = resolve))
      }
    } finally {
      this.off('connection', take).off('close', ended)
      for (const conn of waiting) conn.destroy()
    }
  }
}
