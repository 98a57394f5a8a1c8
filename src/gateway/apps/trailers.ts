import type { IncomingMessage } from 'node:http'
import type { Readable } from 'node:stream'
import type { Dispatcher } from 'undici'
import { requestTrailers } from './headers.ts'
import type { Upstream } from './upstream.ts'

/** A request whose body is followed by trailers. */
export interface TrailingRequest {
  path: string
  method: string
  headers: Record<string, string | string[]>
  /** Of the request {@link raw}. */
  body: Readable
  /** Has its trailers when the body has ended. */
  raw: Pick<IncomingMessage, 'trailers'>
  /** Trailers that are passed on, in lower case. Not empty. */
  names: ReadonlySet<string>
}

/**
 * What `upstream.pool.dispatch()` does, with the request's trailers behind its body (RFC 9110
 * §6.5), which undici cannot send. Not from the pool: each has a connection of its own. The same
 * limits hold, and failures have the same codes.
 */
export function dispatchWithTrailers(
  upstream: Upstream,
  { path, method, headers, body, raw, names }: TrailingRequest,
  handler: Dispatcher.DispatchHandler,
): void {
  const outgoing = upstream.request({
    path,
    method,
    headers: { ...headers, 'transfer-encoding': 'chunked', trailer: [...names].join(', ') },
  })
  let answer: IncomingMessage | undefined
  let over = false
  let timer: NodeJS.Timeout | undefined
  const within = (milliseconds: number, code: string): void => {
    clearTimeout(timer)
    if (milliseconds > 0)
      timer = setTimeout(() => {
        fail(Object.assign(new Error(`nothing came within ${milliseconds / 1_000} s`), { code }))
      }, milliseconds)
  }
  const controller = {
    abort: (reason: Error) => {
      fail(reason)
    },
    pause: () => {
      clearTimeout(timer)
      answer?.pause()
    },
    resume: () => {
      within(upstream.idleTimeout, 'UND_ERR_BODY_TIMEOUT')
      answer?.resume()
    },
  } as Dispatcher.DispatchController
  const fail = (error: Error): void => {
    if (over) return
    over = true
    clearTimeout(timer)
    outgoing.destroy()
    handler.onResponseError?.(controller, error)
  }

  outgoing.on('information', ({ statusCode, headers, statusMessage }) => {
    handler.onResponseStart?.(controller, statusCode, headers, statusMessage)
  })
  outgoing.once('response', (response) => {
    answer = response
    response.on('data', (piece: Buffer) => {
      timer?.refresh()
      handler.onResponseData?.(controller, piece)
    })
    response.on('end', () => {
      if (over) return
      over = true
      clearTimeout(timer)
      handler.onResponseEnd?.(controller, response.trailers)
    })
    response.on('error', fail)
    response.on('close', () => {
      fail(new Error('the app broke off its answer'))
    })
    within(upstream.idleTimeout, 'UND_ERR_BODY_TIMEOUT')
    handler.onResponseStart?.(
      controller,
      response.statusCode!,
      response.headers,
      response.statusMessage,
    )
  })
  // An app may answer before it has the whole body, and take no more of it: then the answer counts.
  outgoing.on('error', (err) => {
    if (answer === undefined) fail(err)
  })
  outgoing.on('close', () => {
    if (answer === undefined) fail(new Error('the app closed the connection without an answer'))
  })

  body.on('data', () => {
    if (answer === undefined) timer?.refresh()
  })
  body.once('end', () => {
    outgoing.addTrailers(requestTrailers(raw.trailers, names))
    outgoing.end()
  })
  body.on('error', fail)
  body.once('close', () => {
    if (!body.readableEnded) fail(new Error('the request was broken off'))
  })

  within(upstream.responseTimeout, 'UND_ERR_HEADERS_TIMEOUT')
  handler.onRequestStart?.(controller, undefined)
  if (!over) body.pipe(outgoing, { end: false })
}
