/**
 * What a Raspberry Pi's firmware makes of a card, by its documentation (raspberrypi.com/documentation:
 * config.txt, boot folder, device trees): which files it loads, and what it would not find. No
 * emulator runs that firmware.
 */

export interface Board {
  name: string
  /** What the boot ROM, or the boot loader in the board's own flash, loads first, in pairs. */
  firmware: string[]
  /** Device trees by their names upstream and in Raspberry Pi's own kernel. */
  tree: { upstream: string; downstream: string }
  /** Of the later stepping of its chip: overlays that the firmware adds by itself. */
  overlays?: string[]
}

const pi3 = ['bootcode.bin', 'start.elf', 'fixup.dat']
const pi4 = ['start4.elf', 'fixup4.dat']

/** The boards that README.md names, and the Pi 5, which Raspberry Pi's own kernel is for. */
export const boards: readonly Board[] = [
  { name: '3B', firmware: pi3, tree: bcm2837('3-b') },
  { name: '3B+', firmware: pi3, tree: bcm2837('3-b-plus') },
  { name: 'Zero 2 W', firmware: pi3, tree: bcm2837('zero-2-w') },
  { name: '4', firmware: pi4, tree: same('bcm2711-rpi-4-b') },
  { name: '400', firmware: pi4, tree: same('bcm2711-rpi-400') },
  {
    name: 'CM4',
    firmware: pi4,
    // raspberrypi/firmware#1660.
    tree: { upstream: 'bcm2711-rpi-cm4-io.dtb', downstream: 'bcm2711-rpi-cm4.dtb' },
  },
  {
    name: '5',
    firmware: [],
    tree: same('bcm2712-rpi-5-b'),
    overlays: ['overlays/overlay_map.dtb', 'overlays/bcm2712d0.dtbo'],
  },
]

function bcm2837(name: string): Board['tree'] {
  return { upstream: `bcm2837-rpi-${name}.dtb`, downstream: `bcm2710-rpi-${name}.dtb` }
}

function same(name: string): Board['tree'] {
  return { upstream: `${name}.dtb`, downstream: `${name}.dtb` }
}

/** What a board would start, and what is wrong with the card for it. */
export interface Start {
  kernel: string
  tree: string | undefined
  problems: string[]
}

/**
 * What the firmware of `board` makes of the first partition.
 *
 * @param files names on it, as they are written, with `/` between folders
 * @param config the content of config.txt
 * @param contents of files that it includes
 */
export function started(
  board: Board,
  files: Iterable<string>,
  config: string,
  contents: Readonly<Record<string, string>> = {},
): Start {
  const present = new Set([...files].map((name) => name.toLowerCase()))
  const has = (name: string): boolean => present.has(name.toLowerCase())
  const problems: string[] = []
  const settings = new Map<string, string>()
  const overlays: string[] = []
  const read = (text: string): string[] =>
    text.split(/\r?\n/).flatMap((line) => {
      const name = /^include (\S+)$/.exec(line)?.[1]
      if (name === undefined) return [line]
      if (!has(name)) problems.push(`${name} is missing`)
      return read(contents[name] ?? '')
    })
  for (const line of read(config)) {
    if (line.length > 98) problems.push(`config.txt: more than 98 characters: ${line}`)
    if (line.startsWith('['))
      problems.push(`config.txt: a filter, which is not understood: ${line}`)
    const match = /^([a-z0-9_]+)=(\S.*)$/.exec(line)
    if (match?.[1] === 'dtoverlay') overlays.push(match[2]!)
    else if (match !== null) settings.set(match[1]!, match[2]!)
    else if (line.trim() !== '' && !line.startsWith('#'))
      problems.push(`config.txt: no setting: ${line}`)
  }
  for (const name of overlays)
    if (!has(`overlays/${name}.dtbo`)) problems.push(`overlays/${name}.dtbo is missing`)
  if (!has('config.txt')) problems.push('config.txt is missing')
  for (const file of board.firmware) if (!has(file)) problems.push(`${file} is missing`)
  for (const name of ['start_file', 'fixup_file', 'start_x', 'start_debug', 'device_tree'])
    if (settings.has(name)) problems.push(`config.txt: ${name} is not for every board`)
  // It gets its command line from the EFI boot loader; what the firmware gives is not read.
  if (has('cmdline.txt')) problems.push('cmdline.txt is there, and nothing reads it')

  const kernel = settings.get('kernel') ?? 'kernel8.img'
  if (!has(kernel)) problems.push(`${kernel} is missing`)
  if (settings.get('arm_64bit') !== '1') problems.push('config.txt: arm_64bit=1 is not there')

  const upstream = settings.get('upstream_kernel') === '1'
  const { tree } = board
  const chosen = upstream && has(tree.upstream) ? tree.upstream : tree.downstream
  if (!has(chosen)) problems.push(`${chosen} is missing`)
  else if (upstream && chosen !== tree.upstream)
    problems.push(`${chosen} gets the firmware's overlay "upstream", which is for another kernel`)
  // Raspberry Pi's own tree of the Pi 5 is for the first stepping, without the overlay.
  if (!upstream)
    for (const overlay of board.overlays ?? [])
      if (!has(overlay)) problems.push(`${overlay} is missing`)
  return { kernel, tree: has(chosen) ? chosen : undefined, problems }
}
