import type { FastifyReply, FastifyRequest } from 'fastify'
import { GatehouseError } from '../../base/errors.ts'
import type { WhoIs } from '@gatehouse/tsnet'
import { needed, ownRight, policyFor } from './access.ts'
import type { Right } from './access.ts'
import { controlWords } from '../shared/control-words.ts'
import { whenClosed } from '../shared/on-close.ts'
import type { Guard, Verdict } from './guard.ts'
import { sendError } from '../shared/pages.ts'
import { pathOf } from '../shared/path.ts'
import { peerOf } from '../tailnet/peer.ts'
import type { Peer } from '../tailnet/peer.ts'
import { plugin } from '../shared/plugin.ts'

/**
 * An answer that takes no longer is not broken off when a right is lost: it will be over by itself.
 * Milliseconds.
 */
const brief = 1_000

/**
 * Asks who sent a request and whether they may, before its body is read and before anything is
 * passed on. Who may not gets a page with the policy lines that would change that.
 *
 * A WebSocket is opened once and lives for days: those whose peer has lost a right since are closed
 * with 1008 (RFC 6455 §7.4.1), the editor's too when its peer may only read now, since Node-RED
 * knows only who it was opened by. So may an answer, an event stream's for one: it is broken off
 * when its peer has lost the right to it.
 */
export const authorize = plugin<{ guard: Guard }>('authorize', async (app, { guard }) => {
  const underWay = new Set<{
    reply: FastifyReply
    peer: Peer
    rights: Right[]
    since: number
  }>()
  const judge = (
    request: FastifyRequest,
    reply: FastifyReply,
    { whoIs, access, assertion }: Verdict,
    done: () => void,
  ): void => {
    request.whoIs = whoIs
    request.access = access
    const rights = rightsFor(request)
    if (rights.every((right) => access.rights.has(right))) {
      // Flows see their requests' headers, and may show them to anyone, and so do other apps: what
      // is for the editor does not go to them.
      if (request.route.right === undefined) request.assertion = assertion
      const one = {
        reply,
        peer: peerOf(request.raw.socket),
        rights,
        since: performance.now(),
      }
      underWay.add(one)
      // A WebSocket's rights go with its tunnel.
      whenClosed(reply.raw, () => {
        underWay.delete(one)
        return undefined
      })
      done()
      return
    }
    void guard
      .self()
      .then(async (self) => await forbid(request, reply, rights, self, guard))
      .catch(done)
  }
  app.addHook('onRequest', (request, reply, done) => {
    const peer = peerOf(request.raw.socket)
    const known = guard.known(peer)
    if (known !== undefined) judge(request, reply, known, done)
    else
      guard
        .ask(peer)
        .then((verdict) => {
          judge(request, reply, verdict, done)
        })
        .catch(done)
  })

  const stop = guard.recheck(async () => {
    // One connection may have many requests.
    const asked = new Map<Peer, Promise<Verdict>>()
    const now = (peer: Peer): Promise<Verdict> =>
      asked.getOrInsertComputed(peer, async () => await guard.ask(peer, true))
    for (const { reply, peer, rights, since } of underWay) {
      if (performance.now() - since < brief) continue
      const { access } = await now(peer)
      if (!rights.every((right) => access.rights.has(right))) reply.raw.destroy()
    }
    for (const tunnel of app.tunnels) {
      const { access } = await now(tunnel.peer)
      if (![...tunnel.access.rights].every((right) => access.rights.has(right)))
        tunnel.close(1008, 'your rights have changed')
    }
  })
  app.addHook('onClose', async () => {
    stop()
  })
})

/** The rights that a request needs; all of them. */
function rightsFor(request: FastifyRequest): Right[] {
  const path = pathOf(request.url)
  if (request.route.right === 'status') return [ownRight(request.method, path)]
  if (request.route.right !== undefined) return [request.route.right]
  return needed(request.method, path, request.headers.upgrade !== undefined)
}

/** What a page calls whoever sent a request. */
function nameOf(whoIs: WhoIs | undefined): string {
  if (whoIs === undefined) return 'A device the tailnet does not know'
  const { name, tags } = whoIs.node
  return tags.length > 0 ? `${name} (${tags.join(', ')})` : (whoIs.user?.loginName ?? name)
}

/** Why a peer has no rights, where that is not plain; to be put behind what it may not do. */
function causeOf({ whoIs, access }: FastifyRequest, self: WhoIs | undefined): string {
  if (access?.problem !== undefined)
    return `. The grant in the policy is not understood: ${access.problem}`
  const ownerless = self === undefined || self.node.tags.length > 0
  if (whoIs !== undefined && access?.from === 'none' && ownerless)
    return '. This device is tagged, so it has no owner who may do everything, and the policy grants nothing'
  return ''
}

const words: Record<Right, string> = {
  view: 'see the flows',
  edit: 'change the flows',
  use: 'use what the flows serve',
  status: "see the gateway's status",
  manage: 'manage the device',
}

async function forbid(
  request: FastifyRequest,
  reply: FastifyReply,
  rights: Right[],
  self: WhoIs | undefined,
  guard: Guard,
): Promise<FastifyReply> {
  const { whoIs, access } = request
  // Whoever may do nothing here is not to hold a connection that others want.
  if (access === undefined || access.rights.size === 0) reply.raw.shouldKeepAlive = false
  const who = nameOf(whoIs)
  const may = rights.map((right) => words[right]).join(' and ')
  if (peerOf(request.raw.socket).local) {
    return await sendError(
      request,
      reply,
      403,
      'You may not do this here',
      new GatehouseError(
        'GH_FORBIDDEN',
        `From the local network nobody may ${may}: nobody is known there`,
        'Come in through the tailnet; what may be done from here is [local_network] rights in gatehouse.toml',
      ),
    )
  }
  const cause = causeOf(request, self)
  return await sendError(
    request,
    reply,
    403,
    'You may not do this here',
    new GatehouseError(
      'GH_FORBIDDEN',
      `${who} may not ${may}${cause}`,
      'Whoever manages the tailnet can allow it: add these lines to its policy ' +
        `(${controlWords(guard.controlURL).policy}). They work within seconds`,
    ),
    // The page shows what a person may want in the end; a program is told what it asked for.
    policyFor(
      whoIs,
      self,
      new Set([
        ...(access?.rights ?? []),
        ...rights,
        ...(rights.includes('view') ? (['edit', 'use', 'status'] as const) : []),
      ]),
    ),
  )
}
