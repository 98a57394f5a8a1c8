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
    whenClosed(reply.raw, (tunnel) => {
      const entry = (whoIs: WhoIs | undefined): object => ({
        peer: peer.address,
        ...(peer.local ? { network: 'local' } : {}),
        user:
          whoIs?.user?.loginName ??
          (whoIs?.node.tags.length ? whoIs.node.tags.join(',') : undefined),
        ...asked,
        status: reply.raw.statusCode,
      })
      if (tunnel) return writing(log, entry(request.whoIs), start)
      const whole = reply.raw.writableFinished
      const write = (whoIs: WhoIs | undefined): void => {
        writing(log, entry(whoIs), start, whole ? {} : { aborted: true })()
      }
      // What was refused before anybody asked who it is from.
      if (request.access === undefined) void peer.whoIs().then(write)
      else write(request.whoIs)
      return undefined
    })
    done()
  })
})

/** Writes a line when it is called; made here, where it holds nothing but what it is given. */
function writing(log: Logger, entry: object, start: number, how: object = {}): () => void {
  return () => {
    log.info({ ...entry, ms: Math.round(performance.now() - start), ...how }, 'request')
  }
}

/** The path of a request target, without query, at most 200 characters. */
function loggedPath(url: string): string {
  return url.split(/[?#]/, 1)[0]!.slice(0, 200)
}
