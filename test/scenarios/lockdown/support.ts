/** The booted image that is attacked, and who attacks it: what the attacks have in common. */
import assert from 'node:assert/strict'
import path from 'node:path'
import { Lab, type LabClient } from '../../lab/lab.ts'
import { bootAppliance, editor, joined, settings, tried } from '../../vm/appliance.ts'
import type { Machine } from '../../vm/machine.ts'
import { Attempts } from '../attempts.ts'
import { noteAll as noteRows, shell } from '../shell.ts'

export const stranger = '10.77.0.60'
const mac = '52:54:00:12:34:56'
/** The link-local address that follows from it (RFC 4291, appendix A). */
export const linkLocal = 'fe80::5054:ff:fe12:3456%eth0'
const registry = 'http://registry.lab.test:4873'
const list =
  `[node_red]\nallow = ["${stranger}:8080", "broker.lab.test:8081/tcp", "palette"]\nregistry = ` +
  `"${registry}"\ndevices = ["serial"]\nprojects = true\n`

export let lab: Lab
export let owner: LabClient
export let machine: Machine
export let name: string
export let lan: string
export let address: string
export const attempts = new Attempts()

/** Asserts that none of these attempts got through, with the table's rows of those that did. */
export function held(from: string): void {
  assert.deepEqual(attempts.through(from), [])
}

/**
 * Errors of the stranger's own kernel: the machine, or its own link, is not up yet. What would come
 * of ICMP is overheard.
 */
const local = ['EADDRNOTAVAIL', 'EHOSTUNREACH', 'ENETUNREACH']

/** Runs a program on the stranger's machine. */
async function fromLan(...argv: string[]): Promise<string> {
  const { stdout, stderr, code } = await lab.run(lan, [
    process.execPath,
    '--disable-warning=ExperimentalWarning',
    ...argv,
  ])
  assert.equal(code, 0, stderr)
  return stdout
}

export const scan = async (
  target: string,
  first: number,
  last: number,
): Promise<{ tried: number; answered: { port: number; how: string }[] }> =>
  JSON.parse(
    await fromLan(
      path.join(import.meta.dirname, '../scan.ts'),
      target,
      String(first),
      String(last),
    ),
  )
export const flood = async (kind: string, target: string, count: number): Promise<number> =>
  Number(await fromLan(path.join(import.meta.dirname, '../flood.ts'), kind, target, String(count)))

/** Packets of a counter of the firewall's. */
export async function dropped(reason: string): Promise<number> {
  const { stdout } = await machine.run(`nft -j list counter inet gatehouse dropped-${reason}`)
  return (JSON.parse(stdout).nftables as { counter?: { packets: number } }[]).find(
    (object) => object.counter,
  )!.counter!.packets
}

/**
 * What came to the stranger from the appliance and was no DHCP question nor neighbour discovery:
 * nothing should.
 */
export async function overheard(): Promise<number> {
  const { stdout } = await lab.run(lan, [
    'nft',
    '-j',
    'list',
    'counter',
    'inet',
    'watch',
    'overheard',
  ])
  return (JSON.parse(stdout).nftables as { counter?: { packets: number } }[]).find(
    (object) => object.counter,
  )!.counter!.packets
}

/** The same by protocol and source port (ICMP: type and code as one number). */
export async function overheardWhat(): Promise<string> {
  const { stdout } = await lab.run(lan, ['nft', 'list', 'set', 'inet', 'watch', 'what'])
  return /elements = \{([^}]*)\}/.exec(stdout)?.[1]?.replaceAll(/\s+/g, ' ') ?? ''
}

/** What the gateway answers by itself, whatever becomes of Node-RED. Milliseconds to its answer. */
export async function served(): Promise<number> {
  const answer = await owner.fetch(`http://${name}/`, { timeout: 60_000 })
  assert.equal(answer.status, 308)
  return answer.ms
}

/** Runs a script as Node-RED: the attacker has deployed a flow that runs what it is sent. */
export const asNodeRed = async (script: string, timeout?: number): Promise<string> =>
  await shell(owner, name, script, timeout)
/** Notes what break-in.js printed. */
export const noteAll = (from: string, output: string): number => noteRows(attempts, from, output)

/** Process id of a unit. */
export const pidOf = async (unit: string): Promise<number> =>
  Number((await machine.run(`systemctl show -P MainPID ${unit}`)).stdout)

/** Boots the image, with somebody on the local network who knocks from power-on. */
export async function boot(): Promise<void> {
  lab = await Lab.start({ name: 'lock' })
  owner = await lab.client('laptop')
  lan = await lab.host('stranger', stranger)
  for (const host of ['broker.lab.test', 'registry.lab.test']) await lab.setHost(host, stranger)
  const rules = `table inet watch {
    counter overheard { }
    set what { type inet_proto . inet_service; size 200; flags dynamic; }
    chain input { type filter hook input priority 0;
      iif lo accept
      ether saddr != ${mac} accept
      udp dport { 67, 547 } accept
      icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, mld-listener-report, mld2-listener-report } accept
      counter name overheard
      # By number: names of protocols are in /etc/protocols, which a small system does not have.
      meta l4proto { 1, 6, 17, 58 } add @what { meta l4proto . th sport }
    }
  }`
  const loaded = await lab.run(lan, ['nft', '-f', '-'], rules)
  assert.equal(loaded.code, 0, loaded.stderr)
  machine = await bootAppliance(lab, tried, {
    mac,
    serial: path.join(lab.dir, 'serial'),
    toml: `${settings(lab)}${list}`,
  })
  // A stranger on the LAN knocks from power-on: the link-local address follows from the card's, the
  // other comes with the lease.
  const booting = new AbortController()
  const answered: unknown[] = []
  let sweeps = 0
  const knocker = (async () => {
    while (!booting.signal.aborted) {
      const lease = (await lab.leases())[0]?.ip
      for (const target of lease === undefined ? [linkLocal] : [linkLocal, lease]) {
        for (const [first, last] of [
          [20, 25],
          [80, 80],
          [443, 443],
          [1880, 1880],
        ] as const)
          answered.push(
            ...(await scan(target, first, last)).answered.filter(({ how }) => !local.includes(how)),
          )
        await flood('ports', target, 600)
      }
      sweeps++
    }
  })()
  name = (await joined(lab)).name
  await editor(owner, name)
  booting.abort()
  await knocker
  address = (await lab.leases())[0]!.ip
  assert.ok(sweeps >= 2, `${sweeps} sweeps while it booted`)
  const heard = await overheard()
  // What is overheard is told, not judged: a PC's firmware has a network stack of its own, which
  // answers before the system is there.
  attempts.note(
    'LAN, booting',
    `${sweeps} sweeps of TCP and UDP ports from power-on`,
    answered.length === 0
      ? `no TCP port answered; ${heard} other packets ${await overheardWhat()}`
      : JSON.stringify(answered),
    answered.length === 0,
  )
}

/** Prints what was tried and what it got, and ends it all. */
export async function end(): Promise<void> {
  if (attempts.count > 0) console.log(String(attempts))
  await machine?.destroy()
  await lab?.stop()
}
