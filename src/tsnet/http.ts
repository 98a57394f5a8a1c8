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

/** TLS inside a connection of the tailnet; settles when the certificate has been verified. */
async function secure(
  conn: Conn,
  options: tls.ConnectionOptions,
  servername: string,
): Promise<tls.TLSSocket> {
  const socket = tls.connect({
    ...options,
    socket: conn,
    ...(serverName(servername) && { servername }),
  })
  // A connection that fails under it is to fail it too; tls waits for its own.
  conn.once('error', (err) => socket.destroy(err))
  await new Promise<void>((resolve, reject) => {
    socket
      .once('secureConnect', resolve)
      .once('error', reject)
      .once('close', () => reject(new Error('the connection ended before TLS was set up')))
  })
  return socket
}

/** Server names are names: an IP address is none (RFC 6066 section 3). */
const serverName = (host: string): boolean => !/^[0-9.]+$|:/.test(host)

const hostOf = (t: Target): string => (t.host || t.hostname || 'localhost').replace(/^\[|\]$/g, '')

/** An http.Agent whose connections go over the tailnet. */
export class TailnetAgent extends http.Agent {
  private readonly dial: Dial
  constructor(dial: Dial, options?: http.AgentOptions) {
    super({ keepAlive: true, ...options })
    this.dial = dial
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
  override createConnection(options: Target & tls.ConnectionOptions, done?: Done): undefined {
    const host = hostOf(options)
    const { signal, path: _, ...rest } = options
    this.dial(host, Number(options.port || 443), { ...(signal && { signal }) })
      .then(async (conn) => await secure(conn, rest, options.servername || host))
      .then(
        (socket) => done?.(null, socket),
        (err) => done?.(err, undefined as never),
      )
  }
}

/** undici's `connect` option: `new undici.Agent({ connect: connector(dial) })`. */
export function connector(dial: Dial, tlsOptions: tls.ConnectionOptions = {}) {
  return (
    options: { hostname: string; port?: string; protocol: string; servername?: string | null },
    // As undici has it: (null, socket) or (error, null).
    done: (...args: never) => void,
  ): void => {
    const answer = done as (err: Error | null, socket: Duplex | null) => void
    const host = options.hostname.replace(/^\[|\]$/g, '')
    const isTLS = options.protocol === 'https:'
    dial(host, Number(options.port || (isTLS ? 443 : 80)), {})
      .then(async (conn) =>
        isTLS
          ? await secure(
              conn,
              { ALPNProtocols: ['http/1.1'], ...tlsOptions },
              options.servername || host,
            )
          : conn,
      )
      .then(
        (socket) => answer(null, socket),
        (err) => answer(err, null),
      )
  }
}

/** What of undici is used, so that the declarations need none of its types. */
interface Undici {
  Agent: new (options: { connect: ReturnType<typeof connector> }) => Dispatcher
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
  close(): Promise<void>
  destroy(): Promise<void>
}
// oxlint-enable typescript/no-explicit-any

/** undici, an optional peer dependency. */
export async function loadUndici(): Promise<Undici> {
  try {
    return (await import('undici')) as unknown as Undici
  } catch (err) {
    throw new TsnetError(
      'TSNET_OPTIONS',
      `fetch over the tailnet needs the package undici (npm install undici): ${(err as Error).message}`,
      { cause: err },
    )
  }
}
