import assert from 'node:assert/strict'
import { once } from 'node:events'
import { text } from 'node:stream/consumers'
import { test } from 'node:test'
import { Bench, name } from '../../support/bench.ts'

test('Node-RED down: a 502 page for a person, JSON for a program, one line in the log, and back by itself', async () => {
  await using bench = await Bench.start({ origin: false })
  for (let i = 0; i < 3; i++) {
    const page = await bench.fetch({ headers: { accept: 'text/html,application/xhtml+xml,*/*' } })
    assert.equal(page.status, 502)
    assert.equal(page.headers['content-type'], 'text/html; charset=utf-8')
    assert.equal(page.headers['retry-after'], '10')
    assert.match(page.text, /<h1>Node-RED is not running<\/h1>/)
    assert.match(page.text, /page Node-RED of the web console/)
  }
  const json = await bench.fetch({
    method: 'POST',
    body: '{}',
    headers: { accept: 'application/json', 'content-type': 'application/json' },
  })
  assert.equal(json.status, 502)
  assert.deepEqual(
    (JSON.parse(json.text) as { error: { code: string } }).error.code,
    'GH_UPSTREAM_DOWN',
  )
  assert.equal(
    bench.lines.filter((line) => line.level >= 40).length,
    1,
    'one warning however many requests',
  )
  const down = await bench.gateway.status()
  assert.deepEqual(
    [down.ok, down.upstream.state, down.problems[0]?.code],
    [false, 'down', 'GH_UPSTREAM_DOWN'],
  )

  await bench.origin.listen()
  assert.equal((await bench.fetch()).status, 200)
  const up = await bench.gateway.status()
  assert.deepEqual([up.ok, up.upstream.state, up.problems], [true, 'up', []])
})

test('an answer that is late is 504', async () => {
  await using bench = await Bench.start({ options: { responseTimeout: 300 } })
  bench.origin.handler = () => {}
  const answer = await bench.fetch({ headers: { accept: 'application/json' } })
  assert.deepEqual(
    [answer.status, (JSON.parse(answer.text) as { error: { code: string } }).error.code],
    [504, 'GH_UPSTREAM_TIMEOUT'],
  )
})

test('a connection broken off before the answer is 502, and Node-RED does not count as down for it', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = (request) => {
    request.socket.destroy()
  }
  assert.equal((await bench.fetch({ method: 'POST', body: 'x' })).status, 502)
  assert.equal((await bench.gateway.status()).upstream.state, 'up')
})

test('a connection broken off in the answer breaks off the answer: nothing half looks whole', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = (request, response) => {
    response.writeHead(200, { 'content-length': '100' })
    response.write('half')
    setTimeout(() => request.socket.destroy(), 20)
  }
  const response = await bench.send()
  assert.equal(response.statusCode, 200)
  await assert.rejects(text(response))
})

test('an invalid status of the origin is 502, and the gateway lives (reply-from#374)', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = (request) => {
    request.socket.end('HTTP/1.1 999 What\r\nContent-Length: 4\r\nX-From: origin\r\n\r\nbody')
  }
  const answer = await bench.fetch()
  assert.equal(answer.status, 502)
  assert.equal(answer.headers['x-from'], undefined)
  bench.origin.handler = (_request, response) => {
    response.end('well')
  }
  assert.equal((await bench.fetch()).text, 'well')
})

test('a client that goes away in an upload takes the request to the origin with it', async () => {
  await using bench = await Bench.start()
  const { promise: broken, resolve } = Promise.withResolvers<void>()
  bench.origin.handler = (request) => {
    request.resume()
    request.on('close', () => {
      if (!request.complete) resolve()
    })
    bench.emit('arrived')
  }
  const arrived = once(bench, 'arrived')
  const socket = await bench.connect()
  socket.write(`POST / HTTP/1.1\r\nHost: ${name}\r\nContent-Length: 1000\r\n\r\nsome`)
  await arrived
  socket.destroy()
  await broken
})
