/**
 * Ports of flows for the local network, by the kernel: the image's own ruleset in a network
 * namespace, servers in it as Node-RED's user on many ports, and a scan from the other end of a
 * cable.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { asUser, cable, configureFirewall, inside, ruleset, run, users } from './ruleset.ts'

const [box, other] = [`gh-li-box-${process.pid}`, `gh-li-out-${process.pid}`]
const [address, near, far] = ['192.168.81.1', '192.168.81.2', '192.168.81.200']
const children: ChildProcess[] = []
/** What a flow listens on, whether it is allowed or not. */
const ports = [1880, 1883, 1884, 2000, 5683, 8080, 8443, 8883]
let directory: string
let ids: Map<string, string>

async function start(ns: string, argv: string[]): Promise<ChildProcess> {
  const [command, ...rest] = inside(ns, ...argv)
  const child = spawn(command!, rest, { stdio: ['pipe', 'pipe', 'inherit'] })
  children.push(child)
  await once(child.stdout!, 'data')
  return child
}

async function configure(listen: string[], allow: string[] = []): Promise<void> {
  const toml = `[node_red]\nlisten = ${JSON.stringify(listen)}\nallow = ${JSON.stringify(allow)}\n`
  await configureFirewall(box, directory, toml)
}

/** Runs a program on the other end; what it prints is JSON. */
async function outside<T>(body: string): Promise<T> {
  const program = `const net = require('node:net'), dgram = require('node:dgram');
    const tcp = (port, from = '${near}', wait = 700) => new Promise((done) => { const s = net.connect({ host: '${address}', port, localAddress: from });
      s.setTimeout(wait, () => { s.destroy(); done('silence') }).on('error', (e) => done(e.code)).on('data', () => { s.destroy(); done('hello') }); });
    const udp = (port, from = '${near}') => new Promise((done) => { const s = dgram.createSocket('udp4'); s.on('message', () => { s.close(); done('hello') });
      s.bind(0, from, () => s.send('x', port, '${address}')); setTimeout(() => { try { s.close() } catch {} done('silence') }, 700); });
    (async () => { ${body} })().then((out) => { console.log(JSON.stringify(out)); process.exit() })`
  return JSON.parse(await run(inside(other, process.execPath, '-e', program))) as T
}

/** Every TCP port up to 20000, and the ports of UDP that something listens on: those that answer. */
const scan = async (): Promise<{ tcp: number[]; udp: number[] }> =>
  await outside(`const open = []; let next = 1;
    const worker = async () => { while (next <= 20000) { const port = next++; if (await tcp(port, '${near}', 400) !== 'silence') open.push(port) } };
    await Promise.all(Array.from({ length: 1500 }, worker));
    const udps = []; for (const port of ${JSON.stringify(ports)}) if (await udp(port) !== 'silence') udps.push(port);
    return { tcp: open.sort((a, b) => a - b), udp: udps }`)

before(async () => {
  ids = await users()
  directory = await mkdtemp(path.join(tmpdir(), 'gh-listen-'))
  await cable([
    [box, `${address}/24`],
    [other, `${near}/24`, `${far}/24`],
  ])
  await run(inside(box, 'nft', '-f', '-'), await ruleset())
  const uid = ids.get('node-red')!
  await start(box, [
    ...asUser(uid, process.execPath, '-e'),
    `const ports = ${JSON.stringify(ports)}; let up = 0; const one = () => { if (++up === ports.length * 2) console.log('up') };
     for (const port of ports) { require('node:net').createServer((s) => { s.on('error', () => {}); s.write('hello'); s.pipe(s) }).listen(port, '0.0.0.0', one);
       const u = require('node:dgram').createSocket('udp4'); u.on('message', (m, r) => u.send('hello', r.port, r.address)); u.bind(port, '0.0.0.0', one) }`,
  ])
})

after(async () => {
  for (const child of children) child.kill()
  for (const ns of [box, other]) await run(['ip', 'netns', 'del', ns]).catch(() => {})
  await rm(directory, { recursive: true, force: true })
})

test('though a flow listens, nobody gets there', async () => {
  await configure([])
  assert.deepEqual(await scan(), { tcp: [], udp: [] })
})

test('what is listed opens, from where it is listed, and nothing else does', async () => {
  await configure(['1883/tcp from 192.168.81.0/25', '5683/udp from lan'])
  assert.deepEqual(await scan(), { tcp: [1883], udp: [5683] })
  assert.deepEqual(
    await outside(
      `return [await tcp(1883, '${far}'), await udp(5683, '${far}'), await tcp(5683), await udp(1883)]`,
    ),
    ['silence', 'hello', 'silence', 'silence'],
  )
  // Answers go out; of its own accord Node-RED still calls nobody.
  const uid = ids.get('node-red')!
  const called = await run(
    inside(
      box,
      ...asUser(uid, process.execPath, '-e'),
      `const s = require('node:net').connect({ host: '${near}', port: 22, localPort: 0 }); ` +
        `s.setTimeout(700, () => { console.log('silence'); process.exit() }).on('error', (e) ` +
        '=> { console.log(e.code); process.exit() })',
    ),
  )
  assert.equal(called.trim(), 'silence')
})

test('taken off the list it ends at once, an open connection too', async () => {
  const holder = await start(other, [
    process.execPath,
    '-e',
    `const s = require('node:net').connect({ host: '${address}', port: 1883, localAddress: ` +
      `'${near}' }); s.on('data', (d) => console.log(String(d))); process.stdin.on('data', (d) ` +
      '=> s.write(d))',
  ])
  holder.stdin!.write('one')
  await once(holder.stdout!, 'data')
  await configure(['5683/udp from lan'])
  holder.stdin!.write('two')
  assert.equal(
    await Promise.race([
      once(holder.stdout!, 'data').then(() => 'an answer'),
      sleep(1_500).then(() => 'silence'),
    ]),
    'silence',
  )
  assert.deepEqual(await outside(`return [await tcp(1883), await udp(5683)]`), ['silence', 'hello'])
})

test('one source cannot hold all of it: new connections are limited', async () => {
  await configure(['1883/tcp from lan'])
  const got = await outside<string[]>(
    `return await Promise.all(Array.from({ length: 300 }, () => tcp(1883)))`,
  )
  const through = got.filter((one) => one === 'hello').length
  assert.ok(through >= 20 && through <= 100, `${through} of 300`)
})

test('discovery: a group and its answers, both ways, and nothing else by UDP', async () => {
  /** Node-RED asks a group from a port of its own; what answers from which port of the other end. */
  const ask = async (group: string, port: number): Promise<string[]> => {
    const uid = ids.get('node-red')!
    return JSON.parse(
      await run(
        inside(
          box,
          ...asUser(uid, process.execPath, '-e'),
          `const s = require('node:dgram').createSocket('udp4'); const got = []; s.on('message', (m, r) => got.push(String(m)));
           s.bind(0, '${address}', () => { s.setMulticastInterface('${address}'); s.send('who', ${port}, '${group}', () => {}); s.send('who', 4000, '${near}', () => {}) });
           s.on('error', () => {}); setTimeout(() => { console.log(JSON.stringify(got.sort())); process.exit() }, 900)`,
        ),
      ),
    ) as string[]
  }
  // A device that answers from its port and from another, and a service beside it.
  await start(other, [
    process.execPath,
    '-e',
    `const dgram = require('node:dgram'); let up = 0;
     for (const [group, port] of [['224.0.0.251', 5353], ['239.255.255.250', 1900]]) {
       const s = dgram.createSocket({ type: 'udp4', reuseAddr: true }); const t = dgram.createSocket('udp4'); t.bind(0, '${near}');
       s.on('message', (m, r) => { if (r.address === '${address}') { s.send('from ' + port, r.port, r.address); t.send('from another', r.port, r.address) } });
       s.bind(port, () => { s.addMembership(group, '${near}'); if (++up === 3) console.log('up') }) }
     const u = dgram.createSocket('udp4'); u.on('message', (m, r) => u.send('service', r.port, r.address)); u.bind(4000, '${near}', () => { if (++up === 3) console.log('up') })`,
  ])
  // And a flow that is looked for.
  const uid = ids.get('node-red')!
  await start(box, [
    ...asUser(uid, process.execPath, '-e'),
    `const s = require('node:dgram').createSocket({ type: 'udp4', reuseAddr: true }); s.on('message', (m, r) => { if (String(m) === 'seek') s.send('here', r.port, r.address) });
     s.bind(1900, () => { s.addMembership('239.255.255.250', '${address}'); console.log('up') })`,
  ])
  const seek = async (): Promise<string> =>
    await outside(`return await new Promise((done) => { const s = dgram.createSocket('udp4'); s.on('message', (m) => done(String(m)));
      s.bind(0, '${near}', () => { s.setMulticastInterface('${near}'); s.send('seek', 1900, '239.255.255.250') }); setTimeout(() => done('silence'), 900) })`)
  const both = async (): Promise<unknown[]> => [
    await ask('224.0.0.251', 5353),
    await ask('239.255.255.250', 1900),
    await seek(),
  ]
  await configure([])
  assert.deepEqual(await both(), [[], [], 'silence'])
  await configure([], ['mdns'])
  assert.deepEqual(await both(), [['from 5353'], [], 'silence'])
  await configure([], ['ssdp'])
  assert.deepEqual(await both(), [[], ['from 1900', 'from another'], 'here'])
  assert.deepEqual(await scan(), { tcp: [], udp: [] })
})
