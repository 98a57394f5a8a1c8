/**
 * `[tailnet] data_path = "kernel"`: the gateway with the real bindings and Node-RED behind it, the
 * image's own ruleset in its namespace, the interface as provisioning has it made, and native
 * peers.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, mkdir, readFile } from 'node:fs/promises'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { connect } from 'node:tls'
import { capability } from '../../src/gateway/access/access.ts'
import { kernelPath } from '../../src/config/data-path.ts'
import { Appliance, eventually } from './appliance.ts'
import { makeInterface } from './kernel-path.ts'
import { Lab, type LabClient } from './lab.ts'
import { asUser, inside, rulesetForRoot, run, users } from './ruleset.ts'

const TUN = kernelPath.interface
let lab: Lab
let appliance: Appliance
let laptop: LabClient
let phone: LabClient
let name: string
let address: string[]
let ids: Map<string, string>
const children: ChildProcess[] = []

/** A program in the appliance's namespace, as a user; resolves when it has said something. */
async function start(user: string, body: string): Promise<ChildProcess> {
  const argv = inside(appliance.ns, ...asUser(ids.get(user) ?? user, process.execPath, '-e', body))
  const child = spawn(argv[0]!, argv.slice(1), { stdio: ['pipe', 'pipe', 'inherit'] })
  children.push(child)
  await once(child.stdout!, 'data')
  return child
}

const shut = (client: LabClient, host: string, port: number): Promise<string> =>
  Promise.race([
    client.dial(host, port).then(
      async (conn) => {
        conn.on('error', () => {}).destroy()
        return 'open'
      },
      (err: Error) => (/refused|reset/.test(err.message) ? 'refused' : 'silence'),
    ),
    new Promise<string>((resolve) => setTimeout(resolve, 3_000, 'silence')),
  ])

before(async () => {
  ids = await users()
  lab = await Lab.start({ name: 'kpath' })
  await chmod(lab.dir, 0o755)
  appliance = await Appliance.start(lab, {
    tailnet: 'data_path = "kernel"',
    before: async (ns) => {
      await makeInterface(ns, '0')
      await run(inside(ns, 'nft', '-f', '-'), await rulesetForRoot())
      for (const all of ['all', 'default'])
        await run(inside(ns, 'sysctl', '-qw', `net.ipv4.conf.${all}.rp_filter=1`))
    },
    flows: [
      { id: 'tab1', type: 'tab', label: 'One' },
      { id: 'in1', type: 'http in', z: 'tab1', url: '/hello', method: 'get', wires: [['f1']] },
      {
        ...{ id: 'f1', type: 'function', z: 'tab1', wires: [['out1']] },
        func: 'msg.payload = "hello"; return msg',
      },
      { id: 'out1', type: 'http response', z: 'tab1', statusCode: '', headers: {}, wires: [] },
    ],
  })
  const firewall = path.join(lab.dir, 'firewall')
  await mkdir(firewall)
  const applied = await appliance.gatehouse(['firewall', 'apply'], {
    GATEHOUSE_FIREWALL_DIR: firewall,
  })
  assert.equal(applied.code, 0, applied.stderr)
  laptop = await lab.client('laptop')
  phone = await lab.client('phone')
  name = (await appliance.names())[0]!
  address = (await appliance.status()).tailnet.addresses
})

after(async () => {
  for (const child of children) child.kill()
  await appliance?.stop()
  await lab?.stop()
})

test("the editor comes by the kernel's TCP, with its certificate, and the gateway knows who asks", async () => {
  const { tailnet, problems } = await appliance.status()
  assert.deepEqual([tailnet.dataPath, problems], ['kernel', []])
  const page = await laptop.fetch(`https://${name}/`)
  assert.equal(page.status, 200)
  assert.match(page.body.toString(), /<title>Node-RED/)
  const { body } = await laptop.fetch(`https://${name}/settings`, {
    headers: { accept: 'application/json' },
  })
  const self = await laptop.whoIs((await laptop.status()).ips[0]!)
  assert.equal(JSON.parse(body.toString()).user.username, self.UserProfile.LoginName)
})

/** A TLS connection of a peer to the device; what it answers to one request. */
async function ask(client: LabClient, host: string, port: number, target: string): Promise<string> {
  const socket = connect({
    socket: await client.dial(host, port),
    servername: name,
    ca: await readFile(lab.ready.acmeRoots),
  })
  await once(socket, 'secureConnect')
  socket.write(`GET ${target} HTTP/1.1\r\nhost: ${name}${port === 443 ? '' : `:${port}`}\r\n\r\n`)
  const [head] = (await once(socket, 'data')) as [Buffer]
  // Sockets of the kernel's, from the interface's own address.
  const sockets = await run(inside(appliance.ns, 'ss', '-Htn', 'state', 'established'))
  socket.destroy()
  const [status] = head.toString().split('\r\n')
  return `${status} by ${/\[(?:::ffff:)?(192\.0\.2\.77|fd67[:0-9a-f]+)\]:43\d{3} /.exec(sockets)?.[1]}`
}

test('each port of HTTPS by both kinds of addresses; port 80 beside it, by its own stack', async () => {
  for (const [i, host] of address.entries())
    for (const [port, target, status] of [
      [443, '/', '200 OK'],
      [8443, '/hello', '200 OK'],
      [10000, '/status', '200 OK'],
    ] as const)
      assert.equal(
        await ask(laptop, host, port, target),
        `HTTP/1.1 ${status} by ${kernelPath.addresses[i === 0 ? 4 : 6]}`,
        `${host} port ${port}`,
      )
  const { status, headers } = await laptop.fetch(`http://${name}/`)
  assert.deepEqual([status, headers['Location']], [308, [`https://${name}/`]])
})

test('a body of 20 MB goes up whole and comes back', async () => {
  const flows = [{ id: 'tab9', type: 'tab', label: 'Nine', info: 'x'.repeat(4_500_000) }]
  const body = JSON.stringify(flows)
  const type = { 'content-type': 'application/json', accept: 'application/json' }
  for (let i = 0; i < 4; i++) {
    const url = `https://${name}/flows`
    const posted = await laptop.fetch(url, { method: 'POST', headers: type, body })
    assert.equal(posted.status, 204)
    const got = await laptop.fetch(url, { headers: type })
    assert.equal(JSON.parse(got.body.toString())[0].info, flows[0]!.info)
  }
})

test("the gateway's rights hold, and the tailnet's own filter is before the kernel", async () => {
  await lab.setOwner('phone', { user: 'bob@example.com' })
  const refused = await eventually('a refusal', 30, async () => {
    const answer = await phone.fetch(`https://${name}/`, {
      headers: { accept: 'application/json' },
    })
    return answer.status === 403 && answer.body.toString()
  })
  assert.match(refused, /bob@example\.com may not see the flows/)
  await lab.setGrants([{ src: ['laptop'], dst: ['gatehouse'], ports: [443] }])
  await eventually('the filter', 30, async () => (await shut(phone, name, 443)) === 'silence')
  assert.equal((await laptop.fetch(`https://${name}/`)).status, 200)
  assert.equal(await shut(laptop, name, 8443), 'silence')
  await lab.setGrants([{ src: ['*'], dst: ['*'], app: { [capability]: [{ may: ['view'] }] } }])
  await eventually('no filter', 30, async () => (await shut(phone, name, 443)) === 'open')
})

test('a peer reaches no other port, whatever listens on all addresses of the device', async () => {
  const ports = [22, 3000, 8080, 41443]
  await run(inside(appliance.ns, 'sysctl', '-qw', 'net.ipv4.ip_unprivileged_port_start=0'))
  await start(
    '65534',
    `const net = require('node:net'); let open = 0;
     for (const port of ${JSON.stringify(ports)})
       net.createServer((c) => c.end('here')).listen(port, '::', () => { if (++open === ${ports.length}) console.log('up') });
     const udp = require('node:dgram').createSocket('udp6').bind(5353).on('message', (m, from) => udp.send(m, from.port, from.address))`,
  )
  const tried = [name, ...address].flatMap((host) =>
    [...ports, ...Object.values(kernelPath.ports)].map(async (port) => {
      assert.equal(await shut(laptop, host, port), 'silence', `${host} port ${port}`)
    }),
  )
  await Promise.all(tried)
  const late = new Promise((resolve) => setTimeout(resolve, 2_000, 'silence'))
  const asked = laptop.askPacket(`${address[0]}:5353`, Buffer.from('hello'))
  assert.equal(await Promise.race([asked.catch(() => 'silence'), late]), 'silence')
})

test("the gateway's ports behind it are nobody's else: on this machine, and on the local network", async () => {
  const [target6, other] = [kernelPath.addresses[6], await lab.host('stranger', '10.77.0.99')]
  const knock = (host: string, port: number): string =>
    `require('node:net').connect(${port}, '${host}').setTimeout(1500, () => { console.log('silence'); process.exit() })
       .on('error', (e) => console.log(e.code)).on('connect', () => { console.log('open'); process.exit() })`
  const tries: Array<Promise<void>> = []
  for (const port of Object.values(kernelPath.ports)) {
    for (const host of [kernelPath.addresses[4], target6, '127.0.0.1', '::1', '10.77.0.60'])
      for (const user of ['node-red', '65534'])
        tries.push(
          run(
            inside(
              appliance.ns,
              ...asUser(ids.get(user) ?? user, process.execPath, '-e', knock(host, port)),
            ),
          ).then((said) => assert.equal(said, 'silence\n', `${user} to ${host} port ${port}`)),
        )
    tries.push(
      run(inside(other, process.execPath, '-e', knock('10.77.0.60', port))).then((said) =>
        assert.equal(said, 'silence\n', `the local network to port ${port}`),
      ),
    )
  }
  await Promise.all(tries)
})

test('the interface is no local network, and what is sent there goes nowhere', async () => {
  const { networks, addresses } = JSON.parse(
    await run(
      inside(
        appliance.ns,
        ...[process.execPath, '--disable-warning=ExperimentalWarning', '--input-type=module', '-e'],
        `import { interfaces } from ${JSON.stringify(path.resolve(import.meta.dirname, '../../src/firewall/networks.ts'))}
         console.log(JSON.stringify(interfaces()))`,
      ),
    ),
  ) as { networks: Array<{ network: string }>; addresses: string[] }
  assert.deepEqual(networks, [{ network: '10.77.0.0/24', family: 4 }])
  assert.ok(addresses.includes(kernelPath.addresses[4]))
  // Peers are told of no address of it.
  const told = (await laptop.status()) as unknown as Record<string, unknown>
  assert.doesNotMatch(JSON.stringify(told), /192\.0\.2\.77|fd67:/)
  // By the main table a peer's address is one of the network outside.
  const route = await run(['ip', '-n', appliance.ns, 'route', 'get', '100.64.0.9'])
  assert.doesNotMatch(route, new RegExp(TUN))
  assert.match(
    await run(['ip', '-n', appliance.ns, 'route', 'get', '100.64.0.9', 'from', '192.0.2.77']),
    new RegExp(`dev ${TUN}`),
  )
})

test('the interface goes: the gateway ends, starts with its own stack, and says so', async () => {
  await run(inside(appliance.ns, 'ip', 'link', 'delete', TUN))
  assert.equal(await appliance.ended(), 1)
  assert.match(appliance.log, /GH_TAILNET_DIED.*the device gatehouse0 is gone/)
  await appliance.startGateway()
  const status = await eventually('it serves', 60, async () => {
    const now = await appliance.status()
    return now.url !== undefined && (await laptop.fetch(`https://${name}/`)).status === 200 && now
  })
  assert.equal(status.tailnet.dataPath, 'userspace')
  const [problem] = status.problems
  assert.equal(problem?.code, 'GH_DATA_PATH')
  assert.match(problem!.message, /the gateway's own does: there is no interface gatehouse0$/)
  assert.match(problem!.cure, /Restart the device/)
})

test('nothing left the lab', async () => {
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
