import { isUtf8 } from 'node:buffer'
import { readFile, readdir, stat } from 'node:fs/promises'
import { isIP } from 'node:net'
import { join } from 'node:path'
import { GatehouseError, reason } from '../base/errors.ts'
import type { Config } from '../config/config.ts'
import type { Kind } from '../config/kinds.ts'
import { entryChecks, schema } from '../config/schema.ts'
import { hostnameFrom } from './hostname.ts'
import { isHashed } from './wifi.ts'
import { YamlError, parseYaml } from './yaml-tree.ts'
import type { Item } from './yaml-tree.ts'

/** Largest file read: what Imager writes has some 2 KiB. Bytes. */
const maxSize = 1 << 20

/**
 * What Raspberry Pi Imager's settings dialog leaves on the FAT partition, as far as it is used
 * here: each value by itself, so that one that is wrong takes no other with it.
 */
export interface ImagerSettings {
  /** Whether there is anything in its files, understood or not. */
  present: boolean
  /** The device's name: the one asked of the tailnet, unless gatehouse.toml names another. */
  hostname?: string
  /** Time zone of flows, likewise. */
  timezone?: string
  /** The WiFi networks, likewise. */
  wifi: Config['wifi']
  /** For the person, where no country is named for them; undefined: one is. */
  countryless?: string
  /** Static addresses, likewise. */
  network: Config['network']
  /** What is left out because it is wrong or cannot be read, each with its cure. */
  wrong: GatehouseError[]
  /** What was taken in another way than it is written, in words for the person. */
  notes: string[]
  /** What was asked for and is not done, in words for the person. */
  ignored: string[]
}

/**
 * Reads cloud-init's user-data, meta-data and network-config, which Imager writes for `init_format`
 * cloudinit and cloudinit-rpi (https://cloudinit.readthedocs.io/en/latest/reference/, netplan's
 * YAML: https://netplan.readthedocs.io/en/stable/netplan-yaml/), and names files of its other
 * formats.
 */
export async function readImager(boot: string): Promise<ImagerSettings> {
  return await new Reader(boot).read()
}

/** Keys of user-data that change nothing here, and that nobody misses. */
const silent = new Set([
  'apt',
  'hostname',
  'fqdn',
  'timezone',
  'manage_etc_hosts',
  'preserve_hostname',
  'prefer_fqdn_over_hostname',
  'create_hostname_file',
  'ssh_deletekeys',
  'ssh_genkeytypes',
  'growpart',
  'resize_rootfs',
  'output',
  'ntp',
])

/** Keys of user-data by what they ask for, and why that is not done. */
const refused: Array<[what: string, why: string, keys: string[]]> = [
  [
    'user and SSH',
    'nobody logs in over the network',
    [
      'users',
      'user',
      'chpasswd',
      'password',
      'ssh_pwauth',
      'ssh_authorized_keys',
      'ssh_import_id',
      'ssh_keys',
      'disable_root',
      'enable_ssh',
      'groups',
    ],
  ],
  ['keyboard and language', 'there is nothing to type on the device', ['keyboard', 'locale']],
  [
    'programs and files',
    'nothing is installed or run here but what the image brings',
    [
      'runcmd',
      'bootcmd',
      'packages',
      'package_update',
      'package_upgrade',
      'package_reboot_if_required',
      'write_files',
      'snap',
      'scripts-user',
    ],
  ],
  [
    'interfaces (rpi)',
    'what flows may use is devices in [node_red] of gatehouse.toml',
    ['rpi', 'interfaces'],
  ],
]

/** Files of Imager's other formats, and of Raspberry Pi OS before there was Imager. */
const others: Record<string, string> = {
  'firstrun.sh': 'a script for Raspberry Pi OS',
  'custom.toml': "settings for Raspberry Pi OS's first start",
  'rpi-preseed.toml': "settings for Raspberry Pi OS's first start",
  'wpa_supplicant.conf': 'a WiFi network for Raspberry Pi OS',
  'userconf.txt': 'a user for Raspberry Pi OS',
  userconf: 'a user for Raspberry Pi OS',
  ssh: 'a request for SSH, which this device does not have',
  'ssh.txt': 'a request for SSH, which this device does not have',
}

class Reader {
  readonly #boot: string
  readonly #found: ImagerSettings = {
    present: false,
    wifi: [],
    network: [],
    wrong: [],
    notes: [],
    ignored: [],
  }

  constructor(boot: string) {
    this.#boot = boot
  }

  async read(): Promise<ImagerSettings> {
    const found = this.#found
    const names = await readdir(this.#boot).catch(() => [] as string[])
    const user = await this.#document('user-data')
    const meta = await this.#document('meta-data')
    const network = await this.#document('network-config')
    this.#userData(user, meta)
    await this.#networkConfig(network)
    for (const name of names) {
      const [, meant] = /^(user-data|network-config)\.(?:txt|ya?ml)$/i.exec(name) ?? []
      if (meant !== undefined) found.notes.push(`${name} is not used: rename it to ${meant}`)
      const what = others[name.toLowerCase()]
      if (what !== undefined)
        found.notes.push(
          `${name} is not used: it is ${what}. Write what you need of it into gatehouse.toml`,
        )
    }
    return found
  }

  #userData(user: Item | undefined, meta: Item | undefined): void {
    const found = this.#found
    const name = ['hostname', 'fqdn']
      .map((key) => ({ file: 'user-data', item: get(user, key) }))
      .concat(
        ['local-hostname', 'hostname'].map((key) => ({ file: 'meta-data', item: get(meta, key) })),
      )
      .find(({ item }) => item !== undefined && !isNull(item))
    if (name?.item !== undefined) this.#hostname(name.file, name.item)
    const zone = get(user, 'timezone')
    if (zone !== undefined && !isNull(zone)) {
      const value = this.#check('user-data', zone, schema.node_red.timezone, 'timezone')
      if (value !== undefined) found.timezone = value
    }
    for (const [what, why, keys] of refused)
      if (keys.some((key) => asks(key, get(user, key)))) found.ignored.push(`${what}: ${why}`)
    const known = new Set(refused.flatMap(([, , keys]) => keys))
    const unknown = (user?.map ?? [])
      .map(({ key }) => key.text)
      .filter((key) => !silent.has(key) && !known.has(key))
    if (unknown.length > 0)
      found.ignored.push(
        `${unknown.slice(0, 5).map(short).join(', ')}${unknown.length > 5 ? ' and more' : ''} ` +
          '(user-data): nothing here does that',
      )
  }

  #hostname(file: string, item: Item): void {
    const { text, line } = item
    if (text === undefined) {
      this.#wrong(file, line, 'hostname is not a name', 'Write hostname: gatehouse')
      return
    }
    const hostname = hostnameFrom(text)
    if (hostname === undefined) {
      this.#wrong(
        file,
        line,
        `hostname ${short(text)} has no letter or digit that a name may have`,
        'Write hostname = "…" below [tailnet] in gatehouse.toml, of a-z, 0-9 and inner hyphens',
      )
      return
    }
    this.#found.hostname = hostname
    if (hostname !== text)
      this.#found.notes.push(`the name ${short(text)} (${file} line ${line}) became ${hostname}`)
  }

  async #networkConfig(document: Item | undefined): Promise<void> {
    if (document === undefined) return
    const top = get(document, 'network') ?? document
    const version = get(top, 'version')
    if (top.map === undefined || version?.text === '1' || get(top, 'config')?.list !== undefined) {
      this.#wrong(
        'network-config',
        top.line,
        top.map === undefined
          ? 'there are no settings of a network'
          : 'version 1 of this format is not understood',
        'Write [network] or [wifi] into gatehouse.toml',
      )
      return
    }
    await this.#wifis(get(top, 'wifis'))
    this.#addresses('ethernet', get(top, 'ethernets'))
    this.#addresses('wifi', get(top, 'wifis'))
    const more = top.map
      .map(({ key }) => key.text)
      .filter((key) => !['version', 'renderer', 'wifis', 'ethernets'].includes(key))
    if (more.length > 0)
      this.#found.ignored.push(
        `${more.slice(0, 5).map(short).join(', ')} (network-config): Ethernet and WiFi alone are known here`,
      )
  }

  async #wifis(wifis: Item | undefined): Promise<void> {
    const cards = cardsOf(wifis)
    let country: string | undefined
    let misspelt = false
    for (const { value } of cards) {
      const item = get(value, 'regulatory-domain')
      if (item === undefined || isNull(item) || item.text === '00') continue
      const read = this.#check(
        'network-config',
        item.text === undefined ? item : { ...item, text: item.text.trim().toUpperCase() },
        schema.wifi[0].country,
        'country',
      )
      misspelt ||= read === undefined
      country ??= read
    }
    for (const { value } of cards) {
      const points = get(value, 'access-points')
      if (points?.map === undefined || points.map.length === 0) {
        if (asks('access-points', points) || get(value, 'regulatory-domain') !== undefined)
          this.#wrong('network-config', value.line, 'no WiFi network is named', nameIt)
        continue
      }
      for (const { key, value: point } of points.map) this.#accessPoint(key, point)
    }
    const { wifi } = this.#found
    if (wifi.length === 0) return
    country ??= await this.#kernelCountry()
    if (country !== undefined) for (const network of wifi) network.country = country
    else
      this.#found.countryless =
        `${misspelt ? 'the country of the WiFi network is not understood' : 'no country is named for the WiFi network'} ` +
        '(regulatory-domain), so only channels that may be used all over the world are; write ' +
        `country = "DE", with your country's letters, below [wifi] in gatehouse.toml`
  }

  #accessPoint(key: Item & { text: string }, point: Item): void {
    const file = 'network-config'
    const { notes, wifi } = this.#found
    const raw = key.bytes ?? Buffer.from(key.text)
    const text = isUtf8(raw) ? this.#straight(file, key.line, raw.toString('utf8')) : undefined
    const name = text === undefined ? 'its name is not text' : short(text)
    const size = text === undefined ? raw.length : Buffer.byteLength(text)
    const wrong = (line: number, message: string, cure: string): void => {
      this.#wrong(file, line, `the WiFi network ${name} is left out: ${message}`, cure)
    }
    if (size < 1 || size > 32) {
      wrong(key.line, `its name is ${size} bytes long, and 1 to 32 are possible`, nameIt)
      return
    }
    // eslint-disable-next-line no-control-regex
    if (/[\u0000-\u001f\u007f]/.test(text ?? '')) {
      wrong(key.line, `its name ${inQuotes}`, nameIt)
      return
    }
    const auth = get(point, 'auth')
    const management = get(auth, 'key-management')?.text?.toLowerCase()
    if (management !== undefined && ['eap', '802.1x', 'eap-sha256'].includes(management)) {
      wrong(key.line, 'it wants a login for each user (WPA Enterprise)', nameIt)
      return
    }
    if (get(point, 'mode')?.text !== undefined && get(point, 'mode')!.text !== 'infrastructure') {
      wrong(get(point, 'mode')!.line, 'the device joins networks, and makes none', nameIt)
      return
    }
    const item = get(point, 'password') ?? get(auth, 'password')
    let password: string | undefined
    // Imager 2.0.0 to 2.0.2 wrote an empty password for an open network.
    if (management !== 'none' && item !== undefined && !isNull(item) && item.text !== '') {
      const value = item.text === undefined ? '' : this.#straight(file, item.line, item.text)
      const read = schema.wifi[0].password.kind.read(value, {
        name: 'password',
        example: 'password = "…"',
      })
      if ('wrong' in read) {
        wrong(
          item.line,
          read.wrong.message.includes('control character')
            ? `its password ${inQuotes}`
            : 'its password is neither 8 to 63 characters nor 64 hexadecimal digits',
          passwordIt,
        )
        return
      }
      password = read.value
    } else if (management !== undefined && management !== 'none') {
      wrong(get(auth, 'key-management')!.line, 'it wants a password, and none is there', passwordIt)
      return
    }
    if (password !== undefined && isHashed(password)) {
      if (management === 'sae') {
        wrong(
          item!.line,
          'WPA3 needs the password itself, and a key made of it is there',
          passwordIt,
        )
        return
      }
      notes.push(
        `the WiFi network ${name} (network-config line ${item!.line}) has a key instead of ` +
          'its password, as Imager writes it; where it speaks WPA3 alone, the password itself ' +
          'is needed: write [wifi] into gatehouse.toml',
      )
    }
    wifi.push({
      ssid: text,
      ssidHex: text === undefined ? raw.toString('hex') : undefined,
      password,
      country: undefined,
      hidden: isTrue(get(point, 'hidden')),
    })
  }

  /** Static addresses of the first card that has some. */
  #addresses(kind: Config['network'][number]['interface'], cards: Item | undefined): void {
    const { ignored, network, notes, wrong } = this.#found
    const given = cardsOf(cards).filter(({ value }) =>
      ['addresses', 'gateway4', 'gateway6', 'nameservers', 'routes'].some((key) =>
        asks(key, get(value, key)),
      ),
    )
    for (const { key, value } of cardsOf(cards)) {
      if (isFalse(get(value, 'dhcp4')) && !asks('addresses', get(value, 'addresses')))
        notes.push(
          `${short(key.text)} (network-config line ${key.line}) has neither dhcp4 nor ` +
            'addresses; it gets its address by DHCP anyway',
        )
      const more = (value.map ?? [])
        .map((pair) => pair.key.text)
        .filter((name) => !cardKeys.has(name) && asks(name, get(value, name)))
      if (more.length > 0)
        ignored.push(
          `${more.slice(0, 5).map(short).join(', ')} of ${short(key.text)} (network-config): nothing here does that`,
        )
    }
    for (const { key } of given.slice(1))
      this.#wrong(
        'network-config',
        key.line,
        `the addresses of ${short(key.text)} are left out, for one card of a kind may have some`,
        'Leave it out',
      )
    const [card] = given
    if (card === undefined) return
    const before = wrong.length
    const entry = this.#card(kind, card.value)
    const check = entryChecks.network!(entry, network)
    if (check !== undefined) this.#wrong('network-config', card.key.line, check.message, check.cure)
    // With half of it right the device could be where nobody looks for it.
    if (wrong.length > before)
      notes.push(
        `${short(card.key.text)} gets its address by DHCP, since what is written is not right`,
      )
    else network.push(entry)
  }

  #card(kind: Config['network'][number]['interface'], value: Item): Config['network'][number] {
    const keys = schema.network[0]
    const all = (items: Array<Item | undefined>, key: 'addresses' | 'gateway' | 'dns' | 'search') =>
      items
        .flatMap((item) => item?.list ?? (item === undefined || isNull(item) ? [] : [item]))
        .flatMap((item) => {
          // `- 10.0.0.2/24: {label: x}` is an address with options.
          const plain = item.map?.[0]?.key ?? item
          return this.#check('network-config', plain, keys[key], key) ?? []
        })
        .flat()
    const gateways: Array<Item | undefined> = [get(value, 'gateway4'), get(value, 'gateway6')]
    for (const route of get(value, 'routes')?.list ?? []) {
      const to = get(route, 'to')?.text
      const via = get(route, 'via')
      if (
        to !== undefined &&
        /^(?:default|0\.0\.0\.0\/0|::\/0|0\/0)$/.test(to) &&
        via !== undefined
      )
        gateways.push(via)
      else
        this.#found.ignored.push(
          `the route to ${short(to ?? '')} (network-config line ${route.line}): only the ` +
            'default route is supported here',
        )
    }
    const servers = get(value, 'nameservers')
    const dhcp = get(value, 'dhcp4')
    const addresses = all([get(value, 'addresses')], 'addresses')
    return {
      interface: kind,
      proxy: undefined,
      addresses,
      gateway: all(gateways, 'gateway'),
      // A list alone is not netplan's, but what is meant is plain.
      dns: all([servers?.list === undefined ? get(servers, 'addresses') : servers], 'dns'),
      search: all([get(servers, 'search')], 'search'),
      dhcp:
        isTrue(dhcp) && addresses.some((own) => isIP(own.split('/')[0]!) === 4) ? true : undefined,
    }
  }

  /**
   * The country Imager puts on the kernel's command line, where it knows a country and no network;
   * whatever else is there is Raspberry Pi OS's.
   */
  async #kernelCountry(): Promise<string | undefined> {
    const line = await readFile(join(this.#boot, 'cmdline.txt'), 'latin1').catch(() => '')
    return /(?:^|\s)cfg80211\.ieee80211_regdom=([A-Z]{2})(?:\s|$)/.exec(line)?.[1]
  }

  /** A value by a key of gatehouse.toml; undefined when it is wrong, which is said. */
  #check<T>(
    file: string,
    { text, line }: Item,
    { kind, example }: { kind: Kind<T>; example: string },
    name: string,
  ): T | undefined {
    const value = text === undefined ? undefined : this.#straight(file, line, text)
    const read = kind.read(value, { name, example: `${name} = ${example}` })
    if (!('wrong' in read)) return read.value
    this.#wrong(file, line, read.wrong.message, `${read.wrong.cure}, in gatehouse.toml`)
    return undefined
  }

  /** A value without the typographic quotation marks that a word processor puts around it. */
  #straight(file: string, line: number, text: string): string {
    const inside = /^[“”„‟«‘‚](.*)[“”‟»’‘]$/s.exec(text)?.[1]
    if (inside === undefined) return text
    this.#found.notes.push(
      `${file} line ${line} has typographic quotation marks around a value; it is read without`,
    )
    return inside
  }

  #wrong(file: string, line: number, message: string, cure: string): void {
    this.#found.wrong.push(
      new GatehouseError('GH_IMAGER', `${file} line ${line}: ${message}`, cure),
    )
  }

  /** One of Imager's files; undefined when it is missing, empty, a comment alone, or wrong. */
  async #document(name: string): Promise<Item | undefined> {
    const cannot = (why: string): undefined => {
      this.#found.present = true
      this.#found.wrong.push(
        new GatehouseError(
          'GH_IMAGER',
          `${name}, written by Raspberry Pi Imager, cannot be read: ${why}`,
          `Delete ${name} from the card's first partition, and write what you need into gatehouse.toml`,
        ),
      )
    }
    let data: Buffer
    try {
      const path = join(this.#boot, name)
      const file = await stat(path)
      if (!file.isFile()) return cannot(file.isDirectory() ? 'it is a folder' : 'it is not a file')
      if (file.size > maxSize) return cannot(`it is ${file.size} bytes long`)
      data = await readFile(path)
    } catch (err) {
      return (err as NodeJS.ErrnoException).code === 'ENOENT' ? undefined : cannot(reason(err))
    }
    const text = this.#decode(name, data)
    if (text === undefined) return cannot('it is not text')
    // Imager leaves them empty, or a comment alone, where nothing was asked for.
    if (text.replaceAll(/^\s*#.*$/gm, '').trim() === '') return undefined
    if (/^#!|^#(?:include|part-handler|cloud-boothook)|^Content-Type:/i.test(text))
      return cannot('it is a program or a list of files, and not #cloud-config')
    try {
      const item = await parseYaml(text)
      if (item.map === undefined) return cannot('it is not a list of settings')
      this.#found.present ||= name !== 'meta-data'
      return item
    } catch (err) {
      return cannot(err instanceof YamlError ? `line ${err.line}: ${err.message}` : reason(err))
    }
  }

  /** Text in UTF-8, or in UTF-16 with its mark, as Windows' editors may have saved it. */
  #decode(name: string, data: Buffer): string | undefined {
    const [first, second] = data
    let encoding = 'utf-8'
    if (first === 0xff && second === 0xfe) encoding = 'utf-16le'
    if (first === 0xfe && second === 0xff) encoding = 'utf-16be'
    try {
      // A byte order mark is dropped.
      const text = new TextDecoder(encoding, { fatal: true }).decode(data)
      if (text.includes('\0')) return undefined
      if (encoding !== 'utf-8')
        this.#found.notes.push(`${name} is saved as UTF-16; it is read anyway`)
      return text
    } catch {
      return undefined
    }
  }
}

const nameIt = 'Write [wifi] with ssid, password and country into gatehouse.toml'
const inQuotes =
  'holds a control character, as which a backslash and the letter behind it are read in ' +
  'double quotes; in single quotes they stand for themselves'
const passwordIt = 'Write [wifi] with ssid, the password itself and country into gatehouse.toml'

/** Keys of a card that are read, or say what is the case anyway. */
const cardKeys = new Set([
  'access-points',
  'accept-ra',
  'addresses',
  'critical',
  'dhcp4',
  'dhcp6',
  'gateway4',
  'gateway6',
  'ignore-carrier',
  'link-local',
  'match',
  'nameservers',
  'optional',
  'optional-addresses',
  'regulatory-domain',
  'renderer',
  'routes',
  'set-name',
])

/** The cards of `ethernets` or `wifis`; a `renderer` among them is none. */
function cardsOf(item: Item | undefined): NonNullable<Item['map']> {
  return (item?.map ?? []).filter(({ value }) => value.map !== undefined)
}

function get(item: Item | undefined, key: string): Item | undefined {
  return item?.map?.find((pair) => pair.key.text === key)?.value
}

function isNull({ text, plain, map, list }: Item): boolean {
  return (
    map === undefined &&
    list === undefined &&
    plain === true &&
    ['', '~', 'null', 'Null', 'NULL'].includes(text ?? '')
  )
}

// YAML 1.1's, which cloud-init and netplan read.
const isTrue = (item: Item | undefined): boolean => /^(?:true|yes|on|y)$/i.test(item?.text ?? '')
const isFalse = (item: Item | undefined): boolean => /^(?:false|no|off|n)$/i.test(item?.text ?? '')

/** Whether a key wants something: it has a value that is neither nothing nor a plain no. */
function asks(key: string, item: Item | undefined): boolean {
  if (item === undefined || isNull(item) || isFalse(item)) return false
  if (item.map?.length === 0 || item.list?.length === 0) return false
  // What Imager writes beside every name (for the name to be found by mDNS).
  return !(key === 'packages' && item.list?.length === 1 && item.list[0]?.text === 'avahi-daemon')
}

/** A value of the person's as messages show it. */
function short(text: string): string {
  return JSON.stringify(text.length > 40 ? `${text.slice(0, 39)}…` : text)
}
