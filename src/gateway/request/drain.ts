import type { Duplex } from 'node:stream'
import type { Access } from '../access/access.ts'
import type { Peer } from '../tailnet/peer.ts'
import { plugin } from '../shared/plugin.ts'

/** A WebSocket that is open. */
export interface Tunnel {
  peer: Peer
  /** What the peer might do when it was opened. */
  access: Access
  /**
   * Ends it with a Close frame (RFC 6455 §7.4) once the frame under way is through, and cuts it if
   * the peer takes no notice.
   */
  close: (code: number, reason: string) => void
}

/**
 * Ending without cutting anyone off: `app.drain()` closes WebSockets and idle connections, tells
 * HTTP/2 sessions, gives the requests under way `grace` milliseconds, then cuts what is left.
 * `connections` are the open ones.
 *
 * Fastify's close() does not do: it ends the upstream's connections at once, and the requests on
 * them.
 */
export const drain = plugin<object>('drain', async (app) => {
  let draining = false
  const tunnels = new Set<Tunnel>()
  app.decorate('tunnels', tunnels)
  app.addHook('onRequest', (_request, reply, done) => {
    if (draining) reply.raw.shouldKeepAlive = false
    done()
  })
  app.decorate('drain', async (connections: ReadonlySet<Duplex>, grace: number) => {
    draining = true
    for (const tunnel of tunnels) tunnel.close(1001, 'the gateway is closing')
    // GOAWAY: what is under way goes on to its end, what comes now goes elsewhere.
    for (const session of app.sessions) session.close()
    const end = Date.now() + grace
    while (connections.size > 0 && Date.now() < end) {
      app.server.closeIdleConnections()
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
    for (const connection of connections) connection.destroy()
  })
})
