import type { Calls, WaitOptions } from './calls.ts'
import { Conn } from './conn.ts'
import type { TsnetError } from './errors.ts'
import { Listener } from './listener.ts'
import type { StreamMessage, StreamMeta, ToWorker } from './protocol.ts'

/** What the module replies to one who listens. */
interface Listening {
  addr?: string
  fqdn?: string
}

/** The connections and listeners of a Server, by the numbers they have in the module. */
export class Streams {
  private readonly conns = new Map<number, Conn>()
  private readonly listeners = new Map<number, Listener>()
  /** By the number of the call that dials, until that call is over. */
  private readonly dialled = new Map<number, Conn>()
  private readonly calls: Calls
  private readonly post: (m: ToWorker) => void

  constructor(calls: Calls, post: (m: ToWorker) => void) {
    this.calls = calls
    this.post = post
  }

  /** The module has a new connection, dialled or accepted. */
  opened(s: number, meta: StreamMeta): void {
    const conn = new Conn(
      s,
      meta.local,
      meta.remote,
      this.post,
      () => this.conns.delete(s),
      meta.target,
    )
    this.conns.set(s, conn)
    if (meta.dial !== undefined) {
      // Whoever dialled may have given up.
      if (this.calls.waits(meta.dial)) this.dialled.set(meta.dial, conn)
      else conn.destroy()
      return
    }
    const give = (): boolean => {
      if (!this.listeners.get(meta.listener!)?.give(conn)) return false
      conn.release()
      return true
    }
    // It may come before the caller of listen() has had its turn to add the event listener.
    if (!give()) setImmediate(() => give() || conn.destroy())
  }

  receive(m: StreamMessage): void {
    this.conns.get(m.s)?.receive(m)
  }

  /** A message for this connection did not reach the module. */
  lost(s: number, err: Error): void {
    this.conns.get(s)?.destroy(err)
  }

  /** The module has ended: connections are reset, listeners closed. */
  end(): void {
    for (const conn of this.conns.values()) conn.receive({ t: 'reset', s: 0 })
    for (const listener of this.listeners.values()) listener.ended()
  }

  /**
   * A call that makes a connection, and its result. The connection holds what comes back until its
   * release(): the caller is to have had its turn to add event listeners.
   */
  async dial<T>(method: string, params: object, options: WaitOptions): Promise<[Conn, T]> {
    const id = this.calls.id()
    try {
      const result = await this.calls.call<T>(method, params, options, id)
      return [this.dialled.get(id)!, result]
    } catch (err) {
      this.dialled.get(id)?.destroy()
      throw err
    } finally {
      this.dialled.delete(id)
    }
  }

  /** A call that makes a listener; `address` is its host and port, by the result. */
  async listen(
    method: string,
    params: object,
    options: WaitOptions,
    address: (result: Listening) => [string, number],
  ): Promise<Listener> {
    const { calls } = this
    const id = calls.id()
    const unlisten = (): Promise<void> => calls.call('unlisten', { listener: id })
    const result = await calls.call<Listening>(method, params, options, id).catch((err) => {
      // Given up here while it was made over there.
      if (!calls.ended && (err as TsnetError).code === 'TSNET_ABORTED') unlisten().catch(() => {})
      throw err
    })
    const end = async (): Promise<void> => {
      this.listeners.delete(id)
      if (calls.ended) return
      await unlisten().catch((err) => {
        if (!calls.ended) throw err
      })
    }
    const listener = new Listener(...address(result), end, result.fqdn)
    this.listeners.set(id, listener)
    return listener
  }
}
