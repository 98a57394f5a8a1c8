/**
 * The lab's Ethernet segment, 10.77.0.0/24: the bridge br0 in a namespace of its own, and hosts on
 * it, each a namespace. Nothing gets out: what tries is dropped and counted.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import type net from 'node:net'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { end, exited, must, Processes } from './processes.ts'

/**
 * The IPv6 address on the segment of the host that has the IPv4 address `ip` (of the prefix for
 * documentation, RFC 3849).
 */
export function ipv6(ip: string): string {
  return `2001:db8:77::${ip.split('.')[3]}`
}

/** The lab's resolver. */
export const resolver = '10.77.0.1'
/** Another one, with the same answers: for whom DHCP gives a new one. */
export const secondResolver = '10.77.0.5'

/** How a host is on the segment. */
export interface HostOptions {
  /**
   * True: it has {@link ipv6} of its number too. "only": that and no IPv4, with the lab's resolver
   * by IPv6. Default: IPv4 alone.
   */
  ipv6?: boolean | 'only'
}

/** The segment and what is on it. */
export class Segment extends Processes {
  readonly id: string
  /** Directory of sockets, logs and state. */
  readonly dir: string
  /** The namespace of the servers and the bridge. QEMU runs here ({@link tap}). */
  readonly ns: string
  readonly #ownDir: boolean
  #dhcp: ChildProcess | undefined
  #reaper: ChildProcess | undefined
  #links = 0

  protected constructor(id: string, dir: string, ownDir: boolean) {
    super()
    this.id = id
    this.dir = dir
    this.ns = `${id}-lab`
    this.#ownDir = ownDir
  }

  protected async makeSegment(): Promise<void> {
    this.#startReaper()
    await this.namespace('lab')
    // A fixed address: left to itself a bridge takes the lowest of its ports', so that it changes
    // as hosts join, and those that are there send to the old one until their ARP entries expire.
    // A fixed MTU likewise: it would take the least of its ports'.
    await this.ip(
      this.ns,
      ...'link add br0 address 02:00:0a:4d:00:01 mtu 1500 type bridge'.split(' '),
      ...'forward_delay 0 stp_state 0 mcast_snooping 0'.split(' '),
    )
    await this.ip(this.ns, 'link', 'set', 'br0', 'mtu', '1500')
    for (const n of [1, 2, 3, 4, 5])
      await this.ip(this.ns, 'addr', 'add', `10.77.0.${n}/24`, 'dev', 'br0')
    for (const n of [1, 2, 3])
      await this.ip(this.ns, 'addr', 'add', `${ipv6(`10.77.0.${n}`)}/64`, 'dev', 'br0', 'nodad')
    await this.ip(this.ns, 'link', 'set', 'br0', 'up')
    // A route to nowhere: without one, what the servers send outside would fail before it is
    // counted.
    await this.ip(this.ns, 'route', 'add', 'default', 'via', '10.77.0.254', 'dev', 'br0')
    await this.nft(this.ns, ruleset)
    await this.#startDHCP(resolver)
  }

  /**
   * Removes the namespaces, and the directory if it is the lab's own, when this process has ended
   * in whatever way: it waits for the end of a pipe that only this process holds. It has a session
   * of its own, or Ctrl-C would end it before it has done its work.
   */
  #startReaper(): void {
    const script =
      'cat >/dev/null; for n in /run/netns/"$1"-*; do [ -e "$n" ] && ip netns del ' +
      '"${n##*/}"; done; rm -rf /etc/netns/"$1"-* "$2"'
    const remove = this.#ownDir && !process.env['LAB_KEEP'] ? this.dir : ''
    const reaper = spawn('sh', ['-c', script, 'lab-reaper', this.id, remove], {
      detached: true,
      stdio: ['pipe', 'ignore', 'ignore'],
    })
    reaper.unref()
    ;(reaper.stdin as net.Socket).unref()
    this.#reaper = reaper
  }

  /**
   * A network namespace with a resolver and nothing else, removed with the lab. Returns its name.
   */
  async namespace(name: string, nameserver = resolver): Promise<string> {
    const ns = `${this.id}-${name}`
    await mkdir(`/etc/netns/${ns}`, { recursive: true })
    await this.setResolver(ns, `nameserver ${nameserver}`)
    must(await this.outside(['ip', 'netns', 'add', ns]), 'ip netns add')
    await this.ip(ns, 'link', 'set', 'lo', 'up')
    return ns
  }

  /**
   * Writes the resolv.conf(5) of a namespace. `ip netns exec` binds it over the one in /etc, so
   * that who runs there sees it change.
   */
  async setResolver(ns: string, ...lines: string[]): Promise<void> {
    await writeFile(`/etc/netns/${ns}/resolv.conf`, lines.map((line) => `${line}\n`).join(''))
  }

  /**
   * Adds a host to the segment: a namespace with eth0, default route and resolver. Returns the
   * namespace's name.
   */
  async host(name: string, ip: string, options: HostOptions = {}): Promise<string> {
    if (!/^[a-z0-9-]{1,24}$/.test(name) || name === 'lab')
      throw new Error(`host name "${name}": use lower-case letters, digits and dashes`)
    if (!/^10\.77\.0\.\d+$/.test(ip)) throw new Error(`address ${ip} is not in 10.77.0.0/24`)
    const alone = options.ipv6 === 'only'
    const ns = await this.namespace(name, alone ? ipv6(resolver) : resolver)
    await this.link(ns, 'eth0', this.ns, 'br0')
    if (!alone) {
      await this.ip(ns, 'addr', 'add', `${ip}/24`, 'dev', 'eth0')
      await this.ip(ns, 'route', 'add', 'default', 'via', '10.77.0.1')
    }
    if (options.ipv6) {
      await this.ip(ns, 'addr', 'add', `${ipv6(ip)}/64`, 'dev', 'eth0', 'nodad')
      await this.ip(ns, 'route', 'add', 'default', 'via', ipv6('10.77.0.1'))
    }
    return ns
  }

  /**
   * A cable from a new device in one namespace to a bridge in another. Returns the name of its
   * other end, at the bridge.
   */
  async link(ns: string, device: string, bridgeNs: string, bridge: string): Promise<string> {
    const port = `v${++this.#links}`
    await this.ip(
      bridgeNs,
      ...['link', 'add', port, 'type', 'veth', 'peer', 'name', device, 'netns', ns],
    )
    await this.ip(bridgeNs, 'link', 'set', port, 'master', bridge, 'up')
    await this.ip(ns, 'link', 'set', device, 'up')
    return port
  }

  /** A name for a device that is not taken. */
  deviceName(): string {
    return `w${++this.#links}`
  }

  /**
   * Makes a tap device on the bridge, in {@link ns}, for QEMU: `-netdev
   * tap,id=n0,ifname=NAME,script=no,downscript=no`. Returns its name.
   */
  async tap(name: string): Promise<string> {
    if (!/^[a-z0-9-]{1,15}$/.test(name))
      throw new Error(`tap name "${name}": use 1 to 15 lower-case letters, digits and dashes`)
    await this.ip(this.ns, 'tuntap', 'add', name, 'mode', 'tap')
    await this.ip(this.ns, 'link', 'set', name, 'master', 'br0', 'up')
    return name
  }

  /**
   * Lets packets to private addresses end at the segment without being counted: nodes behind
   * routers tell them to their peers, who try them.
   */
  async expectPrivate(network: string): Promise<void> {
    await this.nft(this.ns, `add element inet lab private { ${network} }`)
  }

  /**
   * Starts DHCP anew, with no DNS server in its answers, or with another one; leases go on.
   * Default: the lab's.
   */
  async setDHCP({ dns }: { dns: boolean | string }): Promise<void> {
    if (this.#dhcp) await end(this.#dhcp)
    if (typeof dns === 'string') await this.#startDHCP(dns)
    else await this.#startDHCP(dns ? resolver : '')
  }

  async #startDHCP(dns: string): Promise<void> {
    const child = (this.#dhcp = this.exec(
      this.ns,
      [
        'dnsmasq',
        '--keep-in-foreground',
        '--conf-file=/dev/null',
        '--port=0',
        '--interface=br0',
        '--bind-interfaces',
        '--user=root',
        '--group=root',
        '--pid-file=',
        '--no-ping',
        '--dhcp-authoritative',
        '--log-dhcp',
        `--log-facility=${this.dir}/dhcp.log`,
        `--dhcp-leasefile=${this.dir}/dhcp.leases`,
        '--dhcp-range=10.77.0.100,10.77.0.150,255.255.255.0,1h',
        '--dhcp-option=option:router,10.77.0.1',
        // Empty: not even the default, which is dnsmasq's own address.
        `--dhcp-option=option:dns-server${dns && `,${dns}`}`,
        '--dhcp-option=option:ntp-server,10.77.0.1',
      ],
      { stdio: ['pipe', 'ignore', 'pipe'] },
    ))
    const failed = exited(child)
    // It says nothing when it is up; when something is wrong it ends at once.
    const early = await Promise.race([failed, sleep(100)])
    if (early) throw new Error(`dnsmasq ended: ${early.stderr.trim() || `code ${early.code}`}`)
  }

  /** DHCP leases given. */
  async leases(): Promise<{ mac: string; ip: string; hostname: string }[]> {
    const text = await readFile(path.join(this.dir, 'dhcp.leases'), 'utf8').catch(() => '')
    return text
      .split('\n')
      .filter(Boolean)
      .map((line) => {
        const [, mac = '', ip = '', hostname = ''] = line.split(' ')
        return { mac, ip, hostname }
      })
  }

  /** Packets that tried to leave the segment, since the start. */
  async leaked(): Promise<number> {
    const { stdout } = must(
      await this.outside([
        'ip',
        'netns',
        'exec',
        this.ns,
        'nft',
        '-j',
        'list',
        'counter',
        'inet',
        'lab',
        'leaked',
      ]),
      'nft',
    )
    const packets = JSON.parse(stdout).nftables.find(
      (o: { counter?: { packets: number } }) => o.counter,
    )?.counter.packets
    if (typeof packets !== 'number') throw new Error(`nft shows no counter: ${stdout}`)
    return packets
  }

  /** Who tried to send where, for the message of a test that found {@link leaked} above zero. */
  async leaks(): Promise<{ from: string; to: string }[]> {
    const { stdout } = must(
      await this.outside([
        'ip',
        'netns',
        'exec',
        this.ns,
        'nft',
        '-j',
        'list',
        'table',
        'inet',
        'lab',
      ]),
      'nft',
    )
    const list: { from: string; to: string }[] = []
    for (const object of JSON.parse(stdout).nftables) {
      if (!/^leaks6?$/.test(object.set?.name)) continue
      for (const element of object.set.elem ?? []) {
        const [from, to] = (element.elem?.val ?? element).concat
        list.push({ from, to })
      }
    }
    return list
  }

  /** Removes the namespaces: what runs in them has ended. */
  protected async removeSegment(): Promise<void> {
    const reaper = this.#reaper
    if (!reaper || reaper.exitCode !== null || reaper.signalCode !== null) return
    reaper.ref()
    await new Promise<void>((resolve) => {
      reaper.once('exit', () => resolve())
      reaper.stdin?.end()
    })
  }

  /** Runs ip(8) in a namespace. */
  async ip(ns: string, ...args: string[]): Promise<void> {
    must(await this.outside(['ip', '-n', ns, ...args]), `ip ${args.join(' ')}`)
  }
}

/**
 * Drops, counts and remembers what would leave the segment. Broadcast and multicast stay on a
 * segment by nature. Dropped before routing, so that it makes no difference whether there is a
 * route. Traffic among hosts is bridged and comes by here, "forward" too, only on a machine that
 * has br_netfilter loaded (as Docker does).
 */
const ruleset = `
table inet lab {
  counter leaked { }
  set private { type ipv4_addr; flags interval; }
  set leaks { type ipv4_addr . ipv4_addr; size 1024; flags dynamic; }
  set leaks6 { type ipv6_addr . ipv6_addr; size 1024; flags dynamic; }
  chain stray {
    counter name leaked
    meta nfproto ipv4 update @leaks { ip saddr . ip daddr }
    meta nfproto ipv6 update @leaks6 { ip6 saddr . ip6 daddr }
    drop
  }
  chain judge {
    ip daddr { 10.77.0.0/24, 224.0.0.0/4, 255.255.255.255 } accept
    ip daddr @private drop
    ip6 daddr { fe80::/10, ff00::/8, 2001:db8:77::/64, 2001:db8:64::/96 } accept
    goto stray
  }
  chain prerouting { type filter hook prerouting priority raw; policy drop; iifname "lo" accept; goto judge; }
  chain forward { type filter hook forward priority filter; policy drop; goto judge; }
  chain output { type filter hook output priority filter; policy drop; oifname "lo" accept; goto judge; }
}
`
