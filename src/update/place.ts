import { createHash } from 'node:crypto'
import { readFile, readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'

/**
 * A device's place among all of them, 0 to 99: the same whenever it is asked, another for each
 * version, so that it is not always the same devices that try a version first.
 *
 * @param machine what tells this device from others: {@link hardwareAddress}
 */
export function placeOf(machine: string, version: string): number {
  return createHash('sha256').update(`${machine} ${version}`).digest().readUInt32BE(0) % 100
}

/**
 * The lowest hardware address of a network card, which outlives a reflash; /etc/machine-id, on a
 * read-only root, is another at each boot. The empty string where there is none.
 *
 * @param sys Default: /sys/class/net
 */
export async function hardwareAddress(sys = '/sys/class/net'): Promise<string> {
  const addresses: string[] = []
  for (const name of await readdir(sys).catch(() => [])) {
    // Not lo, bridges and the like.
    if (
      !(await stat(join(sys, name, 'device')).then(
        () => true,
        () => false,
      ))
    )
      continue
    addresses.push((await readFile(join(sys, name, 'address'), 'utf8').catch(() => '')).trim())
  }
  return addresses.filter((address) => address !== '').toSorted()[0] ?? ''
}
