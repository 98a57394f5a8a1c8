/** The network changes under a running node: it is noticed, and connections go on. */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { Lab, type LabClient } from '../../../test/lab/lab.ts'
import { eventually, WasmNode } from './support.ts'

let lab: Lab
let peer: LabClient
let node: WasmNode

const inNode = async (...argv: string[]): Promise<void> => {
  const { code, stderr } = await lab.run(node.ns, argv)
  assert.equal(code, 0, `${argv.join(' ')}: ${stderr}`)
}

before(async () => {
  lab = await Lab.start({ name: 'tnet' })
  peer = await lab.client('peer')
  node = await WasmNode.up(lab)
  await node.run(async (k) => {
    ;(await k.server.listen(7)).on('connection', (c) => {
      k.kept.last = c
      c.on('error', () => {}).pipe(c)
    })
  })
  await peer.pingDirect(node.addresses[0])
})
after(async () => await lab?.stop())

/** An echo over a connection that is open already. */
async function echo(
  stream: Awaited<ReturnType<LabClient['dial']>>,
  text: string,
  timeout = 20_000,
): Promise<void> {
  let got = ''
  const listen = (b: Buffer): void => void (got += b)
  stream.on('data', listen)
  stream.write(text)
  await eventually(`the echo of ${text}`, () => got === text, timeout)
  stream.off('data', listen)
}

test('another address on the interface: the path moves to it, the connection lives on', async (t) => {
  const stream = await peer.dial(node.addresses[0], 7)
  await echo(stream, 'before')
  const begun = performance.now()
  await inNode('ip', 'addr', 'add', '10.77.0.99/24', 'dev', 'eth0')
  await inNode('ip', 'addr', 'del', `${node.ip}/24`, 'dev', 'eth0')
  // The address took the routes with it, as DHCP would bring them back.
  await inNode('ip', 'addr', 'replace', '10.77.0.99/24', 'dev', 'eth0')
  await inNode('ip', 'route', 'replace', 'default', 'via', '10.77.0.1')
  const seen = await eventually(
    'the new endpoint at the control server',
    async () => {
      const me = (await lab.nodes()).find((n) => n.hostname === 'wasm')
      return me?.endpoints.some((e) => e.startsWith('10.77.0.99:'))
    },
    15_000,
  )
  assert.ok(seen)
  t.diagnostic(`the control server knew after ${Math.round(performance.now() - begun)} ms`)
  // The node speaks first: a peer that does would take its own six seconds to give the old address
  // up.
  await node.run((k) => void k.kept.last.write('here I am'))
  let got = ''
  stream.on('data', (b: Buffer) => (got += b))
  await eventually('the word of the node', () => got === 'here I am', 20_000)
  t.diagnostic(`the connection went on after ${Math.round(performance.now() - begun)} ms`)
  await eventually(
    'a direct path to the new address',
    async () => {
      await node.run((k) => void k.kept.last.write('.'))
      return (await peer.status()).peers.some((p) => p.path.endpoint?.startsWith('10.77.0.99:'))
    },
    20_000,
  )
  t.diagnostic(`direct again after ${Math.round(performance.now() - begun)} ms`)
  stream.destroy()
})

test('the interface gone for three seconds: the connection goes on, the path is direct again', async (t) => {
  const stream = await peer.dial(node.addresses[0], 7)
  await echo(stream, 'before')
  await inNode('ip', 'link', 'set', 'eth0', 'down')
  stream.write('meanwhile ')
  await new Promise((r) => setTimeout(r, 3000))
  const begun = performance.now()
  await inNode('ip', 'link', 'set', 'eth0', 'up')
  await inNode('ip', 'route', 'replace', 'default', 'via', '10.77.0.1')
  let got = ''
  stream.on('data', (b: Buffer) => (got += b))
  await eventually('what was sent meanwhile', () => got === 'meanwhile ', 30_000)
  t.diagnostic(
    `what was sent meanwhile came back after ${Math.round(performance.now() - begun)} ms`,
  )
  stream.destroy()
  await peer.pingDirect(node.addresses[0], 30_000)
  t.diagnostic(`direct again after ${Math.round(performance.now() - begun)} ms`)
  assert.equal((await node.run((k) => k.server.status())).backendState, 'Running')
})

test('no UDP gets through: the connection goes on by DERP, and directly again afterwards', async (t) => {
  const stream = await peer.dial(node.addresses[0], 7)
  await echo(stream, 'direct')
  const rules =
    'table inet t { chain o { type filter hook output priority 0; meta l4proto udp udp dport ' +
    '!= 53 drop; }; chain i { type filter hook input priority 0; meta l4proto udp udp sport ' +
    '!= 53 drop; }; }'
  await inNode('nft', rules)
  const begun = performance.now()
  await echo(stream, 'relayed', 30_000)
  t.diagnostic(`by DERP after ${Math.round(performance.now() - begun)} ms`)
  await inNode('nft', 'delete table inet t')
  await peer.pingDirect(node.addresses[0], 30_000)
  await echo(stream, 'direct again')
  stream.destroy()
})

test('nothing was said on stderr, nothing left the lab', async () => {
  assert.equal(node.stderr, '')
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
