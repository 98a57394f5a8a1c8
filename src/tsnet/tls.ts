/**
 * TLS for listeners: with the certificate that Tailscale gets for the node, or one of one's own.
 */
import { randomBytes } from 'node:crypto'
import { EventEmitter } from 'node:events'
import type { AddressInfo } from 'node:net'
import tls from 'node:tls'
import type { Conn } from './conn.ts'
import type { Listener } from './listener.ts'
import type { CertPair } from './local.ts'

/**
 * How long a certificate is taken for good without asking the backend, in ms. The backend has it on
 * its disk and renews it in time.
 */
const KEPT_MS = 60_000

/** What a TLS socket has of the connection below it. */
const addresses = [
  ...(['remoteAddress', 'remotePort', 'remoteFamily'] as const),
  ...(['localAddress', 'localPort', 'localFamily'] as const),
] as const

/** Gives the certificate for a name. */
export type GetCert = (name: string) => Promise<CertPair>

interface Events {
  connection: [tls.TLSSocket]
  /** A connection whose TLS failed: it is gone. */
  tlsClientError: [Error, tls.TLSSocket]
  close: []
  error: [Error]
}

/**
 * As {@link Listener}, with connections that are TLS: `connection` (tls.TLSSocket), when the
 * handshake is done. `listener.on('connection', (socket) => httpServer.emit('connection', socket))`
 * serves HTTPS.
 */
export class TLSListener extends EventEmitter<Events> {
  private readonly under: Listener
  private readonly kept = new Map<string, { until: number; context: Promise<tls.SecureContext> }>()

  /**
   * Made by Server.listenTLS and Server.listenFunnel. `names` are those that there are certificates
   * for; as with tsnet, a client that names none is refused. `options` with `cert`, `key`, `pfx` or
   * `SNICallback` are taken instead.
   */
  constructor(under: Listener, names: string[], cert: GetCert, options: tls.TlsOptions = {}) {
    super()
    this.under = under
    const own = options.cert ?? options.pfx ?? options.SNICallback
    const settings: tls.TlsOptions = {
      // Sessions are resumed whatever connection they were of.
      ticketKeys: randomBytes(48),
      ...(!own && {
        SNICallback: (name: string, done: (err: Error | null, c?: tls.SecureContext) => void) =>
          void this.context(name.toLowerCase(), names, cert).then(
            (context) => done(null, context),
            (err) => done(err as Error),
          ),
      }),
      ...options,
    }
    // What is wrong with them is said now, not with the first connection.
    tls.createSecureContext(settings)
    under.on('connection', (conn: Conn) => this.accept(conn, settings))
    under.on('close', () => this.emit('close'))
  }

  /** A server for each connection: a TLS socket does not say on which Duplex it is. */
  private accept(conn: Conn, settings: tls.TlsOptions): void {
    conn.on('error', () => {}) // the TLS socket on top of it has it too
    const server = tls.createServer(settings)
    server.on('secureConnection', (socket) => {
      // Over a Duplex it has none of these.
      for (const name of addresses)
        Object.defineProperty(socket, name, { value: conn[name], configurable: true })
      if (!this.emit('connection', socket)) socket.destroy()
    })
    server.on('tlsClientError', (err, socket) => {
      this.emit('tlsClientError', err, socket)
      socket.destroy()
    })
    server.emit('connection', conn)
  }

  private context(name: string, names: string[], cert: GetCert): Promise<tls.SecureContext> {
    // As tsnet: a name without the tailnet's suffix will do where it stands for one of them.
    const full = names.find((n) => n === name || n.startsWith(`${name}.`))
    if (!full)
      return Promise.reject(
        new Error(`no certificate for "${name}": there are ${names.join(', ')}`),
      )
    const known = this.kept.get(full)
    if (known && known.until > Date.now()) return known.context
    const context = cert(full).then((pair) => tls.createSecureContext(pair))
    this.kept.set(full, { until: Date.now() + KEPT_MS, context })
    context.catch(() => this.kept.delete(full)) // the next client asks again
    return context
  }

  get port(): number {
    return this.under.port
  }
  get listening(): boolean {
    return this.under.listening
  }
  /** As net.Server.address(). */
  address(): AddressInfo {
    return this.under.address()
  }

  /** As {@link Listener.close}. */
  close(done?: (err?: Error) => void): Promise<void> {
    return this.under.close(done)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}
