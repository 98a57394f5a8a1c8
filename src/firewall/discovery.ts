import type { Interfaces } from './networks.ts'

/** How devices of a network find one another: the preset, its group and port (RFC 6762; UPnP 2.0). */
export const discovery = {
  mdns: { group: '224.0.0.251', port: 5353, answersFrom: 'udp sport 5353 ' },
  // A device answers from whatever port it likes.
  ssdp: { group: '239.255.255.250', port: 1900, answersFrom: '' },
} as const

/** A preset of {@link discovery}. */
export type Discovery = keyof typeof discovery

/** Those that a list has. */
export function discoveries(allow: readonly string[]): Discovery[] {
  return (Object.keys(discovery) as Discovery[]).filter((preset) => allow.includes(preset))
}

/**
 * The lines of nftables for them, IPv4 alone, to be run behind those that empty Node-RED's chains.
 * Questions go to the group and nowhere else; for ten seconds answers may come to the port that
 * asked, from the local networks. Whoever of these asks may be answered for as long.
 */
export function discoveryScript(
  list: readonly Discovery[],
  { networks }: Pick<Interfaces, 'networks'>,
): string {
  const lan = networks.filter(({ family }) => family === 4).map(({ network }) => network)
  const [out, into] = ['node-red-allow', 'in-node-red'].map(
    (chain) => `add rule inet gatehouse ${chain}`,
  ) as [string, string]
  const lines =
    lan.length === 0
      ? []
      : list.flatMap((preset): string[] => {
          const { group, port, answersFrom } = discovery[preset]
          const from = `ip saddr { ${lan.join(', ')} }`
          const accept = `limit rate 100/second burst 200 packets accept comment "node-red: ${preset}`
          return [
            `${out} ip daddr ${group} udp dport ${port} update @discovery-ports { udp sport ` +
              `} accept comment "node-red: ${preset}, questions and announcements"`,
            `${out} ip daddr { ${lan.join(', ')} } udp sport ${port} ip daddr . udp dport ` +
              `@discovery-askers accept comment "node-red: ${preset}, answers to who asked"`,
            `${into} ${from} ip daddr ${group} udp dport ${port} update @discovery-askers { ` +
              `ip saddr . udp sport } ${accept}, questions and announcements"`,
            `${into} ${from} ip daddr != ${group} ${answersFrom}udp dport @discovery-ports ${accept}, answers"`,
          ]
        })
  return [
    'flush chain inet gatehouse discovery',
    // Switches send a group to those alone who say that they want it (RFC 3376).
    ...(lines.length > 0
      ? [
          'add rule inet gatehouse discovery ip protocol igmp accept comment "kernel: membership of multicast groups"',
        ]
      : []),
    ...lines,
    '',
  ].join('\n')
}
