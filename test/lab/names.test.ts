/**
 * Names for Node-RED, by the kernel: the image's own ruleset in a network namespace, `gatehouse
 * firewall apply` and the resolver of `gatehouse firewall names` in it, a DNS server behind that, and
 * servers on the other end of a cable.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, chown, mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  asking as ask,
  asUser,
  cable,
  configureFirewall,
  inside,
  ruleset,
  run,
  start,
  startResolver,
  stopStarted,
  users,
} from './ruleset.ts'

const source = path.resolve(import.meta.dirname, '../../src')
const [box, other] = [`gh-nm-box-${process.pid}`, `gh-nm-out-${process.pid}`]
let dns: ChildProcess | undefined
let directory: string
let ids: Map<string, string>
/** What reached the DNS server. */
let asked = ''

const as = (user: string, ...argv: string[]): string[] => asUser(ids.get(user)!, ...argv)
const asking = <T>(user: string, body: string): Promise<T> => ask<T>(box, user, body, 1_200)

const configure = async (toml: string): Promise<void> => {
  await configureFirewall(box, directory, toml)
}

const list = [
  'broker.example.org:443',
  '*.wild.example:443',
  'nas.example.org:443',
  'short.example.org:443',
]
const allow = (entries: string[]): string => `[node_red]\nallow = ${JSON.stringify(entries)}\n`

before(async () => {
  ids = await users()
  directory = await mkdtemp(path.join(tmpdir(), 'gh-names-'))
  await chown(directory, Number(ids.get('gatehouse-firewall')), 0)
  await chmod(directory, 0o755)
  await cable([
    [box, '192.168.79.1/24'],
    [
      other,
      '192.168.79.2/24',
      '203.0.113.5/32',
      '203.0.113.6/32',
      '203.0.113.7/32',
      '203.0.113.8/32',
    ],
  ])
  await run(['ip', '-n', box, 'route', 'add', 'default', 'via', '192.168.79.2'])
  await run(inside(box, 'sysctl', '-qw', 'net.ipv4.ip_unprivileged_port_start=0'))
  await run(inside(box, 'nft', '-f', '-'), await ruleset())
  await start(other, [
    process.execPath,
    '-e',
    `const net = require('node:net'); let up = 0; for (const port of [443, 444, 1883]) ` +
      `net.createServer((s) => { s.on('error', () => {}); s.write('hello '); s.pipe(s) ` +
      `}).listen({ host: '::', port }, () => { if (++up === 3) console.log('up') })`,
  ])
  const server = spawn(
    'ip',
    inside(
      box,
      'dnsmasq',
      ...['-k', '--no-resolv', '--no-hosts', '--no-poll', '--user=root', '--bind-interfaces'],
      ...['--listen-address=127.0.0.53', '--log-queries', '--log-facility=-', '--local-ttl=300'],
      '--host-record=broker.example.org,203.0.113.5',
      '--host-record=nas.example.org,192.168.79.2',
      '--host-record=short.example.org,203.0.113.6,1',
      '--host-record=target.elsewhere.example,203.0.113.7',
      '--cname=middle.elsewhere.example,target.elsewhere.example',
      '--cname=chain.wild.example,middle.elsewhere.example',
      '--address=/a.wild.example/203.0.113.8',
      '--host-record=lan.wild.example,192.168.79.2',
      '--host-record=self.wild.example,127.0.0.1',
      '--host-record=own.wild.example,192.168.79.1',
      '--host-record=tailnet.wild.example,100.64.0.5',
      '--host-record=other.example.org,203.0.113.8',
      '--local=/#/',
    ).slice(1),
    { stdio: ['ignore', 'inherit', 'pipe'] },
  )
  dns = server
  server.stderr.setEncoding('utf8').on('data', (text: string) => {
    asked += text
  })
  await sleep(300)
  assert.equal(server.exitCode, null, asked)
  // The test waits for the end of an answer's validity.
  await startResolver(box, directory, { floor: 2, ceiling: 3600, grace: 1 })
})

after(async () => {
  stopStarted()
  dns?.kill()
  for (const ns of [box, other]) await run(['ip', 'netns', 'del', ns]).catch(() => {})
  await rm(directory, { recursive: true, force: true })
})

test('without a name on the list the resolver is not even reached', async () => {
  await configure(allow(['203.0.113.5:443']))
  assert.deepEqual(
    await asking(
      'node-red',
      `return [await look('broker.example.org'), await reach('203.0.113.5')]`,
    ),
    ['ECONNREFUSED', 'hello'],
  )
  await configure('')
  assert.deepEqual(await asking('node-red', `return [await reach('203.0.113.5')]`), ['silence'])
})

test('a listed name: its address is let through with its answer, not before, and on its port alone', async () => {
  await configure(allow(list))
  assert.deepEqual(
    await asking(
      'node-red',
      `return [await reach('203.0.113.5'), await call('broker.example.org'), await ` +
        `reach('203.0.113.5', 444), await call('nas.example.org')]`,
    ),
    ['silence', 'hello', 'silence', 'hello'],
  )
  // The kernel keeps it for as long as the answer says, and a little.
  const told = await asking<Array<{ address: string; ttl: number }>>(
    'node-red',
    `return await look('BROKER.example.org')`,
  )
  assert.ok(told[0]!.ttl > 250 && told[0]!.ttl <= 300, JSON.stringify(told))
})

test('a wildcard and a chain of CNAMEs', async () => {
  assert.deepEqual(
    await asking(
      'node-red',
      `return [await call('x.y.a.wild.example'), await reach('203.0.113.7'), await ` +
        `call('chain.wild.example'), await look('wild.example'), await ` +
        `look('target.elsewhere.example')]`,
    ),
    ['hello', 'silence', 'hello', 'ENOTFOUND', 'ENOTFOUND'],
  )
})

test('a name that is not listed does not leave the device, whoever asks', async () => {
  assert.deepEqual(
    await asking(
      'node-red',
      `const raw = (server) => { const r = new Resolver({ timeout: 1000, tries: 1 }); r.setServers([server]); return r.resolve4('secret-2.other.example.org').catch((error) => error.code) };
       return [await look('other.example.org'), await look('secret-1.example.net'), await look('evilwild.example'), await raw('127.0.0.53'), await raw('192.168.79.2')]`,
    ),
    ['ENOTFOUND', 'ENOTFOUND', 'ENOTFOUND', 'ECONNREFUSED', 'ECONNREFUSED'],
  )
  assert.doesNotMatch(asked, /secret|other\.example\.org|evilwild/)
  assert.match(asked, /query\[A\] broker\.example\.org/, 'what is listed was asked')
  // The resolver is Node-RED's alone.
  for (const user of ['gatehouse', 'gatehouse-certs'])
    assert.deepEqual(
      await asking(user, `return await look('broker.example.org')`),
      'ECONNREFUSED',
      user,
    )
  // Other questions about a listed name have no answer and go nowhere.
  assert.deepEqual(
    await asking(
      'node-red',
      `return await Promise.all(['resolveTxt', 'resolveMx', 'resolveSrv', ` +
        `'resolveNs'].map((of) => dns[of]('broker.example.org').catch((error) => error.code)))`,
    ),
    ['ENODATA', 'ENODATA', 'ENODATA', 'ENODATA'],
  )
  assert.doesNotMatch(asked, /query\[(?:TXT|MX|SRV|NS)\]/)
})

test('an answer that leads inside is not followed, and said (DNS rebinding)', async () => {
  assert.deepEqual(
    await asking(
      'node-red',
      `return [await look('lan.wild.example'), await look('self.wild.example'), await ` +
        `look('own.wild.example'), await look('tailnet.wild.example')]`,
    ),
    ['ENODATA', 'ENODATA', 'ENODATA', 'ENODATA'],
  )
  await sleep(1_500)
  const told = JSON.parse(await readFile(path.join(directory, 'told.json'), 'utf8')) as Record<
    string,
    { refused: Record<string, string> }
  >
  assert.match(told['lan.wild.example']!.refused['192.168.79.2']!, /local network/)
  assert.match(told['self.wild.example']!.refused['127.0.0.1']!, /this machine/)
  assert.match(told['own.wild.example']!.refused['192.168.79.1']!, /this machine/)
  assert.match(told['tailnet.wild.example']!.refused['100.64.0.5']!, /tailnet/)
})

test('an answer that is over lets nobody through; a connection of its time goes on, until the entry is gone', async () => {
  const holder = await start(box, [
    ...as('node-red'),
    process.execPath,
    '-e',
    `const { Resolver } = require('node:dns').promises; const dns = new Resolver(); dns.setServers(['127.0.0.55']);
     dns.resolve4('short.example.org').then(([address]) => { const s = require('node:net').connect(443, address); s.on('data', (d) => console.log(String(d))); process.stdin.on('data', (d) => s.write(d)) })`,
  ])
  const direct = `return await reach('203.0.113.6')`
  assert.equal(await asking('node-red', direct), 'hello')
  await sleep(4_000)
  assert.equal(await asking('node-red', direct), 'silence')
  holder.stdin!.write('still here')
  const [said] = (await once(holder.stdout!, 'data')) as [Buffer]
  assert.match(String(said), /still here/)
  // Asked again it is open again.
  assert.equal(await asking('node-red', `return await call('short.example.org')`), 'hello')
  await configure(allow(list.filter((entry) => !entry.startsWith('short'))))
  holder.stdin!.write('nor now')
  const silent = await Promise.race([
    once(holder.stdout!, 'data').then(() => 'it said something'),
    sleep(1_500).then(() => 'silence'),
  ])
  assert.equal(silent, 'silence')
  assert.deepEqual(
    await asking(
      'node-red',
      `return [await look('short.example.org'), await call('broker.example.org')]`,
    ),
    ['ENOTFOUND', 'hello'],
  )
})

test('words of a flow’s choice below a wildcard: so many questions leave and no more', async () => {
  const results = await asking<string[]>(
    'node-red',
    `return await Promise.all(Array.from({ length: 120 }, (_, i) => look('data' + i + ` +
      `'.a.wild.example').then((all) => Array.isArray(all) ? 'told' : all)))`,
  )
  const left = new Set([...asked.matchAll(/query\[A\] (data\d+)\.a/g)].map(([, name]) => name))
  assert.ok(left.size > 10 && left.size <= 45, `${left.size} left`)
  const got = results.filter((result) => result === 'told').length
  assert.ok(got > 10 && got <= left.size, `${got} were told of ${left.size}`)
})

test('lan and internet: the one is not the other, and neither is this machine', async () => {
  await configure(allow(['lan:1883']))
  const three =
    `return [await reach('192.168.79.2', 1883), await reach('203.0.113.5', 1883), await ` +
    `reach('192.168.79.1', 1883), await reach('192.168.79.2', 443)]`
  assert.deepEqual(await asking('node-red', three), ['hello', 'silence', 'silence', 'silence'])
  await configure(allow(['internet:443']))
  assert.deepEqual(
    await asking(
      'node-red',
      `return [await reach('203.0.113.5'), await reach('192.168.79.2'), await ` +
        `call('other.example.org'), await look('nas.example.org'), await reach('203.0.113.5', ` +
        '444)]',
    ),
    ['hello', 'silence', 'hello', 'ENODATA', 'silence'],
  )
})

test('learning: what a flow wants is written down by name and port, and the firewall stays shut', async () => {
  await configure('')
  const learning = await start(box, [
    'env',
    `GATEHOUSE_CONFIG_DIR=${directory}`,
    `GATEHOUSE_FIREWALL_DIR=${directory}`,
    ...as('gatehouse-firewall', '--inh-caps=+net_admin', '--ambient-caps=+net_admin'),
    process.execPath,
    '--disable-warning=ExperimentalWarning',
    '--input-type=module',
    '-e',
    `import { learn } from ${JSON.stringify(path.join(source, 'firewall/refused.ts'))}; import { paths } from ${JSON.stringify(path.join(source, 'base/paths.ts'))};
     const stop = new AbortController(); process.once('SIGTERM', () => stop.abort());
     setTimeout(() => console.log('up'), 1500); await learn(paths(), 10, stop.signal)`,
  ])
  const before = asked.length
  assert.deepEqual(
    await asking(
      'node-red',
      `return [await call('broker.example.org', 8883), await call('api.cloud.example', 443), ` +
        `await reach('192.168.79.2', 1883)]`,
    ),
    ['silence', 'silence', 'silence'],
  )
  await sleep(3_500)
  const record = async () =>
    JSON.parse(await readFile(path.join(directory, 'refused.json'), 'utf8')) as {
      learning?: string
      refused: Array<Record<string, unknown>>
    }
  const { learning: until, refused } = await record()
  assert.ok(Date.parse(until!) > Date.now())
  const found = refused.map(({ name, address, port, protocol }) => [name, address, port, protocol])
  for (const one of [
    ['broker.example.org', undefined, 8883, 'tcp'],
    ['api.cloud.example', undefined, 443, 'tcp'],
    [undefined, '192.168.79.2', 1883, 'tcp'],
  ])
    assert.ok(
      found.some((other) => JSON.stringify(other) === JSON.stringify(one)),
      `${JSON.stringify(one)} in ${JSON.stringify(found)}`,
    )
  assert.equal(asked.length, before, 'no question has left')
  learning.kill()
  await once(learning, 'exit')
  assert.equal((await record()).learning, undefined)
  assert.deepEqual(
    await asking('node-red', `return await look('broker.example.org')`),
    'ECONNREFUSED',
  )
})
