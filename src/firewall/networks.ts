import { networkInterfaces } from 'node:os'
import { BlockList, isIP } from 'node:net'
import { forbidden } from '../config/addresses.ts'
import { kernelPath } from '../config/data-path.ts'

/** This machine's own addresses, and the networks its cables and radios are in. */
export interface Interfaces {
  addresses: string[]
  /** `192.168.1.0/24`, `fd00::/64`; none of this machine itself, and no link-local one. */
  networks: Array<{ network: string; family: 4 | 6 }>
  /** Whether it has an IPv6 address that is more than link-local. */
  ipv6: boolean
}

/** The interfaces as they are now. */
export function interfaces(
  list: ReturnType<typeof networkInterfaces> = networkInterfaces(),
): Interfaces {
  const all = Object.values(list).flatMap((of) => of ?? [])
  // The one that leads into the tailnet is no local network, and the way to none.
  const cards = Object.entries(list).flatMap(([name, of]) =>
    name === kernelPath.interface ? [] : (of ?? []),
  )
  const networks = new Map<string, 4 | 6>()
  for (const { address, cidr, internal, family } of cards) {
    if (internal || cidr === null || forbidden(address) !== undefined) continue
    networks.set(networkOf(cidr), family === 'IPv4' ? 4 : 6)
  }
  return {
    addresses: all.map(({ address }) => address),
    networks: [...networks].map(([network, family]) => ({ network, family })),
    ipv6: cards.some(
      ({ family, address, internal }) =>
        family === 'IPv6' && !internal && !address.startsWith('fe80:'),
    ),
  }
}

/** `192.168.1.7/24` is in `192.168.1.0/24`. */
export function networkOf(cidr: string): string {
  const [address, prefix] = cidr.split('/') as [string, string]
  const bits = Number(prefix)
  if (isIP(address) === 4) {
    const number = address.split('.').reduce((sum, part) => sum * 256 + Number(part), 0)
    const kept = number - (number % 2 ** (32 - bits))
    return `${[24, 16, 8, 0].map((shift) => Math.floor(kept / 2 ** shift) % 256).join('.')}/${bits}`
  }
  const [head, tail = ''] = address.split('::') as [string, string?]
  const groups = (text: string): string[] => text.split(':').filter((group) => group !== '')
  const [first, last] = [groups(head), groups(tail)]
  const middle = address.includes('::')
    ? Array.from({ length: 8 - first.length - last.length }, () => '0')
    : []
  const kept = [...first, ...middle, ...last].map((group, i) => {
    const free = Math.min(16, Math.max(0, (i + 1) * 16 - bits))
    const number = Number.parseInt(group, 16)
    return (number - (number % 2 ** free)).toString(16)
  })
  return `${kept.join(':')}/${bits}`
}

/** Networks whose addresses several places use (RFC 1918, 6598, 4193), beside what is forbidden. */
export const privateNetworks = {
  4: ['10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16'],
  6: ['fc00::/7'],
} as const

/** Whether an address is one of a local network: a private one, or in a network of this device's. */
export function isLocal(address: string, networks: Interfaces['networks']): boolean {
  const list = new BlockList()
  for (const network of [
    ...privateNetworks[4],
    ...privateNetworks[6],
    ...networks.map((own) => own.network),
  ]) {
    const [base, prefix] = network.split('/') as [string, string]
    list.addSubnet(base, Number(prefix), isIP(base) === 4 ? 'ipv4' : 'ipv6')
  }
  return list.check(address, isIP(address) === 4 ? 'ipv4' : 'ipv6')
}
