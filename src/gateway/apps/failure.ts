import type { FastifyReply, FastifyRequest } from 'fastify'
import { GatehouseError, oneLine, reason } from '../../base/errors.ts'
import { BodyTooLarge, tooLarge } from '../request/limits.ts'
import { sendError } from '../shared/pages.ts'
import { NotHTTP } from './answer-reader.ts'

/** What went wrong with a request at an app, and what the peer gets in the place of an answer. */

/** Codes of a connection that was never made: nothing of the request has been sent. */
const unconnected =
  /^(?:ECONNREFUSED|ENOENT|EACCES|ENOTFOUND|EAI_AGAIN|EHOSTUNREACH|ENETUNREACH|UND_ERR_CONNECT_TIMEOUT|CERT_|DEPTH_ZERO|SELF_SIGNED|UNABLE_TO|ERR_TLS)/

/** True for a failure to connect to an upstream at all, rather than of one request. */
export function isUnconnected(err: Error): boolean {
  return unconnected.test(codeOf(causeOf(err)))
}

/** Code of a request that took longer than total_timeout. */
export const totalTimeoutCode = 'GH_TOTAL_TIMEOUT'

/** Error in what an app sent, in words, with the beginning of it; undefined for any other error. */
export function notHTTP(err: Error): string | undefined {
  const cause = causeOf(err)
  if (cause instanceof NotHTTP) return cause.message
  // Of undici's parser, and of Node.js's.
  if (
    cause.name === 'HTTPParserError' ||
    /^HPE_|^ERR_INVALID_CHAR$|^UND_ERR_(?:HEADERS_OVERFLOW|RES_CONTENT)/.test(codeOf(cause))
  )
    return oneLine(cause.message).slice(0, 120)
  return undefined
}

/** Limits that may be over, by the codes of undici and of ours. */
const lateness = [
  {
    codes: /^UND_ERR_CONNECT_TIMEOUT$/,
    key: 'connect_timeout',
    message: 'took no connection in time',
  },
  {
    codes: new RegExp(`^${totalTimeoutCode}$`),
    key: 'total_timeout',
    message: 'took the request but was not done with it in time',
  },
  {
    codes: /^UND_ERR_BODY_TIMEOUT$/,
    key: 'idle_timeout',
    message: 'began an answer and did not go on with it',
  },
  {
    codes: /TIMEOUT|TIMEDOUT/,
    key: 'response_timeout',
    message: 'took the request but did not answer',
  },
]

/**
 * Answers a request whose upstream failed: 504 when it was late, 502 when it was not there or sent
 * what is not HTTP.
 */
export async function failed(
  request: FastifyRequest,
  reply: FastifyReply,
  error: Error,
): Promise<void> {
  if (reply.sent || reply.raw.headersSent) return
  if (reply.raw.destroyed) {
    reply.hijack()
    return
  }
  const cause = causeOf(error)
  if (cause instanceof BodyTooLarge) {
    await tooLarge(request, reply)
    return
  }
  const { route } = request
  const { nodeRed, label: name } = route
  const late = lateness.find(({ codes }) => codes.test(codeOf(cause)))
  if (late !== undefined) {
    await sendError(
      request,
      reply,
      504,
      `${name} did not answer in time`,
      new GatehouseError(
        'GH_UPSTREAM_TIMEOUT',
        `${name} ${late.message}`,
        nodeRed
          ? nodeRedLate(late.key)
          : `Try again; if it stays so, look at what the app is doing, or raise ${late.key} in [[app]]`,
      ),
    )
    return
  }
  const bad = notHTTP(error)
  if (bad !== undefined) {
    await sendError(
      request,
      reply,
      502,
      `${name} sent something that is not HTTP`,
      new GatehouseError(
        'GH_UPSTREAM_NOT_HTTP',
        `${name} sent something that is not HTTP: ${bad}`,
        nodeRed
          ? 'Look at the flow that answers at this address: what it passes on from elsewhere may not be HTTP'
          : 'Check that upstreams in [[app]] of gatehouse.toml names the port at which the app speaks HTTP',
      ),
    )
    return
  }
  const upstream = route.candidates[0]!
  if (isUnconnected(error)) {
    await sendError(request, reply, 502, `${name} is not running`, upstream.explain(cause))
    return
  }
  await sendError(
    request,
    reply,
    502,
    `${name} did not answer`,
    new GatehouseError(
      'GH_UPSTREAM_FAILED',
      `${name} broke off the connection before it answered (${reason(cause)})`,
      'Try again; if it stays so, ' +
        `${nodeRed ? 'look at the flow that answers at this address' : 'look at what the app is doing'}`,
    ),
  )
}

function causeOf(err: Error): Error {
  return err.cause instanceof Error ? err.cause : err
}

function codeOf(err: Error): string {
  const { code } = err as NodeJS.ErrnoException
  return typeof code === 'string' ? code : ''
}

function nodeRedLate(key: string): string {
  return key === 'response_timeout'
    ? 'Try again; if it stays so, look at the flow that answers at this address, or raise ' +
        'response_timeout in [node_red] of gatehouse.toml'
    : 'Try again; if it stays so, a flow keeps Node-RED busy: it takes no requests meanwhile'
}
