/**
 * Names for Node-RED on the booted image: its own resolver, in its own sandbox, started by the first
 * question; and nobody else's.
 */
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Lab, type LabClient } from '../lab/lab.ts'
import { deployShell, shell } from '../scenarios/shell.ts'
import { bootAppliance, editor, eventually, joined, settings, tried } from './appliance.ts'
import type { Machine } from './machine.ts'

// A machine of its own: minutes that make test does not have.
const skip = process.env['GATEHOUSE_LONG'] === '1' ? false : 'boots a machine: make test-long'

const stranger = '10.77.0.60'
let lab: Lab
let owner: LabClient
let hub: LabClient
let machine: Machine
let name: string
let lan: string

/** Runs JavaScript as a flow may, in Node-RED's sandbox; what it prints. */
async function asFlow(body: string): Promise<string> {
  const program = `const net = require('node:net'), dns = require('node:dns').promises;
    const reach = (host, port) => new Promise((done) => { const s = net.connect({ host, port }); s.setTimeout(4000, () => done('silence')).on('error', (e) => done(e.code)).on('data', () => done('hello')); });
    const look = (name) => dns.lookup(name, { all: true, family: 4 }).then((all) => all.map((one) => one.address).join(), (error) => error.code);
    (async () => { ${body} })().then((out) => { console.log(JSON.stringify(out)); process.exit(); });`
  const out = await shell(
    owner,
    name,
    `echo ${Buffer.from(program).toString('base64')} | base64 -d | node -`,
  )
  return out.split('\n')[0]!
}

const run = async (command: string): Promise<string> => {
  const { code, stdout, stderr } = await machine.run(command, { timeout: 120 })
  assert.equal(code, 0, `${command}: ${stdout}${stderr}`)
  return stdout.trim()
}

before(async () => {
  if (skip !== false) return
  lab = await Lab.start({ name: 'vmnames' })
  owner = await lab.client('laptop')
  lan = await lab.host('stranger', stranger)
  await lab.setHost('broker.lab.test', stranger)
  await lab.setHost('data.wild.lab.test', stranger)
  await lab.setHost('public.wild.lab.test', '203.0.113.7')
  const child = lab.exec(lan, [
    process.execPath,
    '-e',
    `const net = require('node:net'); for (const port of [8081, 8082, 1883]) ` +
      `net.createServer((s) => { s.on('error', () => {}); s.write('hello'); }).listen(port, ` +
      `'::', () => console.log('up'))`,
  ])
  await new Promise((up) => child.stdout!.once('data', up))
  hub = await lab.client('hub')
  const socket = path.join(lab.dir, 'hub.sock')
  const server = createServer((conn) => conn.on('error', () => {}).end('hello'))
  await new Promise<void>((up) => server.listen(socket, up))
  server.unref()
  for (const port of [1883, 1884]) await hub.serve(port, socket)
  machine = await bootAppliance(lab, tried, {
    toml:
      `${settings(lab)}[node_red]\nallow = ["broker.lab.test:8081", "*.wild.lab.test:8081", ` +
      `"lan:1883", "hub.${lab.ready.suffix}:1883"]\nlisten = ["1884/tcp from 10.77.0.60"]\n` +
      '[node_red.env]\nTOKEN = "s3cret-of-flows"\n',
  })
  const { name: own } = await joined(lab, 'gatehouse', 540).catch(async (err: unknown) => {
    throw new Error((await readFile(machine.consoleLog, 'utf8')).slice(-3_000), { cause: err })
  })
  name = own
  await editor(owner, name, 400)
  await deployShell(owner, name)
})

after(async () => {
  await machine?.destroy()
  await lab?.stop()
})

test(
  'the resolver is started by the first question, and a flow reaches what is listed',
  { skip },
  async () => {
    assert.equal(
      (await machine.run('systemctl is-active gatehouse-names')).stdout.trim(),
      'inactive',
    )
    // The first question is answered when the resolver is there: longer than an attempt, emulated.
    // Of another name: the answer opens its address.
    await asFlow(`return await look('public.wild.lab.test')`)
    assert.equal(
      await asFlow(
        `return [await reach('${stranger}', 8081), await reach('broker.lab.test', 8081), ` +
          `await reach('broker.lab.test', 8082), await reach('${stranger}', 1883)]`,
      ),
      JSON.stringify(['silence', 'hello', 'silence', 'hello']),
    )
    assert.equal(await run('systemctl is-active gatehouse-names'), 'active')
    const memory = await run(
      'pid=$(systemctl show -P MainPID gatehouse-names); grep -E "^(Rss|Pss):" ' +
        '/proc/$pid/smaps_rollup | tr -s " "; systemctl show -P MemoryCurrent gatehouse-names',
    )
    console.log(`gatehouse-names: ${memory.replaceAll('\n', ', ')} bytes in its group`)
  },
)

test(
  'what is not listed stays inside, and answers that lead inside are refused',
  { skip },
  async () => {
    assert.equal(
      await asFlow(
        `return [await look('secret-words.lab.test'), await look('public.wild.lab.test'), ` +
          `await look('data.wild.lab.test'), (await look('localhost')).split(',')[0], await ` +
          `reach('127.0.0.53', 53)]`,
      ),
      JSON.stringify(['ENOTFOUND', '203.0.113.7', 'ENOTFOUND', '127.0.0.1', 'silence']),
    )
    const asked = (await lab.queries()).map((query) => query.name)
    assert.ok(!asked.some((query) => query.includes('secret-words')), asked.join(' '))
    await sleep(2_000)
    const shown = await run('gatehouse firewall')
    assert.match(shown, /node-red: broker\.lab\.test:8081\n {4}broker\.lab\.test = 10\.77\.0\.60/)
    assert.match(shown, /refused: 10\.77\.0\.60, an address of a local network/)
    assert.match(await run('journalctl -u gatehouse-names -o cat'), /GH_FIREWALL_REBINDING/)
  },
)

test(
  'another device of the tailnet, by the gateway: the listed port of it, and nothing else',
  { skip },
  async () => {
    const address = (await hub.status()).ips[0]!
    assert.equal(
      await asFlow(
        `return [await reach('hub.${lab.ready.suffix}', 1883), await ` +
          `reach('hub.${lab.ready.suffix}', 1884), await reach('${address}', 1883).then((got) ` +
          `=> got === 'hello'), await look('laptop.${lab.ready.suffix}'), await ` +
          `reach('127.77.0.1', 42001)]`,
      ),
      JSON.stringify(['hello', 'silence', false, 'ENOTFOUND', 'silence']),
    )
  },
)

test('learning: names with their ports, and nothing opens', { skip }, async () => {
  await run('systemctl start gatehouse-learn')
  // An emulated machine takes its time until it learns.
  await eventually('it learns', 60, async () =>
    (await machine.run('test -s /run/gatehouse-firewall/learn.json')).code === 0 ? true : undefined,
  )
  const said: string[] = []
  await eventually('what a flow wanted is written down', 90, async () => {
    said.push(
      await asFlow(
        `return [await reach('api.cloud.example', 443), await reach('${stranger}', 8082), ` +
          `await reach('broker.lab.test', 8081)]`,
      ),
    )
    await sleep(3_000)
    const { refused, learning } = JSON.parse(
      await run('cat /run/gatehouse-firewall/refused.json'),
    ) as { learning: string; refused: Array<Record<string, unknown>> }
    const found = refused.map(({ name: of, address, port }) => `${of} ${address} ${port}`)
    if (
      learning !== undefined &&
      found.includes('api.cloud.example undefined 443') &&
      found.some((one) => one.endsWith(`${stranger} 8082`))
    )
      return true
    const state = await run(
      'cat /run/gatehouse-firewall/asked.json; nft list set inet gatehouse refused-4; ' +
        'nft list chain inet gatehouse node-red-names; ip route',
    )
    throw new Error(`${said.join(' ')}\n${found.join('; ')}\n${state}`)
  })
  assert.equal(said.at(-1), JSON.stringify(['silence', 'silence', 'hello']))
  await run('systemctl stop gatehouse-learn')
  assert.equal(await asFlow(`return await look('api.cloud.example')`), '"ENOTFOUND"')
  assert.ok(!(await lab.queries()).some((query) => query.name.includes('api.cloud')))
})

test(
  'a port that is given to flows is reached from where it is given; no other can be bound',
  { skip },
  async () => {
    const address = (await lab.leases())[0]!.ip
    const flow = shell(
      owner,
      name,
      `node -e 'const net = require("node:net"); const up = (port) => new Promise((done) => net.createServer((s) => { s.on("error", () => {}); s.write("hello") }).on("error", (e) => done(e.code)).listen(port, "0.0.0.0", () => done("bound")));
      Promise.all([1884, 1885, 8443].map(up)).then((all) => { console.log(JSON.stringify(all)); setTimeout(() => process.exit(), 25000) })'`,
    )
    await sleep(5_000)
    const { stdout } = await lab.run(lan, [
      process.execPath,
      '-e',
      `const net = require('node:net'); const reach = (port) => new Promise((done) => { const s = net.connect({ host: '${address}', port }); s.setTimeout(3000, () => done('silence')).on('error', (e) => done(e.code)).on('data', () => done('hello')) });
     Promise.all([1884, 1885, 8443, 1880].map(reach)).then((all) => { console.log(JSON.stringify(all)); process.exit() })`,
    ])
    assert.equal(stdout.trim(), JSON.stringify(['hello', 'silence', 'silence', 'silence']))
    assert.match(await flow, /^\["bound","EPERM","EPERM"\]/)
  },
)

test("flows' environment: for them, and to be found nowhere else", { skip }, async () => {
  assert.equal(await asFlow(`return process.env.TOKEN`), '"s3cret-of-flows"')
  const found = await machine.run(
    'systemctl show node-red; journalctl -b --no-pager; cat /run/systemd/system/*/*.conf ' +
      '/var/lib/gatehouse-config/gatehouse.toml; tr "\\0" "\\n" </proc/$(systemctl show -P ' +
      'MainPID node-red)/environ; ps axeww',
    { timeout: 120 },
  )
  assert.match(found.stdout, /node-red/)
  assert.doesNotMatch(found.stdout, /s3cret-of-flows/)
  assert.equal(await run('stat -c "%a %U" /run/gatehouse-provision/node-red-env'), '600 root')
})

test('it is held to what it has to do', { skip }, async () => {
  assert.match(
    await run('systemd-analyze security --no-pager gatehouse-names.service | grep Overall'),
    /: (?:0\.\d|1\.[0-5]) /,
  )
  assert.equal(await run('systemctl --failed --no-legend'), '')
})
