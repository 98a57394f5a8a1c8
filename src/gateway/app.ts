import fastify, { LogController } from 'fastify'
import type { FastifyInstance, FastifyRequest, FastifyReply } from 'fastify'
import { createServer } from 'node:http'
import { GatehouseError } from '../base/errors.ts'
import { accessLog } from './request/access-log.ts'
import { chooseApp } from './apps/apps.ts'
import type { Apps } from './apps/apps.ts'
import { consolePages } from './console/pages.ts'
import { authorize } from './access/authorize.ts'
import { deliver } from './cache/deliver.ts'
import type { Delivery } from './cache/deliver.ts'
import { drain } from './request/drain.ts'
import { expectation } from './request/expectation.ts'
import type { Guard } from './access/guard.ts'
import { http2 } from './listen/http2.ts'
import { hygiene, refuseBytes, rewriteUrl } from './request/hygiene.ts'
import type { Names } from './request/hygiene.ts'
import { endWithoutRights, limitRequests } from './request/limits.ts'
import type { Limits } from './request/limits.ts'
import type { Logger } from './shared/log.ts'
import { measure } from './request/metrics.ts'
import type { Metrics } from './request/metrics.ts'
import { sendError } from './shared/pages.ts'
import { proxy } from './apps/proxy.ts'
import { oldLinks } from './apps/old-links.ts'
import type { Arrivals } from './apps/old-links.ts'
import { requestOrigin } from './access/request-origin.ts'
import type { GatewayStatus } from './operate/status.ts'
import type { ApiOptions } from './console/api.ts'
import { consoleApi } from './console/plugin.ts'
import { statusPage } from './operate/status-page.ts'
import { websocket } from './apps/websocket.ts'

/** Options of {@link createApp}. */
export interface AppOptions {
  log: Logger
  metrics: Metrics
  apps: Apps
  arrivals: Arrivals
  limits: Limits
  delivery: Delivery
  names: Names
  guard: Guard
  /** Directory of the web console's pages (console/pages.ts). Default: there are none. */
  pages?: string | undefined
  /** For the status page. */
  status: () => Promise<GatewayStatus>
  /** For the API of the console. */
  console: Omit<ApiOptions, 'asker' | 'log' | 'status'>
}

/**
 * The application behind port 443. It listens on nothing: its server is handed TLS connections of
 * tailnet peers (listen/front.ts), each tied to its peer beforehand.
 */
export async function createApp({
  log,
  metrics,
  apps,
  arrivals,
  limits,
  delivery,
  names,
  guard,
  pages,
  status,
  console,
}: AppOptions): Promise<FastifyInstance> {
  const app = fastify({
    loggerInstance: childless(log) as never,
    logController: new LogController({ disableRequestLogging: true }),
    // The server is ours, so that its limits are plain to see. No limit on how long a request may
    // take: an upload takes as long as it takes, so long as it goes on: see limits.ts, which also
    // sets what is configured.
    serverFactory: (handler) =>
      createServer(
        {
          requestTimeout: 0,
          keepAliveTimeout: 75_000,
          connectionsCheckingInterval: 1_000,
        },
        handler,
      ),
    rewriteUrl,
    clientErrorHandler: refuseBytes,
    // Node-RED decides what a path means: the router must not refuse, fold or rewrite one.
    routerOptions: { maxParamLength: 65_536 },
    exposeHeadRoutes: false,
  }) as unknown as FastifyInstance

  app.setErrorHandler(
    async (
      error: Error & { statusCode?: number },
      request: FastifyRequest,
      reply: FastifyReply,
    ) => {
      // The peer went away; the access log has it.
      if (reply.raw.destroyed) {
        reply.hijack()
        return
      }
      const status = error.statusCode ?? 500
      if (status >= 500)
        log.error({ code: 'GH_INTERNAL', err: error }, `request failed: ${error.message}`)
      return await sendError(
        request,
        reply,
        status,
        status >= 500 ? 'Something went wrong in the gateway' : 'Bad request',
        status >= 500
          ? new GatehouseError(
              'GH_INTERNAL',
              'The gateway made a mistake with this request',
              'Try again. If it goes on, the reason is on the page Logs of the web console (port 10000)',
            )
          : new GatehouseError(
              'GH_BAD_REQUEST',
              error.message.replace(/\.$/, ''),
              'Check the address',
            ),
      )
    },
  )
  app.setNotFoundHandler(
    async (request, reply) =>
      await sendError(
        request,
        reply,
        405,
        'Method not allowed',
        new GatehouseError(
          'GH_METHOD',
          `The gateway does not pass on ${request.method} requests of this form`,
          'Use another method, with a path',
        ),
      ),
  )

  await app.register(http2, { limits, log })
  await app.register(drain, {})
  await app.register(accessLog, { log })
  await app.register(measure, { metrics })
  await app.register(expectation, {})
  await app.register(endWithoutRights, { limits })
  await app.register(hygiene, { names })
  await app.register(limitRequests, { limits })
  await app.register(chooseApp, { apps })
  await app.register(requestOrigin, { log })
  await app.register(oldLinks, { apps, arrivals })
  await app.register(authorize, { guard })
  await app.register(consoleApi, { ...console, log, status })
  await app.register(consolePages, { directory: pages })
  await app.register(statusPage, { status })
  await app.register(websocket, { metrics, limits, log })
  await app.register(deliver, { delivery })
  await app.register(proxy, { apps, delivery, log })
  await app.ready()
  // Node looks for late headers and idle connections only on a server that listens, and this one is
  // handed its connections.
  app.server.emit('listening')
  return app
}

/**
 * A logger whose one child, Fastify's, is also that of each request: a new one would cost more than
 * all that is logged through it.
 */
function childless(log: Logger): Logger {
  return Object.create(log, {
    child: {
      value: (...how: Parameters<Logger['child']>) => {
        const child = log.child(...how)
        child.child = (() => child) as never
        return child
      },
    },
  }) as Logger
}
