/**
 * DNS as people have it. In each network the node joins by the names of control server and relay,
 * as natively compiled tsnet does beside it; the name servers of the host are asked, and nobody
 * else.
 */
import assert from 'node:assert/strict'
import { after, before, test, type TestContext } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  type HostOptions,
  ipv6,
  Lab,
  type LabClient,
  type Manner,
  secondResolver,
} from '../../../test/lab/lab.ts'
import { nat64, nat64Prefix, useNat64 } from '../../../test/lab/networks.ts'
import type { ProgramOptions } from '../../../test/lab/program.ts'
import { type Both, endBoth, joinMs, kinds, print, startBoth } from './beside.ts'
import { eventually } from './support.ts'

let lab: Lab
let peer: LabClient
let number = 60
const rows = [['DNS', 'native', 'ours', 'path (ours)', 'asked (ours)']]

before(async () => {
  lab = await Lab.start({ name: 'tdns' })
  peer = await lab.client('peer')
})
after(async () => await lab?.stop())

/** A place with a resolver of its own kind, both in it, and what they did there. */
interface Case {
  manner?: Manner
  host?: HostOptions
  program?: ProgramOptions
  /** Done with each namespace before the program is started. */
  prepare?: (ns: string) => Promise<void>
  /** Done while they join. */
  meanwhile?: (namespaces: string[]) => Promise<void>
}

/** By what address a host asks. */
const source = (ip: string, host?: HostOptions): string => (host?.ipv6 === 'only' ? ipv6(ip) : ip)

async function join(
  name: string,
  { manner, host, program, prepare, meanwhile }: Case,
  check?: (asked: Partial<Record<string, number>>, both: Both) => Promise<void> | void,
): Promise<void> {
  const at: Record<string, string> = {}
  const namespaces: string[] = []
  const places = Promise.all(
    kinds.map(async (kind) => {
      const ip = (at[kind] = `10.77.0.${number++}`)
      const ns = await lab.host(`d${number}`, ip, host)
      namespaces.push(ns)
      await lab.setManner(source(ip, host), { ...manner })
      await prepare?.(ns)
      return ns
    }),
  )
  const [native, wasm] = await places
  const started = startBoth(
    lab,
    (kind) => Promise.resolve(kind === 'native' ? native! : wasm!),
    program,
  )
  await Promise.all([started, meanwhile?.(namespaces)])
  const both = await started
  const asked = await lab.askedBy(source(at['wasm']!, host))
  // Bytes go there and back, whichever way.
  for (const kind of kinds) {
    const { trips } = await eventually(
      `an echo of ${kind}`,
      () => peer.load(both[kind].ip, 'rtt', { ms: 50 }).catch(() => undefined),
      20_000,
    )
    assert.ok(trips!.length > 0, kind)
  }
  const pong = await peer.ping(both.wasm.ip)
  rows.push([
    name,
    ...kinds.map((kind) => `${joinMs(both[kind])} ms`),
    pong.direct ? `direct ${pong.endpoint}` : `relayed ${pong.derp}`,
    Object.entries(asked)
      .map(([what, times]) => `${what} ${times}`)
      .join(', '),
  ])
  await check?.(asked, both)
  await endBoth(both)
}

test('a good resolver, for comparison', async () => {
  await join('good', {})
})

test('answers that are truncated: asked again by TCP', async () => {
  await join('truncated, then TCP', { manner: { truncate: true } }, (asked) => {
    assert.ok(asked['tcp']! > 0 && asked['udp']! > 0, JSON.stringify(asked))
  })
})

test('a chain of four aliases before the address', async () => {
  await join('CNAME chain', { manner: { cname: 4 } })
})

test('a resolver that takes a second for each answer', async () => {
  await join('slow, 1 s', { manner: { delayMs: 1000 } })
})

test('a resolver that first answers SERVFAIL', async () => {
  await join('SERVFAIL first', { manner: { servFail: 1 } }, (asked) => {
    assert.ok(asked['SERVFAIL']! > 0, JSON.stringify(asked))
  })
})

test('a name that is complete only with the search domain', async () => {
  await join('search domain', {
    program: { controlURL: 'https://control' },
    prepare: (ns) => lab.setResolver(ns, 'search lab.test', 'nameserver 10.77.0.1'),
  })
})

test('a name that only the host itself knows (hosts(5))', async () => {
  // `ip netns exec` binds this file over the one in /etc.
  const { writeFile } = await import('node:fs/promises')
  await join('hosts file', {
    program: { controlURL: 'https://control' },
    prepare: (ns) => writeFile(`/etc/netns/${ns}/hosts`, '10.77.0.2 control\n'),
  })
})

test('IPv6 addresses in the answers, and no IPv6 here', async () => {
  await join('AAAA, no IPv6', {
    manner: { aaaa: '2001:db8:dead::1' },
    program: { controlURL: 'https://control4.lab.test' },
  })
})

test('IPv6 addresses in the answers, and an IPv6 that leads nowhere', async () => {
  await join('AAAA, IPv6 to nowhere', {
    manner: { aaaa: '2001:db8:77::dead' },
    host: { ipv6: true },
    program: { controlURL: 'https://control4.lab.test' },
  })
})

test('no resolver answers at first, then DHCP names another one', async () => {
  await join('replaced while joining', {
    prepare: (ns) => lab.setResolver(ns, 'nameserver 10.77.0.250'),
    meanwhile: async (namespaces) => {
      await sleep(3000)
      for (const ns of namespaces) await lab.setResolver(ns, `nameserver ${secondResolver}`)
    },
  })
})

test('the resolver is replaced while the node runs: it finds the control server by the new one', async () => {
  const namespaces: string[] = []
  await join(
    'replaced while it runs',
    { prepare: async (ns) => void namespaces.push(ns) },
    async (_, both) => {
      for (const ns of namespaces) {
        await lab.nft(
          ns,
          'table inet t { chain o { type filter hook output priority 0; ip daddr 10.77.0.1 drop; }; }',
        )
        await lab.setResolver(ns, `nameserver ${secondResolver}`)
      }
      await lab.stopControl()
      await sleep(1000)
      await lab.startControl()
      const late = await lab.client('late')
      for (const kind of kinds)
        await eventually(
          `${kind} hears of a new peer`,
          () =>
            late.load(both[kind].ip, 'rtt', { ms: 20 }).then(
              () => true,
              () => false,
            ),
          60_000,
        )
      await late.stop()
    },
  )
})

test('IPv6 alone, with DNS64 and NAT64', async (t) => {
  if ((await lab.run(lab.ns, ['which', 'tayga'])).code !== 0)
    return t.skip('tayga is not installed (Debian package tayga)')
  const translator = '10.77.0.9'
  await nat64(lab, translator)
  // As with servers that have IPv4 alone: the relay too is reached through the translator.
  await lab.setHost('derp.lab.test', '10.77.0.3')
  await join('IPv6 alone, NAT64', {
    manner: { dns64: nat64Prefix },
    host: { ipv6: 'only' },
    program: { controlURL: 'https://control4.lab.test' },
    prepare: (ns) => useNat64(lab, ns, translator),
  })
  await lab.setHost('derp.lab.test', '10.77.0.3', ipv6('10.77.0.3'))
  return undefined
})

test('the table; nothing left the lab', async (t: TestContext) => {
  print(t, rows)
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
