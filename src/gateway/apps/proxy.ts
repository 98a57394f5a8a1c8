import type { FastifyReply, FastifyRequest } from 'fastify'
import type { Readable } from 'node:stream'
import { METHODS } from 'node:http'
import type { Apps } from './apps.ts'
import type { Delivery } from '../cache/deliver.ts'
import { Exchange } from './exchange.ts'
import { headersFor } from './headers.ts'
import type { Logger } from '../shared/log.ts'
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
  // A body is the app's to read, whatever its Content-Type says, or does not say: Fastify parses
  // none, and would refuse a type that is not one.
  for (const method of methods)
    app.addHttpMethod(method, { hasBody: false, overrideExisting: true })
  app.decorateRequest('payload')
  app.addHook('preParsing', (request, _reply, payload, done) => {
    const { headers } = request
    if (headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0)
      request.payload = payload as Readable
    done(null, payload)
  })

  const handler = (request: FastifyRequest, reply: FastifyReply): void => {
    request.app = request.to.name
    const headers = headersFor(request)
    delivery.prepare(request, headers)
    new Exchange(request, reply, headers, { delivery, log }).start()
  }
  for (const url of ['/', '/*']) app.route({ url, method: methods, handler })
  app.addHook('onClose', async () => {
    apps.destroy()
  })
})

declare module 'fastify' {
  interface FastifyRequest {
    /** Its body, of any method; undefined when it has none. */
    payload?: Readable
  }
}
