/** [[app]] balance: which of several upstreams that are up is asked. */
import assert from 'node:assert/strict'
import { createServer } from 'node:http'
import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { once } from 'node:events'
import { test } from 'node:test'
import type { TestContext } from 'node:test'
import { WebSocket, WebSocketServer } from 'ws'
import { parseConfig } from '../../../../src/config/config.ts'
import { Bench, name } from '../../support/bench.ts'

interface Origin {
  server: Server
  url: string
  /** Requests that are not answered yet. */
  held: ServerResponse[]
}

/** An origin that says who it is, but holds back what is asked of /lb/slow. */
async function origin(who: string): Promise<Origin> {
  const held: ServerResponse[] = []
  const server = createServer((request: IncomingMessage, response: ServerResponse) => {
    if (request.url === '/lb/slow') held.push(response)
    else response.end(who)
  })
  const sockets = new WebSocketServer({ server })
  sockets.on('connection', (socket) => {
    socket.send(who)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return { server, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, held }
}

async function start(
  t: TestContext,
  balance: string,
): Promise<{ bench: Bench; origins: Origin[] }> {
  const origins = await Promise.all(['a', 'b', 'c'].map(origin))
  const bench = await Bench.start()
  t.after(async () => {
    await bench[Symbol.asyncDispose]()
    for (const { server } of origins) {
      server.closeAllConnections()
      server.close()
    }
  })
  // A quick machine opens more connections a second than one peer may.
  bench.gateway.configure(
    parseConfig(
      '[limits]\nnew_connections_per_peer = 0\nnew_connections = 0\n[[app]]\npath = "/lb/"\n' +
        `balance = "${balance}"\nupstreams = ${JSON.stringify(origins.map(({ url }) => url))}\n`,
      'f',
    ),
  )
  return { bench, origins }
}

const ask = async (bench: Bench, times: number): Promise<string[]> => {
  const got: string[] = []
  for (let i = 0; i < times; i++) got.push((await bench.fetch({ path: '/lb/' })).text)
  return got
}

test('first: the first that is up, as before', async (t) => {
  const { bench } = await start(t, 'first')
  assert.deepEqual(await ask(bench, 4), ['a', 'a', 'a', 'a'])
})

test('round_robin: each in turn; one that is down is left out, and comes back', async (t) => {
  const { bench, origins } = await start(t, 'round_robin')
  assert.deepEqual(await ask(bench, 6), ['a', 'b', 'c', 'a', 'b', 'c'])
  const { port } = origins[1]!.server.address() as AddressInfo
  origins[1]!.server.closeAllConnections()
  origins[1]!.server.close()
  // No request is lost: what no connection could be made for goes to the next.
  const without = await ask(bench, 9)
  assert.ok(
    without.every((who) => who === 'a' || who === 'c'),
    without.join(),
  )
  assert.ok(without.includes('a') && without.includes('c'))
  origins[1]!.server.listen(port, '127.0.0.1')
  await bench.until(async () => (await ask(bench, 3)).includes('b'))
})

test('least_connections: the one with the fewest requests and WebSockets open', async (t) => {
  const { bench, origins } = await start(t, 'least_connections')
  const [a, b, c] = origins as [Origin, Origin, Origin]
  const slow = [bench.fetch({ path: '/lb/slow' })]
  await bench.until(() => a.held.length === 1)
  slow.push(bench.fetch({ path: '/lb/slow' }))
  await bench.until(() => b.held.length === 1)
  assert.deepEqual(await ask(bench, 4), ['c', 'c', 'c', 'c'])
  // A WebSocket counts for as long as it is open: with it each has one.
  const connection = await bench.connect()
  const socket = new WebSocket(`wss://${name}/lb/`, { createConnection: () => connection })
  assert.equal(String(((await once(socket, 'message')) as [Buffer])[0]), 'c')
  assert.deepEqual(new Set(await ask(bench, 6)), new Set(['a', 'b', 'c']), 'in turn')
  socket.terminate()
  await bench.until(async () => (await ask(bench, 4)).join('') === 'cccc')
  for (const { held } of [a, b]) for (const response of held.splice(0)) response.end('done')
  await Promise.all(slow)
  await bench.until(async () => new Set(await ask(bench, 6)).size === 3)
  assert.equal(c.held.length, 0)
})
