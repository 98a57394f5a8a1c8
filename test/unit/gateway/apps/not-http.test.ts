import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createServer } from 'node:net'
import type { Server } from 'node:net'
import { test } from 'node:test'
import { Bench, name } from '../../support/bench.ts'

const key = 'dGhlIHNhbXBsZSBub25jZQ=='
const accept = createHash('sha1')
  .update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`)
  .digest('base64')
const handshake =
  `GET /comms HTTP/1.1\r\nHost: ${name}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n` +
  `Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${key}\r\nSec-Fetch-Site: same-origin\r\n` +
  `Origin: https://${name}\r\nAccept: application/json\r\n\r\n`

/** An app that answers each request with the same bytes. */
async function app(bench: Bench, answer: string): Promise<Server> {
  const server = createServer((socket) => {
    socket.on('error', () => {})
    socket.once('data', () => socket.write(Buffer.from(answer, 'latin1')))
  })
  server.listen(bench.origin.socket)
  await once(server, 'listening')
  return server
}

test("WebSockets' handshakes that apps answer badly are agreed to as others would", async () => {
  for (const answer of [
    'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n' +
      `Sec-WebSocket-Accept: ${accept}\r\n\r\n`,
    `HTTP/1.1 101 Switching Protocols\nUpgrade: WebSocket\nConnection: Upgrade\nSec-WebSocket-Accept: ${accept}\n\n`,
    `HTTP/1.1 101\r\nUpgrade : websocket\r\nConnection: upgrade, x\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`,
    'HTTP/1.1 101 Web Socket Protocol Handshake\r\nUpgrade: websocket\r\n' +
      `Sec-WebSocket-Accept: ${accept}\r\nX-A: a\x00b\r\n\r\n`,
    'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n' +
      `Connection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`,
  ]) {
    await using bench = await Bench.start({ origin: false })
    const server = await app(bench, `${answer}\x81\x02hi`)
    const got = await bench.raw(handshake)
    // oxlint-disable-next-line eslint/no-control-regex -- a frame of a WebSocket
    assert.match(got, /^HTTP\/1\.1 101 [^\r\n]*\r\n(?:[A-Za-z-]+: [^\r\n\0]*\r\n)*\r\n\x81\x02hi$/)
    assert.ok(got.includes(`: ${accept}\r\n`), got)
    assert.match(got, /\r\nupgrade: websocket\r\n/i)
    assert.match(got, /\r\nconnection: upgrade\r\n/i)
    server.close()
  }
})

test('what is not a handshake, nor HTTP, is said to be so', async () => {
  for (const [answer, status, code] of [
    ['HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno', '403', undefined],
    ['HTTP/1.1 200 OK\nContent-Length: 2\n\nok', '200', undefined],
    ['SSH-2.0-OpenSSH_9.2\r\n', '502', 'GH_UPSTREAM_NOT_HTTP'],
    [
      'HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n',
      '502',
      'GH_UPSTREAM_NOT_HTTP',
    ],
    [
      'HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n',
      '502',
      'GH_UPSTREAM_NOT_HTTP',
    ],
  ] as const) {
    await using bench = await Bench.start({ origin: false })
    const server = await app(bench, answer)
    const got = await bench.raw(handshake)
    assert.equal(got.slice(9, 12), status, got)
    if (code !== undefined) assert.ok(got.includes(code), got)
    assert.equal((await bench.gateway.status()).upstream.state, 'up')
    server.close()
  }
})

test('the cause is named where it would be taken for another: an answer taken as a whole, and one broken off', async () => {
  await using bench = await Bench.start({ origin: false })
  const head = 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n'
  const cacheable = await app(
    bench,
    `${head}Cache-Control: public, max-age=60\r\n\r\n2\r\nok\r\n\x1bzz\r\n`,
  )
  const answer = await bench.fetch({
    path: '/app/x.js',
    headers: { accept: 'application/json' },
  })
  assert.equal(answer.status, 502)
  const { error } = JSON.parse(answer.text) as { error: Record<string, string> }
  assert.equal(error.code, 'GH_UPSTREAM_NOT_HTTP')
  assert.equal(
    error.message,
    'Node-RED sent something that is not HTTP: in a chunked body "\\x1bzz\\r\\n"',
  )
  cacheable.close()
  await once(cacheable, 'close')

  const server = createServer((socket) => {
    socket.on('error', () => {})
    socket.once('data', () => {
      socket.write(`${head}Cache-Control: no-store\r\n\r\n2\r\nok\r\n`)
      setTimeout(() => socket.write('\x1bzz\r\n'), 50)
    })
  })
  server.listen(bench.origin.socket)
  await once(server, 'listening')
  const broken = await bench.raw(`GET /y HTTP/1.1\r\nHost: ${name}\r\n\r\n`, 500)
  assert.match(broken, /^HTTP\/1\.1 200 [^]*2\r\nok\r\n$/)
  await bench.until(() => bench.log('not HTTP').length > 0)
  assert.equal(bench.log('not HTTP')[0]!.code, 'GH_UPSTREAM_NOT_HTTP')
  assert.match(bench.log('not HTTP')[0]!.msg, /in a chunked body "\\x1bzz\\r\\n"$/)
  server.close()
})
