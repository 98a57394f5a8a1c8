import { readFile, readdir, readlink } from 'node:fs/promises'
import { join } from 'node:path'

/** Something plugged in or on the board that [node_red] devices can grant. */
export interface Device {
  /** Word of [node_red] devices. */
  kind: 'serial' | 'gpio' | 'i2c' | 'spi' | '1-wire' | 'camera' | 'bluetooth'
  /** What a flow opens: /dev/serial/by-id/… where there is such a name, else /dev/…. */
  path: string
  /** What it says of itself; empty where it says nothing. */
  label: string
}

const kinds: Array<[kind: Device['kind'], name: RegExp]> = [
  ['serial', /^tty(?:USB|ACM|AMA|S)\d+$/],
  ['gpio', /^gpiochip\d+$/],
  ['i2c', /^i2c-\d+$/],
  ['spi', /^spidev\d+\.\d+$/],
  ['camera', /^video\d+$/],
]

/** What is there, by /dev and /sys. `root`: for tests, default the system's own. */
export async function devices(root = '/'): Promise<Device[]> {
  const found: Device[] = []
  const byId = new Map<string, string>()
  for (const name of await names(join(root, 'dev/serial/by-id'))) {
    const target = await readlink(join(root, 'dev/serial/by-id', name)).catch(() => '')
    byId.set(target.split('/').at(-1)!, name)
  }
  for (const name of await names(join(root, 'dev'))) {
    const kind = kinds.find(([, pattern]) => pattern.test(name))?.[0]
    if (kind === undefined) continue
    const id = byId.get(name)
    // The kernel names serial ports that are not there; those have no driver that drives them.
    if (kind === 'serial' && id === undefined && name.startsWith('ttyS')) {
      const type = await text(join(root, 'sys/class/tty', name, 'type'))
      if (type === '0' || type === '') continue
    }
    found.push({
      kind,
      path: id === undefined ? `/dev/${name}` : `/dev/serial/by-id/${id}`,
      label: await labelOf(root, kind, name, id),
    })
  }
  for (const name of await names(join(root, 'sys/bus/w1/devices')))
    if (/^[0-9a-f]{2}-[0-9a-f]{12}$/.test(name))
      found.push({ kind: '1-wire', path: `/sys/bus/w1/devices/${name}`, label: '' })
  for (const name of await names(join(root, 'sys/class/bluetooth')))
    if (/^hci\d+$/.test(name)) found.push({ kind: 'bluetooth', path: name, label: '' })
  return found
}

async function labelOf(
  root: string,
  kind: Device['kind'],
  name: string,
  id: string | undefined,
): Promise<string> {
  if (id !== undefined)
    return id
      .replace(/^usb-/, '')
      .replace(/-if\d+.*$/, '')
      .replaceAll('_', ' ')
  if (kind === 'gpio') return await text(join(root, 'sys/bus/gpio/devices', name, 'label'))
  if (kind === 'camera') return await text(join(root, 'sys/class/video4linux', name, 'name'))
  if (kind === 'i2c') return await text(join(root, 'sys/class/i2c-dev', name, 'name'))
  return ''
}

async function names(directory: string): Promise<string[]> {
  return (await readdir(directory).catch(() => [] as string[])).toSorted()
}

async function text(path: string): Promise<string> {
  return (await readFile(path, 'utf8').catch(() => '')).trim().slice(0, 200)
}
