import { GatehouseError } from '../../base/errors.ts'
import { originOf, ports } from '../../config/ports.ts'
import type { Apps } from './apps.ts'
import { plugin } from '../shared/plugin.ts'
import type { Problems } from '../shared/problems.ts'
import { peerOf } from '../tailnet/peer.ts'
import type { Peer } from '../tailnet/peer.ts'
import { hostName } from '../request/target.ts'

/**
 * What flows serve was below /app/ at 443, the editor's origin, before it had one of its own. A
 * browser is sent there, for a page of a flow at 443 could act as the editor. A program is
 * answered, as sensors are set up for /app/ and may not follow: who sends none of the headers by
 * which browsers say where a request comes from. (A browser of before 2020 is one of these, and
 * gets what it may not run: {@link Apps.oldFlows}, `sandbox`.) So are pages of origins that
 * gatehouse.toml allows, which set these headers themselves and can't be sent elsewhere with a
 * preflight.
 */
export const oldLinks = plugin<{
  apps: Apps
  arrivals: Arrivals
}>('old-links', async (app, { apps, arrivals }) => {
  app.addHook('onRequest', (request, reply, done) => {
    const peer = peerOf(request.raw.socket)
    const { headers, route } = request
    if (
      route !== apps.oldFlows ||
      peer.localPort !== ports.editor ||
      apps.flowOrigins.includes(headers.origin ?? '') ||
      !isBrowser(request.raw.rawHeaders)
    ) {
      done()
      return
    }
    arrivals.sent(peer)
    if (request.method !== 'GET' && request.method !== 'HEAD') reply.raw.shouldKeepAlive = false
    reply
      .code(308)
      .headers({
        location: `${originOf(hostName(headers.host ?? ''), ports.flows)}${route.target(request.raw.url ?? '/')}`,
        'cache-control': 'no-store',
      })
      .send()
  })
})

/** A browser that is sent to another port is there sooner than that. Milliseconds. */
const soon = 30_000

/** Addresses that are remembered. */
const most = 1_000

/**
 * Whether peers that are sent to the port of what flows serve come there. One that was sent twice
 * and never came is held back by a policy that was written when all was at 443, which its browser
 * says to nobody: that is a problem in the status.
 */
export class Arrivals {
  #problems: Problems
  #soon: number
  #there = new Set<string>()
  #sent = new Map<string, number>()

  /** @param wait milliseconds that a peer may take; default half a minute */
  constructor(problems: Problems, wait: number = soon) {
    this.#problems = problems
    this.#soon = wait
  }

  /** A peer was sent there. */
  sent({ address, local }: Pick<Peer, 'address' | 'local'>): void {
    if (local || this.#there.has(address)) return
    if (this.#sent.size >= most) this.#sent.clear()
    this.#sent.set(address, (this.#sent.get(address) ?? 0) + 1)
    setTimeout(() => {
      if ((this.#sent.get(address) ?? 0) < 2) return
      this.#problems.set(
        'flows',
        new GatehouseError(
          'GH_FLOWS_PORT',
          `${address} was sent to port ${ports.flows}, where what flows serve is now, and does not get there`,
          `Add "tcp:${ports.flows}" to "ip" in the grants of the tailnet's policy (admin ` +
            `console, Access controls); the status page is at "tcp:${ports.own}"`,
        ),
      )
    }, this.#soon).unref()
  }

  /** A peer is there. */
  arrived({ address }: Pick<Peer, 'address'>): void {
    if (this.#there.size >= most) this.#there.clear()
    this.#there.add(address)
    if (this.#sent.delete(address) && this.#sent.size === 0)
      this.#problems.clear('flows', 'peers get to what flows serve')
  }
}

/** Whether a request has a header that only browsers send. */
function isBrowser(rawHeaders: readonly string[]): boolean {
  return rawHeaders.some(
    (name, i) => i % 2 === 0 && /^(?:sec-fetch-.*|origin|service-worker)$/i.test(name),
  )
}
