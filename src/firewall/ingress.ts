import { GatehouseError } from '../base/errors.ts'
import { parseIngress } from '../config/ingress.ts'
import type { Ingress } from '../config/ingress.ts'
import { networkOf } from './networks.ts'
import type { Interfaces } from './networks.ts'
import { hash } from './names/list.ts'

/** The entries of a list that was validated before. */
export function ingresses(listen: readonly string[]): Ingress[] {
  return listen.map((text) => {
    const entry = parseIngress(text)
    if ('wrong' in entry)
      throw new GatehouseError('GH_FIREWALL_LIST', entry.wrong.message, entry.wrong.cure)
    return entry.ingress
  })
}

/**
 * The lines of nftables that let the local network reach ports of flows. To be run behind those of
 * Node-RED's own list, which empty its chain: what Node-RED answers goes out by it, by the mark that
 * the connection got on its way in. What is taken off the list ends at once.
 */
export function ingressScript(
  list: readonly Ingress[],
  { networks }: Pick<Interfaces, 'networks'>,
): string {
  const into = 'inet gatehouse in-node-red'
  const lines = list.flatMap(({ text, ports: [first, last], protocol, from }): string[] => {
    // Bit 29: no name's mark (names/list.ts) is one of these.
    const mark = `0x${((Number.parseInt(hash(text), 16) % 2 ** 29) + 2 ** 29).toString(16)}`
    const sources = 'zone' in from ? networks : [from]
    const rules = ([4, 6] as const).flatMap((family): string[] => {
      const of = sources.filter((source) => source.family === family)
      if (of.length === 0) return []
      const match = `add rule ${into} ${family === 4 ? 'ip' : 'ip6'} saddr { ${of
        .map(({ network }) => networkOf(network))
        .join(', ')} } ${protocol} dport ${first === last ? first : `${first}-${last}`}`
      return [
        `${match} jump in-node-red-limits`,
        `${match} ct mark set ${mark} accept comment "node-red: ${text.slice(0, 100)}"`,
      ]
    })
    return [
      ...rules,
      `add rule inet gatehouse node-red-allow ct direction reply ct state established ct mark ${mark} accept`,
    ]
  })
  return [`flush chain ${into}`, ...lines, ''].join('\n')
}
