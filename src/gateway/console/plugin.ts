import type { FastifyInstance } from 'fastify'
import type { IncomingMessage } from 'node:http'
import { ports } from '../../config/ports.ts'
import { plugin } from '../shared/plugin.ts'
import { peerOf } from '../tailnet/peer.ts'
import { createApi } from './api.ts'
import type { ApiOptions, Asker } from './api.ts'

/**
 * Hands requests for the API (console/api.ts) over to it, once everything before has judged them:
 * an application of its own, since the gateway's passes bodies on unread and this one reads JSON.
 */
export const consoleApi = plugin<Omit<ApiOptions, 'asker'>>('console-api', async (app, options) => {
  const askers = new WeakMap<IncomingMessage, Asker>()
  const api: FastifyInstance = await createApi({
    ...options,
    asker: (request) => askers.get(request)!,
  })
  app.addHook('onRequest', async (request, reply) => {
    if (request.route.right !== 'status' || peerOf(request.raw.socket).localPort !== ports.own)
      return
    if (!request.url.startsWith('/api/')) return
    askers.set(request.raw, { whoIs: request.whoIs, access: request.access! })
    reply.hijack()
    api.routing(request.raw, reply.raw)
  })
  app.addHook('onClose', async () => {
    await api.close()
  })
})
