/**
 * A second program on the booted image: a real MQTT broker from a signed file on the card, used by
 * Node-RED, a device of the local network and a peer of the tailnet; and files that are refused.
 */
import assert from 'node:assert/strict'
import { generateKeyPairSync } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import path from 'node:path'
import type { Duplex } from 'node:stream'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { readHead } from '../../src/update/extension.ts'
import type { Manifest } from '../../src/update/extension.ts'
import { extension } from '../../tools/extension.ts'
import { Lab, type LabClient } from '../lab/lab.ts'
import { bootAppliance, editor, eventually, joined, settings, tried } from './appliance.ts'
import type { Machine } from './machine.ts'

const root = path.resolve(import.meta.dirname, '../..')
const file = path.join(root, `out/mosquitto-${tried}.extension`)
// A machine of its own: minutes that make test does not have.
let skip: string | false = false
if (process.env['GATEHOUSE_LONG'] !== '1') skip = 'boots a machine: make test-long'
else if (!existsSync(file))
  skip = `there is no ${path.basename(file)}: make extension NAME=mosquitto ARCH=${tried}`

/** mqtt.js, as Node-RED has it. */
const mqttModule = path.join(root, 'out/cache/node-red-x64/node_modules/mqtt')
interface Mqtt {
  MqttClient: new (
    stream: () => Duplex,
    options: object,
  ) => {
    on: (event: string, listener: (...args: unknown[]) => void) => void
    subscribe: (topic: string, done: (err: Error | null) => void) => void
    end: (force: boolean) => void
  }
}

/** A version that updates.url has. */
const newer = '2.0.99-1'
const [sensor, stranger] = ['10.77.0.60', '10.77.0.61']
const hosts = new Map<string, string>()
let lab: Lab
let owner: LabClient
let machine: Machine
let name: string
let address: string

const run = async (command: string): Promise<string> => {
  const { code, stdout, stderr } = await machine.run(command, { timeout: 180 })
  assert.equal(code, 0, `${command}: ${stdout}${stderr}`)
  return stdout.trim()
}

const unit = 'gatehouse-extension@mosquitto.service'
const active = async (): Promise<true | undefined> =>
  (await machine.run(`systemctl is-active ${unit}`)).stdout.trim() === 'active' ? true : undefined

/** An extension's file with another manifest, signed by a key of one's own choice. */
function signedAnew(
  data: Buffer,
  other: Partial<Manifest>,
  key: string,
  publicKey: string,
): Buffer {
  const { manifest, text } = readHead(data, 'it', publicKey)
  const at = Buffer.byteLength(text, 'latin1')
  const end = at + manifest.root.size
  return extension(
    { ...manifest, ...other },
    { root: data.subarray(at, end), verity: data.subarray(end) },
    key,
  )
}

/** A web server on the local network, at the sensor's address. */
async function serve(files: ReadonlyMap<string, Buffer>): Promise<void> {
  const folder = path.join(lab.dir, 'channel')
  await mkdir(folder)
  for (const [name, data] of files) await writeFile(path.join(folder, name), data)
  const child = lab.exec(hosts.get(sensor)!, [
    process.execPath,
    '-e',
    `require('node:http').createServer((q, r) => require('node:fs').readFile('${folder}' + q.url, ` +
      `(e, data) => e ? r.writeHead(404).end() : r.end(data))).listen(80, () => console.log('up'))`,
  ])
  await new Promise((up) => child.stdout!.once('data', up))
}

/** A device of the local network: says a thing to the broker, and what it then hears of a topic. */
async function fromLan(ip: string, topic: string, say?: string, what = ''): Promise<string> {
  const program = `const mqtt = require('${mqttModule}');
    const c = mqtt.connect('mqtt://${address}:1883', { connectTimeout: 6000, reconnectPeriod: 0 });
    setTimeout(() => { console.log('silence'); process.exit() }, 15000);
    let there = 'silence';
    c.stream.once('connect', () => { there = 'connected, then silence' });
    c.on('error', (e) => { console.log(e.message === 'connack timeout' ? there : e.code ?? e.message); process.exit() });
    c.on('close', () => { console.log('silence'); process.exit() });
    c.on('message', (t, m, p) => { console.log(t + ' ' + m + (p.retain ? ' (kept)' : '')); process.exit() });
    c.on('connect', () => c.subscribe('${topic}', () => { ${say === undefined ? '' : `c.publish('${say}', '${what}', { qos: 1, retain: true })`} }));`
  const { stdout } = await lab.run(hosts.get(ip)!, [process.execPath, '-e', program])
  return stdout.trim().split('\n')[0]!
}

/** A peer of the tailnet, by the forward: what it hears of a topic. */
async function fromTailnet(topic: string): Promise<{ next: Promise<string>; end: () => void }> {
  const { MqttClient } = createRequire(import.meta.url)(mqttModule) as Mqtt
  const stream = await owner.dial(name, 1883)
  const client = new MqttClient(() => stream, { reconnectPeriod: 0, connectTimeout: 30_000 })
  const next = new Promise<string>((heard, fail) => {
    client.on('message', (at, message) => heard(`${at} ${message}`))
    client.on('error', fail)
    setTimeout(() => heard('silence'), 180_000).unref()
  })
  await new Promise<void>((done, fail) => {
    client.on('error', fail)
    client.on('connect', () =>
      client.subscribe(topic, (err) => {
        if (err === null) done()
        else fail(err)
      }),
    )
  })
  return { next, end: () => client.end(true) }
}

before(async () => {
  if (skip !== false) return
  lab = await Lab.start({ name: 'vmext' })
  owner = await lab.client('laptop')
  for (const [host, ip] of [
    ['sensor', sensor],
    ['stranger', stranger],
  ] as const)
    hosts.set(ip, await lab.host(host, ip))
  const data = await readFile(file)
  const publicKey = await readFile(path.join(root, 'keys/update.pub'), 'utf8')
  const own = path.join(root, 'keys/update.key')
  // Another's key, and this one's with bytes that are not what it says.
  const directory = await mkdtemp(path.join(tmpdir(), 'gh-foreign-'))
  const foreign = path.join(directory, 'key')
  const { privateKey } = generateKeyPairSync('ed25519')
  await writeFile(foreign, privateKey.export({ type: 'pkcs8', format: 'pem' }))
  const spoiled = signedAnew(data, { name: 'spoiled' }, own, publicKey)
  spoiled[spoiled.length - 200_000]! ^= 1
  const files = {
    [`mosquitto-${tried}.extension`]: data,
    [`foreign-${tried}.extension`]: signedAnew(data, { name: 'foreign' }, foreign, publicKey),
    [`spoiled-${tried}.extension`]: spoiled,
  }
  await rm(directory, { recursive: true })
  // Where updates come from: this version, and a newer broker.
  await serve(
    new Map([
      [`/mosquitto-${tried}.extension`, signedAnew(data, { version: newer }, own, publicKey)],
      ...(await Promise.all(
        ['SHA256SUMS', 'SHA256SUMS.sig'].map(async (file): Promise<[string, Buffer]> => [
          `/${file}`,
          await readFile(path.join(root, `out/update-${tried}`, file)),
        ]),
      )),
    ]),
  )
  machine = await bootAppliance(lab, tried, {
    files,
    toml:
      `${settings(lab)}[node_red]\nallow = ["extension:mosquitto"]\n` +
      `[updates]\nurl = "http://${sensor}"\nautomatic = false\n` +
      '[[forward]]\nport = 1883\ntarget = "127.0.0.1:1883"\n' +
      `[[extension]]\nname = "mosquitto"\nlisten = ["1883/tcp from ${sensor}"]\n` +
      '[[extension]]\nname = "foreign"\n[[extension]]\nname = "spoiled"\n',
  })
})

after(async () => {
  await machine?.destroy()
  await lab?.stop()
})

test('it runs from its signed root, as its own user, in its own sandbox', { skip }, async () => {
  await eventually('the broker runs', 480, active).catch(async (err: unknown) => {
    throw new Error(
      (
        await machine.run(
          `systemctl status --no-pager -n 40 ${unit}; cat /run/gatehouse-provision/problem; journalctl -b --no-pager -u gatehouse-provision -u systemd-udevd | tail -40`,
        )
      ).stdout,
      { cause: err },
    )
  })
  const pid = await run(`systemctl show -P MainPID ${unit}`)
  const [inside] = (await run(`cat /proc/${pid}/mountinfo`)).split('\n')
  assert.match(inside!, / \/ \/ ro,nosuid,nodev.* - erofs /)
  const device = inside!.split(' ')[2]!
  assert.match(await run(`cat /sys/dev/block/${device}/dm/name`), /^[0-9a-f]{64}-verity$/)
  assert.equal(await run(`stat -c %U /proc/${pid}`), 'gatehouse-extension-a')
  assert.equal(await run(`ls -A /proc/${pid}/root/var/lib`), 'gatehouse-extension-data')
  assert.equal(await run(`find /proc/${pid}/root/run -type s -o -type p`), '')
  const exposure = await run(`systemd-analyze security --no-pager ${unit} | grep Overall`)
  assert.match(exposure, /: (?:0\.\d|1\.[0-5]) /)
  const memory = await run(`systemctl show -P MemoryCurrent ${unit}`)
  console.log(`mosquitto: ${(Number(memory) / 2 ** 20).toFixed(1)} MiB in its group; ${exposure}`)
})

test('a foreign file and a damaged one are refused, and all else serves', { skip }, async () => {
  const problem = await run('cat /run/gatehouse-provision/problem')
  assert.match(
    problem,
    new RegExp(
      `foreign-${tried}\\.extension on the card is not signed with the key that this device trusts.*GH_EXTENSION_SIGNATURE`,
    ),
  )
  assert.match(
    problem,
    new RegExp(
      `spoiled-${tried}\\.extension on the card is truncated or damaged.*GH_EXTENSION_DAMAGED`,
    ),
  )
  assert.doesNotMatch(problem, /mosquitto-/)
  const units = await run("systemctl list-units --all --no-legend --plain 'gatehouse-extension@*'")
  assert.deepEqual(
    units.split('\n').map((line) => line.split(' ')[0]),
    [unit],
  )
  const { stdout, stderr } = await machine.run('gatehouse status', { timeout: 120 })
  assert.match(stdout + stderr, /GH_EXTENSION_SIGNATURE/)
})

test('a device of the local network by its entry, and nobody else there', { skip }, async () => {
  address = await eventually('it has an address', 300, async () => (await lab.leases())[0]?.ip)
  // Rules come with gatehouse-firewall's first run.
  await eventually('the sensor reaches it', 300, async () => {
    const got = await fromLan(sensor, 'house/#', 'house/lamp', 'on')
    return got.startsWith('house/lamp on') ? got : Promise.reject(new Error(got))
  })
  assert.equal(await fromLan(stranger, 'house/#'), 'silence')
})

test('it calls nobody: not the local network, not this machine', { skip }, async () => {
  const program = `const reach = (host, port) => new Promise((done) => { const s = require('node:net').connect({ host, port });
     s.setTimeout(3000, () => done('silence')).on('error', (e) => done(e.code)).on('connect', () => done('connected')) });
     Promise.all([reach('10.77.0.1', 53), reach('${sensor}', 22), reach('127.0.0.53', 53), reach('127.0.0.1', 1883)]).then((all) => { console.log(JSON.stringify(all)); process.exit() })`
  assert.equal(
    await run(
      `setpriv --reuid=621 --regid=621 --clear-groups node -e "$(echo ${Buffer.from(program).toString('base64')} | base64 -d)"`,
    ),
    JSON.stringify(['silence', 'silence', 'silence', 'silence']),
  )
  const filled = await machine.run(
    'setpriv --reuid=621 --regid=621 --clear-groups dd if=/dev/zero bs=1M count=300 ' +
      'of=/var/lib/gatehouse-extension-data/mosquitto/full; ' +
      'rm /var/lib/gatehouse-extension-data/mosquitto/full',
    { timeout: 180 },
  )
  assert.match(filled.stderr, /quota exceeded/i)
})

test(
  'what it keeps outlives a restart; a changed block is not read, and is mended from the card',
  { skip },
  async () => {
    await run(`systemctl restart ${unit}`)
    await eventually('the broker is back', 60, active)
    await eventually('a retained message is there again', 60, async () =>
      (await fromLan(sensor, 'house/#')) === 'house/lamp on (kept)' ? true : undefined,
    )
    const kept = '/var/lib/gatehouse-extensions/mosquitto/root'
    // In the superblock, which is read first.
    await run(
      `systemctl stop ${unit}; sync; echo 3 >/proc/sys/vm/drop_caches; printf X | dd of=${kept} bs=1 seek=1100 conv=notrunc status=none; sync`,
    )
    await machine.run(`systemctl start ${unit}`, { timeout: 120 })
    await sleep(5_000)
    assert.equal(await active(), undefined)
    await run('systemctl restart gatehouse-provision.service').catch(() => '')
    await run(`systemctl restart ${unit}`)
    await eventually('the broker is back', 60, active)
    assert.doesNotMatch(await run('cat /run/gatehouse-provision/problem'), /mosquitto/)
  },
)

test('a newer one comes from updates.url, when somebody looks', { skip }, async () => {
  const said = await machine.run('gatehouse update', { timeout: 300 })
  await eventually('the newer one is attached', 120, async () =>
    (await run('cat /run/gatehouse-provision/extensions.json')).includes(newer) ? true : undefined,
  ).catch((err: unknown) => {
    throw new Error(`${said.stdout}${said.stderr}`, { cause: err })
  })
  await eventually('the broker is back', 60, active)
  assert.equal(await fromLan(sensor, 'house/#'), 'house/lamp on (kept)')
})

test(
  'a flow hears a device and answers, and a peer of the tailnet hears that',
  { skip },
  async () => {
    const node = await joined(lab, 'gatehouse', 600).catch(async (err: unknown) => {
      throw new Error((await readFile(machine.consoleLog, 'utf8')).slice(-3_000), { cause: err })
    })
    name = node.name
    await editor(owner, name, 400)
    const flows = [
      { id: 'tab', type: 'tab', label: 'broker' },
      {
        ...{ id: 'broker', type: 'mqtt-broker', broker: '127.0.0.1', port: '1883', clientid: '' },
        ...{ autoConnect: true, usetls: false, protocolVersion: '4', keepalive: '60' },
        ...{ cleansession: true },
      },
      {
        ...{ id: 'hear', type: 'mqtt in', z: 'tab', topic: 'sensor/#', qos: '1', datatype: 'utf8' },
        ...{ broker: 'broker', rh: 0, inputs: 0, wires: [['topic']] },
      },
      {
        ...{ id: 'topic', type: 'change', z: 'tab', wires: [['say']] },
        rules: [{ t: 'set', p: 'topic', pt: 'msg', to: 'house/echo', tot: 'str' }],
      },
      {
        ...{ id: 'say', type: 'mqtt out', z: 'tab', topic: '', qos: '1', retain: 'true' },
        ...{ broker: 'broker', wires: [] },
      },
    ]
    const deployed = await owner.fetch(`https://${name}/flows`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', 'node-red-deployment-type': 'full' },
      body: JSON.stringify(flows),
      timeout: 120_000,
    })
    assert.equal(deployed.status, 204, deployed.body.toString())
    const peer = await fromTailnet('house/echo')
    // The flow's connection takes its time, emulated.
    const heard = await eventually('the flow answers a device', 120, async () => {
      const got = await fromLan(sensor, 'house/echo', 'sensor/cellar', '21')
      return got.startsWith('house/echo') ? got : Promise.reject(new Error(got))
    })
    assert.match(heard, /^house\/echo 21/)
    assert.equal(await peer.next, 'house/echo 21')
    peer.end()
  },
)
