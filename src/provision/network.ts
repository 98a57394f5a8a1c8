import { isIP } from 'node:net'
import type { Config } from '../config/config.ts'

type Network = Config['network'][number]

/**
 * systemd-networkd's own files of the image, which the drop-ins below add to
 * (overlays/usr/lib/systemd/network).
 */
const files: Record<Network['interface'], string> = {
  ethernet: '50-wired.network',
  wifi: '60-wireless.network',
}

/**
 * systemd.network(5) drop-ins for [network], by their paths below systemd-networkd's directory; the
 * empty string for a card that has its address from the network.
 */
export function networkDropIns(networks: Config['network']): Map<string, string> {
  return new Map(
    (Object.keys(files) as Array<Network['interface']>).map((card) => [
      `${files[card]}.d/50-gatehouse.conf`,
      dropIn(networks.find((network) => network.interface === card)),
    ]),
  )
}

function dropIn(network: Network | undefined): string {
  if (network === undefined) return ''
  const { addresses, gateway, dns, search, dhcp } = network
  const fixed = addresses.some((address) => isIP(address.split('/')[0]!) === 4)
  const lines = [
    ...addresses.map((address) => `Address=${address}`),
    ...gateway.map((address) => `Gateway=${address}`),
    ...dns.map((address) => `DNS=${address}`),
    ...(search.length === 0 ? [] : [`Domains=${search.join(' ')}`]),
    // IPv6 goes on as the router announces it.
    ...((dhcp ?? !fixed) ? [] : ['DHCP=ipv6']),
  ]
  if (lines.length === 0) return ''
  return [
    '# Written by gatehouse provision: [network] in gatehouse.toml.',
    '[Network]',
    ...lines,
    // The person's own, and not beside what the network says.
    ...(dns.length === 0
      ? []
      : ['[DHCPv4]', 'UseDNS=no', '[DHCPv6]', 'UseDNS=no', '[IPv6AcceptRA]', 'UseDNS=no']),
    '',
  ].join('\n')
}
