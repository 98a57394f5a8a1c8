/** What the tailnet knows: whoIs, ACME challenges. */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { Lab, type LabClient } from '../../../test/lab/lab.ts'
import { eventually, WasmNode } from './support.ts'

let lab: Lab
let peer: LabClient
let node: WasmNode

before(async () => {
  lab = await Lab.start({ name: 'twho' })
  peer = await lab.client('peer')
  node = await WasmNode.up(lab)
})
after(async () => await lab?.stop())

test('whoIs names node and user behind a connection', async () => {
  await node.run(async (k) => {
    k.kept.arrived = k.once(await k.server.listen(80), 'connection')
  })
  const stream = await peer.dial(node.addresses[0], 80)
  const who = await node.run(async (k) => {
    const [conn] = await k.kept.arrived
    k.kept.who = await k.server.whoIs(conn.remote)
    conn.resume().end()
    return k.kept.who as Awaited<ReturnType<typeof k.server.whoIs>>
  })
  stream.end().resume()
  const { ips } = await peer.status()
  assert.equal(who.node.name, `peer.${lab.ready.suffix}`)
  assert.equal(who.node.hostName, 'peer')
  assert.deepEqual(who.node.addresses, ips)
  assert.deepEqual(who.node.tags, [])
  assert.match(who.user?.loginName ?? '', /@/)
  assert.ok(who.user!.id > 0)
  // The address alone will do, of either kind.
  for (const ip of ips)
    assert.equal((await node.run((k, a) => k.server.whoIs(a), ip)).node.id, who.node.id)
})

test("whoIs has the peer's app capabilities as the policy grants them, and its tags in place of a user", async () => {
  const { ips } = await peer.status()
  const who = (): Promise<import('../index.ts').WhoIs> =>
    node.run((k, a) => k.server.whoIs(a), ips[0]!)
  const name = 'example.com/cap/web'
  assert.equal((await who()).capMap[name], undefined)
  const grant = { [name]: [{ role: 'admin', paths: ['/a'] }, { role: 'viewer' }] }
  await lab.setGrants([{ src: ['peer'], dst: ['wasm'], app: grant }])
  await eventually('the capabilities', async () => (await who()).capMap[name] !== undefined)
  assert.deepEqual((await who()).capMap[name], grant[name])
  const tagged = await lab.client('tagged', { authKey: await lab.key('once', ['tag:lab']) })
  const {
    ips: [address],
  } = await tagged.status()
  const other = await eventually(
    'the new node',
    async () => await node.run((k, a) => k.server.whoIs(a), address!).catch(() => undefined),
  )
  assert.deepEqual(
    [other.node.tags, other.user, other.capMap[name]],
    [['tag:lab'], undefined, undefined],
  )
})

test('an address of nobody is TSNET_NO_PEER', async () => {
  for (const addr of ['100.127.255.254:1', '192.0.2.1:80', '[fd7a:115c:a1e0::dead]:1']) {
    const err = await node.fails((k, a) => k.server.whoIs(a), addr)
    assert.equal(err.code, 'TSNET_NO_PEER', `${addr}: ${err.message}`)
    assert.ok(err.message.includes(addr), err.message)
  }
})

test("the node publishes its own name's challenge", async () => {
  const value = 'v'.repeat(43)
  await node.run(
    (k, name, v) => k.server.setDNS(name, v),
    `_acme-challenge.wasm.${lab.ready.suffix}`,
    value,
  )
  assert.deepEqual((await lab.txt())[`_acme-challenge.wasm.${lab.ready.suffix}`], [value])
})

test("another's name is refused with TSNET_SET_DNS and the control server's reason", async () => {
  for (const name of [
    `_acme-challenge.peer.${lab.ready.suffix}`,
    `wasm.${lab.ready.suffix}`,
    '_acme-challenge.example.com',
  ]) {
    const err = await node.fails((k, n) => k.server.setDNS(n, 'x'.repeat(43)), name)
    assert.equal(err.code, 'TSNET_SET_DNS', name)
    assert.match(err.message, /403|not an ACME challenge/)
    assert.equal((await lab.txt())[name], undefined)
  }
})

test('nothing left the lab', async () => {
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
