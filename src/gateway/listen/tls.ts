import type { Server } from 'node:http'
import { TLSSocket } from 'node:tls'
import type { Certificates } from '../certificates/certificates.ts'
import type { Limits } from '../request/limits.ts'
import type { Logger } from '../shared/log.ts'
import { whenSecure } from './handshake.ts'
import { lingering } from './linger.ts'
import { Peer, setPeer } from '../tailnet/peer.ts'
import type { Tailnet, TailnetConn } from '../tailnet/tailnet.ts'

/** A client has this long to finish the TLS handshake. Milliseconds. */
const handshakeTimeout = 15_000

/** Options of {@link acceptTLS}. */
export interface AcceptOptions {
  /** For HTTP/1.1. */
  server: Server
  /** For HTTP/2. */
  acceptHTTP2: (socket: TLSSocket, peer: Peer) => void
  certificates: Certificates
  tailnet: Pick<Tailnet, 'whoIs'>
  limits: Limits
  log: Logger
  /**
   * Full name of the node, or of a Service of it: its certificate goes to clients that send no SNI.
   */
  name: (service?: string) => string | undefined
}

/**
 * Takes connections of tailnet peers through TLS to the HTTP servers. The TLSSocket is made here
 * rather than by https.Server, because the peer behind a connection must be known when its requests
 * come, and a TLSSocket over a Duplex has no remote address.
 *
 * @returns what to do with a connection (whose peer is of the tailnet unless another is given), and
 *   the set of open ones
 */
export function acceptTLS({
  server,
  acceptHTTP2,
  certificates,
  tailnet,
  limits,
  log,
  name,
}: AcceptOptions): { accept: (conn: TailnetConn, peer?: Peer) => void; open: Set<TLSSocket> } {
  const open = new Set<TLSSocket>()
  const linger = lingering(server)
  const accept = (conn: TailnetConn, peer = new Peer(conn, tailnet, log)): void => {
    const { service } = peer
    // The node is served from its first certificate on; a Service that has none yet is not, rather
    // than under another name.
    const own = name(service)
    const context =
      service === undefined || certificates.covering(own ?? '') !== undefined
        ? certificates.context(undefined, own)
        : undefined
    conn.on('error', () => conn.destroy())
    if (context === undefined || !limits.admit(peer, conn)) {
      conn.destroy()
      return
    }
    const socket = new TLSSocket(conn, {
      isServer: true,
      secureContext: context,
      // Asked at each handshake, so that a new certificate is used from the next connection on.
      SNICallback: (servername, done) => {
        done(null, certificates.context(servername, name(service)))
      },
      ALPNProtocols: limits.settings.streamsPerConnection > 0 ? ['h2', 'http/1.1'] : ['http/1.1'],
    })
    setPeer(socket, peer)
    limits.track(peer.address, conn, socket)
    open.add(socket)
    socket.on('error', (err) => {
      log.debug({ peer: peer.address }, `connection: ${err.message}`)
      socket.destroy()
    })
    socket.on('close', () => {
      open.delete(socket)
      conn.destroy()
    })
    whenSecure(socket, handshakeTimeout, () => {
      // tls.Server does this for its own; without it HTTP/2 waits for a handshake that is over.
      Object.assign(socket, { secureConnecting: false })
      if (socket.alpnProtocol === 'h2') acceptHTTP2(socket, peer)
      else {
        linger(socket)
        server.emit('connection', socket)
      }
    })
  }
  return { accept, open }
}
