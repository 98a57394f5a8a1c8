import { BlockList, isIP } from 'node:net'
import { ports } from './ports.ts'

/**
 * Addresses of the tailnet's devices: Tailscale's own, and those that Headscale takes its own from.
 * Whoever comes by the interface from another is dropped.
 */
export const tailnetNetworks = { 4: '100.64.0.0/10', 6: 'fd7a:115c:a1e0::/48' } as const

/**
 * `[tailnet] data_path = "kernel"`: the tun interface by which the kernel's TCP serves the tailnet,
 * and all that provisioning, firewall and gateway must agree on about it. The ruleset of the image
 * (overlays/etc/nftables.conf) and net.ipv4.ip_local_reserved_ports have it written out.
 */
export const kernelPath = {
  /** Made by systemd-networkd for the gateway's user (src/provision/kernel-path.ts). */
  interface: 'gatehouse0',
  /**
   * Its addresses, whatever those of the node are: what comes for the node's ports is translated to
   * them. One of TEST-NET-1 (RFC 5737), which nobody has, and a unique local one (RFC 4193).
   */
  addresses: { 4: '192.0.2.77', 6: 'fd67:6174:6568:6f75::1' },
  /** Tailscale's own. Larger packets are dropped. Bytes. */
  mtu: 1_280,
  /**
   * Routing table of what is sent from these addresses, and of nothing else: networks of providers
   * have addresses of 100.64.0.0/10 too.
   */
  table: 43_443,
  /**
   * Ports of the node that the kernel serves, and the gateway's own behind each: above 1024, and
   * reached from that interface alone. All else of the node stays with its own stack.
   */
  ports: { [ports.editor]: 43_443, [ports.flows]: 43_843, [ports.own]: 43_100 },
} as const

/** The gateway's port behind a port of the node's; undefined for one that the kernel does not serve. */
export function kernelPort(port: number): number | undefined {
  return (kernelPath.ports as Record<number, number>)[port]
}

const tailnet = new BlockList()
for (const [family, network] of Object.entries(tailnetNetworks)) {
  const [address, prefix] = network.split('/') as [string, string]
  tailnet.addSubnet(address, Number(prefix), family === '4' ? 'ipv4' : 'ipv6')
}

/** Whether an address is one that devices of a tailnet have ({@link tailnetNetworks}). */
export function isTailnetAddress(address: string): boolean {
  return tailnet.check(address, isIP(address) === 6 ? 'ipv6' : 'ipv4')
}
