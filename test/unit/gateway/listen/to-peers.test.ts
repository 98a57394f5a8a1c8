import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect, createServer } from 'node:net'
import type { AddressInfo, Socket } from 'node:net'
import { after, before, beforeEach, test } from 'node:test'
import { pino } from 'pino'
import type { PeerTarget } from '../../../../src/config/peers.ts'
import { ToPeers } from '../../../../src/gateway/listen/to-peers.ts'
import { LoopbackTailnet } from '../../support/tailnet.ts'

const tailnet = new LoopbackTailnet()
tailnet.current = LoopbackTailnet.running()
let said: string[] = []
const log = pino({ level: 'warn' }, { write: (line: string) => said.push(JSON.parse(line).msg) })
const toPeers = new ToPeers({ log, tailnet: () => tailnet, status: () => tailnet.current })
const target = (peer: PeerTarget['peer'], i: number): PeerTarget => ({
  text: JSON.stringify(peer),
  peer,
  port: 1883,
  name: 'x',
  address: '127.77.0.1',
  // Others than the appliance's: tests of several files run at once.
  local: 42_900 + i,
})
const server = createServer((socket) => socket.pipe(socket))

before(async () => {
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
})
after(async () => {
  await toPeers.close()
  server.close()
  tailnet.remove()
})
beforeEach(() => {
  said = []
  tailnet.dialled = []
  tailnet.targets.clear()
  const { port } = server.address() as AddressInfo
  for (const address of ['100.64.0.7', '100.64.0.9', '100.64.0.1', '100.100.0.1'])
    tailnet.targets.set(`${address}:1883`, port)
})

const flow = (i: number): Socket => connect({ host: '127.77.0.1', port: 42_900 + i })
/** What comes back of a word, or the error. */
async function echo(i: number): Promise<string> {
  const socket = flow(i)
  socket.end('word')
  return await new Promise((done) => {
    let got = ''
    socket.on('data', (data) => (got += String(data)))
    socket.on('end', () => done(got)).on('error', (err: NodeJS.ErrnoException) => done(err.code!))
  })
}

test('a device by name, by tag with those online first, and a Service by its name in the tailnet', async () => {
  const [laptop] = tailnet.current.peers
  tailnet.current = {
    ...tailnet.current,
    peers: [
      laptop!,
      {
        ...laptop!,
        dnsName: 'a.tail.ts.net',
        tags: ['tag:b'],
        online: false,
        tailscaleIPs: ['100.64.0.8'],
      },
      { ...laptop!, dnsName: 'b.tail.ts.net', tags: ['tag:b'], tailscaleIPs: ['100.64.0.9'] },
    ],
  }
  tailnet.names.set('mqtt.tail.ts.net', ['100.100.0.1'])
  await toPeers.configure([
    target({ name: 'laptop.tail.ts.net' }, 0),
    target({ tag: 'tag:b' }, 1),
    target({ service: 'svc:mqtt' }, 2),
  ])
  for (const i of [0, 1, 2]) assert.equal(await echo(i), 'word')
  assert.deepEqual(tailnet.dialled, ['100.64.0.7:1883', '100.64.0.9:1883', '100.100.0.1:1883'])
})

test('this device itself, and a Service that it hosts, are never dialled', async () => {
  tailnet.names.set('own.tail.ts.net', ['100.100.0.5'])
  tailnet.current = { ...tailnet.current, services: { 'svc:own': ['100.100.0.5'] } }
  await toPeers.configure([
    target({ name: 'gatehouse.tail.ts.net' }, 0),
    target({ service: 'svc:own' }, 1),
  ])
  for (const i of [0, 1]) assert.equal(await echo(i), 'ECONNRESET')
  assert.deepEqual(tailnet.dialled, [])
  assert.equal(said.length, 2)
  for (const line of said) assert.match(line, /that is this device itself/)
})

test('who is not there is told once, until it was there', async () => {
  tailnet.targets.clear()
  await toPeers.configure([target({ name: 'laptop.tail.ts.net' }, 0), target({ tag: 'tag:no' }, 1)])
  for (const _ of [1, 2, 3]) for (const i of [0, 1]) assert.equal(await echo(i), 'ECONNRESET')
  assert.equal(said.length, 2, said.join('\n'))
  assert.match(said.join('\n'), /sees no device with tag:no/)
})

test('more connections than there is room for are ended, and room comes back', async () => {
  await toPeers.configure([target({ service: 'svc:mqtt' }, 0)])
  const open = Array.from({ length: 64 }, () => flow(0))
  await Promise.all(
    open.map(async (socket) => {
      socket.on('error', () => {}).write('x')
      await once(socket, 'data')
    }),
  )
  assert.notEqual(await echo(0), 'word')
  for (const socket of open) socket.destroy()
  const deadline = Date.now() + 5_000
  while ((await echo(0)) !== 'word') assert.ok(Date.now() < deadline)
})

test('an entry that is gone takes its connections with it; what stays is not touched', async () => {
  const [one, two] = [
    target({ name: 'laptop.tail.ts.net' }, 0),
    target({ service: 'svc:mqtt' }, 1),
  ] as const
  await toPeers.configure([one, two])
  const open = [flow(0), flow(1)] as const
  for (const socket of open) {
    socket.on('error', () => {}).write('x')
    await once(socket, 'data')
  }
  const gone = once(open[0], 'close')
  await toPeers.configure([two])
  await gone
  open[1].write('y')
  assert.equal(String((await once(open[1], 'data'))[0]), 'y')
  open[1].destroy()
  const refused = flow(0)
  const [err] = (await once(refused, 'error')) as [NodeJS.ErrnoException]
  assert.equal(err.code, 'ECONNREFUSED')
})
