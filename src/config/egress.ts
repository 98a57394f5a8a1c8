import { isIP } from 'node:net'
import { quote } from './kinds.ts'
import type { Wrong } from './kinds.ts'
import { forbidden } from './addresses.ts'

/** One thing Node-RED may call: an entry of `[node_red] allow`, understood. */
export interface Egress {
  /** As the person wrote it; of a preset `preset: target`. */
  text: string
  /**
   * An address, with `/prefix` for a network of them; IPv6 without brackets. A name; or `wildcard`,
   * every name below that one. Or a `zone`: the device's own network, or all that is in no private
   * network. Or a `peer`, a device or Service of the tailnet, which is reached through the gateway
   * ({@link file://./peers.ts}).
   */
  host:
    | { address: string; family: 4 | 6 }
    | { name: string }
    | { wildcard: string }
    | { zone: 'lan' | 'internet' }
    | { peer: PeerHost }
  /** First and last, both included; `[0, 0]` of a ping, which has none. */
  ports: [number, number]
  /** `icmp`: echo requests alone (RFC 792, RFC 4443), and in Node-RED's list alone. */
  protocol: 'tcp' | 'udp' | 'icmp'
}

/** `extension:NAME` in the list: every port of a program beside Node-RED ({@link file://./extensions.ts}). */
export const extensionEntry = /^extension:([a-z][a-z0-9-]{0,30})$/

/** A device of the tailnet by its full name, any that has a tag, or a Service (`svc:name`). */
export type PeerHost = { name: string } | { tag: string } | { service: string }

/** A word in the list that stands for targets of its own. */
export interface PresetDescription {
  /** What it lets flows do, for a form. */
  means: string
  /** What it stands for, as entries of the list; none where the device finds them itself. */
  targets: readonly string[]
}

/** The presets, by the word in the list ({@link file://./presets.ts} expands them). */
export const presets = {
  palette: { means: 'the registry that npm fetches nodes from', targets: [] },
  // prebuild-install and node-pre-gyp fetch a release of a project on GitHub for most add-ons: the
  // first host leads to one of the others.
  prebuilt: {
    means: 'compiled add-ons and firmware that packages fetch from GitHub releases',
    targets: [
      'github.com:443',
      'codeload.github.com:443',
      'objects.githubusercontent.com:443',
      'release-assets.githubusercontent.com:443',
    ],
  },
  mdns: {
    means: 'finding devices and being found on the local network (mDNS: HomeKit, Chromecast)',
    targets: [],
  },
  ssdp: {
    means: 'finding devices and being found on the local network (SSDP: UPnP, Hue, Alexa)',
    targets: [],
  },
  mqtt: { means: 'MQTT brokers on the local network', targets: ['lan:1883', 'lan:8883'] },
  modbus: { means: 'Modbus TCP devices on the local network', targets: ['lan:502'] },
  'home-assistant': { means: 'Home Assistant on the local network', targets: ['lan:8123'] },
  shelly: {
    means: 'Shelly devices on the local network (HTTP and CoIoT)',
    targets: ['lan:80', 'lan:5683/udp'],
  },
  ping: { means: 'pinging devices on the local network', targets: ['lan:ping'] },
  sonos: { means: 'Sonos players on the local network', targets: ['lan:1400'] },
  knx: { means: 'a KNX/IP gateway on the local network', targets: ['lan:3671', 'lan:3671/udp'] },
  influxdb: { means: 'InfluxDB on the local network', targets: ['lan:8086'] },
  databases: {
    means: 'MySQL, PostgreSQL and MongoDB on the local network',
    targets: ['lan:3306', 'lan:5432', 'lan:27017'],
  },
  'influx-cloud': { means: 'InfluxDB Cloud', targets: ['*.cloud2.influxdata.com:443'] },
  telegram: { means: 'Telegram bots', targets: ['api.telegram.org:443'] },
  openweathermap: {
    means: 'the weather of OpenWeatherMap',
    targets: ['api.openweathermap.org:80', 'api.openweathermap.org:443'],
  },
  gmail: {
    means: 'mail by Gmail: sending and reading',
    targets: ['smtp.gmail.com:465', 'smtp.gmail.com:587', 'imap.gmail.com:993'],
  },
  tuya: {
    means: 'Tuya devices on the local network',
    targets: ['lan:6668'],
  },
} as const satisfies Record<string, PresetDescription>

/** A word of {@link presets}. */
export type Preset = keyof typeof presets

const form =
  'Write address:port or name:port, with /udp behind it for UDP: "192.168.1.10:1883", ' +
  '"[fd00::10]:502", "broker.example.org:8883/tcp", "192.168.1.0/24:9000-9010/udp", ' +
  '"*.example.org:443", "lan:1883", "internet:443"; and "lan:ping" for pings'

/**
 * Reads one entry of the list: `host:port[-port][/tcp|/udp]`, TCP when nothing is said;
 * `host:ping`; or a preset's name.
 *
 * Refused: what the appliance never lets Node-RED reach (this machine, the tailnet, multicast),
 * names that only mDNS knows, and whatever cannot be understood whole.
 */
export function parseEgress(
  text: string,
): { egress: Egress } | { preset: Preset } | { extension: string } | { wrong: Wrong } {
  if (Object.hasOwn(presets, text)) return { preset: text as Preset }
  const extension = extensionEntry.exec(text)?.[1]
  if (extension !== undefined) return { extension }
  const wrong = (message: string, cure = form): { wrong: Wrong } => ({
    wrong: { message: `allow ${quote(text)}: ${message}`, cure },
  })
  if (text.startsWith('extension:'))
    return wrong(
      'not the name of an extension',
      'Write "extension:mosquitto", with the name of an [[extension]] and without a port',
    )
  if (/^[a-z][a-z-]*$/.test(text))
    return wrong(
      'no preset of this name',
      `Presets are ${Object.keys(presets)
        .map((name) => `"${name}"`)
        .join(', ')}; a host is written with its port, as "${text}.example.org:443"`,
    )
  if (text.includes('://'))
    return wrong(
      'a URL, not a host and port',
      `Write ${URL.parse(text) === null ? 'the host and its port' : `"${URL.parse(text)!.host}${/:\d+$/.test(URL.parse(text)!.host) ? '' : ':443'}"`} ` +
        'alone',
    )
  const parts =
    /^(?:\[([^\]]+)\]|((?:(?:tag|svc):)?[^[\]:]+)):(?:(ping)|(\d+)(?:-(\d+))?)(?:\/([a-z]+))?$/.exec(
      text,
    )
  if (parts === null) {
    return isIP(text) === 6 || ((text.match(/:/g)?.length ?? 0) > 1 && !text.startsWith('['))
      ? wrong('an IPv6 address needs brackets and a port', 'Write "[fd00::10]:1883"')
      : wrong('not a host and port')
  }
  const [, bracketed, plain, ping, first, last, protocol = 'tcp'] = parts
  if (ping !== undefined) {
    if (parts[6] !== undefined)
      return wrong('a ping has no protocol', `Write "${text.slice(0, -parts[6].length - 1)}"`)
    const host = readHost((bracketed ?? plain)!, bracketed !== undefined)
    if ('wrong' in host) return wrong(host.wrong, host.cure)
    if ('peer' in host)
      return wrong(
        'other devices of the tailnet cannot be pinged by flows',
        `Write a port of it, which is reached by TCP: "${text.replace(/ping$/, '443')}"`,
      )
    return { egress: { text, host, ports: [0, 0], protocol: 'icmp' } }
  }
  if (protocol !== 'tcp' && protocol !== 'udp') return wrong(`${protocol} is neither tcp nor udp`)
  const ports: [number, number] = [Number(first), Number(last ?? first)]
  if (ports[0] < 1 || ports[1] > 65535 || ports[0] > ports[1])
    return wrong('ports go from 1 to 65535, the lower one first')
  const host = readHost((bracketed ?? plain)!, bracketed !== undefined)
  if ('wrong' in host) return wrong(host.wrong, host.cure)
  if ('peer' in host && protocol === 'udp')
    return wrong('only TCP goes to other devices of the tailnet', 'Write it without /udp')
  if ('peer' in host && ports[0] !== ports[1])
    return wrong(
      'a range of ports, to another device of the tailnet',
      'Write an entry for each port',
    )
  return { egress: { text, host, ports, protocol } }
}

function readHost(
  text: string,
  bracketed: boolean,
): Egress['host'] | { wrong: string; cure?: string } {
  if (!bracketed && (text === 'lan' || text === 'internet')) return { zone: text }
  if (!bracketed && /^(?:tag|svc):/.test(text)) return readGroup(text)
  if (!bracketed && text.includes('*')) return readWildcard(text)
  const [address, prefix, ...more] = text.split('/') as [string, string | undefined]
  const family = isIP(address)
  if (family === 0) {
    if (prefix !== undefined || bracketed) return { wrong: 'not an address' }
    if (/^[\d.]+$/.test(text)) return { wrong: 'not an IPv4 address' }
    return readName(text)
  }
  if ((family === 6) !== bracketed || address.includes('%'))
    return { wrong: 'IPv6 addresses stand in brackets, without a zone' }
  if (
    prefix !== undefined &&
    (more.length > 0 || !/^\d{1,3}$/.test(prefix) || Number(prefix) > (family === 4 ? 32 : 128))
  )
    return { wrong: 'not a network: the number behind the slash is wrong' }
  if (prefix !== undefined && Number(prefix) < (family === 4 ? 8 : 32))
    return {
      wrong: `a network of 2^${(family === 4 ? 32 : 128) - Number(prefix)} addresses is as good as no list`,
      cure: `Write networks of /${family === 4 ? 8 : 32} and smaller`,
    }
  const why = forbidden(address)
  if (why !== undefined)
    return {
      wrong: `${address} is ${why}, which Node-RED cannot be allowed to call`,
      cure: why === 'the tailnet' ? byName : 'Remove it',
    }
  return {
    address: prefix === undefined ? address : `${address}/${prefix}`,
    family: family as 4 | 6,
  }
}

function readName(text: string): Egress['host'] | { wrong: string; cure?: string } {
  const name = text.toLowerCase().replace(/\.$/, '')
  // RFC 1123, 2.1; underscores too, since such names are in use on home networks.
  if (
    name.length > 253 ||
    !name.split('.').every((label) => /^[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?$/.test(label))
  )
    return { wrong: 'not a host name' }
  if (name === 'localhost' || name.endsWith('.localhost'))
    return {
      wrong: 'this machine itself, which Node-RED cannot be allowed to call',
      cure: 'Remove it',
    }
  if (name.endsWith('.local'))
    return {
      wrong: '.local names are told by mDNS, which is off here',
      cure: 'Write the address instead, and give the device a fixed one in your router',
    }
  if (!name.endsWith('.ts.net')) return { name }
  return /^[a-z0-9-]+\.[a-z0-9-]+\.ts\.net$/.test(name) && !name.endsWith('.tag.ts.net')
    ? { peer: { name } }
    : { wrong: 'not the name of a device of the tailnet', cure: byName }
}

const byName =
  'Write the device\'s full name in the tailnet, "broker.tail1234.ts.net:1883", or a tag or ' +
  'a Service: "tag:broker:1883", "svc:mqtt:1883"'

function readGroup(text: string): Egress['host'] | { wrong: string; cure?: string } {
  const [kind, label] = text.split(':') as ['tag' | 'svc', string]
  // As in the tailnet's policy; a flow calls it by a name that is made of it.
  if (!/^[a-z](?:[a-z0-9-]{0,48}[a-z0-9])?$/.test(label))
    return {
      wrong: `not a ${kind === 'tag' ? 'tag' : 'Service'} of the tailnet`,
      cure: 'Write "tag:broker:1883" or "svc:mqtt:1883", in small letters',
    }
  return { peer: kind === 'tag' ? { tag: text } : { service: text } }
}

/**
 * Domains that exist within somebody's own network alone: a wildcard may be one label below, and
 * answers may be private addresses (RFC 6762 appendix G, RFC 8375, and what routers use).
 */
const privateDomains = [
  'lan',
  'home',
  'internal',
  'intranet',
  'private',
  'corp',
  'localdomain',
  'home.arpa',
  'fritz.box',
]

/** Whether a name is below a domain of {@link privateDomains}. */
export function isPrivateName(name: string): boolean {
  return privateDomains.some((domain) => name === domain || name.endsWith(`.${domain}`))
}

function readWildcard(text: string): Egress['host'] | { wrong: string; cure?: string } {
  const [star, ...labels] = text.toLowerCase().replace(/\.$/, '').split('.')
  const below = labels.join('.')
  if (star !== '*' || below.includes('*'))
    return {
      wrong: 'a wildcard is a whole first part',
      cure: 'Write "*.example.org:443", which is every name below example.org and not itself',
    }
  if (labels.length < 2 && !isPrivateName(below))
    return {
      wrong: 'every name of a whole top-level domain is as good as no list',
      cure: 'Write "*.example.org:443", or "internet:443" if any host will do',
    }
  if (below === 'ts.net' || below.endsWith('.ts.net'))
    return { wrong: 'every device of the tailnet is as good as no list', cure: byName }
  const host = readName(below)
  return 'name' in host ? { wildcard: host.name } : host
}
