/**
 * Networks as people have them: the bindings beside natively compiled tsnet, in the same place. Both
 * join, both get the same path to each peer, and bytes go both ways; where the line is what limits
 * them, at the same speed to within two. The table at the end is what was seen.
 *
 * With GATEHOUSE_LONG=1 (`make test-long`) more networks, and longer measurements.
 */
import assert from 'node:assert/strict'
import { after, before, test, type TestContext } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Lab, type LabClient } from '../../../test/lab/lab.ts'
import { httpProxy, Router, type RouterOptions } from '../../../test/lab/networks.ts'
import type { ProgramOptions } from '../../../test/lab/program.ts'
import { type Both, endBoth, joinMs, kinds, print, startBoth, type Kind } from './beside.ts'
import { eventually } from './support.ts'

const long = process.env.GATEHOUSE_LONG === '1'
/** Of one measurement, in ms. */
const ms = long ? 10_000 : 1_500

let lab: Lab
/** Peers: on the internet itself, behind a router at home, behind one that maps each flow anew. */
const peers: { name: string; nat: 'none' | 'easy' | 'hard'; client: LabClient }[] = []
const rows = [['network', 'peer', 'path (ours)', 'joined native', 'ours', 'down', 'up']]
let number = 60
const ip = (): string => `10.77.0.${number++}`

before(async () => {
  lab = await Lab.start({ name: 'tnets' })
  const home = await Router.start(lab, 'peerhome', { ip: ip(), inside: '192.168.5.0/24' })
  const office = await Router.start(lab, 'peerhard', {
    ip: ip(),
    inside: '192.168.6.0/24',
    mapping: 'endpoint-dependent',
  })
  const places = [
    { name: 'internet', nat: 'none', ns: undefined },
    { name: 'home', nat: 'easy', ns: await home.host() },
    { name: 'office', nat: 'hard', ns: await office.host() },
  ] as const
  for (const { name, nat, ns } of places)
    peers.push({ name, nat, client: await lab.client(name, ns ? { ns } : {}) })
})
after(async () => await lab?.stop())

interface Network {
  name: string
  /** How hard the network is to get through (https://tailscale.com/kb/1411/device-connectivity). */
  nat: 'easy' | 'hard' | 'no UDP'
  /** Makes the place for one of both: its namespace. */
  place: (n: number) => Promise<string>
  program?: ProgramOptions
  /** The least part of native's speed. Where the line limits, both are as fast, to within two. */
  least?: number
  /**
   * Whether native tsnet gets nothing through, since its packets must stay whole and are too large
   * for the line: what the bindings send gets through all the same.
   */
  narrow?: boolean
}

/** Whether two that are so hard to get through reach one another without a relay. */
const direct = (a: Network['nat'], b: 'none' | 'easy' | 'hard'): boolean =>
  a !== 'no UDP' && (b === 'none' || (a === 'easy' && b === 'easy'))

/**
 * By the relay, of native's speed: it has 0.35 to 0.6. Packet by packet it had 0.05 to 0.15
 * (patches/0012).
 */
const byRelay = 1 / 5

const mbit = ({ bytes, ms }: { bytes: number; ms: number }): number => (bytes * 8) / ms / 1000

async function both(network: Network): Promise<void> {
  const places = { native: await network.place(0), wasm: await network.place(1) }
  const there = await startBoth(lab, (kind) => Promise.resolve(places[kind]), network.program)
  const paths = await Promise.all(
    peers.map(async ({ nat, client }) => {
      const expected = direct(network.nat, nat)
      const [native, wasm] = await Promise.all(
        kinds.map((kind) => path(client, there[kind].ip, expected)),
      )
      return { native: native!, wasm: wasm!, expected }
    }),
  )
  for (const [i, { name, nat, client }] of peers.entries()) {
    for (const kind of kinds)
      assert.match(
        paths[i]![kind],
        paths[i]!.expected ? /^direct/ : /^relayed lab$/,
        `${network.name}, ${kind} and the peer ${name}`,
      )
    const speed = i === 0 || long ? await speeds(client, there, network) : { down: '', up: '' }
    rows.push([
      i === 0 ? network.name : '',
      `${name} (${nat === 'none' ? 'no' : nat} NAT)`,
      paths[i]!.wasm.replace(/ .*:.*/, ''),
      ...(i === 0 ? kinds.map((kind) => `${joinMs(there[kind])} ms`) : ['', '']),
      speed.down,
      speed.up,
    ])
  }
  await endBoth(there)
}

/**
 * The path to a node, once there was time to find one: where a direct one is expected as soon as it
 * is there, otherwise after some seconds of trying.
 */
async function path(client: LabClient, address: string, expected: boolean): Promise<string> {
  if (expected) return `direct ${(await client.pingDirect(address, 40_000)).endpoint}`
  let last = ''
  // At least one answer, and some seconds for a direct path that should not be found.
  const begun = Date.now()
  for (; Date.now() < begun + (last === '' ? 30_000 : 4_000); await sleep(300)) {
    const pong = await client.ping(address).catch(() => undefined)
    if (pong?.direct) return `direct ${pong.endpoint}`
    if (pong) last = `relayed ${pong.derp}`
  }
  return last
}

/** So often the speed is measured where it has to be as native's: other work passes. */
const attempts = 4

/** Bytes to and from both, one after the other. */
async function speeds(
  client: LabClient,
  there: Both,
  { name, least = 0, narrow }: Network,
): Promise<{ down: string; up: string }> {
  const cells = { down: '', up: '' }
  for (const kind of ['down', 'up'] as const) {
    const rate = async (of: Kind, time: number): Promise<number> => {
      const load = eventually(
        `${kind} of ${of}`,
        () => client.load(there[of].ip, kind, { ms: time }).catch(() => undefined),
        60_000,
      )
      return narrow ? await Promise.race([load.then(mbit), sleep(5_000, 0)]) : mbit(await load)
    }
    // The first bytes are for V8, which compiles what is used much.
    await rate('wasm', 500)
    for (let attempt = 1; ; attempt++) {
      const [native, wasm] = [await rate('native', ms), await rate('wasm', ms)]
      cells[kind] = `${native.toFixed(1)} / ${wasm.toFixed(1)} Mbit/s`
      // What a peer sends into a narrow line is native tsnet's.
      if (wasm > Math.max(native * least, 0.05) || (narrow && kind === 'up')) break
      assert.ok(attempt < attempts, `${name}: ${kind} ${cells[kind]}`)
    }
  }
  return cells
}

/** One router for each of both. `options` without addresses. */
const behindRouter =
  (name: string, inside: string, options: Partial<RouterOptions> = {}) =>
  async (n: number): Promise<string> => {
    const network = inside.replace(/(\d+)\.0\/24$/, (_, third) => `${Number(third) + n}.0/24`)
    const router = await Router.start(lab, `${name}${n}`, { ip: ip(), inside: network, ...options })
    return await router.host()
  }

test('a router at home (endpoint-independent mapping), 40 Mbit/s', async () => {
  await both({
    name: 'home router, 40 Mbit/s',
    nat: 'easy',
    place: behindRouter('home', '192.168.10.0/24', { line: { rate: 40, delay: 5 } }),
    least: 1 / 2,
  })
})

test('a router that maps each flow to another port (endpoint-dependent mapping)', async () => {
  await both({
    name: 'hard NAT',
    nat: 'hard',
    place: behindRouter('hard', '192.168.20.0/24', { mapping: 'endpoint-dependent' }),
  })
})

test('a router behind the one of the carrier: two NATs, the outer one in 100.64.0.0/10', async () => {
  await both({
    name: 'two NATs (carrier-grade)',
    nat: 'easy',
    place: async (n) => {
      const carrier = await Router.start(lab, `carrier${n}`, {
        ip: ip(),
        inside: `100.64.${7 + n}.0/24`,
      })
      const home = await Router.start(lab, `inner${n}`, {
        ip: `100.64.${7 + n}.2`,
        inside: `192.168.${30 + n}.0/24`,
        behind: carrier,
      })
      return await home.host()
    },
  })
})

test('two NATs, the outer one with endpoint-dependent mapping', async () => {
  await both({
    name: 'two NATs, the outer one hard',
    nat: 'hard',
    place: async (n) => {
      const carrier = await Router.start(lab, `hcarrier${n}`, {
        ip: ip(),
        inside: `100.65.${7 + n}.0/24`,
        mapping: 'endpoint-dependent',
      })
      const home = await Router.start(lab, `hinner${n}`, {
        ip: `100.65.${7 + n}.2`,
        inside: `192.168.${40 + n}.0/24`,
        behind: carrier,
      })
      return await home.host()
    },
  })
})

test('a LAN in 100.64.0.0/10, where the tailnet has its own addresses', async () => {
  await both({
    name: 'LAN in 100.64.0.0/10',
    nat: 'easy',
    place: behindRouter('cgnlan', '100.66.10.0/24'),
  })
})

for (const mtu of [1400, 1280]) {
  test(`a line with an MTU of ${mtu} that nobody is told of (no ICMP)`, async () => {
    await both({
      name: `MTU ${mtu}, no ICMP`,
      nat: 'easy',
      narrow: mtu < 1340, // what WireGuard makes of a packet of 1280
      place: behindRouter(`mtu${mtu}`, `192.168.${mtu === 1400 ? 50 : 60}.0/24`, { mtu }),
    })
  })
}

test('no UDP but DNS: by the relay', async () => {
  await both({
    name: 'UDP blocked',
    nat: 'no UDP',
    least: byRelay,
    place: behindRouter('noudp', '192.168.70.0/24', { rules: 'ct state new udp dport != 53 drop' }),
  })
})

test('an HTTP proxy as the only way out: by the relay, through it', async () => {
  const url = await httpProxy(lab, ip())
  await both({
    name: 'HTTP proxy alone',
    nat: 'no UDP',
    least: byRelay,
    place: behindRouter('proxied', '192.168.80.0/24', {
      rules: 'ct state new udp dport != 53 drop\n ct state new tcp dport != 3128 drop',
    }),
    program: { env: { HTTPS_PROXY: url, HTTP_PROXY: url } },
  })
})

const lines: [string, Parameters<typeof behindRouter>[2]][] = [
  ['66 ms there and back, 1 % lost both ways', { line: { delay: 33, lossOut: 1, lossIn: 1 } }],
  ...(long
    ? ([
        ['66 ms, 1 % lost on the way out', { line: { delay: 33, lossOut: 1 } }],
        ['66 ms, 1 % lost on the way in', { line: { delay: 33, lossIn: 1 } }],
        ['66 ms, nothing lost', { line: { delay: 33 } }],
        ['20 ms, 5 % lost both ways', { line: { delay: 10, lossOut: 5, lossIn: 5 } }],
      ] as [string, Parameters<typeof behindRouter>[2]][])
    : []),
]
for (const [i, [name, options]] of lines.entries()) {
  test(name, async () => {
    await both({
      name,
      nat: 'easy',
      place: behindRouter(`far${i}`, `192.168.${90 + 2 * i}.0/24`, options),
      least: 1 / 2,
    })
  })
}

test('the table; nothing left the lab', async (t: TestContext) => {
  print(t, rows)
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
