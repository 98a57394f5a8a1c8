import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { GatehouseError, reason } from '../base/errors.ts'

/**
 * What Raspberry Pi Imager's settings dialog leaves on the FAT partition, as far as it is used
 * here.
 */
export interface ImagerSettings {
  /** The device's name: the one asked of the tailnet, unless gatehouse.toml names another. */
  hostname?: string
  /** The WiFi network, by the names of [wifi]'s keys in gatehouse.toml. */
  wifi?: Record<string, string | boolean>
  /** What was asked for and is not done, in words for the person. */
  ignored: string[]
}

/**
 * Reads cloud-init's user-data and network-config, which Imager writes for `init_format` cloudinit
 * (https://cloudinit.readthedocs.io/en/latest/reference/examples.html).
 *
 * @returns undefined when there is no user-data: the card was not written by Imager
 * @throws GatehouseError GH_IMAGER when it cannot be understood
 */
export async function readImager(boot: string): Promise<ImagerSettings | undefined> {
  const userData = await document(boot, 'user-data')
  const network = await document(boot, 'network-config')
  if (userData === undefined) return undefined
  const ignored: string[] = []
  if (
    userData.users !== undefined ||
    userData.ssh_pwauth === true ||
    userData.ssh_authorized_keys !== undefined ||
    userData.enable_ssh === true
  )
    ignored.push('user and SSH: nobody logs in over the network')
  const wifi = readWifi(
    ((network?.network as Record<string, unknown> | undefined) ?? network)?.wifis,
    ignored,
  )
  return {
    ...(typeof userData.hostname === 'string' ? { hostname: userData.hostname } : {}),
    ...(wifi === undefined ? {} : { wifi }),
    ignored,
  }
}

/**
 * netplan's wifis (https://netplan.readthedocs.io/en/stable/netplan-yaml/), as far as Imager writes
 * them: one card, one network.
 */
function readWifi(wifis: unknown, ignored: string[]): ImagerSettings['wifi'] {
  const cards = entries(wifis)
  if (cards.length === 0) return undefined
  const points = cards.flatMap(([, card]) =>
    entries((card as Record<string, unknown> | null)?.['access-points']),
  )
  const [first] = points
  if (first === undefined) {
    ignored.push('WiFi: no network is named')
    return undefined
  }
  if (points.length > 1) ignored.push('WiFi: the first network alone is used')
  const [ssid, point] = first
  const { password, hidden, auth } = (point ?? {}) as Record<string, unknown>
  const key = password ?? (auth as Record<string, unknown> | undefined)?.password
  const country = cards
    .map(([, card]) => (card as Record<string, unknown> | null)?.['regulatory-domain'])
    .find((value) => typeof value === 'string')
  return {
    ssid,
    ...(key === undefined ? {} : { password: String(key as string | number) }),
    ...(typeof country === 'string' ? { country } : {}),
    ...(hidden === true ? { hidden } : {}),
  }
}

function entries(value: unknown): Array<[string, unknown]> {
  return typeof value === 'object' && value !== null ? Object.entries(value) : []
}

async function document(boot: string, name: string): Promise<Record<string, unknown> | undefined> {
  const text = await readFile(join(boot, name), 'utf8').catch((err: NodeJS.ErrnoException) => {
    if (err.code === 'ENOENT') return undefined
    throw err
  })
  // Imager leaves them empty, or a comment alone, where nothing was asked for.
  if (text === undefined || text.replaceAll(/^\s*#.*$/gm, '').trim() === '') return undefined
  try {
    // Only read where there is one: YAML is large, and this is on the way of every boot.
    const value: unknown = (await import('yaml')).parse(text)
    if (typeof value !== 'object' || value === null) throw new Error('it is no list of settings')
    return value as Record<string, unknown>
  } catch (err) {
    throw new GatehouseError(
      'GH_IMAGER',
      `${name}, written by Raspberry Pi Imager, cannot be read: ${reason(err)}`,
      `Delete ${name} from the card's first partition, and write what you need into gatehouse.toml`,
    )
  }
}
