import type { Config } from '../config/config.ts'
import { GatehouseError } from '../base/errors.ts'

/**
 * The name of wpa_supplicant's configuration beside the last good one: 0600, handed to
 * gatehouse-wifi@.service as a credential.
 */
export const wifiFile = 'wpa_supplicant.conf'

/**
 * wpa_supplicant.conf(5) for the network of [wifi]; undefined where there is none.
 *
 * WPA2 and WPA3 with a passphrase, WPA2 alone with a key of 64 hexadecimal digits (which is what
 * Raspberry Pi Imager writes: the passphrase cannot be had from it), or an open network. The SSID
 * is written as hexadecimal digits, so that no byte of it means anything.
 *
 * @throws GatehouseError GH_CONFIG_VALUE when a key is missing
 */
export function wifiConfig({
  ssid,
  password,
  country,
  hidden,
}: Config['wifi']): string | undefined {
  if (ssid === undefined) {
    if (password === undefined && country === undefined) return undefined
    throw new GatehouseError(
      'GH_CONFIG_VALUE',
      '[wifi] has no ssid',
      'Write ssid = "…", the name of the network, or remove [wifi]',
    )
  }
  if (country === undefined)
    throw new GatehouseError(
      'GH_CONFIG_VALUE',
      '[wifi] has no country, which decides the channels that may be used',
      'Write country = "DE", with your country\'s two letters',
    )
  const keys = keyLines(password)
  return [
    '# Written by gatehouse provision: [wifi] in gatehouse.toml.',
    `country=${country}`,
    'network={',
    ...[
      `ssid=${Buffer.from(ssid).toString('hex')}`,
      `scan_ssid=${hidden ? 1 : 0}`,
      ...keys,
      'ieee80211w=1',
    ].map((line) => `\t${line}`),
    '}',
    '',
  ].join('\n')
}

/** The lines of wpa_supplicant.conf that say how to join. */
function keyLines(password: string | undefined): string[] {
  if (password === undefined) return ['key_mgmt=NONE']
  if (/^[0-9a-f]{64}$/i.test(password))
    return ['key_mgmt=WPA-PSK WPA-PSK-SHA256', `psk=${password}`]
  // Quoted to the line's last quotation mark, which a passphrase may hold too.
  return ['key_mgmt=WPA-PSK WPA-PSK-SHA256 SAE', `psk="${password}"`, `sae_password="${password}"`]
}
