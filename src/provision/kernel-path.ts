import type { Config } from '../config/config.ts'
import { kernelPath, tailnetNetworks } from '../config/data-path.ts'

const { interface: name, addresses, mtu, table } = kernelPath

/**
 * systemd-networkd's files for `[tailnet] data_path = "kernel"`, by their paths below its
 * directory; empty texts otherwise. systemd.netdev(5), systemd.network(5).
 *
 * The interface is the gateway's user's, which therefore needs no capability to open it. What is
 * sent from its addresses goes by it or nowhere: were there no route, it would take the default
 * one. Nothing else is led there.
 */
export function kernelPathFiles({
  dataPath,
}: Pick<Config['tailnet'], 'dataPath'>): Map<string, string> {
  const on = dataPath === 'kernel'
  const written = '# Written by gatehouse provision: [tailnet] data_path in gatehouse.toml.'
  const netdev = [
    written,
    '[NetDev]',
    `Name=${name}`,
    'Kind=tun',
    '[Tun]',
    'User=gatehouse',
    'VNetHeader=yes',
    '',
  ]
  const families = [4, 6] as const
  const network = [
    written,
    '[Match]',
    `Name=${name}`,
    '[Link]',
    `MTUBytes=${mtu}`,
    'RequiredForOnline=no',
    '[Network]',
    'LinkLocalAddressing=no',
    'IPv6AcceptRA=no',
    'LLMNR=no',
    'MulticastDNS=no',
    '# They stay while no gateway has it open.',
    'ConfigureWithoutCarrier=yes',
    'IgnoreCarrierLoss=yes',
    ...families.flatMap((family) => [
      '[Address]',
      `Address=${addresses[family]}/${family === 4 ? 32 : 128}`,
      // Never the source of anything that asks for none.
      ...(family === 4
        ? ['Scope=link']
        : ['PreferredLifetime=0', 'DuplicateAddressDetection=none']),
    ]),
    ...families.flatMap((family) => [
      '[Route]',
      `Destination=${tailnetNetworks[family]}`,
      `Table=${table}`,
      ...(family === 4 ? ['Scope=link'] : []),
      '[Route]',
      'Type=unreachable',
      `Destination=${family === 4 ? '0.0.0.0/0' : '::/0'}`,
      `Table=${table}`,
      'Metric=4096',
    ]),
    ...families.flatMap((family) => [
      '[RoutingPolicyRule]',
      `From=${addresses[family]}/${family === 4 ? 32 : 128}`,
      `Table=${table}`,
      'Priority=1000',
    ]),
    '',
  ]
  return new Map([
    [`40-${name}.netdev`, on ? netdev.join('\n') : ''],
    [`40-${name}.network`, on ? network.join('\n') : ''],
  ])
}
