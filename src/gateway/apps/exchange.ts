import type { FastifyReply, FastifyRequest } from 'fastify'
import type { IncomingHttpHeaders, ServerResponse } from 'node:http'
import type { Duplex, Transform } from 'node:stream'
import type { Dispatcher } from 'undici'
import { whenClosed } from '../shared/on-close.ts'
import type { Delivery } from '../cache/deliver.ts'
import { applyRules } from '../../config/header-rules.ts'
import type { Logger } from '../shared/log.ts'
import { countBody } from '../request/garbage.ts'
import { secure } from '../request/hygiene.ts'
import { NotHTTP } from './answer-reader.ts'
import type { App } from './apps.ts'
import { failed, isUnconnected, notHTTP, totalTimeoutCode } from './failure.ts'
import { announcedTrailers, responseHeaders, responseTrailers } from './headers.ts'
import { isStale, releaseConnection } from './lenient.ts'
import { dispatchWithTrailers } from './trailers.ts'
import type { Upstream } from './upstream.ts'
import type { Headers } from '../../config/header-names.ts'

const noTrailers: ReadonlySet<string> = new Set()

/** Answers before the answer that are passed on to a peer, and that an app may send, at most. */
const interims = { passed: 16, most: 100 }

/** A WebSocket that the app has agreed to. */
export interface Agreed {
  /** Names and values of the answer's headers in turn, as they came. */
  rawHeaders: string[]
  /** The connection to the app. */
  socket: Duplex
}

/** Options of {@link Exchange}. */
export interface ExchangeOptions {
  log: Logger
  /** Has a say in what answers are stored and compressed. Default: they pass as they are. */
  delivery?: Delivery
  /** The request is a WebSocket's handshake. */
  webSocket?: {
    /** How long the app may take to answer it. Milliseconds. */
    timeout: number
    agreed: (answer: Agreed) => void
  }
}

/**
 * One request at an app, as undici's handler of it: what comes from the origin is written to the
 * peer as it comes, at the pace the peer takes it.
 *
 * Tried again at the app's next upstream is a request without body that no connection could be made
 * for. One with a body is not, since the body may be gone; and none that an upstream has seen. But
 * for this: a GET or HEAD whose connection had been kept, and was closed under it before anything
 * of an answer came, goes once more, on a new connection (RFC 9110 §9.2.2).
 */
export class Exchange implements Dispatcher.DispatchHandler {
  #options: ExchangeOptions
  #request: FastifyRequest
  #reply: FastifyReply
  #raw: ServerResponse
  #app: App
  #headers: Headers
  #candidates: readonly Upstream[]
  #attempt = 0
  #held: Upstream | undefined
  /** It goes once more, for the connection was closed under it. */
  #again = false
  #controller: Dispatcher.DispatchController | undefined
  /** Nothing more is to come of it: answered, failed or given up. */
  #over = false
  /** The answer's head is written. */
  #begun = false
  /** It has a length, and so no place for trailers. */
  #sized = false
  /** Something of its body is written. */
  #written = false
  /** Compresses on the way. */
  #through: Transform | undefined
  /** Takes the answer when it is there as a whole. */
  #whole: { pieces: Buffer[]; done: (body: Buffer) => void } | undefined
  #late: NodeJS.Timeout | undefined
  /** Answers before the answer that came, and how long they may go on. */
  #interims = 0
  #unanswered: NodeJS.Timeout | undefined
  #waiting = false

  /** @param headers as they go to the app */
  constructor(
    request: FastifyRequest,
    reply: FastifyReply,
    headers: Headers,
    options: ExchangeOptions,
  ) {
    this.#request = request
    this.#reply = reply
    this.#raw = reply.raw as ServerResponse
    this.#headers = headers
    this.#options = options
    this.#app = request.route
    this.#candidates = request.route.choose()
  }

  start(): void {
    const { totalTimeout } = this.#app
    if (totalTimeout > 0) {
      this.#late = setTimeout(() => {
        const error = Object.assign(new Error(`not done within ${totalTimeout / 1_000} s`), {
          code: totalTimeoutCode,
        })
        // Without a connection yet there is nothing to break off: see onRequestStart.
        if (this.#controller === undefined) this.onResponseError(undefined, error)
        else this.#controller.abort(error)
      }, totalTimeout)
    }
    // A peer that takes its request back, or is gone, has no use for an answer.
    whenClosed(this.#raw, (tunnel) => {
      this.#giveUp()
      const held = this.#held
      if (tunnel && held !== undefined) {
        // It goes on counting as open there.
        this.#held = undefined
        return closing(held)
      }
      this.#hold(undefined)
      return undefined
    })
    if (!this.#over) this.#dispatch()
  }

  /** Counts as open at one upstream, or none. */
  #hold(upstream: Upstream | undefined): void {
    if (this.#held === upstream) return
    if (this.#held !== undefined) this.#held.open--
    this.#held = upstream
    if (upstream !== undefined) upstream.open++
  }

  #dispatch(): void {
    const upstream = this.#candidates[this.#attempt]!
    this.#hold(upstream)
    const { method, payload, raw } = this.#request
    const path = this.#app.target(raw.url!)
    this.#controller = undefined
    const names = this.#trailers()
    if (names.size > 0)
      dispatchWithTrailers(
        upstream,
        { path, method, headers: this.#headers, body: payload!, raw, names },
        this,
      )
    else
      (this.#again ? upstream.fresh : upstream.pool).dispatch(
        {
          origin: upstream.origin,
          path,
          method: method as Dispatcher.HttpMethod,
          headers: this.#headers,
          body: payload ?? null,
          headersTimeout: this.#responseTimeout(upstream),
          ...(this.#options.webSocket !== undefined && { upgrade: 'websocket' }),
        },
        this,
      )
  }

  /** How long the app may take to begin its answer. Milliseconds; 0 is no limit. */
  #responseTimeout(upstream: Upstream): number {
    const { webSocket } = this.#options
    if (webSocket !== undefined) return Math.min(webSocket.timeout, upstream.responseTimeout)
    // The editor installs nodes, and deploys flows: on a slow board that takes as long as it takes.
    const { nodeRed, right } = this.#app
    if (nodeRed && right === undefined && !/^(?:GET|HEAD|OPTIONS)$/.test(this.#request.method))
      return 0
    return upstream.responseTimeout
  }

  /**
   * Names of the trailers that follow the request's body and are passed on. A body with a length is
   * followed by none.
   */
  #trailers(): ReadonlySet<string> {
    const { payload, headers } = this.#request
    if (
      headers.trailer === undefined ||
      headers['transfer-encoding'] === undefined ||
      payload === undefined
    )
      return noTrailers
    const names = announcedTrailers(headers)
    const { remove, set, add } = this.#app.rules?.request ?? {}
    // What [[app]] says of a header to the app, a trailer may not say again.
    for (const name of [
      ...(remove ?? []),
      ...[...(set ?? []), ...(add ?? [])].map(([name]) => name),
    ])
      names.delete(name)
    return names
  }

  #giveUp(): void {
    clearTimeout(this.#late)
    clearTimeout(this.#unanswered)
    if (this.#over) return
    this.#over = true
    this.#through?.destroy()
    this.#controller?.abort(new Error('the peer went away'))
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.#controller = controller
    if (this.#over) controller.abort(new Error('given up'))
  }

  onResponseStart(
    controller: Dispatcher.DispatchController,
    status: number,
    received: IncomingHttpHeaders,
  ): void {
    if (status < 200) {
      this.#countInterim(controller)
      this.#interim(status, received)
      return
    }
    clearTimeout(this.#unanswered)
    this.#candidates[this.#attempt]!.up()
    if (this.#over) return
    const app = this.#app
    const elsewhere = status === 404 ? app.elsewhere?.(this.#request) : undefined
    if (elsewhere !== undefined) {
      this.#sendElsewhere(controller, elsewhere)
      return
    }
    const headers = responseHeaders(received)
    if (app.rules !== undefined) applyRules(headers, app.rules.answer)
    // What an app that knows nothing of its prefix sends to its own root stays with it.
    const { location } = headers
    if (
      app.strip &&
      typeof location === 'string' &&
      /^\/(?!\/)/.test(location) &&
      !app.owns(location.split(/[?#]/, 1)[0]!)
    )
      headers.location = app.path.slice(0, -1) + location
    // What it knows of its prefix is nobody's but the gateway's.
    if (app.prefix !== '' && typeof location === 'string' && location.startsWith(`${app.prefix}/`))
      headers.location = location.slice(app.prefix.length)
    const plan = this.#options.delivery?.take(this.#request, this.#reply, status, headers)
    if (plan !== undefined && 'whole' in plan) {
      this.#whole = { pieces: [], done: plan.whole }
      return
    }
    const raw = this.#raw
    // What is left of the request's body is in the way of the next one.
    if (this.#request.raw.httpVersionMajor === 1 && !this.#request.raw.complete)
      raw.shouldKeepAlive = false
    try {
      if (status > 599) throw new Error(`the status ${status}`)
      raw.writeHead(status, secure(headers, this.#request))
    } catch (err) {
      controller.abort(new NotHTTP((err as Error).message))
      return
    }
    this.#reply.hijack()
    this.#begun = true
    this.#sized = headers['content-length'] !== undefined
    this.#through = plan?.through
    this.#through?.on('error', () => raw.destroy()).pipe(raw)
    // Node sends headers with the first piece of the body, and an event stream would look dead
    // until its first event; but what is there already goes with them.
    process.nextTick(flush, this)
  }

  /** What is not there may be at another address: 307, so that method and body go with it. */
  #sendElsewhere(controller: Dispatcher.DispatchController, location: string): void {
    this.#over = true
    clearTimeout(this.#late)
    controller.abort(new Error('asked elsewhere'))
    const { raw } = this.#request
    if (raw.httpVersionMajor === 1 && !raw.complete) this.#raw.shouldKeepAlive = false
    this.#reply.code(307).headers({ location, 'cache-control': 'no-store' }).send()
  }

  /** Sends the answer's head if nothing has gone with it. */
  flush(): void {
    if (!this.#written && !this.#over && !this.#raw.destroyed) this.#raw.flushHeaders()
  }

  onResponseData(controller: Dispatcher.DispatchController, piece: Buffer): void {
    if (this.#over) return
    if (this.#whole !== undefined) {
      this.#whole.pieces.push(piece)
      return
    }
    this.#written = true
    countBody(piece.length)
    const sink = this.#through ?? this.#raw
    if (sink.write(piece)) return
    controller.pause()
    if (this.#waiting) return
    this.#waiting = true
    sink.on('drain', () => {
      controller.resume()
    })
  }

  onResponseEnd(_controller: Dispatcher.DispatchController, trailers: IncomingHttpHeaders): void {
    clearTimeout(this.#late)
    if (this.#over) return
    this.#over = true
    if (this.#whole !== undefined) this.#whole.done(Buffer.concat(this.#whole.pieces))
    else if (this.#through !== undefined) this.#through.end()
    else {
      this.#passTrailers(trailers)
      this.#raw.end()
    }
  }

  onRequestUpgrade(
    controller: Dispatcher.DispatchController,
    _status: number,
    headers: IncomingHttpHeaders,
    socket: Duplex,
  ): void {
    clearTimeout(this.#late)
    clearTimeout(this.#unanswered)
    this.#candidates[this.#attempt]!.up()
    if (this.#over || headers.upgrade?.toLowerCase() !== 'websocket') {
      socket.on('error', () => {})
      socket.destroy()
      this.onResponseError(
        undefined,
        new NotHTTP('the answer to the WebSocket handshake is another protocol'),
      )
      return
    }
    this.#over = true
    releaseConnection(socket)
    const rawHeaders = (controller.rawHeaders as Array<Buffer | string>).map((part) =>
      typeof part === 'string' ? part : part.toString('latin1'),
    )
    this.#options.webSocket!.agreed({ rawHeaders, socket })
  }

  onResponseError(_controller: unknown, error: Error): void {
    if (this.#over) return
    if (this.#mayGoAgain(error)) {
      this.#dispatch()
      return
    }
    clearTimeout(this.#late)
    clearTimeout(this.#unanswered)
    this.#over = true
    if (!this.#begun) {
      failed(this.#request, this.#reply, error).catch((err: Error) => {
        this.#reply.send(err)
      })
      return
    }
    const bad = notHTTP(error)
    if (bad !== undefined)
      this.#options.log.warn(
        { code: 'GH_UPSTREAM_NOT_HTTP', app: this.#app.name },
        `${this.#app.label}: an answer was broken off, the app sent something that is not HTTP: ${bad}`,
      )
    const { code } = error as NodeJS.ErrnoException
    let limit: string | undefined
    if (code === totalTimeoutCode) limit = 'total_timeout'
    else if (code === 'UND_ERR_BODY_TIMEOUT') limit = 'idle_timeout'
    if (limit !== undefined)
      this.#options.log.warn(
        { code: 'GH_UPSTREAM_TIMEOUT', app: this.#app.name },
        `${this.#app.label}: an answer was broken off, ${limit} is over. Look at what the ` +
          `app is doing, or raise ${limit} in ${this.#app.nodeRed ? '[node_red]' : '[[app]]'}`,
      )
    // A part must not be taken for the whole.
    this.#through?.destroy()
    this.#raw.destroy()
  }

  /** An answer before the answer is no answer: the app gets no more time by it, nor without end. */
  #countInterim(controller: Dispatcher.DispatchController): void {
    const patience = this.#responseTimeout(this.#candidates[this.#attempt]!)
    // undici waits anew after each.
    if (patience > 0)
      this.#unanswered ??= setTimeout(() => {
        controller.abort(
          Object.assign(new Error('no answer behind interim ones'), {
            code: 'UND_ERR_HEADERS_TIMEOUT',
          }),
        )
      }, patience)
    if (++this.#interims === interims.most)
      controller.abort(new Error(`more than ${interims.most} interim answers and no final one`))
  }

  /** Whether the request may go to the next upstream, or once more; and prepares that. */
  #mayGoAgain(error: Error): boolean {
    const { method, payload } = this.#request
    if (isUnconnected(error)) {
      this.#candidates[this.#attempt]!.down(error.cause instanceof Error ? error.cause : error)
      if (payload !== undefined || this.#attempt + 1 >= this.#candidates.length) return false
      this.#attempt++
      this.#again = false
      return true
    }
    if (
      this.#again ||
      this.#begun ||
      payload !== undefined ||
      (method !== 'GET' && method !== 'HEAD') ||
      !isStale(error)
    )
      return false
    this.#again = true
    return true
  }

  /**
   * An answer before the answer (RFC 9110 §15.2), such as 103 with what a browser may fetch
   * meanwhile. They are hints: a peer that has not taken what it was sent is not sent more of them.
   */
  #interim(status: number, received: IncomingHttpHeaders): void {
    const raw = this.#raw as ServerResponse & {
      writeInformation: (status: number, headers: Record<string, string>) => void
    }
    // 100 is between the gateway and each side; 101 is an upgrade; HTTP/1.0 knows none.
    if (
      status < 102 ||
      this.#interims > interims.passed ||
      this.#request.raw.httpVersion === '1.0' ||
      raw.headersSent ||
      raw.destroyed ||
      raw.socket?.writableNeedDrain === true
    )
      return
    const {
      'content-length': _length,
      'set-cookie': _cookie,
      ...fields
    } = this.#withoutRemoved(responseHeaders(received))
    try {
      raw.writeInformation(
        status,
        Object.fromEntries(
          Object.entries(fields).map(([name, value]) => [
            name,
            Array.isArray(value) ? value.join(', ') : value,
          ]),
        ),
      )
    } catch {
      // A hint that cannot be said is none.
    }
  }

  /**
   * What an app sends after its answer, where there is room for it: in chunks, and over HTTP/2.
   * What is compressed had a length, and so no trailers.
   */
  #passTrailers(trailers: IncomingHttpHeaders): void {
    for (const _name in trailers) {
      const { httpVersion } = this.#request.raw
      const { statusCode } = this.#raw
      if (
        this.#request.method === 'HEAD' ||
        httpVersion === '1.0' ||
        statusCode === 204 ||
        statusCode === 304 ||
        this.#sized
      )
        return
      try {
        this.#raw.addTrailers(
          this.#withoutRemoved(responseTrailers(trailers)) as Record<string, string>,
        )
      } catch {
        // The answer is whole without them.
      }
      return
    }
  }

  /** What peers are not to get of an app's answer, they get neither before it nor behind. */
  #withoutRemoved(headers: Headers): Headers {
    for (const name of this.#app.rules?.answer.remove ?? []) delete headers[name]
    return headers
  }
}

/** What ends a tunnel's part at an upstream; made here, where it holds nothing but that. */
function closing(upstream: Upstream): () => void {
  return () => {
    upstream.open--
  }
}

function flush(exchange: Exchange): void {
  exchange.flush()
}
