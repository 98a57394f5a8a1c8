import { EventEmitter } from 'node:events'
import { request as httpRequest } from 'node:http'
import type { ClientRequest, RequestOptions } from 'node:http'
import { request as httpsRequest } from 'node:https'
import { connect } from 'node:net'
import { connect as tlsConnect } from 'node:tls'
import { Pool, buildConnector } from 'undici'
import { restartDevice, seeNodeRedLog } from '../../base/cures.ts'
import { GatehouseError, reason } from '../../base/errors.ts'
import { maxHead } from './answer-reader.ts'
import { readLeniently } from './lenient.ts'

/**
 * Where an upstream listens: a unix socket, or TCP; over TLS it is verified, by the system's
 * authorities or by `ca` (PEM) alone.
 */
export type UpstreamAddress =
  | { path: string }
  | { host: string; port: number; tls?: { servername: string; ca?: string | string[] } }

/** Options of {@link Upstream}. */
export interface UpstreamOptions {
  /** What messages call it. Default: Node-RED, with its own advice. */
  name?: string
  /**
   * What it is asked for to see whether it is well. Default: that it takes a connection is enough.
   */
  healthPath?: string | undefined
  /** Milliseconds to connect. Default 5 s. */
  connectTimeout?: number
  /** Milliseconds from the end of a request to the headers of its answer. Default 120 s. */
  responseTimeout?: number
  /**
   * Milliseconds between two pieces of an answer; 0, the default, is no limit: an event stream has
   * none.
   */
  idleTimeout?: number
}

/** Longest wait for the answer to a health check. Milliseconds. */
const healthTimeout = 10_000

/**
 * One server behind the gateway, with the connections to it that are kept open; and whether it
 * accepts any, or is well by its health path: looked at every 30 s (10 s with a health path) while
 * up and every 2 s while down, and told by each request that cannot connect. Emits `change`.
 */
export class Upstream extends EventEmitter {
  readonly where: UpstreamAddress
  /** What undici calls it: scheme and host. */
  readonly origin: string
  readonly pool: Pool
  /** As {@link UpstreamOptions} has it; holds for requests from then on. */
  responseTimeout: number
  readonly connectTimeout: number
  readonly idleTimeout: number
  #name: string | undefined
  #healthPath: string | undefined
  /** Requests and WebSockets that are open. */
  open = 0
  #state: 'unknown' | 'up' | 'down' = 'unknown'
  #error: GatehouseError | undefined
  #since = new Date()
  #timer: NodeJS.Timeout | undefined
  #closed = false
  #fresh: Pool | undefined
  #open: () => Pool

  constructor(
    where: UpstreamAddress,
    {
      name,
      healthPath,
      connectTimeout = 5_000,
      responseTimeout = 120_000,
      idleTimeout = 0,
    }: UpstreamOptions = {},
  ) {
    super()
    this.where = where
    this.#name = name
    this.#healthPath = healthPath
    this.connectTimeout = connectTimeout
    this.responseTimeout = responseTimeout
    this.idleTimeout = idleTimeout
    const tls = 'path' in where ? undefined : where.tls
    this.origin =
      'path' in where
        ? 'http://localhost'
        : `${tls === undefined ? 'http' : 'https'}://${where.host.includes(':') ? `[${where.host}]` : where.host}:${where.port}`
    const connector = buildConnector({
      timeout: connectTimeout,
      allowH2: false,
      ...('path' in where ? { socketPath: where.path } : {}),
      ...tls,
    })
    const open = (pipelining: 0 | 1): Pool =>
      new Pool(this.origin, {
        connections: 1024,
        pipelining,
        headersTimeout: responseTimeout,
        bodyTimeout: idleTimeout,
        // The lenient reader's own limit comes first.
        maxHeaderSize: 2 * maxHead,
        allowH2: false,
        connect: (options, done) => {
          connector(
            // undici would ask for, and verify, the name in the Host header, which is the
            // gateway's.
            tls === undefined ? options : { ...options, servername: tls.servername },
            (...opened) => {
              if (opened[0] === null) readLeniently(opened[1])
              done(...opened)
            },
          )
        },
      })
    this.pool = open(1)
    this.#open = () => open(0)
  }

  /** Connections that are each used for one request. */
  get fresh(): Pool {
    this.#fresh ??= this.#open()
    return this.#fresh
  }

  /** Its unix socket; empty when it is reached over TCP. */
  get socket(): string {
    return 'path' in this.where ? this.where.path : ''
  }
  get state(): 'unknown' | 'up' | 'down' {
    return this.#state
  }
  get since(): Date {
    return this.#since
  }
  /** Set while down. */
  get error(): GatehouseError | undefined {
    return this.#error
  }

  /** Starts looking. */
  start(): void {
    void this.check()
  }

  /** Looks now. */
  async check(): Promise<void> {
    clearTimeout(this.#timer)
    const err = await (this.#healthPath === undefined
      ? this.#connects()
      : this.#answers(this.#healthPath))
    if (this.#closed) return
    if (err === undefined) this.#become('up', undefined)
    else this.down(err)
    clearTimeout(this.#timer)
    const whileUp = this.#healthPath === undefined ? 30_000 : 10_000
    this.#timer = setTimeout(
      () => {
        void this.check()
      },
      this.#state === 'down' ? 2_000 : whileUp,
    )
    this.#timer.unref()
  }

  /** Why it takes no connection; undefined when it does. */
  async #connects(): Promise<Error | undefined> {
    return await new Promise((resolve) => {
      const { where } = this
      const tls = 'path' in where ? undefined : where.tls
      const socket =
        tls === undefined ? connect(where as { path: string }) : tlsConnect({ ...where, ...tls })
      const timer = setTimeout(
        () =>
          socket.destroy(
            Object.assign(new Error(`no answer within ${this.connectTimeout / 1_000} s`), {
              code: 'ETIMEDOUT',
            }),
          ),
        this.connectTimeout,
      )
      socket.once(tls === undefined ? 'connect' : 'secureConnect', () => {
        resolve(undefined)
        socket.end()
      })
      socket.once('error', resolve)
      socket.once('close', () => {
        clearTimeout(timer)
      })
    })
  }

  /** Why it is not well by its own word; undefined when it is. */
  async #answers(path: string): Promise<Error | undefined> {
    return await new Promise((resolve) => {
      const request = this.request({
        method: 'GET',
        path,
        headers: { host: new URL(this.origin).host, 'user-agent': 'gatehouse' },
      })
      const patience = Math.min(healthTimeout, this.responseTimeout)
      const timer = setTimeout(
        () =>
          request.destroy(
            Object.assign(new Error(`no answer for ${path} within ${patience / 1_000} s`), {
              code: 'ETIMEDOUT',
            }),
          ),
        patience,
      )
      request.once('response', (response) => {
        const status = response.statusCode!
        resolve(
          status >= 200 && status < 400 ? undefined : new Error(`it answers ${status} for ${path}`),
        )
        request.destroy()
      })
      request.on('error', resolve)
      request.once('close', () => {
        clearTimeout(timer)
      })
      request.end()
    })
  }

  /**
   * A request by node:http on a connection of its own: for health checks, and for trailers, which
   * undici cannot send. It fails with UND_ERR_CONNECT_TIMEOUT when there is no
   * connection in time; the other limits are the caller's.
   */
  request(options: Pick<RequestOptions, 'path' | 'method' | 'headers'>): ClientRequest {
    const { where, connectTimeout } = this
    const own = { ...options, setHost: false, agent: false, insecureHTTPParser: true }
    const tls = 'path' in where ? undefined : where.tls
    const request =
      'path' in where
        ? httpRequest({ ...own, socketPath: where.path })
        : (tls === undefined ? httpRequest : httpsRequest)({
            ...own,
            host: where.host,
            port: where.port,
            ...tls,
          })
    const timer = setTimeout(
      () =>
        request.destroy(
          Object.assign(new Error(`no connection within ${connectTimeout / 1_000} s`), {
            code: 'UND_ERR_CONNECT_TIMEOUT',
          }),
        ),
      connectTimeout,
    )
    request.once('socket', (socket) => {
      socket.once(tls === undefined ? 'connect' : 'secureConnect', () => clearTimeout(timer))
    })
    request.once('close', () => clearTimeout(timer))
    return request
  }

  /** An answer came from it. Whether it is well is said by its health path, where it has one. */
  up(): void {
    if (this.#healthPath === undefined) this.#become('up', undefined)
  }

  /** It could not be reached. */
  down(err: Error): void {
    this.#become('down', this.explain(err))
  }

  /** What a failed connection to it means. */
  explain(err: Error): GatehouseError {
    return this.#name === undefined
      ? nodeRedError(err)
      : new GatehouseError(
          /^(?:ENOENT|ECONNREFUSED)$/.test((err as NodeJS.ErrnoException).code ?? '')
            ? 'GH_UPSTREAM_DOWN'
            : 'GH_UPSTREAM_FAILED',
          `${this.#name} at ${'path' in this.where ? this.where.path : this.origin} cannot be reached (${reason(err)})`,
          'Check that it runs, and upstreams in [[app]] of gatehouse.toml',
          { cause: err },
        )
  }

  /** Ends the looking. Requests under way go on to their ends; no new ones are taken. */
  close(): void {
    this.#closed = true
    clearTimeout(this.#timer)
    this.pool.close().catch(() => {})
    this.#fresh?.close().catch(() => {})
  }

  /** Breaks off the requests under way. */
  destroy(): void {
    this.close()
    void this.pool.destroy()
    void this.#fresh?.destroy()
  }

  #become(state: 'up' | 'down', error: GatehouseError | undefined): void {
    if (state === this.#state && error?.message === this.#error?.message) return
    if (state !== this.#state) this.#since = new Date()
    this.#state = state
    this.#error = error
    this.emit('change')
    // A request found it down: look again soon rather than at the end of the 30 s.
    if (state === 'down' && !this.#closed) {
      clearTimeout(this.#timer)
      this.#timer = setTimeout(() => {
        void this.check()
      }, 2_000)
      this.#timer.unref()
    }
  }
}

/** What a failed connection to Node-RED means. */
function nodeRedError(err: Error): GatehouseError {
  const code = (err as NodeJS.ErrnoException).code
  if (code === 'ENOENT' || code === 'ECONNREFUSED') {
    return new GatehouseError(
      'GH_UPSTREAM_DOWN',
      'Node-RED is not running',
      `It is starting or has stopped: wait a minute. ${seeNodeRedLog}`,
      { cause: err },
    )
  }
  if (code === 'EACCES') {
    return new GatehouseError(
      'GH_UPSTREAM_DENIED',
      "the gateway may not open Node-RED's socket",
      restartDevice,
      { cause: err },
    )
  }
  return new GatehouseError(
    'GH_UPSTREAM_FAILED',
    `Node-RED broke off the connection (${code ?? reason(err)})`,
    seeNodeRedLog,
    { cause: err },
  )
}
