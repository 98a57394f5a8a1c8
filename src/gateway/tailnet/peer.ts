import type { WhoIs } from '@gatehouse/tsnet'
import type { Duplex } from 'node:stream'
import { reason } from '../../base/errors.ts'
import { ports } from '../../config/ports.ts'
import type { Logger } from '../shared/log.ts'
import type { Tailnet, TailnetConn } from './tailnet.ts'

/**
 * An answer of WhoIs counts for this long, and rights with it: a call to the node's thread for
 * every request would cost too much. Milliseconds.
 */
const lifetime = 5_000

/** Who is at the other end of a connection. */
export class Peer {
  /** Address of the peer in the tailnet (or on the local network), without port. */
  readonly address: string
  readonly port: number
  /**
   * True for one that came in from the local network, of which nothing is known but its address.
   */
  readonly local: boolean
  /**
   * The Tailscale Service (`svc:name`) whose address it connected to; undefined: the node's own.
   */
  readonly service: string | undefined
  /**
   * True when it had no right at all when that was last looked at, by whoever looks; undefined
   * until then.
   */
  mayNothing: boolean | undefined
  /** The port of the node, or of the Service, that it connected to. */
  readonly localPort: number
  #ask: () => Promise<WhoIs | undefined>
  #answer: Promise<WhoIs | undefined> | undefined
  #until = 0

  /** @param tailnet asked who it is; undefined for a peer on the local network */
  constructor(
    conn: Pick<TailnetConn, 'remoteAddress' | 'remotePort'>,
    tailnet: Pick<Tailnet, 'whoIs'> | undefined,
    log: Logger,
    service?: string,
    localPort: number = ports.editor,
  ) {
    this.service = service
    this.localPort = localPort
    this.address = conn.remoteAddress
    this.port = conn.remotePort
    this.local = tailnet === undefined
    if (tailnet === undefined) {
      // Not a question with an answer to come: an address on the local network that looks like a
      // peer's is still not one.
      this.#ask = async () => undefined
      return
    }
    const addr = this.address.includes(':')
      ? `[${this.address}]:${this.port}`
      : `${this.address}:${this.port}`
    this.#ask = async () => {
      try {
        return await tailnet.whoIs(addr)
      } catch (err) {
        log.warn(
          { code: 'GH_WHOIS', peer: this.address },
          `who is ${this.address}: ${reason(err)}. It may do nothing`,
        )
        return undefined
      }
    }
  }

  /** Until when the last answer of {@link whoIs} counts, as Date.now() has it. */
  get until(): number {
    return this.#until
  }

  /**
   * Undefined when the tailnet does not know the address: the peer then has no identity. An answer
   * is some seconds old at most.
   *
   * @param fresh ask anew
   */
  async whoIs(fresh = false): Promise<WhoIs | undefined> {
    if (fresh || this.#answer === undefined || this.#until < Date.now()) {
      this.#answer = this.#ask()
      this.#until = Date.now() + lifetime
    }
    return await this.#answer
  }
}

const peers = new WeakMap<object, Peer>()

/** Ties a peer to the socket its requests will be read from. */
export function setPeer(socket: Duplex, peer: Peer): void {
  peers.set(socket, peer)
}

/** @throws Error for a socket that was tied to no peer: no request may be served for one */
export function peerOf(socket: Duplex): Peer {
  const peer = peers.get(socket)
  if (peer === undefined) throw new Error('request on a socket with no peer')
  return peer
}
