import assert from 'node:assert/strict'
import { once } from 'node:events'
import type { IncomingMessage } from 'node:http'
import { test } from 'node:test'
import { Bench, name } from '../../support/bench.ts'

const secure = {
  'strict-transport-security': 'max-age=31536000',
  'x-content-type-options': 'nosniff',
  'x-frame-options': 'SAMEORIGIN',
  'referrer-policy': 'strict-origin-when-cross-origin',
}
const pick = (headers: IncomingMessage['headers'], names: string[]): Record<string, unknown> =>
  Object.fromEntries(names.map((header) => [header, headers[header]]))

test("every answer has HSTS and the security headers: the origin's, errors, redirects", async () => {
  await using bench = await Bench.start()
  for (const options of [
    {},
    { headers: { host: 'gatehouse' } },
    { headers: { host: 'evil.example' } },
    { path: '//x' },
  ]) {
    const answer = await bench.fetch(options)
    assert.deepEqual(pick(answer.headers, Object.keys(secure)), secure, JSON.stringify(options))
  }
  await bench.origin.stop()
  const down = await bench.fetch()
  assert.equal(down.status, 502)
  assert.deepEqual(pick(down.headers, Object.keys(secure)), secure)
})

test('what the origin says itself counts, except on HSTS', async () => {
  await using bench = await Bench.start()
  const own = {
    'x-frame-options': 'DENY',
    'referrer-policy': 'no-referrer',
    'x-content-type-options': 'nosniff',
  }
  bench.origin.handler = (_request, response) => {
    response
      .writeHead(200, {
        ...own,
        'strict-transport-security': 'max-age=0',
        'content-security-policy': 'default-src *',
      })
      .end()
  }
  const { headers } = await bench.fetch()
  assert.deepEqual(pick(headers, Object.keys(own)), own)
  assert.deepEqual(
    [headers['strict-transport-security'], headers['content-security-policy']],
    ['max-age=31536000', 'default-src *'],
  )
})

test("what software answers is nobody's business, and hop-by-hop headers stay on their side", async () => {
  await using bench = await Bench.start()
  bench.origin.handler = (_request, response) => {
    response
      .writeHead(200, {
        server: 'origin/1',
        'x-powered-by': 'Express',
        'x-aspnet-version': '4',
        'x-runtime': '1',
        connection: 'x-hop',
        'x-hop': '1',
        'keep-alive': 'timeout=99',
        'proxy-authenticate': 'Basic',
        upgrade: 'h2c',
        'x-own': '1',
        'set-cookie': ['a=1', 'b=2'],
      })
      .end('x')
  }
  const { headers } = await bench.fetch()
  for (const header of [
    'server',
    'x-powered-by',
    'x-aspnet-version',
    'x-runtime',
    'x-hop',
    'proxy-authenticate',
    'upgrade',
    'via',
  ])
    assert.equal(headers[header], undefined, header)
  assert.notEqual(headers['keep-alive'], 'timeout=99')
  assert.deepEqual([headers['x-own'], headers['set-cookie']], ['1', ['a=1', 'b=2']])
})

test('the answer to a WebSocket handshake says no software either', async () => {
  await using bench = await Bench.start()
  bench.origin.sockets.on('headers', (lines: string[]) => {
    lines.push('Server: origin/1', 'X-Powered-By: Express', 'X-Own: 1')
  })
  const answer = await bench.raw(
    `GET /comms HTTP/1.1\r\nHost: ${name}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n` +
      'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n',
  )
  assert.match(answer, /^HTTP\/1\.1 101 /)
  assert.match(answer, /^X-Own: 1/m)
  assert.doesNotMatch(answer, /^(?:server|x-powered-by):/im)
})

test('port 80 gives the short name and every path to the full name over HTTPS', async () => {
  await using bench = await Bench.start()
  const socket = bench.tailnet.connect(80)
  socket.write('POST /a?b HTTP/1.1\r\nHost: gatehouse\r\nContent-Length: 0\r\n\r\n')
  const [data] = (await once(socket, 'data')) as [Buffer]
  assert.match(
    data.toString(),
    new RegExp(
      `^HTTP/1\\.1 308 [^]*location: https://${name.replaceAll('.', '\\.')}/a\\?b\\r\\n`,
      'i',
    ),
  )
  assert.doesNotMatch(data.toString(), /^(?:server|x-powered-by):/im)
  socket.destroy()
})
