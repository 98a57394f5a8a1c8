import { table } from './status-text.ts'
import { originOf, ports } from '../../config/ports.ts'
import { hostName } from '../request/target.ts'
import { pathOf } from '../shared/path.ts'
import { peerOf } from '../tailnet/peer.ts'
import { errorPage, escape, page, wantsJSON } from '../shared/pages.ts'
import { plugin } from '../shared/plugin.ts'
import type { GatewayStatus } from './status.ts'

/** Where it was when the gateway's own pages were at 443. */
const before = '/.gatehouse'

/**
 * The gateway's status on the tailnet, at `/status` of its own port: for those with the right
 * `status` (authorize.ts), as a page, or as JSON for a program. It tells what `gatehouse status`
 * does, and can change nothing. `/` leads to it, and so does where it was before.
 */
export const statusPage = plugin<{ status: () => Promise<GatewayStatus> }>(
  'status-page',
  async (app, { status }) => {
    app.addHook('onRequest', async (request, reply) => {
      if (request.route.right !== 'status') return
      const path = pathOf(request.url)
      const { localPort } = peerOf(request.raw.socket)
      reply.header('cache-control', 'no-store')
      if (localPort !== ports.own || path.startsWith(`${before}/`)) {
        const name = hostName(request.headers.host ?? '')
        const rest = request.url.slice(before.length)
        return await reply
          .code(308)
          .header('location', `${originOf(name, ports.own)}${rest}`)
          .send()
      }
      if (path === '/') return await reply.code(307).header('location', '/status').send()
      if (path !== '/status')
        return await reply
          .code(404)
          .type('text/html; charset=utf-8')
          .send(
            errorPage(404, 'Not here', 'The gateway has no such page', 'Its status is at /status'),
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
