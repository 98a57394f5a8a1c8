/**
 * Buses of a Raspberry Pi's header that its device tree has off: SPI, and 1-wire on GPIO 4. (I2C is
 * on.) The firmware switches them on, before the kernel is there, by lines of a file that config.txt
 * includes (https://www.raspberrypi.com/documentation/computers/config_txt.html#include) and by
 * overlays of the image's own beside it (image/rpi). config.txt itself is never written: without it
 * the device does not start.
 */
import { open, readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { withCard } from '../base/card.ts'
import type { Config } from '../config/config.ts'

type Devices = Config['node_red']['devices']

/** On the FAT partition, beside config.txt. */
export const busesFile = 'gatehouse-buses.txt'

/**
 * Its size in bytes, always: it is written in place, and one sector of a card is written whole or
 * not at all. What the firmware needs to start stays as it is, whenever the power goes.
 */
const size = 512

/** Buses by their words in [node_red] devices. */
const buses = {
  spi: { name: 'SPI', overlay: 'gatehouse-spi', node: 'soc/spi@7e204000' },
  '1-wire': { name: '1-wire', overlay: 'gatehouse-1-wire', node: 'gatehouse-1-wire' },
} as const

type Bus = keyof typeof buses

function of(devices: Devices): Bus[] {
  return (Object.keys(buses) as Bus[]).filter((bus) => devices.includes(bus))
}

/** What is in the file where `devices` are given to flows. */
export function busesText(devices: Devices): string {
  const lines = [
    '# [node_red] devices in gatehouse.toml, as of the next start. Written by Gatehouse.',
    ...of(devices).map((bus) => `dtoverlay=${buses[bus].overlay}`),
  ]
  return `${lines.join('\n')}\n`.padEnd(size, '\n')
}

/** Whether the firmware would read the file: not on a card of an older image, and not on a PC. */
async function included(boot: string): Promise<boolean> {
  const config = await readFile(join(boot, 'config.txt'), 'latin1').catch(() => '')
  return new RegExp(`^include ${busesFile.replace('.', '\\.')}\\s*$`, 'm').test(config)
}

/** Writes it, where it is there and says another thing. */
export async function writeBuses(boot: string, devices: Devices): Promise<void> {
  const file = join(boot, busesFile)
  const text = busesText(devices)
  const had = await readFile(file, 'latin1').catch(() => undefined)
  if (had === undefined || had === text || !(await included(boot))) return
  await withCard(boot, async () => {
    const opened = await open(file, 'r+')
    try {
      await opened.write(text, 0, 'latin1')
      await opened.truncate(size)
      await opened.sync()
    } finally {
      await opened.close()
    }
  })
}

/**
 * What a person has to do for a bus that is given to flows and that the kernel was not started with:
 * a line, or none. Nothing is said where there is no such header.
 *
 * @param tree the kernel's device tree
 */
export async function busNotes(
  boot: string,
  devices: Devices,
  tree = '/sys/firmware/devicetree/base',
): Promise<string[]> {
  const board = await stat(join(tree, buses.spi.node)).catch(() => undefined)
  if (board === undefined) return []
  const on = async (bus: Bus): Promise<boolean> => {
    const status = join(tree, buses[bus].node, 'status')
    return (await readFile(status, 'latin1').catch(() => '')) === 'okay\0'
  }
  const states = await Promise.all(of(devices).map(async (bus) => ({ bus, on: await on(bus) })))
  const off = states.filter((state) => !state.on).map(({ bus }) => buses[bus].name)
  if (off.length === 0) return []
  const names = `${off.join(' and ')} on the board's header`
  if (await included(boot))
    return [
      `${names}: on from the next start of the device. Start it again; if it stays off, another ` +
        'line of config.txt on the card is in the way',
    ]
  return [
    `${names}: not to be switched on with this card, whose config.txt does not include ` +
      `${busesFile}. Write this version's image to it, with Debian's kernel: KEEP=1 keeps its ` +
      'data (docs/updates.md)',
  ]
}
