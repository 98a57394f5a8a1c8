import httpProxy from '@fastify/http-proxy'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { METHODS } from 'node:http'
import type { Readable } from 'node:stream'
import type { Apps } from './apps.ts'
import type { Delivery } from '../cache/deliver.ts'
import { Exchange } from './exchange.ts'
import { headersFor } from './headers.ts'
import type { Logger } from '../shared/log.ts'
import { countBodyOf } from '../request/garbage.ts'
import { pathOf } from '../shared/path.ts'
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

/** Methods whose bodies Fastify reads, where the gateway's own pages have some. */
const parsed = /^(?:POST|PUT|PATCH|DELETE|OPTIONS)$/

/** reply-from's request, in whose place is {@link Exchange}. */
const unasked = (): never => {
  throw new Error('requests to apps do not go by reply-from')
}

/**
 * Everything over HTTP to the apps: bodies streamed both ways with no limit of size or time,
 * failures as 502 and 504 pages. @fastify/http-proxy has the routes and refuses paths that lead out
 * of them; the request itself is {@link Exchange}'s. WebSockets are not its business: see
 * websocket.ts.
 */
export const proxy = plugin<ProxyOptions>('proxy', async (app, { apps, delivery, log }) => {
  app.decorateRequest('payload')
  for (const method of methods)
    if (!parsed.test(method)) app.addHttpMethod(method, { hasBody: false, overrideExisting: true })

  const handler = (request: FastifyRequest, reply: FastifyReply): void => {
    request.upstream = request.route.name
    const headers = headersFor(request)
    delivery.prepare(request, headers)
    new Exchange(request, reply, headers, { delivery, log }).start()
  }
  await app.register(async (scope) => {
    passBodies(scope)
    await scope.register(httpProxy, {
      // Its own way to an app is not gone: which app a request is for, and at which of its
      // upstreams, is known to the handler.
      upstream: 'http://localhost',
      undici: { request: unasked },
      httpMethods: methods,
      proxyPayloads: false,
      // It would write the query anew.
      preRewrite: pathOf,
      handler,
    })
  })
  app.addHook('onClose', async () => {
    apps.destroy()
  })
})

/**
 * A body is the app's to read, whatever its Content-Type says, or does not say. Fastify would parse
 * it, and refuse a type that is not one: it is shown another until it has given the body out.
 */
function passBodies(scope: FastifyInstance): void {
  const types = new WeakMap<object, string>()
  scope.removeAllContentTypeParsers()
  scope.addContentTypeParser('*', (request, payload, done) => {
    const type = types.get(request.raw)
    if (type !== undefined) request.raw.headers['content-type'] = type
    done(null, payload)
  })
  scope.addHook('preParsing', (request, _reply, payload, done) => {
    const { headers } = request.raw
    if (headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0) {
      request.payload = payload as Readable
      countBodyOf(request.raw)
    }
    if (headers['content-type'] !== undefined && parsed.test(request.method)) {
      types.set(request.raw, headers['content-type'])
      headers['content-type'] = 'application/octet-stream'
    }
    done(null, payload)
  })
}
