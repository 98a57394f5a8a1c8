import { parseEgress } from './egress.ts'
import type { Egress, PeerHost } from './egress.ts'

export type { PeerHost } from './egress.ts'

/**
 * Other devices of the tailnet that Node-RED may call, and where. There is no route to the tailnet
 * on this machine: only the gateway's process is in it. So the name that a flow calls is answered
 * with an address of 127.77.0.0/24 that stands for that device alone, the firewall turns the listed
 * ports of it to ports of the gateway's at the same address, one for each entry, and the gateway
 * dials. What gateway and firewall have to agree on follows from the list, and nothing else:
 * neither has to believe the other.
 */
export interface PeerTarget {
  /** As the person wrote it. */
  text: string
  peer: PeerHost
  port: number
  /** What a flow calls it; of a Service the middle part is any tailnet's: `mqtt.*.ts.net`. */
  name: string
  /** The address that stands for it. */
  address: string
  /** The gateway's port there. */
  local: number
}

/** The network of the addresses that stand for devices; all of 127.0.0.0/8 is this machine. */
export const standInNetwork = '127.77.0.0/24'

/** The gateway's ports for them: its unit lets it have these (gatehouse.service). */
export const firstPeerPort = 42_000

/** So many entries, and no more. */
export const mostPeers = 64

/** What a flow calls a device, a Service, or one with a tag. */
export function peerName(peer: PeerHost): string {
  if ('name' in peer) return peer.name
  return 'service' in peer
    ? `${peer.service.slice('svc:'.length)}.*.ts.net`
    : `${peer.tag.slice('tag:'.length)}.tag.ts.net`
}

/** Those of a list, in its order; the first {@link mostPeers}. */
export function peerTargets(list: readonly Egress[]): PeerTarget[] {
  const names: string[] = []
  const seen = new Set<string>()
  return list
    .flatMap(({ text, host, ports: [port] }) => {
      if (!('peer' in host)) return []
      const name = peerName(host.peer)
      if (seen.has(`${name} ${port}`)) return []
      seen.add(`${name} ${port}`)
      return [{ text, peer: host.peer, port, name }]
    })
    .slice(0, mostPeers)
    .map((target, i) => {
      if (!names.includes(target.name)) names.push(target.name)
      return {
        ...target,
        address: `127.77.0.${names.indexOf(target.name) + 1}`,
        local: firstPeerPort + i,
      }
    })
}

/** Those of `[node_red] allow`, which was validated before. */
export function peersOf(allow: readonly string[]): PeerTarget[] {
  return peerTargets(
    allow.flatMap((text) => {
      const entry = parseEgress(text)
      return 'egress' in entry ? [entry.egress] : []
    }),
  )
}
