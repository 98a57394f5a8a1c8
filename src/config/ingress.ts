import { BlockList, isIP } from 'node:net'
import { quote } from './kinds.ts'
import type { Wrong } from './kinds.ts'
import { kernelPath } from './data-path.ts'
import { firstPeerPort, mostPeers } from './peers.ts'

/** A port of a flow's that the local network may reach: an entry of `[node_red] listen`. */
export interface Ingress {
  /** As the person wrote it. */
  text: string
  /** First and last, both included. */
  ports: [number, number]
  protocol: 'tcp' | 'udp'
  /** A network or address; or the networks that the device is in. */
  from: { network: string; family: 4 | 6 } | { zone: 'lan' }
}

const form =
  'Write port/tcp or port/udp and from where: "1883/tcp from 192.168.1.0/24", "5683/udp from lan"'

/**
 * Ports that others of this machine listen on: WireGuard's, and the gateway's on the local network,
 * for devices of the tailnet and on the kernel's data path.
 */
const taken: ReadonlyArray<[number, number]> = [
  [41_080, 41_080],
  [41_443, 41_443],
  [41_641, 41_641],
  [firstPeerPort, firstPeerPort + mostPeers - 1],
  [48_443, 48_443],
  ...Object.values(kernelPath.ports).map((port): [number, number] => [port, port]),
]

/** Networks that are nobody's but the person's own (RFC 1918, 3927, 4193, 4291), with their length. */
const own = ['10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16', 'fc00::/7'] as const

/**
 * Reads one entry: `port[-port]/tcp|udp from network|address|lan`.
 *
 * Refused: ports that Node-RED cannot have, networks that are not local, and whatever cannot be
 * understood whole.
 */
export function parseIngress(text: string): { ingress: Ingress } | { wrong: Wrong } {
  const wrong = (message: string, cure = form): { wrong: Wrong } => ({
    wrong: { message: `listen ${quote(text)}: ${message}`, cure },
  })
  const parts = /^(\d{1,5})(?:-(\d{1,5}))?\/(tcp|udp) from (\S+)$/.exec(text)
  if (parts === null) return wrong('not a port, a protocol and from where')
  const [, first, last, protocol, from] = parts as unknown as [
    string,
    string,
    string | undefined,
    'tcp' | 'udp',
    string,
  ]
  const ports: [number, number] = [Number(first), Number(last ?? first)]
  if (ports[0] > ports[1] || ports[1] > 65_535)
    return wrong('ports go up to 65535, the lower one first')
  if (ports[0] < 1024)
    return wrong(
      'a flow cannot listen on a port below 1024',
      'Choose a port from 1024 on, in the flow and here',
    )
  const other = taken.find(([low, high]) => high >= ports[0] && low <= ports[1])
  if (other !== undefined)
    return wrong(
      `port ${Math.max(other[0], ports[0])} is the gateway's`,
      'Choose another port, in the flow and here',
    )
  if (from === 'lan') return { ingress: { text, ports, protocol, from: { zone: 'lan' } } }
  const network = readNetwork(from)
  return 'wrong' in network
    ? wrong(network.wrong, network.cure)
    : { ingress: { text, ports, protocol, from: network } }
}

function readNetwork(
  text: string,
): { network: string; family: 4 | 6 } | { wrong: string; cure: string } {
  const [address, prefix, ...more] = text.replace(/^\[(.*)\]$/, '$1').split('/') as [
    string,
    string | undefined,
  ]
  const family = isIP(address) as 0 | 4 | 6
  const most = family === 4 ? 32 : 128
  if (
    family === 0 ||
    address.includes('%') ||
    more.length > 0 ||
    (prefix !== undefined && (!/^\d{1,3}$/.test(prefix) || Number(prefix) > most))
  )
    return { wrong: `${quote(text)} is not a network`, cure: form }
  const length = Number(prefix ?? most)
  const local = own.some((network) => {
    const [base, bits] = network.split('/') as [string, string]
    if (isIP(base) !== family || length < Number(bits)) return false
    const list = new BlockList()
    list.addSubnet(base, Number(bits), family === 4 ? 'ipv4' : 'ipv6')
    return list.check(address, family === 4 ? 'ipv4' : 'ipv6')
  })
  if (!local)
    return {
      wrong: `${text} is not within a local network`,
      cure:
        'Write "lan" for the networks that the device is in, or a part of 10.0.0.0/8, ' +
        '172.16.0.0/12, 192.168.0.0/16 or fc00::/7',
    }
  return { network: `${address}/${length}`, family }
}
