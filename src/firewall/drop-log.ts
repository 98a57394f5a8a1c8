import { parseEgress } from '../config/egress.ts'
import type { Applied } from './apply.ts'
import type { Refused } from './refused.ts'

/** Something that Node-RED tried to reach and was not allowed to. */
export interface ShownRefusal {
  /** Address, or the name that the device knows it by. */
  host: string
  /** As the firewall saw it; that of the host itself where only the name is known. */
  address: string
  /** Absent of a ping. */
  port?: number
  /** `icmp` is a ping. */
  protocol: 'tcp' | 'udp' | 'icmp'
  /** How often it was noted: the firewall notes six a minute of all there is. */
  times: number
  /** When it was noted last. RFC 3339. */
  last: string
  /** What would allow it: an entry of [node_red] allow. Absent where nothing may. */
  entry?: string
}

/**
 * What Node-RED tried and the firewall dropped, from lines of `journalctl -k -o json`, the latest
 * first, one for each target. Names are those that gatehouse.toml has, looked up by the firewall:
 * Node-RED has no resolver that would say more.
 *
 * @param most targets at most
 */
export function refusedIn(
  lines: Iterable<string>,
  names: Applied['names'] = {},
  most = 100,
): ShownRefusal[] {
  const byAddress = new Map(
    Object.entries(names).flatMap(([name, { addresses }]) =>
      Object.keys(addresses).map((address): [string, string] => [address, name]),
    ),
  )
  const found = new Map<string, ShownRefusal>()
  for (const line of lines) {
    const drop = dropOf(line)
    if (drop === undefined) continue
    const { address, port, protocol, at } = drop
    const key = `${address} ${port} ${protocol}`
    const times = (found.get(key)?.times ?? 0) + 1
    // Anew at its end: the map is in the order of the last try.
    found.delete(key)
    const host = byAddress.get(address) ?? address
    const entry = entryFor(host, port, protocol)
    found.set(key, {
      ...{ host, address, ...(port === undefined ? {} : { port }), protocol, times, last: at },
      ...('egress' in parseEgress(entry) ? { entry } : {}),
    })
    if (found.size > most) found.delete(found.keys().next().value!)
  }
  return [...found.values()].toReversed()
}

/**
 * The same of what was learned (refused.ts): by name, where it is known. A name alone is left out:
 * there is nothing to allow.
 */
export function shownOf(learned: readonly Refused[]): ShownRefusal[] {
  return learned.flatMap(({ name, address, port, protocol, times, last }) => {
    const host = name ?? address
    if (host === undefined || protocol === undefined) return []
    const entry = entryFor(host, port, protocol)
    return [
      {
        ...{ host, address: address ?? host, ...(port === undefined ? {} : { port }) },
        ...{ protocol, times, last },
        ...('egress' in parseEgress(entry) ? { entry } : {}),
      },
    ]
  })
}

/** An entry of [node_red] allow. */
function entryFor(
  host: string,
  port: number | undefined,
  protocol: ShownRefusal['protocol'],
): string {
  const written = host.includes(':') ? `[${host}]` : host
  return protocol === 'icmp'
    ? `${written}:ping`
    : `${written}:${port}${protocol === 'udp' ? '/udp' : ''}`
}

/** One line of the kernel's, if it is of this kind (overlays/etc/nftables.conf, drop-out-node-red). */
function dropOf(
  line: string,
): (Pick<ShownRefusal, 'address' | 'port' | 'protocol'> & { at: string }) | undefined {
  if (!line.includes('gatehouse-drop out-node-red: ')) return undefined
  let fields: { MESSAGE?: unknown; __REALTIME_TIMESTAMP?: string }
  try {
    fields = JSON.parse(line) as typeof fields
  } catch {
    return undefined
  }
  const text = /^gatehouse-drop out-node-red: (.*)$/.exec(String(fields.MESSAGE))?.[1]
  if (text === undefined) return undefined
  const field = (name: string): string | undefined =>
    new RegExp(`(?:^| )${name}=(\\S+)`).exec(text)?.[1]
  const [address, protocol, port] = [field('DST'), field('PROTO')?.toLowerCase(), field('DPT')]
  if (address === undefined) return undefined
  const at = new Date(Number(fields.__REALTIME_TIMESTAMP) / 1000).toISOString()
  // An echo request, of all that there is of ICMP: the rest is nothing that could be allowed.
  if (
    `${protocol} ${field('TYPE')}` === 'icmp 8' ||
    `${protocol} ${field('TYPE')}` === 'icmpv6 128'
  )
    return { address: shortened(address), protocol: 'icmp', at }
  if (port === undefined || (protocol !== 'tcp' && protocol !== 'udp')) return undefined
  return { address: shortened(address), port: Number(port), protocol, at }
}

/** The kernel writes IPv6 addresses out; people and gatehouse.toml do not (RFC 5952). */
function shortened(address: string): string {
  if (!address.includes(':')) return address
  return new URL(`http://[${address}]/`).hostname.slice(1, -1)
}
