/**
 * Node-RED's way to other devices of the tailnet: the gateway with the real bindings and native
 * peers, the image's own ruleset in its namespace, the resolver, and programs as Node-RED's user.
 */
import assert from 'node:assert/strict'
import { chmod, chown, mkdir } from 'node:fs/promises'
import net from 'node:net'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { Appliance, eventually } from './appliance.ts'
import { Lab, type LabClient } from './lab.ts'
import {
  asking as ask,
  asUser,
  inside,
  ruleset,
  run,
  start,
  startResolver,
  stopStarted,
  users,
} from './ruleset.ts'

let lab: Lab
let appliance: Appliance
let broker: LabClient
let firewall: string
let ids: Map<string, string>

const asking = <T>(user: string, body: string): Promise<T> => ask<T>(appliance.ns, user, body)

/** A peer with servers that say who they are, and echo. */
async function peer(name: string, ports: number[]): Promise<LabClient> {
  const client = await lab.client(name)
  for (const port of ports) {
    const socket = path.join(lab.dir, `${name}-${port}.sock`)
    const server = net.createServer((conn) => {
      conn.on('error', () => {})
      conn.write(`${name} ${port}`)
      conn.pipe(conn)
    })
    await new Promise<void>((up) => server.listen(socket, up))
    server.unref()
    await client.serve(port, socket)
  }
  return client
}

async function configure(allow: string[]): Promise<void> {
  await appliance.configure(`[node_red]\nallow = ${JSON.stringify(allow)}\n`)
  const applied = await appliance.gatehouse(['firewall', 'apply'], {
    GATEHOUSE_FIREWALL_DIR: firewall,
  })
  assert.equal(applied.code, 0, applied.stderr)
  const reloaded = await appliance.gatehouse(['reload'])
  assert.equal(reloaded.code, 0, reloaded.stderr)
}

before(async () => {
  ids = await users()
  lab = await Lab.start({ name: 'peers' })
  appliance = await Appliance.start(lab, { until: 'joined' })
  broker = await peer('broker', [1883, 1884])
  await peer('other', [1883])
  await peer('sensor', [80])
  await lab.setOwner('sensor', { tags: ['tag:sensor'] })
  firewall = path.join(lab.dir, 'firewall')
  await mkdir(firewall)
  await chmod(lab.dir, 0o755)
  await chown(firewall, Number(ids.get('gatehouse-firewall')), 0)
  // The gateway is root's here, and root has what the image gives to the user gatehouse.
  const rules = (await ruleset()).replaceAll(
    new RegExp(`\\b${ids.get('gatehouse')}\\b(?=[ ,}])`, 'g'),
    '0',
  )
  assert.match(rules, /meta skuid 0 meta l4proto udp accept/)
  await run(inside(appliance.ns, 'nft', '-f', '-'), rules)
  await run(inside(appliance.ns, 'sysctl', '-qw', 'net.ipv4.ip_unprivileged_port_start=0'))
  await startResolver(appliance.ns, firewall)
})

after(async () => {
  stopStarted()
  await appliance?.stop()
  await lab?.stop()
})

test('what is listed is reached by its name and port, as this device, and nothing else of the tailnet', async () => {
  const { suffix } = lab.ready
  await configure([
    `broker.${suffix}:1883`,
    'tag:sensor:80',
    `gatehouse.${suffix}:443`,
    'tag:nobody:80',
  ])
  const ip = (await broker.status()).ips[0]!
  assert.deepEqual(
    await asking(
      'node-red',
      `return await Promise.all([call('broker.${suffix}', 1883), call('sensor.tag.ts.net', 80),
        call('broker.${suffix}', 1884), call('broker.${suffix}', 80), look('other.${suffix}'),
        look('sensor.${suffix}'), look('x.ts.net'), look('broker.${suffix}', 6)])`,
    ),
    [
      'broker 1883',
      'sensor 80',
      'silence',
      'silence',
      'ENOTFOUND',
      'ENOTFOUND',
      'ENOTFOUND',
      'ENODATA',
    ],
  )
  // Its address, others of the range, others of the gateway's ports; and the wrong device's port.
  assert.deepEqual(
    await asking(
      'node-red',
      `return await Promise.all([['${ip}', 1883], ['100.100.100.100', 53], ['127.77.0.9', ` +
        `1883], ['127.77.0.2', 1883], ['127.77.0.1', 42001], ['127.77.0.1', 42040], ` +
        `['127.0.0.1', 42000]].map(([host, port]) => reach(host, port).then((got) => ` +
        `/broker|sensor/.test(got) ? got : 'nothing')))`,
    ),
    Array.from({ length: 7 }, () => 'nothing'),
  )
})

test('this device itself, and a tag that nobody has, are refused, and said once', async () => {
  const { suffix } = lab.ready
  assert.deepEqual(
    await asking(
      'node-red',
      `return [await call('gatehouse.${suffix}', 443), await call('nobody.tag.ts.net', 80), ` +
        `await call('nobody.tag.ts.net', 80)]`,
    ),
    ['ECONNRESET', 'ECONNRESET', 'ECONNRESET'],
  )
  assert.match(appliance.log, /that is this device itself/)
  assert.equal(appliance.log.split('sees no device with tag:nobody').length, 2, appliance.log)
})

test('nobody else on this machine, and nobody on the local network, gets there', async () => {
  await Promise.all(
    ['gatehouse-certs', 'gatehouse-update', 'systemd-resolve'].map(async (user) => {
      assert.deepEqual(
        await asking(
          user,
          `return await Promise.all([reach('127.77.0.1', 1883), reach('127.77.0.1', 42000)])`,
        ),
        ['silence', 'silence'],
        user,
      )
    }),
  )
  const stranger = await lab.host('stranger', '10.77.0.71')
  await run(inside(stranger, 'ip', 'route', 'add', '127.77.0.0/24', 'via', '10.77.0.60')).catch(
    () => {},
  )
  const { stdout } = await lab.run(stranger, [
    process.execPath,
    '-e',
    `const one = (host, port) => new Promise((done) => { const s = require('node:net').connect({ host, port }); s.setTimeout(1200, () => done('silence')).on('error', () => done('nothing')).on('data', () => done('hello')) });
     Promise.all([one('10.77.0.60', 42000), one('10.77.0.60', 1883)]).then((all) => { console.log(all.join()); process.exit() })`,
  ])
  assert.equal(stdout.trim(), 'silence,silence')
})

test('much goes both ways; a half that is closed leaves the other open', async () => {
  const { suffix } = lab.ready
  const [bytes, milliseconds] = await asking<[number, number]>(
    'node-red',
    `const [{ address: host }] = await look('broker.${suffix}'); const size = 4 * 1024 * 1024; const begun = Date.now();
     return await new Promise((done) => { const socket = net.connect({ host, port: 1883 }); let got = 0; const all = Buffer.alloc(size, 7);
       socket.on('data', (data) => { got += data.length }).on('end', () => done([got, Date.now() - begun])).on('error', (error) => done([error.code])); socket.end(all) })`,
  )
  assert.equal(bytes, 4 * 1024 * 1024 + 'broker 1883'.length)
  console.log(`4 MiB there and back: ${milliseconds} ms`)
})

test("the tailnet's policy decides on it, as on any call of this device", async () => {
  const { suffix } = lab.ready
  const flow = (): Promise<string> =>
    asking('node-red', `return await call('broker.${suffix}', 1883)`)
  await lab.setGrants([{ src: ['other'], dst: ['broker'], ports: [1883] }])
  await eventually('others may, this device may not', 30, async () => (await flow()) === 'silence')
  await lab.setGrants([{ src: ['gatehouse'], dst: ['broker'], ports: [1884] }])
  assert.equal(await flow(), 'silence')
  await lab.setGrants([{ src: ['gatehouse'], dst: ['broker'], ports: [1883] }])
  await eventually('it may', 30, async () => (await flow()) === 'broker 1883')
  await lab.setGrants([])
})

test('what is taken off the list ends at once', async () => {
  const { suffix } = lab.ready
  const holder = await start(appliance.ns, [
    ...asUser(ids.get('node-red')!),
    process.execPath,
    '-e',
    `const { Resolver } = require('node:dns').promises; const dns = new Resolver(); dns.setServers(['127.0.0.55']);
     dns.resolve4('broker.${suffix}').then(([address]) => { const s = require('node:net').connect(1883, address); s.on('data', (d) => console.log(String(d))).on('error', () => {}).on('close', () => console.log('over')); process.stdin.on('data', (d) => s.write(d)) })`,
  ])
  let said = ''
  holder.stdout!.setEncoding('utf8').on('data', (text: string) => (said += text))
  holder.stdin!.write('still here')
  await eventually('it echoes', 30, async () => said.includes('still here'))
  await configure(['tag:sensor:80'])
  holder.stdin!.write('nor now')
  await new Promise((done) => setTimeout(done, 1_500))
  assert.doesNotMatch(said, /nor now/)
  assert.deepEqual(
    await asking(
      'node-red',
      `return [await look('broker.${suffix}'), await call('sensor.tag.ts.net', 80)]`,
    ),
    ['ENOTFOUND', 'sensor 80'],
  )
  await configure([])
  const { stdout } = await lab.run(appliance.ns, ['nft', 'list', 'ruleset'])
  assert.doesNotMatch(stdout, /node-red-peers/)
})
