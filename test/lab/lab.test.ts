/**
 * The lab itself: joining, names, paths, what nodes may publish, and that nothing gets out of it.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdir } from 'node:fs/promises'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Lab, type LabClient } from './lab.ts'

let lab: Lab
let one: LabClient
let two: LabClient

before(async () => {
  lab = await Lab.start()
  one = await lab.client('laptop')
  two = await lab.client('laptop')
})
after(async () => await lab?.stop())

/** Waits until `probe` gives something true, for 10 s at most. */
async function eventually<T>(
  what: string,
  probe: () => Promise<T | undefined | false>,
): Promise<T> {
  for (const deadline = Date.now() + 10_000; ;) {
    const value = await probe()
    if (value) return value
    if (Date.now() > deadline) throw new Error(`not within 10 s: ${what}`)
    await sleep(50)
  }
}

test('the second node of a name gets another one, and its certificate domain too', async () => {
  const [a, b] = [await one.status(), await two.status()]
  assert.equal(a.name, `laptop.${lab.ready.suffix}`)
  assert.equal(b.name, `laptop-1.${lab.ready.suffix}`)
  assert.deepEqual(a.certDomains, [a.name])
  assert.deepEqual(b.certDomains, [b.name])
  assert.deepEqual(
    b.peers.map((p) => p.name),
    [a.name],
  )
  assert.deepEqual(
    (await lab.nodes()).map((n) => [n.name, n.hostname]),
    [
      [a.name, 'laptop'],
      [b.name, 'laptop'],
    ],
  )
})

test('peers reach each other directly', async () => {
  const { ips } = await two.status()
  const pong = await one.pingDirect(ips[0]!)
  assert.equal(pong.node, 'laptop-1')
  assert.match(pong.endpoint ?? '', new RegExp(`^${two.ip}:`))
  assert.ok(pong.ms > 0 && pong.ms < 1000, `${pong.ms} ms`)
  assert.equal((await one.whoIs(ips[0]!)).Node.Name, `laptop-1.${lab.ready.suffix}.`)
})

test('peers that must not use UDP reach each other over DERP', async () => {
  const third = await lab.client('relayed', { env: { TS_DEBUG_NEVER_DIRECT_UDP: 'true' } })
  const { ips } = await two.status()
  assert.ok((await third.ping(ips[0]!, 'TSMP')).ms > 0)
  const pong = await third.ping(ips[0]!)
  assert.deepEqual([pong.direct, pong.derp], [false, 'lab'])
  const peer = (await third.status()).peers.find((p) => p.ips.includes(ips[0]!))
  assert.deepEqual(peer?.path, { direct: false, derp: 'lab' })
  await third.stop()
})

test("a node may publish its own name's challenge and nothing else", async () => {
  const value = 'v'.repeat(43)
  const own = `_acme-challenge.laptop-1.${lab.ready.suffix}`
  await two.setDNS(own, value)
  assert.deepEqual((await lab.txt())[own], [value])
  for (const name of [
    `_acme-challenge.laptop.${lab.ready.suffix}`,
    `laptop-1.${lab.ready.suffix}`,
    `_acme-challenge.${lab.ready.suffix}`,
    '_acme-challenge.example.com',
  ]) {
    await assert.rejects(two.setDNS(name, value), /403|not an ACME challenge/, name)
    assert.equal((await lab.txt())[name], undefined)
  }
})

test('a wrong auth key is refused in words', async () => {
  const client = await lab.client('stranger', { authKey: lab.ready.wrongAuthKey, up: false })
  await assert.rejects(client.up(10_000), /API key does not exist/)
  assert.ok(!(await lab.nodes()).some((n) => n.hostname === 'stranger'))
  await client.stop()
})

test('without an auth key there is a login URL', async () => {
  const client = await lab.client('visitor', { authKey: null })
  const url = await eventually('a login URL', async () => (await client.status()).authURL)
  assert.deepEqual(await lab.logins(), [url])
  await lab.completeLogin(url)
  assert.equal((await client.up()).name, `visitor.${lab.ready.suffix}`)
  assert.deepEqual(await lab.logins(), [])
  await client.stop()
})

test('a node that has joined comes back without an auth key, as itself', async () => {
  const { ips, name } = await two.status()
  await two.stop()
  await two.start({ authKey: null, up: true })
  const back = await two.status()
  assert.deepEqual([back.ips, back.name], [ips, name])
})

test('peers stay connected while the control server is away', async () => {
  const { ips } = await two.status()
  await lab.stopControl()
  await assert.rejects(lab.stopControl(), /stopped already/)
  assert.equal((await one.pingDirect(ips[0]!)).direct, true)
  const late = await lab.client('late', { up: false })
  await assert.rejects(late.up(3_000))
  await lab.startControl()
  assert.equal((await late.up()).name, `late.${lab.ready.suffix}`)
  await late.stop()
})

test('an expired node key stops a node, and the auth key brings it back under its name and address', async () => {
  const before = await two.status()
  await assert.rejects(lab.expire('nobody'), /no node is called "nobody"/)
  await lab.expire('laptop-1')
  await eventually(
    'the node needs a login',
    async () => (await two.status()).state === 'NeedsLogin',
  )
  await two.stop()
  await two.start({ up: true })
  const back = await two.status()
  assert.deepEqual([back.name, back.ips], [before.name, before.ips])
  assert.equal((await one.pingDirect(back.ips[0]!)).direct, true)
})

test('names resolve to what the lab has, and nothing else does', async () => {
  assert.match(
    (await lab.run(one.ns, ['getent', 'hosts', 'acme.lab.test'])).stdout,
    /^10\.77\.0\.4\s/,
  )
  assert.equal((await lab.run(one.ns, ['getent', 'hosts', 'example.com'])).code, 2)
  const asked = await lab.queries()
  assert.ok(asked.some((q) => q.name === 'example.com' && q.rcode === 'NXDOMAIN'))
})

test('the clock server tells the time', async () => {
  const script = `
    const s = require('node:dgram').createSocket('udp4')
    const q = Buffer.alloc(48); q[0] = 0x23; q.writeBigUInt64BE(42n, 40)
    s.on('message', (m) => { console.log(JSON.stringify([m[0], m.readBigUInt64BE(24).toString(), (m.readUInt32BE(40) - 2208988800) * 1000])); s.close() })
    s.send(q, 123, '10.77.0.1')`
  const { stdout } = await lab.run(one.ns, [process.execPath, '-e', script])
  const [first, origin, ms] = JSON.parse(stdout) as [number, string, number]
  assert.equal(first, 0x24)
  assert.equal(origin, '42')
  assert.ok(Math.abs(ms - Date.now()) < 5_000)
})

test('a machine that asks by DHCP is told router, DNS and NTP', async () => {
  const tap = await lab.tap('vm0')
  assert.match((await lab.run(lab.ns, ['ip', '-o', 'link', 'show', tap])).stdout, /master br0/)
  const ns = await lab.host('dhcp', '10.77.0.90')
  const mac = '02000a4d0099'
  // A DISCOVER of RFC 2131 that asks for the answer by broadcast; prints the OFFER.
  const script = `
    const s = require('node:dgram').createSocket('udp4')
    const q = Buffer.alloc(244); q.set([1, 1, 6, 0, 1, 2, 3, 4], 0); q.writeUInt16BE(0x8000, 10)
    q.write('${mac}', 28, 'hex'); q.set([99, 130, 83, 99, 53, 1, 1, 255], 236)
    s.on('message', (m) => { console.log(m.toString('hex')); s.close() })
    s.bind(68, () => { s.setBroadcast(true); s.send(q, 67, '255.255.255.255') })`
  const { stdout, stderr } = await lab.run(ns, ['timeout', '5', process.execPath, '-e', script])
  const offer = Buffer.from(stdout.trim(), 'hex')
  assert.ok(offer.length > 240, stderr)
  assert.match([...offer.subarray(16, 20)].join('.'), /^10\.77\.0\.1[0-5]\d$/)
  const options = new Map<number, string>()
  for (let at = 240; offer[at] !== 255 && at < offer.length; at += 2 + offer[at + 1]!) {
    options.set(offer[at]!, [...offer.subarray(at + 2, at + 2 + offer[at + 1]!)].join('.'))
  }
  assert.deepEqual(
    [3, 6, 42].map((code) => options.get(code)),
    ['10.77.0.1', '10.77.0.1', '10.77.0.1'],
  )
})

test('nothing called home until now, and a stray packet is noticed', async () => {
  assert.deepEqual(await lab.leaks(), [])
  assert.equal(await lab.leaked(), 0)
  const foreign = (await lab.queries()).filter(
    (q) => !q.name.endsWith('.lab.test') && q.name !== 'example.com',
  )
  assert.deepEqual(foreign, [])
  // From a host, and from the servers' own namespace.
  for (const ns of [one.ns, lab.ns]) await lab.run(ns, ['bash', '-c', 'echo >/dev/udp/192.0.2.1/9'])
  await eventually('two packets are counted', async () => (await lab.leaked()) === 2)
  assert.ok((await lab.leaks()).some((l) => l.from === one.ip && l.to === '192.0.2.1'))
})

test('two labs are two worlds', async () => {
  await using other = await Lab.start({ suffix: 'tail9z.ts.net' })
  const client = await other.client('laptop')
  assert.equal((await client.status()).name, 'laptop.tail9z.ts.net')
  assert.deepEqual((await client.status()).peers, [])
})

test('a lab whose parent is killed leaves nothing behind', async () => {
  const script = `
    import { Lab } from ${JSON.stringify(path.join(import.meta.dirname, 'lab.ts'))}
    const lab = await Lab.start({ name: 'orphan' })
    const client = await lab.client('laptop')
    const pid = lab.exec(client.ns, ['sleep', '600']).pid
    console.log(JSON.stringify({ id: lab.id, pid, dir: lab.dir }))
    setInterval(() => {}, 1000)`
  const parent = spawn(process.execPath, ['--input-type=module-typescript', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const [line] = await once(parent.stdout, 'data')
  const { id, pid, dir } = JSON.parse(line.toString()) as { id: string; pid: number; dir: string }
  assert.equal((await readdir('/run/netns')).filter((n) => n.startsWith(`${id}-`)).length, 2)
  process.kill(pid, 0) // throws if it is not there
  parent.kill('SIGKILL')
  await eventually('its namespaces, processes and directory are gone', async () => {
    const left = (await readdir('/run/netns')).filter((n) => n.startsWith(`${id}-`))
    const alive = await readdir(`/proc/${pid}`).then(
      () => true,
      () => false,
    )
    const kept = await readdir(dir).then(
      () => true,
      () => false,
    )
    return left.length === 0 && !alive && !kept
  })
  assert.deepEqual(
    (await readdir('/etc/netns')).filter((n) => n.startsWith(`${id}-`)),
    [],
  )
})

test('bad input is refused with its cure', async () => {
  await assert.rejects(Lab.start({ name: 'No good' }), /use 1 to 8 lower-case/)
  await assert.rejects(Lab.start({ bin: '/nonexistent/lab' }), /is not built: run/)
  await assert.rejects(Lab.start({ suffix: '!' }), /--suffix "!" is no domain name/)
  await assert.rejects(lab.host('elsewhere', '192.0.2.1'), /not in 10\.77\.0\.0\/24/)
})
