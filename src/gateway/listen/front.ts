import { readFile } from 'node:fs/promises'
import type { Server } from 'node:http'
import type { Socket } from 'node:net'
import { join } from 'node:path'
import type { FastifyInstance } from 'fastify'
import { authorityFile } from '../../certs/record.ts'
import type { Certificates } from '../certificates/certificates.ts'
import type { Limits } from '../request/limits.ts'
import type { Metrics } from '../request/metrics.ts'
import type { Logger } from '../shared/log.ts'
import type { Problems } from '../shared/problems.ts'
import type { Node } from '../tailnet/node.ts'
import { Peer, setPeer } from '../tailnet/peer.ts'
import type { TailnetConn, TailnetListener } from '../tailnet/tailnet.ts'
import type { OriginPorts } from './origin-ports.ts'
import type { Forwards } from './forward.ts'
import { createRedirectServer } from './redirect.ts'
import { acceptTLS } from './tls.ts'

/** Options of {@link Front}. */
export interface FrontOptions {
  log: Logger
  problems: Problems
  certificates: Certificates
  limits: Limits
  metrics: Metrics
  /** Opened with port 443. */
  originPorts: OriginPorts
  /** Those by name take their connections from port 443. */
  forwards: Forwards
  /** Opens a port of the node; retries by itself. */
  listen: (
    port: number,
    accept: (conn: TailnetConn) => void,
  ) => Promise<TailnetListener | undefined>
  /** Full name of the device, or of a Service it hosts. */
  name: (service?: string) => string | undefined
  /** Whether the device has an authority of its own, whose root port 80 gives out. */
  ownAuthority: () => boolean
  /** Directory of the certificates. */
  tls: string
}

/**
 * Ports 443 and 80 of the node: 443 is open from the first certificate on, 80 sends to it or says
 * why it is not. What comes through other ports, Services and the local network is handed to the
 * same two.
 */
export class Front {
  #options: FrontOptions
  #redirect: Server
  #node: Node | undefined
  #https: TailnetListener | undefined
  #http: TailnetListener | undefined
  #accept: ((conn: TailnetConn, peer?: Peer) => void) | undefined
  #open: ReadonlySet<Socket> = new Set<Socket>()
  #plain = new Set<TailnetConn>()
  #opening = false
  #closing = false

  constructor(options: FrontOptions) {
    this.#options = options
    const { problems, name, tls, ownAuthority } = options
    this.#redirect = createRedirectServer({
      authority: async () =>
        ownAuthority()
          ? await readFile(join(tls, authorityFile), 'utf8').catch(() => undefined)
          : undefined,
      name,
      waiting: (service) => {
        const covered = this.#covered(name(service))
        if (covered && (service !== undefined || this.serving)) return undefined
        return (
          problems.get('https') ??
          problems.get('certificate') ?? {
            message: 'There is no certificate for HTTPS yet',
            cure: 'Try again in a minute',
          }
        )
      },
    })
  }

  /** Whether port 443 is open. */
  get serving(): boolean {
    return this.#https !== undefined
  }

  /** TLS connections of peers that are open. */
  get connections(): ReadonlySet<Socket> {
    return this.#open
  }

  /** Opens port 80 of a node; port 443 is {@link openHTTPS}'s, as soon as that may be. */
  async join(node: Node, app: FastifyInstance): Promise<void> {
    const { certificates, limits, log, name } = this.#options
    this.#node = node
    const { accept, open } = acceptTLS({
      server: app.server as Server,
      acceptHTTP2: app.acceptHTTP2,
      certificates,
      tailnet: node.tailnet!,
      limits,
      log,
      name,
    })
    this.#open = open
    this.#accept = accept
    this.#http = await node.listen(80, (conn) => {
      this.redirect(conn, new Peer(conn, node.tailnet!, log))
    })
  }

  /**
   * Opens port 443 as soon as there is a certificate for it: until then a connection is refused,
   * not broken off in the handshake.
   *
   * @returns true when it was tried
   */
  async openHTTPS(): Promise<boolean> {
    const { originPorts, forwards, listen, log, metrics, name } = this.#options
    const node = this.#node
    if (
      this.serving ||
      this.#opening ||
      this.#closing ||
      node?.running !== true ||
      !this.#covered(name())
    )
      return false
    this.#opening = true
    this.#https = await listen(443, (conn) => {
      metrics.connections.inc()
      if (forwards.byName) forwards.passThrough(conn, this.#accept!)
      else this.#accept!(conn)
    })
    this.#opening = false
    if (this.serving) {
      originPorts.start()
      log.info(`serving https://${name()}/`)
    }
    return true
  }

  /** Takes a connection that speaks TLS; none before there is a node. */
  accept(conn: TailnetConn, peer: Peer): void {
    if (this.#accept === undefined) conn.destroy()
    else this.#accept(conn, peer)
  }

  /** Takes a connection to port 80. */
  redirect(conn: TailnetConn, peer: Peer): void {
    const { limits } = this.#options
    conn.on('error', () => conn.destroy())
    if (!limits.admit(peer, conn)) {
      conn.destroy()
      return
    }
    setPeer(conn, peer)
    this.#plain.add(conn)
    // All there is to do is to ask and be sent elsewhere: whoever takes longer than headers may is
    // after something else.
    const late = setTimeout(() => conn.destroy(), limits.settings.headerTimeout)
    conn.once('close', () => {
      clearTimeout(late)
      this.#plain.delete(conn)
    })
    this.#redirect.emit('connection', conn)
  }

  /** No new connections. Resolves when the listeners are closed, which may be after the last. */
  async close(): Promise<void> {
    this.#closing = true
    await Promise.allSettled([this.#https?.close(), this.#http?.close()])
  }

  /** Ends the connections to port 80. */
  destroyPlain(): void {
    for (const conn of this.#plain) conn.destroy()
  }

  #covered(name: string | undefined): boolean {
    return this.#options.certificates.covering(name ?? '') !== undefined
  }
}
