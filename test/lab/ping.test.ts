/**
 * Pings by flows, by the kernel: the image's own ruleset and setting of the kernel in a network
 * namespace, `gatehouse firewall apply` and Node-RED's resolver in it, and iputils' ping as
 * Node-RED's user without a capability, to hosts on the other end of a cable.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, chown, copyFile, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  asUser,
  asking,
  cable,
  configureFirewall,
  firewall,
  inside,
  ruleset,
  run,
  start,
  startResolver,
  stopStarted,
  users,
} from './ruleset.ts'

const [box, other] = [`gh-pg-box-${process.pid}`, `gh-pg-out-${process.pid}`]
const etc = `/etc/netns/${box}`
const here = { 4: '192.168.83.1', 6: 'fd83::1' }
const near = { 4: '192.168.83.2', 6: 'fd83::2' }
const next = { 4: '192.168.83.3', 6: 'fd83::3' }
const far = { 4: '203.0.113.5', 6: '2001:db8:83::5' }
const tailnet = { 4: '100.64.0.5', 6: 'fd7a:115c:a1e0::5' }
let dns: ChildProcess | undefined
let directory: string
let ids: Map<string, string>

const configure = async (allow: string[]): Promise<void> => {
  await configureFirewall(box, directory, `[node_red]\nallow = ${JSON.stringify(allow)}\n`)
}

const sandboxed = (user: string, ...argv: string[]): string[] =>
  asUser(ids.get(user)!, '--no-new-privs', '--bounding-set=-all', '--inh-caps=-all', ...argv)

/** How many answers ping counts, or the last that it said where it did not come to that. */
async function ping(host: string, options: string[] = [], user = 'node-red'): Promise<string> {
  const [command, ...argv] = inside(
    box,
    ...sandboxed(
      user,
      path.join(directory, 'ping'),
      '-n',
      ...(options.length > 0 ? options : ['-c', '1', '-w', '1']),
    ),
    host,
  )
  const child = spawn(command!, argv, { stdio: ['ignore', 'pipe', 'pipe'] })
  let said = ''
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (text: string) => (said += text))
  await once(child, 'close')
  return /(\d+) received/.exec(said)?.[1] ?? said.trim().split('\n').at(-1)!
}

/** Of several hosts, those that answer. */
async function answering(hosts: readonly string[]): Promise<string[]> {
  const got = await Promise.all(hosts.map(async (host) => await ping(host)))
  return hosts.filter((_, i) => got[i] === '1')
}

/** Packets of a counter of the ruleset's, or of the other end's. */
async function counted(name: string, ns = box): Promise<number> {
  const { nftables } = JSON.parse(await run(inside(ns, 'nft', '-j', 'list', 'counters'))) as {
    nftables: Array<{ counter?: { name: string; packets: number } }>
  }
  return nftables.find(({ counter }) => counter?.name === name)!.counter!.packets
}

/** What `gatehouse firewall refused` has of pings. */
async function refused(): Promise<Array<Record<string, unknown>>> {
  const all = JSON.parse(await firewall(box, directory, 'refused')) as {
    refused: Array<Record<string, unknown>>
  }
  return all.refused.filter(({ protocol }) => protocol === 'icmp')
}

before(async () => {
  ids = await users()
  directory = await mkdtemp(path.join(tmpdir(), 'gh-ping-'))
  await chown(directory, Number(ids.get('gatehouse-firewall')), 0)
  await chmod(directory, 0o755)
  // Where a distribution's has a capability, the kernel does not start it without. Debian 13's has none.
  await copyFile((await run(['which', 'ping'])).trim(), path.join(directory, 'ping'))
  // ping asks as any program does: `ip netns exec` puts this in the place of /etc/resolv.conf.
  await mkdir(etc, { recursive: true })
  await writeFile(path.join(etc, 'resolv.conf'), 'nameserver 127.0.0.55\noptions timeout:1\n')
  await cable([
    [box, `${here[4]}/24`, `${here[6]}/64`],
    [
      other,
      ...[`${near[4]}/24`, `${next[4]}/24`, `${far[4]}/32`, `${tailnet[4]}/32`],
      ...[`${near[6]}/64`, `${next[6]}/64`, `${far[6]}/128`, `${tailnet[6]}/128`],
    ],
  ])
  for (const family of [4, 6] as const)
    await run(['ip', '-n', box, `-${family}`, 'route', 'add', 'default', 'via', near[family]])
  const sysctl = await readFile(
    path.resolve(import.meta.dirname, '../../overlays/usr/lib/sysctl.d/60-gatehouse.conf'),
    'utf8',
  )
  const [range] = /^net\.ipv4\.ping_group_range = .*$/m.exec(sysctl)!
  for (const setting of [range.replace(' = ', '='), 'net.ipv4.ip_unprivileged_port_start=0'])
    await run(inside(box, 'sysctl', '-qw', setting))
  await run(inside(box, 'nft', '-f', '-'), await ruleset())
  await run(
    inside(other, 'nft', '-f', '-'),
    `table inet seen {
      counter pings { }
      chain in {
        type filter hook input priority 0
        icmp type echo-request counter name pings
        icmpv6 type echo-request counter name pings
      }
    }`,
  )
  dns = spawn(
    'ip',
    inside(
      box,
      ...['dnsmasq', '-k', '--no-resolv', '--no-hosts', '--no-poll', '--user=root'],
      ...['--bind-interfaces', '--listen-address=127.0.0.53', '--local-ttl=300', '--local=/#/'],
      `--host-record=nas.example.org,${far[4]},${far[6]}`,
    ).slice(1),
    { stdio: 'ignore' },
  )
  await startResolver(box, directory)
  // Both ends see whether somebody has their IPv6 addresses already.
  for (const ns of [box, other])
    for (let i = 0; i < 50; i++) {
      if ((await run(['ip', '-n', ns, '-6', 'addr', 'show', 'tentative'])) === '') break
      await sleep(100)
    }
})

after(async () => {
  stopStarted()
  dns?.kill()
  for (const ns of [box, other]) await run(['ip', 'netns', 'del', ns]).catch(() => {})
  for (const folder of [etc, directory]) await rm(folder, { recursive: true, force: true })
})

test('without an entry for it nobody is pinged, though a port of theirs is allowed', async () => {
  for (const allow of [[], [`${near[4]}:1883`, `[${near[6]}]:1883`]]) {
    await configure(allow)
    const before = await counted('dropped-out-node-red')
    assert.deepEqual(await answering([near[4], near[6]]), [])
    assert.ok((await counted('dropped-out-node-red')) > before + 1)
  }
  assert.equal(await counted('pings', other), 0, 'nothing has left')
})

test('an address is pinged by IPv4 and IPv6; no other is, which is counted and shown', async () => {
  await configure([`${near[4]}:ping`, `[${near[6]}]:ping`])
  assert.deepEqual(
    await answering([near[4], near[6], next[4], next[6], far[4], far[6], tailnet[4], here[4]]),
    [near[4], near[6]],
  )
  const shown = await refused()
  for (const address of [next[4], next[6], far[4], tailnet[4]])
    assert.ok(
      shown.some((one) => one['address'] === address && one['port'] === undefined),
      `${address} in ${JSON.stringify(shown)}`,
    )
  assert.ok(!shown.some(({ address }) => address === here[4]), 'this device itself')
  assert.equal(
    await asking(box, 'node-red', `return await reach('${near[4]}', 1883)`, 500),
    'silence',
    'a ping is no port',
  )
})

test('nobody else on this device has the socket for it, and nobody outside is answered', async () => {
  assert.match(await ping(near[4], [], 'gatehouse'), /not permitted|Permission denied|cap_net_raw/)
  for (const address of [here[4], here[6]])
    assert.match(
      await run(inside(other, 'ping', '-n', '-c', '1', '-w', '1', address)).catch((err: unknown) =>
        String(err),
      ),
      /Error/,
    )
})

test('a ping is as large as ping makes it, and no larger: no bytes in its tail', async () => {
  for (const host of [near[4], near[6]]) {
    const before = await counted('dropped-out-node-red-ping')
    const sized = async (size: number): Promise<string> =>
      await ping(host, ['-c', '1', '-w', '1', '-s', String(size)])
    assert.deepEqual(await Promise.all([0, 56].map(sized)), ['1', '1'])
    assert.deepEqual(await Promise.all([57, 1000, 1472, 9000].map(sized)), ['0', '0', '0', '0'])
    assert.ok((await counted('dropped-out-node-red-ping')) >= before + 4)
  }
})

test('so many at once, and in all, and no more', async () => {
  const before = await counted('pings', other)
  const started = performance.now()
  const got = Number(await ping(near[4], ['-c', '400', '-i', '0.005', '-W', '1']))
  const seconds = (performance.now() - started) / 1000
  const left = (await counted('pings', other)) - before
  assert.ok(got >= 20 && left <= 62 + 10 * seconds, `${got} answered, ${left} left in ${seconds} s`)
})

test('a name: its addresses are pinged when it was answered, not before; by itself, as ping asks', async () => {
  await configure(['nas.example.org:ping'])
  assert.deepEqual(await answering([far[4], far[6], near[4]]), [])
  const by = async (family: string, name: string): Promise<string> =>
    await ping(name, [family, '-c', '1', '-w', '1'])
  assert.equal(await by('-4', 'nas.example.org'), '1')
  assert.deepEqual(await answering([far[4], near[4]]), [far[4]])
  assert.equal(await by('-6', 'nas.example.org'), '1')
  assert.deepEqual(await answering([far[6], next[6]]), [far[6]])
  assert.match(await by('-4', 'other.example.org'), /not known|failure in name resolution/)
})

test('lan and internet: neither is the other, this device, the tailnet or a group', async () => {
  const all = [near, next, far, tailnet, here].flatMap((of) => [of[4], of[6]])
  const groups = ['127.0.0.1', '::1', '224.0.0.1', 'ff02::1%eth0', '192.168.83.255']
  await configure(['ping'])
  assert.deepEqual(await answering([...all, ...groups]), [near[4], near[6], next[4], next[6]])
  await configure(['internet:ping'])
  assert.deepEqual(await answering([...all, ...groups]), [far[4], far[6]])
})

test('what is taken off the list ends at once', async () => {
  await configure(['lan:ping'])
  const running = await start(
    box,
    sandboxed('node-red', path.join(directory, 'ping'), '-n', '-i', '0.2', near[4]),
  )
  await sleep(700)
  await configure([])
  const before = await counted('pings', other)
  await sleep(700)
  assert.equal(await counted('pings', other), before)
  running.kill()
})

test('learning: the name that a flow wants to ping is written down as such', async () => {
  await writeFile(
    path.join(directory, 'learn.json'),
    JSON.stringify({ until: Date.now() + 60_000 }),
  )
  await configure([])
  const before = await counted('pings', other)
  assert.equal(await ping('cloud.example.net', ['-4', '-c', '1', '-w', '1']), '0')
  await sleep(1_200)
  const [found] = (await refused()).filter(({ name }) => name !== undefined)
  assert.deepEqual([found?.['name'], found?.['address']], ['cloud.example.net', undefined])
  assert.equal(await counted('pings', other), before)
})
