import type { IncomingMessage, ServerResponse } from 'node:http'
import {
  Http2ServerRequest,
  Http2ServerResponse,
  constants,
  performServerHandshake,
} from 'node:http2'
import type { IncomingHttpHeaders, ServerHttp2Session, ServerHttp2Stream } from 'node:http2'
import type { TLSSocket } from 'node:tls'
import { Bucket } from '../shared/bucket.ts'
import type { Limits } from '../request/limits.ts'
import type { Logger } from '../shared/log.ts'
import { setPeer } from '../tailnet/peer.ts'
import type { Peer } from '../tailnet/peer.ts'
import { plugin } from '../shared/plugin.ts'
import { maxHeaders } from '../request/target.ts'

/** A connection without requests is kept this long, as over HTTP/1.1. Milliseconds. */
const idleTimeout = 75_000

/**
 * PING and SETTINGS frames of a connection: a second on average, and at once. Each is answered and
 * brings nothing (CVE-2019-9512, CVE-2019-9515).
 */
const controlFrames = { rate: 10, burst: 100 }

/**
 * Requests of a connection that are taken back: a second on average, and at once. Each has cost
 * what one that stays does (rapid reset, CVE-2023-44487). A browser that leaves a page takes back
 * what is under way, which is at most as many as may be at once.
 */
const resets = { rate: 33, burst: 200 }

/**
 * Bytes of a request's body a peer may send before it is told to go on: what is under way on 100
 * Mbit/s with 20 ms there and back.
 */
const bodyWindow = 256 * 1024

/**
 * A request over HTTP/2 in the terms of HTTP/1.1, so that all behind it see one kind: Host in the
 * place of :authority, Transfer-Encoding where the length of a body is not told, and as its socket
 * the stream, which ends when the request does.
 */
class StreamRequest extends Http2ServerRequest {
  /** Bytes of the body that have come. */
  received = 0
  /** Without pseudo-headers. */
  readonly regular: IncomingHttpHeaders
  #length: number | undefined

  constructor(
    stream: ServerHttp2Stream,
    headers: IncomingHttpHeaders,
    rawHeaders: readonly string[],
  ) {
    super(stream, headers, {}, rawHeaders)
    const regular = Object.fromEntries(
      Object.entries(headers).filter(([name]) => !name.startsWith(':')),
    ) as IncomingHttpHeaders
    if (headers[':authority'] !== undefined) regular.host = headers[':authority']
    if (regular['content-length'] !== undefined) this.#length = Number(regular['content-length'])
    else if (!stream.endAfterHeaders) regular['transfer-encoding'] = 'chunked'
    this.regular = regular
    // For whoever reads the body; when nobody does it is of no interest.
    this.on('error', () => {})
  }

  /**
   * Node has the body of a request that was broken off end as if it were whole; an app would take
   * it for that.
   */
  override push(chunk: Buffer | null, encoding?: BufferEncoding): boolean {
    if (chunk !== null) {
      this.received += chunk.length
      return super.push(chunk, encoding)
    }
    const whole =
      this.stream.endAfterHeaders ||
      (this.#length === undefined ? !this.stream.closed : this.received === this.#length)
    if (whole) return super.push(null)
    this.destroy(new Error('the peer broke off the request'))
    return false
  }
}

// TypeScript takes Node's accessors for properties, which a class may not override with accessors.
Object.defineProperties(StreamRequest.prototype, {
  headers: {
    get(this: StreamRequest) {
      return this.regular
    },
  },
  socket: {
    get(this: StreamRequest) {
      return this.stream
    },
  },
})

/** Knows how much of an answer was given to its stream. */
class StreamResponse extends Http2ServerResponse {
  /** Bytes. */
  given = 0

  override write(chunk: string | Uint8Array, ...rest: unknown[]): boolean {
    this.given += chunk.length
    return super.write(chunk, ...(rest as []))
  }

  /**
   * Node would reset the stream with NO_ERROR, after which curl and others take the part for the
   * whole.
   */
  override destroy(error?: Error): this {
    if (!this.writableFinished) this.stream.close(constants.NGHTTP2_INTERNAL_ERROR)
    return super.destroy(error)
  }
}

// Node ends the stream of a request that was taken back by itself, and calls that finished.
// oxlint-disable-next-line typescript/unbound-method -- called with its `this` below
const { get: finished } = Object.getOwnPropertyDescriptor(
  Http2ServerResponse.prototype,
  'writableFinished',
)!
Object.defineProperties(StreamResponse.prototype, {
  writableFinished: {
    get(this: StreamResponse) {
      return this.writableEnded && this.stream.rstCode === 0 && (finished!.call(this) as boolean)
    },
  },
  // As an answer over HTTP/1.1 has it: true when the peer is gone.
  destroyed: {
    get(this: StreamResponse) {
      return this.stream.destroyed
    },
  },
})

/** States of a stream (RFC 9113 §5.1) whose peer may go on with the body. */
const sending: ReadonlySet<unknown> = new Set([
  constants.NGHTTP2_STREAM_STATE_OPEN,
  constants.NGHTTP2_STREAM_STATE_HALF_CLOSED_LOCAL,
])

/** Options of {@link http2}. */
export interface Http2Options {
  limits: Limits
  log: Logger
}

/**
 * HTTP/2 (RFC 9113) for peers that ask for it in the TLS handshake (ALPN): `app.acceptHTTP2()`
 * takes their connections. Their requests go through the router like any, so that whatever holds
 * for HTTP/1.1 holds here.
 *
 * What is malformed (RFC 9113 §8.2, §8.3) nghttp2 refuses, below Node; also more than eight
 * CONTINUATION frames in a row (CVE-2024-28182), and empty DATA frames without end. What is
 * well-formed but has two readings is refused in target.ts. WebSockets stay with HTTP/1.1: RFC 8441
 * is not offered, so browsers open a connection of their own for them.
 */
export const http2 = plugin<Http2Options>('http2', async (app, { limits, log }) => {
  const sessions = new Set<ServerHttp2Session>()
  app.decorate('sessions', sessions)

  app.decorate('acceptHTTP2', (socket: TLSSocket, peer: Peer): void => {
    const { headerKib, headerTimeout, streamsPerConnection } = limits.settings
    const session = performServerHandshake(socket, {
      settings: {
        maxConcurrentStreams: Math.max(1, streamsPerConnection),
        maxHeaderListSize: headerKib * 1024,
        initialWindowSize: bodyWindow,
      },
      // Some apps' answers have more than Node's 64 KiB of headers; what they may have is less.
      maxSendHeaderBlockLength: 1024 * 1024,
      // Our own limit comes first, and says 431.
      maxHeaderListPairs: maxHeaders + 8,
      maxSessionInvalidFrames: 100,
      maxSessionRejectedStreams: 100,
      streamResetBurst: resets.burst,
      streamResetRate: resets.rate,
      // Two ETags are the app's affair, and no reason to throw.
      strictSingleValueFields: false,
    })
    sessions.add(session)
    session.on('error', (err) => {
      log.debug({ peer: peer.address }, `HTTP/2: ${err.message}`)
    })
    // The connection is one that may be half open, and Node would go on answering nobody.
    socket.once('end', () => socket.destroy())
    const rest = (after: number): NodeJS.Timeout => setTimeout(() => session.close(), after)
    let open = 0
    let timer = rest(headerTimeout)
    session.once('close', () => {
      sessions.delete(session)
      clearTimeout(timer)
    })

    const control = new Bucket(controlFrames.burst)
    const count = (): void => {
      if (control.take(controlFrames.rate, controlFrames.burst) === 0) return
      limits.refuse('control_frames', peer.address)
      session.goaway(constants.NGHTTP2_ENHANCE_YOUR_CALM)
      session.destroy()
    }
    session.on('ping', count)
    session.on('remoteSettings', count)

    session.on(
      'stream',
      (
        stream: ServerHttp2Stream,
        headers: IncomingHttpHeaders,
        _flags: number,
        rawHeaders: string[],
      ) => {
        open++
        clearTimeout(timer)
        stream.once('close', () => {
          if (--open === 0) timer = rest(idleTimeout)
          // A peer without any right has no use for a connection that stays.
          if (limits.mayNothing(peer)) session.close()
        })
        setPeer(stream, peer)
        const request = new StreamRequest(stream, headers, rawHeaders)
        const response = new StreamResponse(stream as never)
        limits.trackFlow(peer.address, stream, {
          get reading() {
            return (
              sending.has(stream.state.state) &&
              !request.destroyed &&
              request.readableLength < request.readableHighWaterMark &&
              !request.isPaused()
            )
          },
          get writing() {
            return stream.bufferSize > 0
          },
          get read() {
            return request.received
          },
          get written() {
            return response.given - stream.bufferSize
          },
          end: () => {
            stream.close(constants.NGHTTP2_ENHANCE_YOUR_CALM)
          },
        })
        // Answered before its body was there: the rest is not wanted (RFC 9113 §8.1).
        stream.once('finish', () =>
          setImmediate(() => {
            if (response.writableEnded && !stream.closed && sending.has(stream.state.state))
              stream.close(constants.NGHTTP2_NO_ERROR)
          }),
        )
        app.routing(request as unknown as IncomingMessage, response as unknown as ServerResponse)
      },
    )
  })
})
