/**
 * TLS for listeners: with the certificate that Tailscale gets for the node, or one of one's own.
 */
import { AsyncLocalStorage } from 'node:async_hooks'
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

/** A certificate that was asked for. */
interface Kept {
  until: number
  pair: Promise<CertPair>
  context: Promise<tls.SecureContext>
}

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
  private readonly names: string[]
  private readonly cert: GetCert
  private readonly kept = new Map<string, Kept>()

  /**
   * @internal Made by Server.listenTLS and Server.listenFunnel. `names` are those that there are
   *   certificates for; as with tsnet, a client that names none is refused. `options` with `cert`,
   *   `key`, `pfx` or `SNICallback` are taken instead.
   */
  constructor(under: Listener, names: string[], cert: GetCert, options: tls.TlsOptions = {}) {
    super()
    this.under = under
    this.names = names
    this.cert = cert
    const own = (options.cert ?? options.pfx ?? options.SNICallback) !== undefined
    const settings: tls.TlsOptions = {
      ...(!own && {
        SNICallback: (name: string, done: (err: Error | null, c?: tls.SecureContext) => void) =>
          void this.context(name.toLowerCase()).then(
            (context) => done(null, context),
            (err) => done(err as Error),
          ),
      }),
      ...options,
    }
    const current = new AsyncLocalStorage<Conn>()
    // What is wrong with the options is said here and now.
    const server = this.serve(settings, () => current.getStore())
    under.on('connection', (conn: Conn) => {
      conn.on('error', () => {}) // the TLS socket on top of it has it too
      if (process.versions.deno || process.versions.bun) void this.alone(conn, options, own)
      else current.run(conn, () => server.emit('connection', conn))
    })
    under.on('close', () => this.emit('close'))
  }

  /** `below`: the connection that a TLS socket is on, as of a Duplex it does not say. */
  private serve(settings: tls.TlsOptions, below: () => Conn | undefined): tls.Server {
    return tls
      .createServer(settings)
      .on('secureConnection', (socket) => {
        const conn = below()
        // Over a Duplex it has none of these.
        for (const name of addresses)
          Object.defineProperty(socket, name, { value: conn?.[name], configurable: true })
        if (!this.emit('connection', socket)) socket.destroy()
      })
      .on('tlsClientError', (err, socket) => {
        this.emit('tlsClientError', err, socket)
        socket.destroy()
      })
  }

  /**
   * A server for one connection: for Deno, whose events of a TLS socket have not the context that
   * it was made in, and which waits for no SNICallback, as Bun does not. Clients get the
   * certificate of the first name, whatever they ask for.
   */
  private async alone(conn: Conn, options: tls.TlsOptions, own: boolean): Promise<void> {
    try {
      const pair = own ? {} : await this.known(this.names[0]!).pair
      this.serve({ ...pair, ...options }, () => conn).emit('connection', conn)
    } catch {
      conn.destroy() // the backend has no certificate now
    }
  }

  private known(name: string): Kept {
    const known = this.kept.get(name)
    if (known && known.until > Date.now()) return known
    const pair = this.cert(name)
    const context = pair.then((p) => tls.createSecureContext(p))
    const kept = { until: Date.now() + KEPT_MS, pair, context }
    this.kept.set(name, kept)
    context.catch(() => this.kept.delete(name)) // the next client asks again
    return kept
  }

  private async context(name: string): Promise<tls.SecureContext> {
    // As tsnet: a name without the tailnet's suffix will do where it stands for one of them.
    const full = this.names.find((n) => n === name || n.startsWith(`${name}.`))
    if (full) return await this.known(full).context
    throw new Error(`no certificate for "${name}": there are ${this.names.join(', ')}`)
  }

  /** As {@link Listener.port}. */
  get port(): number {
    return this.under.port
  }
  /** False once it is closed. */
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

  /** `await using`: {@link close}. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}
