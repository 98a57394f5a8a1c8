import { parseEgress } from '../config/egress.ts'
import { extensionIngresses, parseExtensionPort } from '../config/extensions.ts'
import type { AttachedExtension } from '../config/extensions.ts'
import { hash } from './names/list.ts'
import { networkOf } from './networks.ts'
import type { Interfaces } from './networks.ts'

/** The extensions on Node-RED's list, by name; it was validated before. */
export function extensionsOf(allow: readonly string[]): string[] {
  return [
    ...new Set(
      allow.flatMap((text) => {
        const entry = parseEgress(text)
        return 'extension' in entry ? [entry.extension] : []
      }),
    ),
  ]
}

/**
 * The lines of nftables for extensions: which ports of theirs Node-RED reaches at 127.0.0.1, and
 * which the local network. To be run behind those of Node-RED's own list, which empty its chain for
 * this machine. What an extension answers goes out by the mark that the connection got on its way
 * in, so that what is taken off its list ends at once; of itself it reaches nobody
 * (overlays/etc/nftables.conf, out-extensions).
 *
 * @param allowed the extensions on Node-RED's list
 */
export function extensionScript(
  attached: readonly AttachedExtension[],
  allowed: readonly string[],
  { networks }: Pick<Interfaces, 'networks'>,
): string {
  const [into, out] = ['inet gatehouse in-extensions', 'inet gatehouse extension-answers']
  const nodeRed = attached
    .filter(({ name }) => allowed.includes(name))
    .flatMap(({ name, ports }) =>
      ports
        .flatMap((text) => parseExtensionPort(text) ?? [])
        .map(
          ({ port, protocol }) =>
            `add rule inet gatehouse node-red-names ip daddr 127.0.0.1 ${protocol} dport ${port} ` +
            `accept comment "node-red: extension:${name}, ${port}/${protocol}"`,
        ),
    )
  const local = attached.flatMap((extension) =>
    extensionIngresses(extension).flatMap(({ text, ports: [port], protocol, from }): string[] => {
      // Bit 30: neither a name's mark (names/list.ts) nor a flow's port's (ingress.ts) is one.
      const seed = Number.parseInt(hash(`${extension.name} ${text}`), 16)
      const mark = `0x${((seed % 2 ** 29) + 2 ** 30).toString(16)}`
      const sources = 'zone' in from ? networks : [from]
      const rules = ([4, 6] as const).flatMap((family): string[] => {
        const of = sources.filter((source) => source.family === family)
        if (of.length === 0) return []
        const match = `add rule ${into} ${family === 4 ? 'ip' : 'ip6'} saddr { ${of
          .map(({ network }) => networkOf(network))
          .join(', ')} } ${protocol} dport ${port}`
        return [
          `${match} jump in-node-red-limits`,
          `${match} ct mark set ${mark} accept comment "${extension.name}: ${text.slice(0, 100)}"`,
        ]
      })
      return [
        ...rules,
        `add rule ${out} ct direction reply ct state established ct mark ${mark} accept`,
      ]
    }),
  )
  return [`flush chain ${into}`, `flush chain ${out}`, ...nodeRed, ...local, ''].join('\n')
}
