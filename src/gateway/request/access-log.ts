import { whenClosed } from '../shared/on-close.ts'
import { plugin } from '../shared/plugin.ts'
import type { Logger } from '../shared/log.ts'
import { peerOf } from '../tailnet/peer.ts'
import type { WhoIs } from '@gatehouse/tsnet'

/**
 * One line a request when its answer is complete (or broken off). Only what cannot hold a secret:
 * the path without its query, no header but Host.
 */
export const accessLog = plugin<{ log: Logger }>('access-log', async (app, { log }) => {
  app.addHook('onRequest', (request, reply, done) => {
    const start = performance.now()
    // Read now: a closed socket has forgotten its peer.
    const peer = peerOf(request.raw.socket)
    const asked = {
      method: request.method,
      host: request.headers.host,
      path: loggedPath(request.raw.url ?? ''),
    }
    whenClosed(reply.raw, () => {
      const write = (whoIs: WhoIs | undefined): void => {
        log.info(
          {
            peer: peer.address,
            ...(peer.local ? { network: 'local' } : {}),
            user:
              whoIs?.user?.loginName ??
              (whoIs?.node.tags.length ? whoIs.node.tags.join(',') : undefined),
            ...asked,
            status: reply.raw.statusCode,
            ms: Math.round(performance.now() - start),
            ...(reply.raw.writableFinished || request.upgrade === true ? {} : { aborted: true }),
          },
          'request',
        )
      }
      // What was refused before anybody asked who it is from.
      if (request.access === undefined) void peer.whoIs().then(write)
      else write(request.whoIs)
    })
    done()
  })
})

/** The path of a request target, without query, at most 200 characters. */
function loggedPath(url: string): string {
  return url.split(/[?#]/, 1)[0]!.slice(0, 200)
}
