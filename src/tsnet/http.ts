/** HTTP clients over the tailnet: agents for node:http and node:https, a connector for undici. */
import http from 'node:http'
import https from 'node:https'
import type { Duplex } from 'node:stream'
import tls from 'node:tls'
import type { Conn } from './conn.ts'
import { TsnetError } from './errors.ts'

/** Server.dial, or what does as it does. */
export type Dial = (host: string, port: number, options: { signal?: AbortSignal }) => Promise<Conn>

type Done = (err: Error | null, stream: Duplex) => void
interface Target {
  host?: string | null
  hostname?: string | null
  port?: number | string | null
  signal?: AbortSignal
}

/**
 * TLS inside a connection of the tailnet; settles when the certificate has been verified. Rejects
 * with the signal's reason when that is aborted before, and the connection is gone then.
 */
async function secure(
  conn: Conn,
  options: tls.ConnectionOptions,
  servername: string,
  signal?: AbortSignal,
): Promise<tls.TLSSocket> {
  if (signal?.aborted) {
    conn.destroy()
    throw signal.reason
  }
  const socket = tls.connect({
    ...options,
    socket: conn,
    ...(serverName(servername) && { servername }),
  })
  // A connection that fails under it is to fail it too; tls waits for its own.
  conn.once('error', (err) => socket.destroy(err))
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  const abort = (): void => {
    reject(signal?.reason)
    socket.destroy()
    conn.destroy()
  }
  signal?.addEventListener('abort', abort, { once: true })
  socket
    .once('secureConnect', resolve)
    .once('error', reject)
    .once('close', () => reject(new Error('the connection ended before TLS was set up')))
  try {
    await promise
  } finally {
    signal?.removeEventListener('abort', abort)
  }
  return socket
}

/** Whether TLS may be told it: a name, not an IP address (RFC 6066 section 3). */
const serverName = (host: string): boolean => !/^[0-9.]+$|:/.test(host)

const hostOf = (t: Target): string => (t.host || t.hostname || 'localhost').replace(/^\[|\]$/g, '')

/**
 * What an agent's addRequest is given, with a signal for its connection: node:http tells an agent
 * nothing of a request that is destroyed before it has a socket, and the request nothing either
 * until there is one.
 */
function withSignal<O extends object>(request: http.ClientRequest, options: O): O {
  const abort = new AbortController()
  const destroy = request.destroy.bind(request)
  request.destroy = (err) => {
    abort.abort(err)
    return destroy(err)
  }
  return { ...options, signal: abort.signal }
}

/** What node:http calls of an agent's, and @types/node does not have. */
type AddRequest = (request: http.ClientRequest, options: object) => void
const { addRequest } = http.Agent.prototype as unknown as { addRequest: AddRequest }

/** An http.Agent whose connections go over the tailnet. */
export class TailnetAgent extends http.Agent {
  private readonly dial: Dial
  constructor(dial: Dial, options?: http.AgentOptions) {
    super({ keepAlive: true, ...options })
    this.dial = dial
  }
  addRequest(request: http.ClientRequest, options: object): void {
    addRequest.call(this, request, withSignal(request, options))
  }
  override createConnection(options: Target, done?: Done): undefined {
    const { signal } = options
    this.dial(hostOf(options), Number(options.port || 80), { ...(signal && { signal }) }).then(
      (conn) => done?.(null, conn),
      (err) => done?.(err, undefined as never),
    )
  }
}

/**
 * An https.Agent whose connections go over the tailnet. Certificates are verified as node:https
 * does.
 */
export class TailnetHttpsAgent extends https.Agent {
  private readonly dial: Dial
  constructor(dial: Dial, options?: https.AgentOptions) {
    super({ keepAlive: true, ...options })
    this.dial = dial
  }
  addRequest(request: http.ClientRequest, options: object): void {
    addRequest.call(this, request, withSignal(request, options))
  }
  override createConnection(options: Target & tls.ConnectionOptions, done?: Done): undefined {
    const host = hostOf(options)
    const { signal, path: _, ...rest } = options
    this.dial(host, Number(options.port || 443), { ...(signal && { signal }) })
      .then(async (conn) => await secure(conn, rest, options.servername || host, signal))
      .then(
        (socket) => done?.(null, socket),
        (err) => done?.(err, undefined as never),
      )
  }
}

/** What Server.connector takes beside the options of TLS. */
export interface ConnectorOptions extends tls.ConnectionOptions {
  /**
   * How long a connection may take to be made, TLS included, in ms; 0: as long as it takes.
   * Default: 10,000, as undici's own.
   */
  connectTimeout?: number
}

/**
 * undici's `connect` option: `new undici.Agent({ connect: connector(dial) })`. undici gives up by
 * itself only what connects by its own connector: here it is this one that does.
 */
export function connector(
  dial: Dial,
  { connectTimeout = 10_000, ...tlsOptions }: ConnectorOptions = {},
) {
  return (
    options: { hostname: string; port?: string; protocol: string; servername?: string | null },
    // As undici has it: (null, socket) or (error, null).
    done: (...args: never) => void,
  ): void => {
    const answer = done as (err: Error | null, socket: Duplex | null) => void
    const host = options.hostname.replace(/^\[|\]$/g, '')
    const isTLS = options.protocol === 'https:'
    const port = Number(options.port || (isTLS ? 443 : 80))
    const connect = async (signal?: AbortSignal): Promise<Duplex> => {
      const conn = await dial(host, port, { ...(signal && { signal }) })
      if (!isTLS) return conn
      const own = { ALPNProtocols: ['http/1.1'], ...tlsOptions }
      return await secure(conn, own, options.servername || host, signal)
    }
    const late = connectTimeout > 0 ? new AbortController() : undefined
    const timer = late && setTimeout(() => late.abort(), connectTimeout)
    connect(late?.signal)
      .catch((err) => {
        if (!late?.signal.aborted) throw err
        throw new TsnetError(
          'TSNET_DIAL',
          `no connection to ${host}, port ${port}, within ${connectTimeout} ms (connectTimeout)`,
          { cause: err },
        )
      })
      .finally(() => clearTimeout(timer))
      .then(
        (socket) => answer(null, socket),
        (err) => answer(err, null),
      )
  }
}

/** What of undici is used, so that the declarations need none of its types. */
interface Undici {
  Agent: {
    new (options: { connect: ReturnType<typeof connector> }): Dispatcher
    prototype: { dispatch?: unknown }
  }
  fetch: typeof fetch
}

/**
 * An undici.Dispatcher, as the RequestInit of @types/node has it; where the one of TypeScript's DOM
 * library hides that, of no type. Its maker closes it.
 */
// oxlint-disable-next-line no-explicit-any
// oxlint-disable typescript/no-explicit-any -- where the types of fetch are not there, what it
// takes is not known either
export type Dispatcher = (RequestInit extends { dispatcher?: infer D }
  ? unknown extends D
    ? any
    : NonNullable<D>
  : any) & {
  /** Resolves when the requests under way are done; no more are taken. */
  close(): Promise<void>
  /** Ends the requests under way. */
  destroy(): Promise<void>
}
// oxlint-enable typescript/no-explicit-any

/** undici, an optional peer dependency. */
export async function loadUndici(): Promise<Undici> {
  let undici: Undici
  try {
    undici = (await import('undici')) as unknown as Undici
  } catch (err) {
    throw new TsnetError(
      'TSNET_OPTIONS',
      'fetch over the tailnet needs the package undici (npm install undici): ' +
        (err as Error).message,
      { cause: err },
    )
  }
  // Bun has one of its own in its place, which would connect by the machine's network.
  if (typeof undici.Agent?.prototype.dispatch !== 'function')
    throw new TsnetError(
      'TSNET_OPTIONS',
      'fetch over the tailnet needs the npm package undici, which this runtime replaces by one ' +
        'of its own: use httpAgent and httpsAgent',
    )
  return undici
}
