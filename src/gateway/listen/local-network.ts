import { once } from 'node:events'
import { createServer } from 'node:net'
import type { Server, Socket } from 'node:net'
import type { Config } from '../../config/config.ts'
import { GatehouseError, reason } from '../../base/errors.ts'
import { ports } from '../../config/ports.ts'
import { localPorts } from '../../firewall/local-ports.ts'
import type { Logger } from '../shared/log.ts'
import { Peer } from '../tailnet/peer.ts'
import type { Problems } from '../shared/problems.ts'
import type { TailnetConn } from '../tailnet/tailnet.ts'

/**
 * Open connections from the local network, to each port: those of the tailnet ([limits]
 * connections, 1000 by default) must find room beside them.
 */
const most = 200

/** A connection that is silent for so long is probed. Milliseconds. */
const keepAlive = 60_000

/** Options of {@link LocalNetwork}. */
export interface LocalNetworkOptions {
  log: Logger
  problems: Problems
  /** Takes a connection to port 80, 443, and that of what flows serve. */
  accept: Record<keyof typeof localPorts, (conn: TailnetConn, peer: Peer) => void>
  /** Default: {@link localPorts}. 0 is any, for tests. */
  ports?: Record<keyof typeof localPorts, number>
}

/** The listener on the local network: three ports, open only while [local_network] says so. */
export class LocalNetwork {
  #options: LocalNetworkOptions
  #servers = new Map<keyof typeof localPorts, Server>()
  #open = new Set<Socket>()
  #changing: Promise<void> = Promise.resolve()

  constructor(options: LocalNetworkOptions) {
    this.#options = options
  }

  /** True while it listens. */
  get listening(): boolean {
    return this.#servers.size > 0
  }

  /** The ports it has; empty while it does not listen. */
  get ports(): Partial<Record<keyof typeof localPorts, number>> {
    return Object.fromEntries(
      [...this.#servers].map(([name, server]) => [
        name,
        (server.address() as { port: number }).port,
      ]),
    )
  }

  /**
   * Takes over settings: opens the ports, or closes them and all that came in by them. Never
   * rejects: what is wrong is a problem in the status.
   */
  async configure({ listen }: Config['local_network']): Promise<void> {
    this.#changing = this.#changing.then(async () => {
      if (listen === this.listening) return
      if (listen) await this.#listen()
      else this.#end()
    })
    await this.#changing
  }

  /** Closes all of it. */
  async close(): Promise<void> {
    await this.#changing
    this.#end()
  }

  async #listen(): Promise<void> {
    const { problems, log, accept, ports: own = localPorts } = this.#options
    try {
      for (const name of ['http', 'https', 'flows'] as const) {
        // A client may shut its side down and wait for the answer, as one on the tailnet may.
        const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
          this.#take(socket, accept[name], name === 'flows' ? ports.flows : ports.editor)
        })
        server.maxConnections = most
        server.on('error', (err) => {
          log.warn({ code: 'GH_LOCAL_NETWORK' }, `local network: ${reason(err)}`)
        })
        // Both families; systems without IPv6 have IPv4 there.
        server.listen({ host: '::', port: own[name] })
        await once(server, 'listening').catch(async (err: NodeJS.ErrnoException) => {
          if (err.code !== 'EAFNOSUPPORT') throw err
          server.listen({ host: '0.0.0.0', port: own[name] })
          await once(server, 'listening')
        })
        this.#servers.set(name, server)
      }
      problems.clear('local network', 'listening on the local network')
      log.warn(
        { code: 'GH_LOCAL_NETWORK_OPEN' },
        'ports 80, 443 and 8443 answer on the local network, to everybody there: [local_network] listen',
      )
    } catch (err) {
      this.#end()
      problems.set(
        'local network',
        new GatehouseError(
          'GH_LOCAL_NETWORK',
          `the gateway cannot listen on the local network: ${reason(err)}`,
          'Restart the device: [local_network] takes effect when it starts',
          { cause: err },
        ),
        'error',
      )
    }
  }

  #end(): void {
    for (const server of this.#servers.values()) server.close()
    this.#servers.clear()
    for (const socket of this.#open) socket.destroy()
    this.#options.problems.clear('local network', 'not listening on the local network')
  }

  #take(socket: Socket, accept: (conn: TailnetConn, peer: Peer) => void, localPort: number): void {
    const { remoteAddress, remotePort } = socket
    // Gone already.
    if (remoteAddress === undefined || remotePort === undefined) {
      socket.destroy()
      return
    }
    const address = remoteAddress.replace(/^::ffff:(?=[\d.]+$)/i, '').replace(/%.*$/, '')
    this.#open.add(socket)
    socket.once('close', () => this.#open.delete(socket))
    socket.on('error', () => socket.destroy())
    // As on the tailnet: who is gone without a word holds its connections for two minutes at most.
    socket.setKeepAlive(true, keepAlive)
    accept(
      socket as TailnetConn,
      new Peer(
        { remoteAddress: address, remotePort },
        undefined,
        this.#options.log,
        undefined,
        localPort,
      ),
    )
  }
}
