import { BlockList, isIP } from 'node:net'

/**
 * Ranges that no name may lead Node-RED to, and why (RFC 6890; 100.64.0.0/10 and
 * fd7a:115c:a1e0::/48 are the tailnet's).
 */
const ranges: Array<[why: string, ...networks: string[]]> = [
  ['this machine itself', '127.0.0.0/8', '::1/128', '0.0.0.0/8', '::/128'],
  ['the tailnet', '100.64.0.0/10', 'fd7a:115c:a1e0::/48'],
  ['a link-local address', '169.254.0.0/16', 'fe80::/10'],
  ['a multicast or reserved address', '224.0.0.0/3', 'ff00::/8'],
  // These carry an IPv4 address inside, any of the above among them.
  [
    'an IPv4 address in disguise',
    '::ffff:0:0/96',
    '64:ff9b::/96',
    '64:ff9b:1::/48',
    '2002::/16',
    '2001::/32',
  ],
]

const lists = ranges.map(([why, ...networks]) => {
  const list = new BlockList()
  for (const network of networks) {
    const [address, prefix] = network.split('/') as [string, string]
    list.addSubnet(address, Number(prefix), isIP(address) === 4 ? 'ipv4' : 'ipv6')
  }
  return { why, list, mapped: networks.includes('::ffff:0:0/96') }
})

/**
 * Why Node-RED may not be sent to an address, or undefined when it may.
 *
 * @param own this machine's own addresses, which are none of a flow's business either
 */
export function forbidden(address: string, own: Iterable<string> = []): string | undefined {
  const family = isIP(address)
  if (family === 0) return 'no address'
  for (const { why, list, mapped } of lists) {
    // BlockList takes an IPv4 address for its mapped form, which for a plain IPv4 address is no
    // disguise.
    if (!(mapped && family === 4) && list.check(address, family === 4 ? 'ipv4' : 'ipv6')) return why
  }
  return [...own].includes(address) ? 'this machine itself' : undefined
}

/** The networks of one family in which {@link forbidden} finds a reason. */
export function forbiddenNetworks(family: 4 | 6): string[] {
  return ranges.flatMap(([, ...networks]) =>
    networks.filter((network) => network.includes(':') === (family === 6)),
  )
}

/** 4 or 6 for what is written as an address of that family; undefined for a name. */
export function familyOf(host: string): 4 | 6 | undefined {
  if (host.includes(':')) return 6
  return /^[\d.]+$/.test(host) ? 4 : undefined
}
