import { EventEmitter, once } from 'node:events'
import { createServer } from 'node:net'
import type { Server, Socket } from 'node:net'
import { networkInterfaces } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { reason } from '../../base/errors.ts'
import { isTailnetAddress, kernelPath, kernelPort } from '../../config/data-path.ts'
import type { Logger } from '../shared/log.ts'
import type { Problems } from '../shared/problems.ts'
import { dataPathProblem } from '../tailnet/node.ts'
import type { Node } from '../tailnet/node.ts'
import type { TailnetConn, TailnetListener } from '../tailnet/tailnet.ts'

/** A connection that is silent for so long is probed, as by the node's own stack. Milliseconds. */
const keepAlive = 60_000

/** Options of {@link KernelPath}. */
export interface KernelPathOptions {
  log: Logger
  problems: Problems
  /** What the firewall leads there. Default: {@link kernelPath}. For tests. */
  addresses?: readonly string[]
  /** The gateway's port behind one of the node's. Default: {@link kernelPort}. For tests. */
  portOf?: (port: number) => number | undefined
  /** How long the interface may take to have its addresses. Milliseconds, default 10 s. */
  patience?: number
}

/**
 * Ports of the node that the kernel's TCP serves (`[tailnet] data_path = "kernel"`): the firewall
 * leads them from the tun interface to ports of the gateway's, and the sockets here are the
 * kernel's. Who is at the other end is known by its address, as ever: the interface has packets of
 * the tailnet alone, and what came another way is dropped by the firewall, and closed here.
 */
export class KernelPath {
  readonly #options: KernelPathOptions
  readonly #addresses: ReadonlySet<string>
  readonly #open = new Set<KernelListener>()

  constructor(options: KernelPathOptions) {
    this.#options = options
    const { addresses = Object.values(kernelPath.addresses) } = options
    this.#addresses = new Set(addresses.flatMap((address) => [address, `::ffff:${address}`]))
  }

  /** Whether any port is served so. */
  get serving(): boolean {
    return this.#open.size > 0
  }

  /**
   * A port of the node, by the kernel.
   *
   * @returns undefined where it is the node's own stack that is to serve it, with a problem in the
   *   status when that is not as it was wanted
   */
  async listen(
    node: Pick<Node, 'kernel' | 'status'>,
    port: number,
    accept: (conn: TailnetConn) => void,
  ): Promise<TailnetListener | undefined> {
    const { problems, portOf = kernelPort } = this.#options
    const own = portOf(port)
    if (!node.kernel || own === undefined) return undefined
    const elsewhere = node.status?.tailscaleIPs.find((address) => !isTailnetAddress(address))
    try {
      if (elsewhere !== undefined)
        throw new Error(
          `the control server has given this device ${elsewhere}, which is no Tailscale address`,
        )
      await this.#ready()
      const listener = await KernelListener.open(own, (socket) => {
        this.#take(socket, accept)
      })
      this.#open.add(listener)
      listener.once('close', () => this.#open.delete(listener))
      problems.clear('data path', "the kernel's TCP serves the tailnet")
      return listener
    } catch (err) {
      problems.set('data path', dataPathProblem(reason(err)))
      return undefined
    }
  }

  /** Waits for the interface's addresses, which systemd-networkd sets. */
  async #ready(): Promise<void> {
    if (this.#options.addresses !== undefined) return
    const { interface: name, addresses } = kernelPath
    const wanted = Object.values(addresses)
    const end = Date.now() + (this.#options.patience ?? 10_000)
    for (;;) {
      const has = (networkInterfaces()[name] ?? []).map(({ address }) => address)
      const missing = wanted.find((address) => !has.includes(address))
      if (missing === undefined) return
      if (Date.now() > end) throw new Error(`the interface ${name} has not the address ${missing}`)
      await sleep(100)
    }
  }

  #take(socket: Socket, accept: (conn: TailnetConn) => void): void {
    socket.on('error', () => socket.destroy())
    const { remoteAddress, localAddress } = socket
    // Gone already, or not translated by the firewall.
    if (remoteAddress === undefined || !this.#addresses.has(localAddress ?? '')) {
      socket.destroy()
      return
    }
    // As the tailnet writes it, which knows no mapped addresses.
    Object.defineProperty(socket, 'remoteAddress', {
      value: remoteAddress.replace(/^::ffff:(?=[\d.]+$)/i, ''),
    })
    accept(socket as TailnetConn)
  }
}

/** A port of the kernel's, as the node would have it. Emits `close`. */
class KernelListener extends EventEmitter implements TailnetListener {
  readonly #server: Server

  private constructor(server: Server) {
    super()
    this.#server = server
  }

  static async open(port: number, take: (socket: Socket) => void): Promise<KernelListener> {
    const server = createServer(
      // A peer may shut its side down and wait for the answer.
      { allowHalfOpen: true, noDelay: true, keepAlive: true, keepAliveInitialDelay: keepAlive },
      take,
    )
    // Both families, and whenever the interface's addresses come.
    server.listen({ host: '::', port })
    await once(server, 'listening')
    server.on('error', () => {})
    return new KernelListener(server)
  }

  /** No new connections; resolves at once, what is open goes on. */
  async close(): Promise<void> {
    this.#server.close()
    this.emit('close')
    await Promise.resolve()
  }
}
