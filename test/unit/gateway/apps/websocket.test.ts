import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import { text } from 'node:stream/consumers'
import { ServerResponse } from 'node:http'
import type { IncomingMessage } from 'node:http'
import { queryObjects } from 'node:v8'
import { WebSocket } from 'ws'
import { Bench, name } from '../../support/bench.ts'

async function open(
  bench: Bench,
  path = '/comms',
  protocols: string[] = [],
  headers: Record<string, string> = {},
): Promise<{ ws: WebSocket; seen: Record<string, string> }> {
  const socket = await bench.connect()
  const ws = new WebSocket(`wss://${name}${path}`, protocols, {
    createConnection: () => socket,
    headers,
  })
  const [first] = (await once(ws, 'message')) as [Buffer]
  return { ws, seen: JSON.parse(first.toString()) as Record<string, string> }
}

test('a WebSocket carries all headers, the identity, and messages both ways', async () => {
  await using bench = await Bench.start()
  const { ws, seen } = await open(bench, '/comms?token=s3cret', [], {
    cookie: 'a=b',
    authorization: 'Bearer x',
    origin: `https://${name}`,
    'x-own': '1',
    'tailscale-user-login': 'root@example.com',
  })
  assert.deepEqual(
    [seen.cookie, seen.authorization, seen.origin, seen['x-own'], seen.host],
    ['a=b', 'Bearer x', `https://${name}`, '1', name],
  )
  assert.deepEqual(
    [seen['tailscale-user-login'], seen['x-forwarded-for'], seen['x-forwarded-proto']],
    ['alice@example.com', '100.64.0.7', 'https'],
  )
  assert.equal(bench.origin.requests[0]!.url, '/comms?token=s3cret')
  const big = Buffer.alloc(3_000_000, 'x')
  ws.send('text')
  ws.send(big)
  assert.deepEqual(((await once(ws, 'message')) as [Buffer])[0].toString(), 'text')
  const [data, binary] = (await once(ws, 'message')) as [Buffer, boolean]
  assert.ok(binary && data.equals(big))
  ws.ping('p')
  assert.equal(((await once(ws, 'pong')) as [Buffer])[0].toString(), 'p')
  ws.close(4001, 'bye')
  const [code, reason] = (await once(ws, 'close')) as [number, Buffer]
  assert.deepEqual(
    [code, reason.toString()],
    [4001, 'bye'],
    'the close code comes back from the origin',
  )
  await bench.until(() => bench.lines.some((line) => line.path === '/comms' && line.status === 101))
  assert.ok(!JSON.stringify(bench.lines).includes('s3cret'), 'a token in the query is not logged')
})

test('the origin chooses the subprotocol among all that were offered (http-proxy offers it the first alone)', async () => {
  await using bench = await Bench.start()
  const { ws } = await open(bench, '/', ['mqtt', 'v2.mqtt'])
  assert.equal(ws.protocol, 'v2.mqtt')
  ws.terminate()
})

test('the origin is told when the client goes away, and the other way round', async () => {
  await using bench = await Bench.start()
  const first = await open(bench)
  const [atOrigin] = bench.origin.sockets.clients
  first.ws.terminate()
  await once(atOrigin!, 'close')
  const second = await open(bench)
  const closed = once(second.ws, 'close')
  for (const client of bench.origin.sockets.clients) client.terminate()
  await closed
})

test('a refusal of the origin is the answer, status and body', async () => {
  await using bench = await Bench.start()
  const socket = await bench.connect()
  const ws = new WebSocket(`wss://${name}/refused`, { createConnection: () => socket })
  const [, response] = (await once(ws, 'unexpected-response')) as [unknown, IncomingMessage]
  assert.deepEqual(
    [response.statusCode, response.headers['x-why'], await text(response)],
    [403, 'no', 'no\n'],
  )
})

test('with Node-RED down the handshake is answered 502, not accepted and dropped', async () => {
  await using bench = await Bench.start({ origin: false })
  const socket = await bench.connect()
  const ws = new WebSocket(`wss://${name}/comms`, { createConnection: () => socket })
  const [, response] = (await once(ws, 'unexpected-response')) as [unknown, IncomingMessage]
  assert.equal(response.statusCode, 502)
  assert.match(await text(response), /Node-RED is not running/)
})

test('no other upgrade is tunnelled (h2c smuggling)', async () => {
  await using bench = await Bench.start()
  const socket = await bench.connect()
  socket.write(
    `GET / HTTP/1.1\r\nHost: ${name}\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: ` +
      'h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n',
  )
  const [data] = (await once(socket, 'data')) as [Buffer]
  assert.match(data.toString(), /^HTTP\/1\.1 400 /)
  assert.equal(bench.origin.requests.length, 0)
  socket.destroy()
})

test('an upgrade sent behind a request that is not answered yet ends the connection, not the gateway', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = () => {}
  const answer = await bench.raw(
    `GET /slow HTTP/1.1\r\nHost: ${name}\r\n\r\nGET /comms HTTP/1.1\r\nHost: ${name}\r\n` +
      'Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: ' +
      'dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n',
  )
  assert.equal(answer, '')
  bench.origin.handler = (_request, response) => {
    response.end('well')
  }
  assert.equal((await bench.fetch()).text, 'well')
})

test('an open WebSocket holds nothing of its handshake, and counts at its app until it ends', async () => {
  await using bench = await Bench.start()
  // After a collection of garbage. Whatever is held of a handshake holds its answer.
  const held = (): unknown => queryObjects(ServerResponse, { format: 'count' })
  const before = held()
  const opened = await Promise.all([open(bench), open(bench)])
  assert.equal(bench.gateway.upstream.open, 2)
  await bench.until(() => held() === before)
  for (const { ws } of opened) ws.close()
  await bench.until(() => bench.gateway.upstream.open === 0)
  await bench.until(() => bench.lines.filter((line) => line.status === 101).length === 2)
  const line = bench.lines.find((one) => one.status === 101)!
  assert.deepEqual(
    [line.peer, line.user, line.method, line.host, line.path, line.aborted],
    ['100.64.0.7', 'alice@example.com', 'GET', name, '/comms', undefined],
  )
  assert.match(
    await bench.gateway.metrics.registry.metrics(),
    /^gatehouse_http_requests_total\{route="node-red",status="1xx"\} 2$/m,
  )
})
