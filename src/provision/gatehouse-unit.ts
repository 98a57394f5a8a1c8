import type { Config } from '../config/config.ts'
import { kernelPath } from '../config/data-path.ts'
import { localPorts } from '../firewall/local-ports.ts'

/**
 * The part of gatehouse.service that gatehouse.toml decides, as a drop-in; the empty string by
 * default. That it is there is also what gatehouse-firewall.service looks at: there is something to
 * put in force.
 */
export function gatehouseDropIn({
  local_network: { listen },
  tailnet: { dataPath },
}: Pick<Config, 'local_network' | 'tailnet'>): string {
  const kernel = dataPath === 'kernel'
  if (!listen && !kernel) return ''
  const bind = (ports: readonly number[]): string[] =>
    ports.map((port) => `SocketBindAllow=tcp:${port}`)
  return [
    '# Written by gatehouse provision: [local_network], and [tailnet] data_path, in gatehouse.toml.',
    '[Service]',
    ...(listen ? bind(Object.values(localPorts)) : []),
    ...(kernel
      ? [
          ...bind(Object.values(kernelPath.ports)),
          '# Of all devices one more than before: an interface of this user by it, and no other.',
          'PrivateDevices=no',
          'DevicePolicy=closed',
          'DeviceAllow=/dev/net/tun rw',
        ]
      : []),
    '',
  ].join('\n')
}
