import { table } from './status-text.ts'
import { ownPrefix } from '../access/authorize.ts'
import { errorPage, escape, page, wantsJSON } from '../shared/pages.ts'
import { plugin } from '../shared/plugin.ts'
import type { GatewayStatus } from './status.ts'

/**
 * The gateway's status on the tailnet, at `/.gatehouse/status`: for those with the right `status`
 * (authorize.ts), as a page, or as JSON for a program. It tells what `gatehouse status` does, and
 * can change nothing.
 */
export const statusPage = plugin<{ status: () => Promise<GatewayStatus> }>(
  'status-page',
  async (app, { status }) => {
    app.addHook('onRequest', async (request, reply) => {
      const path = request.url.split('?', 1)[0]!
      if (!path.startsWith(ownPrefix) || request.to.service !== undefined) return
      reply.header('cache-control', 'no-store')
      if (path !== `${ownPrefix}status`)
        return await reply
          .code(404)
          .type('text/html; charset=utf-8')
          .send(
            errorPage(
              404,
              'Not here',
              'The gateway has no such page',
              `Its status is at ${ownPrefix}status`,
            ),
          )
      if (request.method !== 'GET' && request.method !== 'HEAD')
        return await reply.code(405).header('allow', 'GET, HEAD').send()
      const now = await status()
      if (wantsJSON(request.headers.accept))
        return await reply.type('application/json; charset=utf-8').send(now)
      return await reply
        .type('text/html; charset=utf-8')
        .send(
          page(
            'Gatehouse',
            `<h1>${now.ok ? 'All is well' : 'Something needs attention'}</h1>\n<pre>${escape(table(now))}</pre>`,
          ),
        )
    })
  },
)
