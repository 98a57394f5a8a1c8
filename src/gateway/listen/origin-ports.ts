import { GatehouseError } from '../../base/errors.ts'
import { ports } from '../../config/ports.ts'
import type { Problems } from '../shared/problems.ts'
import type { TailnetConn, TailnetListener } from '../tailnet/tailnet.ts'

/** Options of {@link OriginPorts}. */
export interface OriginPortsOptions {
  problems: Problems
  /** Takes a connection to a port. */
  accept: (conn: TailnetConn, port: number) => void
  /** Opens a port of the node; retries by itself. */
  listen: (
    port: number,
    accept: (conn: TailnetConn) => void,
  ) => Promise<TailnetListener | undefined>
}

/**
 * Ports of the node beside 443 at which HTTPS is served, each an origin of its own: what flows
 * serve, the gateway's pages, and apps with a port of theirs.
 */
export class OriginPorts {
  #options: OriginPortsOptions
  #wanted: ReadonlySet<number> = new Set<number>([ports.flows, ports.own])
  #open = new Map<number, Promise<TailnetListener | undefined>>()
  #started = false

  constructor(options: OriginPortsOptions) {
    this.#options = options
  }

  /**
   * Takes over settings. What is open stays open.
   *
   * @param apps ports of [[app]]s, beside the gateway's own two
   * @param forwarded ports of [[forward]]s, which come first: they may have been there before the
   *   gateway had a use for the port
   */
  configure(apps: readonly number[], forwarded: readonly number[]): void {
    const { problems } = this.#options
    const all = [ports.flows, ports.own, ...apps]
    const taken = all.find((port) => forwarded.includes(port))
    if (taken === undefined) problems.clear('ports', 'every port is open')
    else
      problems.set(
        'ports',
        new GatehouseError(
          'GH_PORT_TAKEN',
          `a [[forward]] has port ${taken}, so what the gateway serves at that port is not to be reached`,
          'Give the [[forward]] another port in gatehouse.toml: 8443 is for what flows ' +
            'serve, 10000 for the status page, and each [[app]] with a port has that',
        ),
      )
    this.#wanted = new Set(all.filter((port) => !forwarded.includes(port)))
    this.#listen()
  }

  /** Opens the ports from now on. */
  start(): void {
    this.#started = true
    this.#listen()
  }

  /** Whether a port is served. */
  has(port: number): boolean {
    return this.#wanted.has(port)
  }

  /** No new connections. */
  async close(): Promise<void> {
    this.#started = false
    const listeners = [...this.#open.values()]
    this.#open.clear()
    await Promise.allSettled(listeners.map(async (listener) => await (await listener)?.close()))
  }

  #listen(): void {
    if (!this.#started) return
    const { accept, listen } = this.#options
    for (const [port, listener] of this.#open) {
      if (this.#wanted.has(port)) continue
      this.#open.delete(port)
      void listener.then(async (open) => await open?.close()).catch(() => {})
    }
    for (const port of this.#wanted) {
      if (this.#open.has(port)) continue
      this.#open.set(
        port,
        listen(port, (conn) => {
          if (this.#wanted.has(port)) accept(conn, port)
          else conn.destroy()
        }),
      )
    }
  }
}
