/**
 * The appliance's interface for `[tailnet] data_path = "kernel"`, in a namespace: what
 * systemd-networkd makes of the files that provisioning writes, made of them by ip(8).
 */
import assert from 'node:assert/strict'
import { defaults } from '../../src/config/config.ts'
import { kernelPathFiles } from '../../src/provision/kernel-path.ts'
import { inside, run } from './ruleset.ts'

/** Sections of a file of systemd's, in order. */
function sections(text: string): Array<[name: string, values: Map<string, string>]> {
  const found: Array<[string, Map<string, string>]> = []
  for (const line of text.split('\n')) {
    const name = /^\[(\w+)\]$/.exec(line)?.[1]
    if (name !== undefined) found.push([name, new Map()])
    const pair = /^(\w+)=(.*)$/.exec(line)
    if (pair !== null) found.at(-1)![1].set(pair[1]!, pair[2]!)
  }
  return found
}

/**
 * Makes it. What the files say that is not understood here fails.
 *
 * @param user whose it is, by number
 */
export async function makeInterface(ns: string, user: string): Promise<void> {
  const { tailnet } = defaults()
  const files = [...kernelPathFiles({ ...tailnet, dataPath: 'kernel' }).values()]
  const ip = async (...args: string[]): Promise<unknown> => await run(inside(ns, 'ip', ...args))
  let name = ''
  for (const [section, values] of files.flatMap(sections)) {
    const take = (key: string): string | undefined => {
      const value = values.get(key)
      values.delete(key)
      return value
    }
    const family = (address: string): string => (address.includes(':') ? '-6' : '-4')
    if (section === 'NetDev') {
      name = take('Name')!
      assert.equal(take('Kind'), 'tun')
      await ip('tuntap', 'add', 'dev', name, 'mode', 'tun', 'user', user, 'vnet_hdr')
      await ip('link', 'set', name, 'addrgenmode', 'none')
      await ip('link', 'set', name, 'up')
    } else if (section === 'Tun') {
      assert.deepEqual([take('User'), take('VNetHeader')], ['gatehouse', 'yes'])
    } else if (section === 'Match') {
      assert.equal(take('Name'), name)
    } else if (section === 'Address') {
      const more = [
        ...(take('PreferredLifetime') === '0' ? ['preferred_lft', '0'] : []),
        ...(take('DuplicateAddressDetection') === 'none' ? ['nodad'] : []),
        ...(values.has('Scope') ? ['scope', take('Scope')!] : []),
      ]
      await ip('address', 'add', take('Address')!, 'dev', name, ...more)
    } else if (section === 'Route') {
      const to = take('Destination')!
      const how = [
        ...['table', take('Table')!],
        ...(values.has('Metric') ? ['metric', take('Metric')!] : []),
        ...(values.has('Scope') ? ['scope', take('Scope')!] : []),
      ]
      const type = take('Type')
      await ip(
        ...[family(to), 'route', 'add', ...(type === undefined ? [to, 'dev', name] : [type, to])],
        ...how,
      )
    } else if (section === 'RoutingPolicyRule') {
      const from = take('From')!
      const where = ['lookup', take('Table')!, 'priority', take('Priority')!]
      await ip(family(from), 'rule', 'add', 'from', from, ...where)
    } else if (section === 'Network' || section === 'Link') {
      if (values.has('MTUBytes')) await ip('link', 'set', name, 'mtu', take('MTUBytes')!)
      // What ip(8) leaves alone by itself.
      for (const key of [
        ...['LinkLocalAddressing', 'IPv6AcceptRA', 'LLMNR', 'MulticastDNS', 'RequiredForOnline'],
        ...['ConfigureWithoutCarrier', 'IgnoreCarrierLoss'],
      ])
        take(key)
    }
    assert.deepEqual([...values], [], `[${section}] of ${name}`)
  }
}
