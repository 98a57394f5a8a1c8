import assert from 'node:assert/strict'
import { once } from 'node:events'
import { Readable } from 'node:stream'
import { createHash } from 'node:crypto'
import { test } from 'node:test'
import { capability } from '../../../../src/gateway/access/access.ts'
import { Bench, name } from '../../support/bench.ts'
import { alice } from '../../support/tailnet.ts'

test('requests of every kind reach the origin as they are', async () => {
  await using bench = await Bench.start()
  for (const method of [
    'GET',
    'POST',
    'PUT',
    'PATCH',
    'DELETE',
    'OPTIONS',
    'PROPFIND',
    'MKCOL',
    'REPORT',
    'LOCK',
    'QUERY',
    'M-SEARCH',
  ]) {
    const answer = await bench.fetch({
      method,
      path: '/a/b%20c?x=1&y=%2F&x=2',
      ...(method === 'GET'
        ? {}
        : { body: 'text', headers: { 'content-type': 'text/plain', 'content-length': '4' } }),
    })
    assert.equal(answer.status, 200, answer.text)
    const seen = JSON.parse(answer.text) as {
      method: string
      url: string
      headers: Record<string, string>
    }
    assert.equal(seen.method, method)
    assert.equal(seen.url, '/a/b%20c?x=1&y=%2F&x=2')
    assert.equal(seen.headers.host, name)
  }
  const head = await bench.fetch({ method: 'HEAD' })
  assert.deepEqual(
    [head.status, head.text, head.headers['content-type']],
    [200, '', 'application/json'],
  )
  const passed = bench.origin.requests.length
  for (const method of ['TRACE', 'CONNECT', 'BREW'])
    assert.match(
      await bench.raw(`${method} / HTTP/1.1\r\nHost: ${name}\r\nContent-Length: 0\r\n\r\n`),
      /^(?:HTTP\/1\.1 40[05] [^]*|)$/,
      method,
    )
  assert.equal(bench.origin.requests.length, passed)
})

test('whoever may only view changes nothing by a method of WebDAV either', async () => {
  await using bench = await Bench.start({
    before: ({ tailnet }) => {
      tailnet.peer = { ...alice, capMap: { [capability]: [{ may: ['view'] }] } }
    },
  })
  for (const method of ['PROPPATCH', 'MOVE', 'PROPFIND'])
    assert.equal((await bench.fetch({ method, path: '/flows' })).status, 403, method)
  assert.equal((await bench.fetch({ path: '/flows' })).status, 200)
  assert.equal(bench.origin.requests.length, 1)
})

test('bodies of any type are passed on byte by byte, whatever the type says', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = (request, response) => {
    request.pipe(response)
  }
  for (const type of [
    'application/json',
    'text/plain',
    'application/x-www-form-urlencoded',
    'multipart/form-data; boundary=x',
    undefined,
  ]) {
    const answer = await bench.fetch({
      method: 'POST',
      body: '{ not json',
      headers: type === undefined ? {} : { 'content-type': type },
    })
    assert.deepEqual([answer.status, answer.text], [200, '{ not json'], String(type))
  }
})

test('an upload has no limit and is streamed', async () => {
  await using bench = await Bench.start()
  const size = 48 * 1024 * 1024
  const piece = Buffer.alloc(64 * 1024, 'gatehouse')
  const sent = createHash('sha256')
  bench.origin.handler = (request, response) => {
    // Answering before the end would not be possible if the gateway held the body back.
    const received = createHash('sha256')
    let bytes = 0
    response.write('started\n')
    request.on('data', (data: Buffer) => {
      received.update(data)
      bytes += data.length
    })
    request.on('end', () => response.end(`${bytes} ${received.digest('hex')}`))
  }
  const answer = await bench.fetch({
    method: 'POST',
    headers: { 'content-type': 'text/plain' },
    body: Readable.from(
      (function* () {
        for (let at = 0; at < size; at += piece.length) {
          sent.update(piece)
          yield piece
        }
      })(),
    ),
  })
  assert.equal(answer.text, `started\n${size} ${sent.digest('hex')}`)
})

test('server-sent events arrive one by one, and the headers before the first', async () => {
  await using bench = await Bench.start()
  const steps = Promise.withResolvers<void>()
  bench.origin.handler = (_request, response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream; charset=utf-8' })
    response.flushHeaders()
    void steps.promise.then(() => response.write('data: one\n\n'))
  }
  const response = await bench.send({ headers: { accept: 'text/event-stream' } })
  assert.equal(response.headers['content-type'], 'text/event-stream; charset=utf-8')
  steps.resolve()
  const [piece] = (await once(response.setEncoding('utf8'), 'data')) as [string]
  assert.equal(piece, 'data: one\n\n')
  const closed = once(bench.origin.requests[0]!.socket, 'close')
  response.destroy()
  // The origin must learn that nobody listens any more.
  await closed
})

test('a 503 of the origin is passed on, not retried (reply-from asks ten times)', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = (_request, response) => {
    response.writeHead(503, { 'retry-after': '1' }).end('busy')
  }
  const answer = await bench.fetch()
  assert.deepEqual([answer.status, answer.text, bench.origin.requests.length], [503, 'busy', 1])
})

test('a connection is kept alive over requests', async () => {
  await using bench = await Bench.start()
  const socket = await bench.connect()
  for (let i = 0; i < 3; i++) {
    const response = await bench.send({ socket, path: `/${i}` })
    assert.equal(response.statusCode, 200)
    response.resume()
    await once(response, 'end')
  }
  assert.equal(bench.tailnet.whoIsCalls.length, 1, 'who is asked once a connection')
})

test('Expect: 100-continue is answered by the gateway', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = (request, response) => {
    request.pipe(response)
  }
  const answer = await bench.fetch({
    method: 'POST',
    headers: { expect: '100-continue' },
    body: 'hello',
  })
  assert.deepEqual([answer.status, answer.text], [200, 'hello'])
  assert.equal(bench.origin.requests[0]!.headers.expect, undefined)
})
