import type { WhoIs } from '../tsnet/types.ts'
import type { Duplex } from 'node:stream'
import { reason } from '../config/errors.ts'
import type { Logger } from './log.ts'
import type { Tailnet, TailnetConn } from './tailnet.ts'

/** Who is at the other end of a connection. WhoIs is asked once a connection, when it is first needed. */
export class Peer {
  /** Tailnet address of the peer, without port. */
  readonly address: string
  readonly port: number
  #ask: () => Promise<WhoIs | undefined>
  #answer: Promise<WhoIs | undefined> | undefined

  constructor (conn: Pick<TailnetConn, 'remoteAddress' | 'remotePort'>, tailnet: Pick<Tailnet, 'whoIs'>, log: Logger) {
    this.address = conn.remoteAddress
    this.port = conn.remotePort
    const addr = this.address.includes(':') ? `[${this.address}]:${this.port}` : `${this.address}:${this.port}`
    this.#ask = async () => {
      try {
        return await tailnet.whoIs(addr)
      } catch (err) {
        log.warn({ code: 'GH_WHOIS', peer: this.address }, `who is ${this.address}: ${reason(err)}. Its requests go on without identity`)
        return undefined
      }
    }
  }

  /** Undefined when the tailnet does not know the address: the peer then has no identity. */
  async whoIs (): Promise<WhoIs | undefined> {
    this.#answer ??= this.#ask()
    return await this.#answer
  }
}

const peers = new WeakMap<object, Peer>()

/** Ties a peer to the socket its requests will be read from. */
export function setPeer (socket: Duplex, peer: Peer): void {
  peers.set(socket, peer)
}

/** @throws Error for a socket that did not come in through the tailnet: no request may be served for one */
export function peerOf (socket: Duplex): Peer {
  const peer = peers.get(socket)
  if (peer === undefined) throw new Error('request on a socket with no tailnet peer')
  return peer
}
