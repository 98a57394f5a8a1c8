/** Joining: names, addresses, path, and the identity that stays. */
import assert from 'node:assert/strict'
import { readFile, readdir, stat, writeFile } from 'node:fs/promises'
import { after, before, test } from 'node:test'
import path from 'node:path'
import { Lab, type LabClient } from '../../../test/lab/lab.ts'
import { eventually, WasmNode } from './support.ts'

let lab: Lab
let peer: LabClient
let node: WasmNode

before(async () => {
  lab = await Lab.start({ name: 'tjoin' })
  peer = await lab.client('peer')
  node = await WasmNode.process(lab, { hostname: 'peer' })
})
after(async () => await lab?.stop())

test('it joins under the name that the control server assigned', async (t) => {
  const begun = performance.now()
  const status = await node.up()
  t.diagnostic(`joined in ${Math.round(performance.now() - begun)} ms`)
  assert.equal(status.backendState, 'Running')
  assert.equal(status.magicDNSSuffix, lab.ready.suffix)
  assert.equal(status.authURL, '')
  assert.equal(status.self?.dnsName, `peer-1.${lab.ready.suffix}`)
  assert.deepEqual(status.tailscaleIPs, status.self?.tailscaleIPs)
  assert.match(status.tailscaleIPs[0]!, /^100\./)
  assert.match(status.tailscaleIPs[1]!, /^fd7a:115c:a1e0:/)
  const known = (await lab.nodes()).find((n) => n.name === status.self?.dnsName)
  assert.deepEqual(
    known?.addresses.map((a) => a.replace(/\/.*/, '')),
    status.tailscaleIPs,
  )
  assert.deepEqual(await node.run((k) => k.server.certDomains()), [`peer-1.${lab.ready.suffix}`])
  assert.deepEqual(status.certDomains, [`peer-1.${lab.ready.suffix}`])
  const events = await node.run((k) => k.events)
  assert.ok(
    events.some(([name, value]) => name === 'state' && value === 'Running'),
    JSON.stringify(events),
  )
})

test('the path to a native peer is direct, and both sides say so', async () => {
  const pong = await peer.pingDirect(node.addresses[0])
  assert.match(pong.endpoint ?? '', new RegExp(`^${node.ip}:`))
  const other = await eventually('a direct path as this side sees it', async () => {
    await peer.ping(node.addresses[0], 'TSMP') // what it answers to, it looks for a path to
    const { peers } = await node.run((k) => k.server.status())
    return peers.find((p) => p.dnsName === `peer.${lab.ready.suffix}` && p.curAddr)
  })
  assert.equal(other.online, true)
  assert.match(other.curAddr, new RegExp(`^${peer.ip}:`))
})

test('started again with its state and no key it is the same node', async () => {
  const file = path.join(node.options.dir, 'tailscaled.state')
  assert.equal((await stat(file)).mode & 0o777, 0o600)
  assert.equal((await stat(node.options.dir)).mode & 0o777, 0o700)
  assert.ok('_machinekey' in JSON.parse(await readFile(file, 'utf8')))
  const before = node.status.self!
  await node.run((k) => k.server.close())
  const { self } = await node.up({ authKey: '' })
  assert.deepEqual(
    [self?.id, self?.dnsName, self?.tailscaleIPs],
    [before.id, before.dnsName, before.tailscaleIPs],
  )
  assert.equal((await lab.nodes()).length, 2)
})

test('files beside the state that are damaged, as by a power cut, keep no node from its tailnet', async () => {
  const before = node.status.self!
  await node.run((k) => k.server.close())
  const logID = path.join(node.options.dir, 'tailscaled.log.conf')
  for (const damage of [
    (size: number) => Buffer.alloc(size),
    () => Buffer.alloc(0),
    () => Buffer.from('{}'),
  ]) {
    const entries = await readdir(node.options.dir, { recursive: true, withFileTypes: true })
    for (const entry of entries) {
      const file = path.join(entry.parentPath, entry.name)
      if (entry.isFile() && entry.name !== 'tailscaled.state')
        await writeFile(file, damage((await stat(file)).size))
    }
    const { self } = await node.up({ authKey: '' })
    assert.equal(self?.id, before.id)
    assert.match(await readFile(logID, 'utf8'), /"PublicID"/)
    await node.run((k) => k.server.close())
  }
  await node.up({ authKey: '' })
})

test('the WireGuard port is the one asked for', async () => {
  await node.run((k) => k.server.close())
  await node.up({ port: 41641 })
  await eventually('the control server to know the port', async () =>
    (await lab.nodes()).some((n) => n.endpoints.includes(`${node.ip}:41641`)),
  )
})

test('key and control server come from the environment', async () => {
  const other = await WasmNode.process(lab, {
    processEnv: { TS_AUTHKEY: lab.ready.authKey, TS_CONTROL_URL: lab.ready.controlURL },
  })
  const status = await other.run(async (k, dir) => {
    k.server = new k.Server({ dir, hostname: 'fromenv' })
    return await k.server.up()
  }, other.options.dir)
  assert.equal(status.self?.dnsName, `fromenv.${lab.ready.suffix}`)
})

test('without a key there is a login URL, and a person who opens it lets the node in', async () => {
  const other = await WasmNode.process(lab, { hostname: 'manual', authKey: '' })
  await other.make()
  const url = await other.run(async (k) => {
    k.kept.up = k.server.up()
    const [url] = await k.once(k.server, 'loginURL')
    return url as string
  })
  assert.ok((await lab.logins()).includes(url), url)
  assert.equal((await other.run((k) => k.server.status())).authURL, url)
  await lab.completeLogin(url)
  const status = await other.run((k) => k.kept.up)
  assert.equal((status as { backendState: string }).backendState, 'Running')
})

test('nothing left the lab, and nobody was asked for', async () => {
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
