import type { FastifyReply, FastifyRequest } from 'fastify'
import { METHODS } from 'node:http'
import { GatehouseError } from '../../base/errors.ts'
import { isUnconnected, totalTimeoutCode } from './apps.ts'
import type { Apps } from './apps.ts'
import type { Delivery } from '../cache/deliver.ts'
import { Exchange } from './exchange.ts'
import { applyRules } from '../../config/header-rules.ts'
import { requestHeaders } from './headers.ts'
import { BodyTooLarge, tooLarge } from '../request/limits.ts'
import type { Logger } from '../shared/log.ts'
import { sendError } from '../shared/pages.ts'
import { peerOf } from '../tailnet/peer.ts'
import { plugin } from '../shared/plugin.ts'

/** Options of {@link proxy}. */
export interface ProxyOptions {
  apps: Apps
  delivery: Delivery
  log: Logger
}

/**
 * Methods that are passed on: all that Node.js parses, WebDAV's among them. A tunnel is none of an
 * app's, and TRACE says back what a browser hides from scripts.
 */
const methods = METHODS.filter((method) => method !== 'CONNECT' && method !== 'TRACE')

/**
 * Everything over HTTP to Node-RED on its unix socket: bodies streamed both ways with no limit of
 * size or time, nothing retried, failures as 502 and 504 pages. WebSockets are not its business:
 * see websocket.ts.
 */
export const proxy = plugin<ProxyOptions>('proxy', async (app, { apps, delivery, log }) => {
  // Fastify reads text/plain and JSON into memory with a limit unless told otherwise.
  app.removeAllContentTypeParsers()

  app.addContentTypeParser('*', (_request, payload, done) => {
    done(null, payload)
  })

  const handler = (request: FastifyRequest, reply: FastifyReply): void => {
    const { to } = request
    request.app = to.name
    const headers = requestHeaders(request.headers, {
      address: peerOf(request.raw.socket).address,
      host: request.headers.host ?? '',
      whoIs: request.whoIs,
      statement: request.statement,
    })
    // Fastify does not read a body of these; its length without it would be a request that never
    // ends.
    if (request.method === 'GET' || request.method === 'HEAD') delete headers['content-length']
    if (to.strip) headers['x-forwarded-prefix'] = to.path.slice(0, -1)
    if (to.rules !== undefined) applyRules(headers, to.rules.request)
    delivery.prepare(request, headers)
    new Exchange(request, reply, headers, { delivery, log, failed }).start()
  }
  for (const method of methods)
    if (!app.supportedMethods.includes(method as never))
      app.addHttpMethod(method, { hasBody: true })
  for (const url of ['/', '/*']) app.route({ url, method: methods, handler })
  app.addHook('onClose', async () => {
    apps.destroy()
  })
})

/** What a limit that is over means, by the codes of undici and of ours. */
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

/** Answers a request whose upstream failed: 504 when it was late, 502 when it was not there. */
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
  const cause = error.cause instanceof Error ? error.cause : error
  const code = (cause as NodeJS.ErrnoException).code ?? ''
  const { to } = request
  const { nodeRed, label: name } = to
  if (cause instanceof BodyTooLarge) {
    await tooLarge(request, reply)
    return
  }
  const late = lateness.find(({ codes }) => codes.test(code))
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
          ? 'Try again; if it stays so, a flow may be busy or waiting without end: look at `journalctl -u node-red` on the device'
          : `Try again; if it stays so, look at what the app is doing, or raise ${late.key} in [[app]]`,
      ),
    )
    return
  }
  const explained = to.candidates[0]!.explain(cause)
  await sendError(
    request,
    reply,
    502,
    isUnconnected(error) ? `${name} is not running` : `${name} did not answer`,
    explained,
  )
}
