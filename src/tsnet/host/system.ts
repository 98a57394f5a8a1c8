/** What the module cannot see for itself: interfaces and name servers of this machine. */
import dns from 'node:dns'
import fs from 'node:fs'
import net from 'node:net'
import os from 'node:os'

interface Interface {
  name: string
  index: number
  mtu: number
  addrs: string[]
  loop: boolean
}

/** The last answer of the system's. */
let known: Interface[] = []

/**
 * As ../go/net.go's hostInterface. Interfaces that are up; a number each, in the order of their
 * names. Where the system cannot say (short of memory or descriptors), they are as they were.
 */
export function interfaces(): Interface[] {
  let all: ReturnType<typeof os.networkInterfaces>
  try {
    all = os.networkInterfaces()
  } catch {
    return known
  }
  known = Object.entries(all)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, addrs = []], i) => ({
      name,
      index: i + 1,
      mtu: 1500,
      addrs: addrs.flatMap((a) => (a.cidr ? [a.cidr.replace(/%[^/]*/, '')] : [])),
      loop: addrs.some((a) => a.internal),
    }))
  return known
}

const withPort = (address: string): string =>
  net.isIPv6(address) ? `[${address}]:53` : `${address}:53`

/**
 * `ip:port` of the name servers, read anew each time: DHCP changes them. On Linux those of
 * resolv.conf(5); without any the local one, as that says. Elsewhere those that c-ares finds:
 * Windows has no such file, and on macOS it is not what the system goes by.
 */
export function nameservers(file = '/etc/resolv.conf'): string[] {
  if (process.platform !== 'linux') return systemServers()
  let text = ''
  try {
    text = fs.readFileSync(file, 'utf8')
  } catch {
    // No file is as good as an empty one.
  }
  const list = [...text.matchAll(/^\s*nameserver\s+(\S+)/gm)]
    .map((m) => m[1]!.replace(/%.*$/, ''))
    .filter((a) => net.isIP(a))
  return (list.length ? list : ['127.0.0.1']).map(withPort)
}

/** A resolver of its own asks the system anew. Those of a zone (fe80::1%12) cannot be dialled. */
function systemServers(): string[] {
  return new dns.Resolver()
    .getServers()
    .filter((server) => !server.includes('%'))
    .map((server) => (net.isIP(server) ? withPort(server) : server))
}

/**
 * How often the interfaces are looked at, in ms. Tailscale's own polling takes 10 s to see a
 * change.
 */
const WATCH_MS = 1000

/**
 * Calls `changed` when an interface has come, gone or got another address, and `looked` each time.
 * Returns what ends it.
 */
export function watchNetwork(changed: () => void, looked: () => void): () => void {
  let before = JSON.stringify(interfaces())
  const timer = setInterval(() => {
    looked()
    const now = JSON.stringify(interfaces())
    if (now === before) return
    before = now
    changed()
  }, WATCH_MS)
  return () => clearInterval(timer)
}
