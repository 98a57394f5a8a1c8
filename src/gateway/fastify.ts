import type { ServerHttp2Session } from 'node:http2'
import type { Duplex, Readable } from 'node:stream'
import type { TLSSocket } from 'node:tls'
import type { WhoIs } from '@gatehouse/tsnet'
import type { Access } from './access/access.ts'
import type { App } from './apps/apps.ts'
import type { Tunnel } from './request/drain.ts'
import type { Peer } from './tailnet/peer.ts'

/**
 * What a request and the server carry beside what Fastify gives them. Each is set by the one plugin
 * that its comment names.
 */
declare module 'fastify' {
  interface FastifyRequest {
    /** The app that the request is for (apps/apps.ts, chooseApp). */
    route: App
    /**
     * Name of the app that the request was passed on to (apps/proxy.ts, apps/websocket.ts);
     * undefined when the gateway answered itself.
     */
    upstream?: string
    /** Who sent it; undefined when the tailnet does not know (access/authorize.ts). */
    whoIs?: WhoIs | undefined
    /** What they may do (access/authorize.ts). */
    access?: Access
    /**
     * Both, signed, for Node-RED's editor (access/channel.ts); undefined for what is not the
     * editor's (access/authorize.ts).
     */
    assertion?: string | undefined
    /** Its body, of any method; undefined when it has none (apps/proxy.ts). */
    payload?: Readable
  }

  interface FastifyInstance {
    /** The WebSockets that are open (request/drain.ts). */
    tunnels: Set<Tunnel>
    /** Ends what is open, with a time limit in milliseconds (request/drain.ts). */
    drain: (connections: ReadonlySet<Duplex>, grace: number) => Promise<void>
    /** Connections over HTTP/2 that are open (listen/http2.ts). */
    sessions: Set<ServerHttp2Session>
    /** Takes a connection whose handshake chose HTTP/2 (listen/http2.ts). */
    acceptHTTP2: (socket: TLSSocket, peer: Peer) => void
  }
}
