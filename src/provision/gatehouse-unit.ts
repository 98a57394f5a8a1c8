import type { Config } from '../config/config.ts'
import { localPorts } from '../firewall/local-ports.ts'

/**
 * The part of gatehouse.service that gatehouse.toml decides, as a drop-in; the empty string by
 * default. That it is there is also what gatehouse-firewall.service looks at: there is something to
 * put in force.
 */
export function gatehouseDropIn({ listen }: Config['local_network']): string {
  if (!listen) return ''
  return [
    '# Written by gatehouse provision: [local_network] in gatehouse.toml.',
    '[Service]',
    ...Object.values(localPorts).map((port) => `SocketBindAllow=tcp:${port}`),
    '',
  ].join('\n')
}
