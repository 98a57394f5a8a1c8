import type { HealthWarning, KeyExpiry } from './types.ts'

/** What Server.watch tells. */
export type Notice =
  /** The backend's state: NoState, NeedsLogin, NeedsMachineAuth, Stopped, Starting, Running. */
  | { type: 'state'; state: string }
  /** A person must open this URL to log the node in. */
  | { type: 'loginURL'; url: string }
  /** The key's end, at first and when it changes. */
  | { type: 'keyExpiry'; expiry: KeyExpiry }
  /** All that Tailscale's health tracker complains of now; empty: nothing. */
  | { type: 'health'; warnings: HealthWarning[] }
  /** What the control server says against this node. */
  | { type: 'message'; message: string }

/**
 * The last notice of each kind, for those that begin to watch later, and all that come for those
 * that watch.
 */
export class Notices {
  private readonly last = new Map<Notice['type'], Notice>()
  private readonly watchers = new Set<(n: Notice | undefined) => void>()
  private closed = false

  /** A login URL is of use until the node is logged in. */
  add(n: Notice): void {
    if (n.type === 'state' && n.state !== 'NeedsLogin') this.last.delete('loginURL')
    if (n.type !== 'message') this.last.set(n.type, n)
    for (const w of this.watchers) w(n)
  }

  /** Ends every watch. */
  end(): void {
    this.closed = true
    for (const w of this.watchers) w(undefined)
  }

  /**
   * Those of each kind that hold now, then what comes, until the end of the server or of the
   * caller's patience.
   */
  async *watch(signal?: AbortSignal): AsyncGenerator<Notice, void, void> {
    const queue: (Notice | undefined)[] = [...this.last.values()]
    let wake = (): void => {}
    const take = (n: Notice | undefined): void => {
      queue.push(n)
      wake()
    }
    const aborted = (): void => take(undefined)
    if (this.closed || signal?.aborted) return
    this.watchers.add(take)
    signal?.addEventListener('abort', aborted, { once: true })
    try {
      for (;;) {
        while (queue.length > 0) {
          const n = queue.shift()
          if (!n || signal?.aborted) return
          yield n
        }
        await new Promise<void>((resolve) => (wake = resolve))
      }
    } finally {
      this.watchers.delete(take)
      signal?.removeEventListener('abort', aborted)
    }
  }
}
