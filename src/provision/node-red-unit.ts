import { join } from 'node:path'
import type { Config } from '../config/config.ts'
import { extensionEntry } from '../config/egress.ts'
import { parseIngress } from '../config/ingress.ts'
import { peersOf, standInNetwork } from '../config/peers.ts'
import { discoveries, discovery } from '../firewall/discovery.ts'

type NodeRed = Config['node_red']

/**
 * What each kind of hardware takes. Kernel modules are loaded first: systemd knows a device class
 * by the major number that its driver has registered, and a USB adapter plugged in later must still
 * be one of them. Groups own the device files (overlays/usr/lib/udev/rules.d/60-gatehouse.rules).
 */
const hardware: Record<
  NodeRed['devices'][number],
  { allow: string[]; group?: string; modules?: string[]; families?: string }
> = {
  serial: {
    allow: ['char-ttyUSB', 'char-ttyACM', 'char-ttyAMA', 'char-ttyS'],
    group: 'dialout',
    modules: ['usbserial', 'cdc_acm'],
  },
  gpio: { allow: ['char-gpiochip'], group: 'gpio' },
  i2c: { allow: ['char-i2c'], group: 'i2c', modules: ['i2c_dev'] },
  spi: { allow: ['char-spi'], group: 'spi', modules: ['spidev'] },
  // Sensors are files of sysfs, which whoever sees it may read: without the modules there are none.
  '1-wire': { allow: [], modules: ['w1_gpio', 'w1_therm'] },
  camera: { allow: ['char-video4linux', 'char-media'], group: 'video', modules: ['uvcvideo'] },
  bluetooth: { allow: [], families: 'AF_BLUETOOTH', modules: ['bluetooth'] },
}

/** Of the serial ports, those that are on the board. */
const onBoard = ['char-ttyAMA', 'char-ttyS']

/**
 * The serial lines that are the kernel's console, and so gatehouse-console.service's: `ttyS0` on a
 * PC, `ttyAMA0`, `ttyAMA10` or `ttyS1` on a Pi. Screens are no serial lines.
 *
 * @param active what is in /sys/class/tty/console/active: names, the last one /dev/console
 */
export function consoleLines(active: string): string[] {
  return active
    .split(/\s+/)
    .filter((name) => /^[A-Za-z]+[0-9]+$/.test(name) && !/^tty\d/.test(name))
}

/**
 * A value of Environment= or the like, quoted as systemd.syntax(7) has it; `%` would begin a
 * specifier.
 *
 * @throws Error for control characters: a line break would begin another setting
 */
function quoted(text: string): string {
  if (/\p{Cc}/u.test(text)) throw new Error('a control character in a value of a unit')
  return `"${text.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('%', '%%')}"`
}

/**
 * The part of node-red.service that gatehouse.toml decides, as a drop-in; the empty string when it
 * says nothing, and the unit is as strict as it was shipped.
 *
 * Whom Node-RED may call is not in it, only that there is a list: the list is the firewall's, which
 * changes without a restart.
 *
 * @param directory where the last good configuration is
 * @param consoles lines that are the system's own, by name ({@link consoleLines}), and so no serial
 *   ports of Node-RED's: somebody logs in there. `unknown`: which they are could not be told
 */
export function nodeRedDropIn(
  config: NodeRed,
  directory: string,
  consoles: readonly string[] | 'unknown' = [],
): string {
  const unit: string[] = []
  const service: string[] = []
  if (config.allow.length + config.listen.length > 0) {
    service.push(
      "# It calls out by this machine's network: whom, the firewall decides by user. The " +
        'second belt: never this machine or the tailnet.',
      'PrivateNetwork=no',
      'IPAddressDeny=',
      'IPAddressDeny=localhost link-local multicast 100.64.0.0/10 fd7a:115c:a1e0::/48',
      '# ping gives up capabilities that it does not have, and ends where it may not: there are ' +
        'none to be had.',
      'SystemCallFilter=capset setuid',
      '# Its own resolver (gatehouse-names.socket), which answers for names on the list and ' +
        'sends no other question out.',
      'IPAddressAllow=127.0.0.55',
      '# Where /etc/resolv.conf leads.',
      'BindReadOnlyPaths=/usr/lib/gatehouse/node-red-resolv.conf:/run/systemd/resolve/stub-resolv.conf',
    )
  }
  if (peersOf(config.allow).length > 0)
    service.push(
      '# The addresses that stand for devices of the tailnet: the gateway is behind them.',
      `IPAddressAllow=${standInNetwork}`,
    )
  if (config.allow.some((text) => extensionEntry.test(text)))
    service.push(
      "# Extensions' ports, which are this machine's: those of them that the firewall lets through.",
      'IPAddressAllow=127.0.0.1',
    )
  for (const text of config.listen) {
    const entry = parseIngress(text)
    if ('wrong' in entry) continue
    const { protocol, ports } = entry.ingress
    const [first, last] = ports
    service.push(`SocketBindAllow=${protocol}:${first === last ? first : `${first}-${last}`}`)
  }
  for (const preset of discoveries(config.allow)) {
    const { group, port } = discovery[preset]
    service.push(`IPAddressAllow=${group}`, `SocketBindAllow=udp:${port}`)
  }
  const programs = [
    ...(config.devices.includes('gpio') ? ['/usr/lib/gatehouse/gpio'] : []),
    ...(config.allow.includes('palette') ? ['/usr/lib/node-red/node_modules/.bin'] : []),
  ]
  if (programs.length > 0)
    service.push(`Environment=PATH=${[...programs, '/usr/bin', '/bin'].join(':')}`)
  if (config.allow.includes('palette')) {
    service.push('Environment=GATEHOUSE_PALETTE=yes')
    if (config.registry !== undefined)
      service.push(`Environment=${quoted(`npm_config_registry=${config.registry}`)}`)
    if (config.allow.includes('prebuilt')) service.push('Environment=GATEHOUSE_PREBUILT=yes')
  }
  // What JavaScript calls local time, and so what inject nodes and the log mean.
  if (config.timezone !== undefined) service.push(`Environment=TZ=${config.timezone}`)
  if (config.functionModules) service.push('Environment=GATEHOUSE_FUNCTION_MODULES=yes')
  if (config.projects) service.push('Environment=GATEHOUSE_PROJECTS=yes')
  if (config.settingsFile !== undefined)
    service.push(`LoadCredential=settings.js:${join(directory, config.settingsFile)}`)
  if (config.devices.length > 0) {
    const chosen = config.devices.map((name) => hardware[name])
    const modules = chosen.flatMap(({ modules = [] }) =>
      modules.map((module) => `modprobe@${module}.service`),
    )
    if (modules.length > 0) unit.push(`Wants=${modules.join(' ')}`, `After=${modules.join(' ')}`)
    if (chosen.some(({ allow }) => allow.length > 0))
      service.push('PrivateDevices=no', 'DevicePolicy=closed')
    if (config.devices.includes('serial') && consoles !== 'unknown' && consoles.length > 0)
      service.push(
        "# [console] login: whoever has this line reads and writes what root's shell does.",
        `InaccessiblePaths=${consoles.map((name) => `-/dev/${name}`).join(' ')}`,
      )
    for (const { allow, group, families } of chosen) {
      // Which of the board's own lines is the console's is not known: none, then.
      const given = allow.filter((device) => consoles !== 'unknown' || !onBoard.includes(device))
      service.push(...given.map((device) => `DeviceAllow=${device} rw`))
      if (group !== undefined) service.push(`SupplementaryGroups=${group}`)
      if (families !== undefined) service.push(`RestrictAddressFamilies=${families}`)
    }
  }
  if (service.length === 0 && unit.length === 0) return ''
  return [
    '# Written by gatehouse provision: [node_red] in gatehouse.toml.',
    ...(unit.length === 0 ? [] : ['[Unit]', ...unit]),
    '[Service]',
    ...service,
    '',
  ].join('\n')
}
