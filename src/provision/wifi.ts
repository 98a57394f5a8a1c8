import type { Config } from '../config/config.ts'
import { GatehouseError } from '../base/errors.ts'

/**
 * The name of wpa_supplicant's configuration beside the last good one: 0600, handed to
 * gatehouse-wifi@.service as a credential.
 */
export const wifiFile = 'wpa_supplicant.conf'

/**
 * wpa_supplicant.conf(5) for the networks of [wifi]; undefined where there is none. Of several
 * that are in reach, the first is joined.
 *
 * WPA2 and WPA3 with a passphrase, WPA2 alone with a key of 64 hexadecimal digits (which is what
 * Raspberry Pi Imager writes: the passphrase cannot be had from it), or an open network. The SSID
 * is written as hexadecimal digits, so that no byte of it means anything.
 *
 * @param options.world whether a country may be missing: the kernel then allows what is allowed all
 *   over the world
 * @throws GatehouseError GH_CONFIG_VALUE when a key is missing
 */
export function wifiConfig(
  networks: Config['wifi'],
  { world = false }: { world?: boolean } = {},
): string | undefined {
  const named = networks.filter(
    ({ ssid, ssidHex, password, country }) =>
      (ssid ?? ssidHex ?? password ?? country) !== undefined,
  )
  if (named.length === 0) return undefined
  if (named.some(({ ssid, ssidHex }) => (ssid ?? ssidHex) === undefined))
    throw new GatehouseError(
      'GH_CONFIG_VALUE',
      '[wifi] has no ssid',
      'Write ssid = "…", the name of the network, or remove [wifi]',
    )
  const countries = new Set(named.flatMap(({ country }) => country ?? []))
  if (countries.size === 0 && !world)
    throw new GatehouseError(
      'GH_CONFIG_VALUE',
      '[wifi] has no country, which decides the channels that may be used',
      'Write country = "DE", with your country\'s two letters',
    )
  const [country] = countries
  return [
    '# Written by gatehouse provision: [wifi] in gatehouse.toml.',
    ...(country === undefined ? [] : [`country=${country}`]),
    // An access point with WPA3 says by which of two ways it makes the password an element (IEEE
    // 802.11, 12.4.4): take either. By default wpa_supplicant knows the older one alone.
    'sae_pwe=2',
    ...named.flatMap((network, index) =>
      block(network, named.length > 1 ? named.length - index : undefined),
    ),
    '',
  ].join('\n')
}

function block(
  { ssid, ssidHex, password, hidden }: Config['wifi'][number],
  priority: number | undefined,
): string[] {
  let keys = ['key_mgmt=NONE']
  if (password !== undefined)
    keys = isHashed(password)
      ? ['key_mgmt=WPA-PSK WPA-PSK-SHA256', `psk=${password}`]
      : // Quoted to the line's last quotation mark, which a passphrase may hold too.
        ['key_mgmt=WPA-PSK WPA-PSK-SHA256 SAE', `psk="${password}"`, `sae_password="${password}"`]
  const lines = [
    `ssid=${ssidHex?.toLowerCase() ?? Buffer.from(ssid!).toString('hex')}`,
    `scan_ssid=${hidden ? 1 : 0}`,
    ...keys,
    'ieee80211w=1',
    ...(priority === undefined ? [] : [`priority=${priority}`]),
  ]
  return ['network={', ...lines.map((line) => `\t${line}`), '}']
}

/** Whether it is the key that WPA2 makes of name and password, with which WPA3 can do nothing. */
export function isHashed(password: string): boolean {
  return /^[0-9a-f]{64}$/i.test(password)
}
