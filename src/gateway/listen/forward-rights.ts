/** Who may use a forward, and what is said of it: the same for TCP and UDP. */
import type { Config } from '../../config/config.ts'
import { reason } from '../../base/errors.ts'
import type { Guard } from '../access/guard.ts'
import type { Logger } from '../shared/log.ts'
import type { Peer } from '../tailnet/peer.ts'

/** One [[forward]] of gatehouse.toml. */
export type Forward = Config['forward'][number]

/** What each line of the log about one use of a forward carries. */
export interface ForwardUse {
  peer: string
  /** Login name, or tags. */
  user: string | undefined
  port: number
  target: string
}

/** Whom to ask and where to say it. */
interface Means {
  guard: Guard
  log: Logger
}

/** Asks whether a peer may use a forward now. A refusal is in the log. */
export async function mayUse(
  { guard, log }: Means,
  forward: Forward,
  peer: Peer,
): Promise<{ about: ForwardUse; allowed: boolean }> {
  const { whoIs, access } = await guard.ask(peer)
  const about = {
    peer: peer.address,
    user: whoIs?.user?.loginName ?? whoIs?.node.tags.join(','),
    port: forward.port,
    target: forward.target,
  }
  const allowed = access.rights.has(forward.right)
  if (!allowed)
    log.warn(
      { code: 'GH_FORBIDDEN', ...about },
      `${peer.address} may not use the forward from port ${forward.port}: ` +
        `it needs the right ${forward.right}`,
    )
  return { about, allowed }
}

/** Asks whether a peer that uses a forward still may. That it may not any more is in the log. */
export async function stillMayUse(
  { guard, log }: Means,
  forward: Forward,
  peer: Peer,
): Promise<boolean> {
  const { access } = await guard.ask(peer, true)
  if (access.rights.has(forward.right)) return true
  log.warn(
    { code: 'GH_FORBIDDEN', peer: peer.address, port: forward.port, target: forward.target },
    `${peer.address} has lost the right ${forward.right}: ` +
      `its forward from port ${forward.port} is cut off`,
  )
  return false
}

/** Says that a forward's target cannot be reached. */
export function targetAway(log: Logger, about: ForwardUse, err: Error): void {
  log.warn(
    { code: 'GH_FORWARD', ...about },
    `${about.target} cannot be reached: ${reason(err)}. Check target in [[forward]] ` +
      'of gatehouse.toml, and that it runs',
  )
}
