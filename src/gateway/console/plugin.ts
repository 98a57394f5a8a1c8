import type { FastifyInstance } from 'fastify'
import type { IncomingMessage } from 'node:http'
import { ports } from '../../config/ports.ts'
import { plugin } from '../shared/plugin.ts'
import { peerOf } from '../tailnet/peer.ts'
import type { ApiOptions, Asker } from './api.ts'

/**
 * Hands requests for the API (console/api.ts) over to it, once everything before has judged them:
 * an application of its own, since the gateway's passes bodies on unread and this one reads JSON.
 * It is loaded with the first of them, so that a device whose console nobody opens does without the
 * memory that it takes.
 */
export const consoleApi = plugin<Omit<ApiOptions, 'asker'>>('console-api', async (app, options) => {
  const askers = new WeakMap<IncomingMessage, Asker>()
  const asker = (request: IncomingMessage): Asker => askers.get(request)!
  let api: Promise<FastifyInstance> | undefined
  const load = async (): Promise<FastifyInstance> => {
    const { createApi } = await import('./api.ts')
    return await createApi({ ...options, asker })
  }
  app.addHook('onRequest', async (request, reply) => {
    if (request.route.right !== 'status' || peerOf(request.raw.socket).localPort !== ports.own)
      return
    if (!request.url.startsWith('/api/')) return
    askers.set(request.raw, { whoIs: request.whoIs, access: request.access! })
    const loaded = await (api ??= load())
    reply.hijack()
    loaded.routing(request.raw, reply.raw)
  })
  app.addHook('onClose', async () => {
    await (await api)?.close()
  })
})
