import type { Config } from '../config/config.ts'
import { familyOf, forbidden } from '../config/addresses.ts'
import type { Egress } from '../config/egress.ts'

/**
 * Ports of TCP that the gateway may use anywhere in any case, for control server and relays
 * (overlays/etc/nftables.conf).
 */
const anywhere = [80, 443]

/**
 * Where the gateway has to connect to, by TCP, for a control server of one's own, a proxy on the
 * way to it, and for the apps and forwards of a configuration; each once. Unix sockets are no
 * business of the firewall's, nor is what the shipped rules allow it anyway.
 */
export function gatewayTargets({
  tailnet,
  network,
  app,
  forward,
}: Pick<Config, 'tailnet' | 'network' | 'app' | 'forward'>): Egress[] {
  const written = [
    ...(tailnet.controlURL === undefined ? [] : [tailnet.controlURL]),
    ...network.flatMap(({ proxy }) => proxy ?? []),
    ...app.flatMap(({ upstreams }) => upstreams),
    ...forward.filter(({ protocol }) => protocol === 'tcp').map(({ target }) => target),
  ]
  // Elsewhere the gateway may send UDP in any case.
  const packets = forward
    .filter(({ protocol }) => protocol === 'udp')
    .flatMap(({ target }) => egressOf(target, []))
    .filter(({ host }) => 'address' in host && isLoopback(host.address))
    .map((egress): Egress => ({ ...egress, protocol: 'udp' }))
  const streams = [...new Set(written)]
    .filter((text) => !text.startsWith('unix:'))
    .flatMap((text) => egressOf(text, anywhere))
  return [...streams, ...packets]
}

/**
 * A target of gatehouse.toml (`host:port`, or a URL, whose port follows from its scheme) for the
 * firewall. Empty for what a user may send to in any case.
 *
 * @param anywhere ports of TCP that user may use anywhere but on this machine
 */
export function egressOf(text: string, anywhere: readonly number[]): Egress[] {
  // A forward's target has no scheme; an app's upstream may leave its port to it.
  const {
    protocol,
    hostname,
    port: given,
  } = new URL(/^https?:/.test(text) ? text : `tcp://${text}`)
  const port = Number(given || (protocol === 'https:' ? 443 : 80))
  const host = hostname.replace(/^\[|\]$/g, '').toLowerCase()
  const egress = (of: Egress['host']): Egress => ({
    text,
    host: of,
    ports: [port, port],
    protocol: 'tcp',
  })
  const family = familyOf(host)
  if (host === 'localhost')
    return [egress({ address: '127.0.0.1', family: 4 }), egress({ address: '::1', family: 6 })]
  if (anywhere.includes(port) && !(family !== undefined && isLoopback(host))) return []
  return [
    egress(family === undefined ? { name: host.replace(/\.$/, '') } : { address: host, family }),
  ]
}

/**
 * Why the gateway cannot be sent to an address that stands in gatehouse.toml: as {@link forbidden},
 * but to this machine itself it can.
 */
export function unreachable(address: string): string | undefined {
  return isLoopback(address) ? undefined : forbidden(address)
}

function isLoopback(address: string): boolean {
  return address.startsWith('127.') || address === '::1'
}
