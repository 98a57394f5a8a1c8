/** The control server has a name: the host's name servers are asked for it, and nobody else is. */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { Lab } from '../../../test/lab/lab.ts'
import { eventually, WasmNode } from './support.ts'

let lab: Lab

before(async () => {
  lab = await Lab.start({ name: 'tname' })
})
after(async () => await lab?.stop())

test('a control server by name: the name servers of the host are asked, and the node joins', async (t) => {
  const begun = performance.now()
  assert.equal(lab.ready.controlURL, 'https://control.lab.test')
  const node = await WasmNode.up(lab)
  t.diagnostic(`joined in ${Math.round(performance.now() - begun)} ms`)
  assert.equal(node.status.backendState, 'Running')
  const asked = (await lab.queries()).filter((q) => q.name === 'control.lab.test')
  assert.ok(
    asked.some((q) => q.type === 'A' && q.rcode === 'NOERROR'),
    JSON.stringify(asked),
  )
  await node.run((k) => k.server.close())
  assert.equal(await node.end(), 0)
  assert.equal(node.stderr, '')
})

test('Noise goes over port 443 where port 80 is closed', async () => {
  const ns = await lab.host('no80', '10.77.0.50')
  await lab.nft(
    ns,
    'table inet t { chain o { type filter hook output priority 0; tcp dport 80 drop; }; }',
  )
  const before = (await lab.noisePorts())['443'] ?? 0
  const node = await WasmNode.up(lab, { ns, hostname: 'no80' })
  assert.ok(((await lab.noisePorts())['443'] ?? 0) > before, JSON.stringify(await lab.noisePorts()))
  await node.run((k) => k.server.close())
  await node.end()
})

test('a control server of no known address: it says so, and asks no servers that it was not told of', async () => {
  const node = await WasmNode.process(lab, { controlURL: 'https://nowhere.lab.test' })
  await node.make()
  await node.run((k) => k.server.start())
  const said = await eventually(
    'the name in the health warnings',
    async () =>
      (await node.run((k) => k.server.status())).health.find((h) => h.includes('nowhere.lab.test')),
    20_000,
  )
  assert.match(said, /no such host/)
  await node.run((k) => k.server.close())
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})

test('bootstrap DNS where it is wanted: tried once the name servers have failed, and seen as a leak', async () => {
  const node = await WasmNode.process(lab, {
    controlURL: 'https://nowhere.lab.test',
    bootstrapDNS: true,
  })
  await node.make()
  await node.run((k) => k.server.start())
  await eventually('packets to the servers that are compiled in', () => lab.leaked(), 30_000)
  await node.run((k) => k.server.close())
})
