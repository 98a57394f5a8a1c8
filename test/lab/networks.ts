/**
 * Networks as people have them, between the lab's segment, which is the internet here, and a host:
 * routers that translate addresses, one behind another, small MTUs that nobody is told of, a way
 * out by a proxy alone, IPv6 alone with DNS64 and NAT64, and cables that delay and lose.
 */
import { once } from 'node:events'
import { writeFile } from 'node:fs/promises'
import path from 'node:path'
import type { Lab } from './lab.ts'
import { ipv6, type Segment } from './segment.ts'

/**
 * How a router maps a host's flows to its own ports (RFC 4787, section 4.1). Endpoint-independent:
 * one port for all that a host's port talks to, as most routers at home do. Endpoint-dependent:
 * another one for each; Tailscale calls it hard NAT.
 */
export type Mapping = 'endpoint-independent' | 'endpoint-dependent'

/** What a {@link Router} does beside passing on. */
export interface RouterOptions {
  /** Its address outside: on the segment, or in the network of the router it is behind. */
  ip: string
  /** The network inside, a /24: "192.168.1.0/24". The router is .1 there. */
  inside: string
  /** Default: endpoint-independent. */
  mapping?: Mapping
  /** MTU of its line to the outside. ICMP about it is not sent, as where it is filtered. */
  mtu?: number
  /** Whether it corrects the size of segments that TCP agrees on. Default: true. */
  clamp?: boolean
  /** Its line to the outside. Default: one that is as fast as it goes. */
  line?: WireOptions
  /** Lines of an nftables chain that what goes through it passes first. */
  rules?: string
  /** The router whose network its outside is in. Default: the segment. */
  behind?: Router
}

/**
 * A router: its own namespace, a line to the outside, a bridge inside. What comes in is let in only
 * as an answer to what went out, to the same address and port (RFC 4787, section 5: address and
 * port-dependent filtering), which is what Linux routers do.
 */
export class Router {
  readonly ns: string
  readonly #lab: Lab
  readonly #name: string
  readonly #inside: string
  #hosts = 0

  private constructor(lab: Lab, name: string, ns: string, inside: string) {
    this.#lab = lab
    this.#name = name
    this.ns = ns
    this.#inside = inside
  }

  static async start(lab: Lab, name: string, options: RouterOptions): Promise<Router> {
    const { ip, inside, behind, mtu, rules = '', clamp = true } = options
    const prefix = inside.replace(/\.0\/24$/, '')
    const ns = await lab.namespace(name)
    const at: [string, string] = behind ? [behind.ns, 'in'] : [lab.ns, 'br0']
    const line = options.line
      ? await wire(lab, [ns, 'eth0'], at, options.line)
      : await lab.link(ns, 'eth0', ...at)
    await lab.ip(ns, 'addr', 'add', `${ip}/24`, 'dev', 'eth0')
    const gateway = behind ? `${behind.#inside}.1` : '10.77.0.1'
    await lab.ip(ns, 'route', 'add', 'default', 'via', gateway)
    await lab.ip(ns, 'link', 'add', 'in', 'type', 'bridge', 'forward_delay', '0')
    await lab.ip(ns, 'addr', 'add', `${prefix}.1/24`, 'dev', 'in')
    await lab.ip(ns, 'link', 'set', 'in', 'mtu', '1500')
    await lab.ip(ns, 'link', 'set', 'in', 'up')
    if (mtu !== undefined) {
      // At both ends: what is too large for the line is lost in either direction.
      await lab.ip(ns, 'link', 'set', 'eth0', 'mtu', String(mtu))
      await lab.ip(at[0], 'link', 'set', line, 'mtu', String(mtu))
    }
    const random = options.mapping === 'endpoint-dependent' ? ' fully-random' : ''
    await lab.within(ns, 'sysctl', '-qw', 'net.ipv4.ip_forward=1')
    await lab.nft(
      ns,
      `table ip router {
        chain forward { type filter hook forward priority filter; policy drop;
          ${rules}
          ${clamp ? 'tcp flags syn tcp option maxseg size set rt mtu' : ''}
          ct state established,related accept
          iifname "in" accept
        }
        # Dropped, not refused: what the kernel has answered holds its addresses and ports, and the
        # same flow from inside would get another port.
        chain input { type filter hook input priority filter; policy drop;
          ct state established,related accept
          iifname { "in", "lo" } accept
        }
        chain out { type filter hook output priority filter;
          ${mtu === undefined ? '' : 'icmp type destination-unreachable drop'}
        }
        chain translate { type nat hook postrouting priority srcnat;
          oifname "eth0" masquerade${random}
        }
      }`,
    )
    // Nodes inside tell their addresses to their peers, who try them.
    if (!inside.startsWith('10.77.0.')) await lab.expectPrivate(inside)
    return new Router(lab, name, ns, prefix)
  }

  /** A host inside, with eth0, default route and resolver. Returns its namespace. */
  async host(name = `${this.#name}-h${++this.#hosts}`): Promise<string> {
    const ns = await this.#lab.namespace(name)
    await this.#lab.link(ns, 'eth0', this.ns, 'in')
    await this.#lab.ip(ns, 'addr', 'add', `${this.#inside}.${10 + this.#hosts}/24`, 'dev', 'eth0')
    await this.#lab.ip(ns, 'route', 'add', 'default', 'via', `${this.#inside}.1`)
    return ns
  }
}

/** How a cable is. */
export interface WireOptions {
  /** Of each frame, each way, in ms. Default 0. */
  delay?: number
  /** Mbit/s, each way. Default: as fast as it goes. */
  rate?: number
  /** Percent of the frames from the host that are lost. Default 0. */
  lossOut?: number
  /** Percent of the frames to the host that are lost. Default 0. */
  lossIn?: number
}

/**
 * A cable between a device that it makes in a namespace and a bridge in another (`lab wire`: not
 * every kernel has netem). Returns the name of its other end, at the bridge.
 */
async function wire(
  lab: Lab,
  [ns, device]: [string, string],
  [bridgeNs, bridge]: [string, string],
  { delay = 0, rate = 0, lossOut = 0, lossIn = 0 }: WireOptions,
): Promise<string> {
  const port = lab.deviceName()
  const child = lab.exec(
    bridgeNs,
    [
      ...[lab.bin, 'wire', '--near-ns', ns, '--near', device, '--far-ns', bridgeNs, '--far', port],
      ...['--delay', `${delay}ms`, '--rate', String(rate)],
      ...['--loss-out', String(lossOut), '--loss-in', String(lossIn)],
    ],
    { stdio: ['pipe', 'pipe', 'inherit'] },
  )
  await once(child.stdout!, 'data')
  child.stdout!.resume()
  await lab.ip(bridgeNs, 'link', 'set', port, 'master', bridge, 'up')
  await lab.ip(ns, 'link', 'set', device, 'up')
  return port
}

/** The prefix from which {@link nat64} takes addresses: of the network's own (RFC 6052, 3.3). */
export const nat64Prefix = '2001:db8:64::'

/**
 * NAT64 (RFC 6146) for hosts on the segment that have IPv6 alone: tayga(8), which translates each
 * packet, and nftables, which gives all of them one IPv4 address.
 */
export async function nat64(lab: Lab, ip: string): Promise<void> {
  const ns = await lab.host('nat64', ip, { ipv6: true })
  const config = path.join(lab.dir, 'tayga.conf')
  await writeFile(
    config,
    `tun-device nat64\nipv4-addr 192.168.255.1\nprefix ${nat64Prefix}/96\ndynamic-pool ` +
      `192.168.255.0/24\ndata-dir ${lab.dir}\n`,
  )
  await lab.within(ns, 'tayga', '--config', config, '--mktun')
  await lab.ip(ns, 'link', 'set', 'nat64', 'up')
  await lab.ip(ns, 'addr', 'add', '192.168.255.254/32', 'dev', 'lo')
  await lab.ip(ns, 'route', 'add', '192.168.255.0/24', 'dev', 'nat64')
  await lab.ip(ns, 'route', 'add', `${nat64Prefix}/96`, 'dev', 'nat64')
  const forward = ['net.ipv4.ip_forward=1', 'net.ipv6.conf.all.forwarding=1']
  await lab.within(ns, 'sysctl', '-qw', ...forward)
  await lab.nft(
    ns,
    'table ip nat64 { chain translate { type nat hook postrouting priority srcnat; oifname "eth0" masquerade; }; }',
  )
  lab.exec(ns, ['tayga', '--config', config, '--nodetach'], { stdio: 'ignore' })
}

/** Sends what a host has for {@link nat64Prefix} to the translator at `ip`. */
export async function useNat64(lab: Segment, ns: string, ip: string): Promise<void> {
  await lab.ip(ns, 'route', 'add', `${nat64Prefix}/96`, 'via', ipv6(ip))
}

/**
 * An HTTP proxy (RFC 9110, section 9.3.6: CONNECT) on a host of its own. Returns its URL.
 */
export async function httpProxy(lab: Lab, ip: string): Promise<string> {
  const ns = await lab.host('proxy', ip)
  const child = lab.exec(
    ns,
    [
      process.execPath,
      '-e',
      `const net = require('node:net');
      require('node:http').createServer((_, r) => r.writeHead(405).end()).on('connect', (q, c, head) => {
        const [, host, port] = /^(.*):(\\d+)$/.exec(q.url);
        const s = net.connect({ host: host.replace(/^\\[|\\]$/g, ''), port }, () => {
          c.write('HTTP/1.1 200 OK\\r\\n\\r\\n'); s.write(head); c.pipe(s).pipe(c);
        });
        s.on('error', () => c.destroy()); c.on('error', () => s.destroy());
      }).listen(3128, () => console.log('ready'));`,
    ],
    { stdio: ['pipe', 'pipe', 'inherit'] },
  )
  await once(child.stdout!, 'data')
  child.stdout!.resume()
  return `http://${ip}:3128`
}
