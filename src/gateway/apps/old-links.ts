import { originOf, ports } from '../../config/ports.ts'
import type { Apps } from './apps.ts'
import { plugin } from '../shared/plugin.ts'
import { peerOf } from '../tailnet/peer.ts'
import { hostName } from '../request/target.ts'

/**
 * What flows serve was below /app/ at 443, the editor's origin, before it had one of its own. A
 * browser is sent there, for a page of a flow at 443 could act as the editor. A program is answered,
 * as sensors are set up for /app/ and may not follow: who sends none of the headers by which
 * browsers say where a request comes from. (A browser of before 2020 is one of these, and gets what
 * it may not run: {@link Apps.oldFlows}, `sandbox`.) So are pages of origins that gatehouse.toml
 * allows, which set these headers themselves and can't be sent elsewhere with a preflight.
 */
export const oldLinks = plugin<{ apps: Apps }>('old-links', async (app, { apps }) => {
  app.addHook('onRequest', (request, reply, done) => {
    const { door } = peerOf(request.raw.socket)
    const { headers, to } = request
    if (
      to !== apps.oldFlows ||
      door !== ports.editor ||
      apps.flowOrigins.includes(headers.origin ?? '') ||
      !isBrowser(request.raw.rawHeaders)
    ) {
      done()
      return
    }
    if (request.method !== 'GET' && request.method !== 'HEAD') reply.raw.shouldKeepAlive = false
    reply
      .code(308)
      .headers({
        location: `${originOf(hostName(headers.host ?? ''), ports.flows)}${to.target(request.raw.url ?? '/')}`,
        'cache-control': 'no-store',
      })
      .send()
  })
})

/** Whether a request has a header that only browsers send. */
function isBrowser(rawHeaders: readonly string[]): boolean {
  return rawHeaders.some(
    (name, i) => i % 2 === 0 && /^(?:sec-fetch-.*|origin|service-worker)$/i.test(name),
  )
}
