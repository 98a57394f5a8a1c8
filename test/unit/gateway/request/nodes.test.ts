import assert from 'node:assert/strict'
import { once } from 'node:events'
import { text } from 'node:stream/consumers'
import { test } from 'node:test'
import type { TLSSocket } from 'node:tls'
import type { WhoIs } from '@gatehouse/tsnet'
import { defaults } from '../../../../src/config/config.ts'
import type { Config } from '../../../../src/config/config.ts'
import { Bench, name } from '../../support/bench.ts'
import { ask } from '../../support/h2.ts'
import { alice } from '../../support/tailnet.ts'

/** A node with these addresses; without rights unless it is told otherwise. */
function node(bench: Bench, id: string, addresses: string[], rights = false): void {
  const whoIs: WhoIs = {
    ...alice,
    node: { ...alice.node, id, addresses },
    capMap: rights ? alice.capMap : {},
  }
  for (const address of addresses) bench.tailnet.peers.set(address, whoIs)
}

async function limited(limits: Partial<Config['limits']>): Promise<Bench> {
  const bench = await Bench.limited({ newConnectionsPerPeer: 0, newConnections: 0, ...limits })
  node(bench, 'two', ['100.64.1.1', 'fd7a:115c:a1e0::101'], true)
  node(bench, 'stranger', ['100.64.2.1'])
  node(bench, 'other stranger', ['100.64.2.2'])
  node(bench, 'owner', ['100.64.3.1'], true)
  return bench
}

/** A connection from an address; undefined when it is refused. */
async function from(bench: Bench, address: string): Promise<TLSSocket | undefined> {
  bench.tailnet.from = address
  const socket = await bench.connect().catch(() => undefined)
  socket?.on('error', () => {})
  return socket
}

test('connections are counted by node, whichever of its addresses they come from', async () => {
  await using bench = await limited({ connectionsPerPeer: 4 })
  const open = [
    await from(bench, '100.64.1.1'),
    await from(bench, 'fd7a:115c:a1e0::101'),
    await from(bench, '100.64.1.1'),
    await from(bench, 'fd7a:115c:a1e0::101'),
  ]
  assert.ok(open.every((socket) => socket !== undefined))
  assert.equal(await from(bench, '100.64.1.1'), undefined)
  assert.equal(await from(bench, 'fd7a:115c:a1e0::101'), undefined)
  assert.equal(await bench.hits('connections_per_peer'), 2)
  assert.ok(await from(bench, '100.64.3.1'), 'another node has its own')
  // What was counted at either address is given back.
  for (const socket of open) socket!.destroy()
  await bench.until(() => bench.gateway.connections === 1)
  const again = []
  for (let i = 0; i < 5; i++) again.push(await from(bench, 'fd7a:115c:a1e0::101'))
  assert.equal(again.filter((socket) => socket !== undefined).length, 4)
})

test('two addresses of which nobody knew that they are one node: what they hold already counts together', async () => {
  await using bench = await limited({ connectionsPerPeer: 4 })
  const { promise: known, resolve: tell } = Promise.withResolvers<void>()
  const whoIs = bench.tailnet.whoIs.bind(bench.tailnet)
  bench.tailnet.whoIs = async (addr) => {
    await known
    return await whoIs(addr)
  }
  const open = []
  for (const address of ['100.64.1.1', 'fd7a:115c:a1e0::101'])
    for (let i = 0; i < 3; i++) open.push(await from(bench, address))
  assert.equal(open.filter((socket) => socket !== undefined).length, 6)
  tell()
  await bench.until(async () => (await from(bench, '100.64.1.1')) === undefined)
  open.pop()!.destroy()
  open.pop()!.destroy()
  await bench.until(() => bench.gateway.connections <= 4)
  assert.equal(await from(bench, '100.64.1.1'), undefined, 'four are left')
})

test('requests are counted by node too', async () => {
  await using bench = await limited({ requestsPerPeer: 1 })
  const statuses: number[] = []
  for (const address of ['100.64.1.1', 'fd7a:115c:a1e0::101']) {
    const socket = (await from(bench, address))!
    for (let i = 0; i < 20; i++) {
      const answer = await bench.send({ socket })
      statuses.push(answer.statusCode!)
      await text(answer)
    }
  }
  // The bucket of an address begins with five seconds of the default rate, so 40 would pass at two.
  assert.ok(statuses.slice(0, 3).every((status) => status === 200))
  bench.tailnet.from = '100.64.3.1'
  assert.equal((await bench.fetch()).status, 200)
})

test('an address that has gone to another node does not count with the first', async () => {
  await using bench = await limited({ connectionsPerPeer: 2 })
  const first = [await from(bench, '100.64.1.1'), await from(bench, 'fd7a:115c:a1e0::101')]
  assert.ok(first.every((socket) => socket !== undefined))
  assert.equal(await from(bench, '100.64.1.1'), undefined)
  node(bench, 'successor', ['100.64.1.1'], true)
  node(bench, 'two', ['fd7a:115c:a1e0::101'], true)
  first[0]!.destroy()
  await bench.until(() => bench.gateway.connections === 1)
  assert.ok(await from(bench, '100.64.1.1'))
})

test('peers without any right cannot hold all connections: one that has a right is let in, they are not', async () => {
  await using bench = await limited({ connections: 4 })
  const strangers = [
    await from(bench, '100.64.2.1'),
    await from(bench, '100.64.2.1'),
    await from(bench, '100.64.2.2'),
    await from(bench, '100.64.2.2'),
  ]
  assert.ok(strangers.every((socket) => socket !== undefined))
  const before = await bench.hits('connections')
  assert.equal(await from(bench, '100.64.2.1'), undefined, 'no room among themselves')
  const owner = []
  for (let i = 0; i < 4; i++) {
    const socket = await from(bench, '100.64.3.1')
    assert.ok(socket, `connection ${i} of one with rights`)
    const answer = await bench.send({ socket })
    assert.equal(answer.statusCode, 200)
    await text(answer)
    owner.push(socket)
  }
  await bench.until(() => strangers.every((socket) => socket!.destroyed))
  assert.equal((await bench.hits('connections')) - before, 5)
  assert.equal(bench.gateway.connections, 4)
  // Nobody with rights is put out for anybody.
  assert.equal(await from(bench, '100.64.1.1'), undefined)
  assert.equal(await from(bench, '100.64.2.1'), undefined)
  assert.ok(owner.every((socket) => !socket.destroyed))
})

test('the rates of all are not used up by peers without any right', async () => {
  await using bench = await Bench.start()
  node(bench, 'stranger', ['100.64.2.1'])
  node(bench, 'owner', ['100.64.3.1'], true)
  const limits = { ...defaults().limits, newConnectionsPerPeer: 0, newConnections: 1 }
  bench.gateway.configure({ ...defaults(), limits })
  let refused = 0
  for (let i = 0; i < 30; i++) {
    const socket = await from(bench, '100.64.2.1')
    if (socket === undefined) refused++
    else socket.destroy()
  }
  assert.ok(refused > 10, `${refused} of 30`)
  for (let i = 0; i < 2; i++) {
    const socket = await from(bench, '100.64.3.1')
    assert.ok(socket, `connection ${i} of one with rights`)
    socket.destroy()
  }
})

test('the connection of a peer without any right ends with its answer, whatever that is', async () => {
  await using bench = await limited({})
  for (const [path, host, status] of [
    ['/', name, 403],
    ['/', 'gatehouse', 308],
    ['/', 'elsewhere.example', 421],
  ] as const) {
    const socket = (await from(bench, '100.64.2.1'))!
    const answer = await bench.send({ socket, path, headers: { host } })
    assert.deepEqual([answer.statusCode, answer.headers.connection], [status, 'close'])
    answer.resume()
    if (!socket.destroyed) await once(socket, 'close')
  }
  bench.tailnet.from = '100.64.2.1'
  const session = await bench.session()
  const answers = await Promise.all([ask(session), ask(session), ask(session)])
  assert.deepEqual(
    answers.map(({ status }) => status),
    [403, 403, 403],
  )
  if (!session.destroyed) await once(session, 'close')
  await bench.until(() => bench.gateway.connections === 0)
  // Whoever may do something keeps it, even when it is not this.
  bench.tailnet.from = '100.64.4.1'
  bench.tailnet.peers.set('100.64.4.1', {
    ...alice,
    node: { ...alice.node, id: 'user', addresses: ['100.64.4.1'] },
    capMap: { 'gatehouse.internal/cap/app': [{ may: ['use'] }] },
  })
  const socket = (await from(bench, '100.64.4.1'))!
  for (const [path, status] of [
    ['/', 403],
    ['/app/x', 200],
  ] as const) {
    const answer = await bench.send({ socket, path })
    assert.equal(answer.statusCode, status)
    await text(answer)
  }
})
