import assert from 'node:assert/strict'
import { request as httpRequest } from 'node:http'
import type { IncomingHttpHeaders, IncomingMessage } from 'node:http'
import { text } from 'node:stream/consumers'
import { test } from 'node:test'
import { defaults } from '../../../../src/config/config.ts'
import { Bench, name } from '../../support/bench.ts'
import { ask, open, answerTo } from '../../support/h2.ts'

const hints = {
  link: '</a.css>; rel=preload; as=style',
  server: 'Own/1',
  'x-hint': '1',
  connection: 'x-hop',
  'x-hop': '1',
}

/** An app that says 103, or 102 and 103. */
async function hinting(): Promise<Bench> {
  const bench = await Bench.start()
  bench.origin.handler = (request, response) => {
    if (request.url === '/two') response.writeProcessing()
    response.writeEarlyHints(hints, () => {
      response.end('final')
    })
  }
  return bench
}

test('103 Early Hints of the app are passed on, over HTTP/1.1', async () => {
  await using bench = await hinting()
  const socket = await bench.connect()
  const request = httpRequest({
    createConnection: () => socket,
    path: '/two',
    headers: { host: name },
  })
  const seen: Array<[number, IncomingHttpHeaders]> = []
  request.on('information', ({ statusCode, headers }) => {
    seen.push([statusCode, headers])
  })
  const answer = new Promise<IncomingMessage>((resolve) => {
    request.once('response', resolve).end()
  })
  assert.deepEqual([(await answer).statusCode, await text(await answer)], [200, 'final'])
  assert.deepEqual(
    seen.map(([status, { link, server, 'x-hint': hint, 'x-hop': hop }]) => [
      status,
      link,
      server,
      hint,
      hop,
    ]),
    [
      [102, undefined, undefined, undefined, undefined],
      [103, hints.link, undefined, '1', undefined],
    ],
  )
})

test('103 Early Hints of the app are passed on, over HTTP/2', async () => {
  await using bench = await hinting()
  const session = await bench.session()
  const { status, text: body, interim } = await ask(session, { ':path': '/two' })
  assert.deepEqual([status, body], [200, 'final'])
  assert.deepEqual(
    interim.map((headers) => [headers[':status'], headers.link, headers.server, headers['x-hop']]),
    [
      [102, undefined, undefined, undefined],
      [103, hints.link, undefined, undefined],
    ],
  )
  session.destroy()
})

test('HTTP/1.0 knows no interim answers, and gets none', async () => {
  await using bench = await hinting()
  const answer = await bench.raw(`GET / HTTP/1.0\r\nHost: ${name}\r\n\r\n`)
  assert.match(answer, /^HTTP\/1\.1 200 OK\r\n[^]*final$/)
})

test('trailers of the app follow the answer: HTTP/1.1 and HTTP/2, what may not be one left out', async () => {
  await using bench = await Bench.start()
  const trailers = {
    'x-sum': '4',
    'server-timing': 'db;dur=1',
    'set-cookie': 'a=b',
    'content-type': 'text/html',
    server: 'Own/1',
    'x-forwarded-for': '1.1.1.1',
    'strict-transport-security': 'max-age=0',
  }
  bench.origin.handler = (_request, response) => {
    response.writeHead(200, { trailer: 'x-sum' }).write('body')
    response.addTrailers(trailers)
    response.end()
  }
  const response = await bench.send()
  assert.deepEqual(
    [response.statusCode, await text(response), response.trailers],
    [200, 'body', { 'x-sum': '4', 'server-timing': 'db;dur=1' }],
  )
  const session = await bench.session()
  const answer = await ask(session)
  assert.deepEqual(
    [
      answer.status,
      answer.text,
      { ...answer.trailers }['x-sum'],
      Object.keys(answer.trailers).toSorted(),
    ],
    [200, 'body', '4', ['server-timing', 'x-sum']],
  )
  session.destroy()
})

test('trailers that have no room are left out: HTTP/1.0, HEAD, an answer with a length', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = (request, response) => {
    if (request.url === '/length') response.setHeader('content-length', 4)
    response.writeHead(200)
    response.addTrailers({ 'x-sum': '4' })
    response.end(request.method === 'HEAD' ? undefined : 'body')
  }
  assert.match(
    await bench.raw(`GET / HTTP/1.0\r\nHost: ${name}\r\n\r\n`),
    /^HTTP\/1\.1 200 [^]*\r\n\r\nbody$/,
  )
  assert.match(
    await bench.raw(`HEAD / HTTP/1.1\r\nHost: ${name}\r\nConnection: close\r\n\r\n`),
    /^HTTP\/1\.1 200 [^]*\r\n\r\n$/,
  )
  assert.match(
    await bench.raw(`GET /length HTTP/1.1\r\nHost: ${name}\r\nConnection: close\r\n\r\n`),
    /^HTTP\/1\.1 200 [^]*\r\n\r\nbody$/,
  )
  const session = await bench.session()
  assert.deepEqual(
    [
      (await ask(session, { ':method': 'HEAD' })).status,
      (await ask(session, { ':path': '/length' })).text,
    ],
    [200, 'body'],
  )
  session.destroy()
})

const expecting = (length: number, more = ''): string =>
  `POST / HTTP/1.1\r\nHost: ${name}\r\nContent-Length: ${length}\r\nExpect: 100-continue\r\n${more}\r\n`

test('Expect: 100-continue: told to go on when the request may pass, and the app never hears of it', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = (request, response) => {
    request.pipe(response)
  }
  const socket = await bench.connect()
  const request = httpRequest({
    createConnection: () => socket,
    method: 'POST',
    headers: { host: name, expect: '100-continue', 'content-length': 4 },
  })
  request.flushHeaders()
  await new Promise((resolve) => request.once('continue', resolve))
  const answer = new Promise<IncomingMessage>((resolve) => {
    request.once('response', resolve).end('body')
  })
  assert.equal(await text(await answer), 'body')
  assert.equal(bench.origin.requests[0]!.headers.expect, undefined)
  const session = await bench.session()
  const stream = open(session, { ':method': 'POST', expect: '100-continue' }, false)
  await new Promise((resolve) => stream.once('continue', resolve))
  assert.equal((await answerTo(stream, 'body')).text, 'body')
  session.destroy()
})

test('Expect: 100-continue: who is refused is not told to go on, and what follows is not taken for a request nor for the body', async () => {
  await using bench = await Bench.start()
  bench.gateway.configure({ ...defaults(), limits: { ...defaults().limits, bodyMib: 1 } })
  const next = `GET /next HTTP/1.1\r\nHost: ${name}\r\n\r\n`
  for (const [what, bytes, status] of [
    ['too large', expecting(5_000_000), 413],
    ['another name', expecting(4).replace(name, 'evil.example'), 421],
    ['the short name', expecting(4).replace(name, 'gatehouse'), 308],
    ['not read in one way', expecting(4, 'Host: evil.example\r\n'), 400],
  ] as const) {
    const answer = await bench.raw(bytes + next)
    // 400: the rest of what follows the four bytes of body was there first.
    assert.match(
      answer,
      new RegExp(`^HTTP/1\\.1 (?:${status}|400) [^]*connection: close`, 'i'),
      what,
    )
    assert.equal(answer.split('HTTP/1.1 ').length, 2, `${what}: one answer`)
  }
  const session = await bench.session()
  const stream = open(
    session,
    { ':method': 'POST', expect: '100-continue', 'content-length': 5_000_000 },
    false,
  )
  let told = false
  stream.once('continue', () => {
    told = true
  })
  const answer = answerTo(stream)
  assert.deepEqual([(await answer).status, told], [413, false])
  session.destroy()
  assert.deepEqual(bench.origin.requests, [])
})

test('an expectation that is not known is 417, over both', async () => {
  await using bench = await Bench.start()
  assert.match(await bench.raw(expecting(4).replace('100-continue', 'payment')), /^HTTP\/1\.1 417 /)
  const session = await bench.session()
  assert.equal((await ask(session, { ':method': 'POST', expect: 'payment' }, 'body')).status, 417)
  session.destroy()
  assert.deepEqual(bench.origin.requests, [])
})

test('an app that sends interim answers without end: some are passed on, then it has failed', async () => {
  await using bench = await Bench.start()
  let sent = 0
  bench.origin.handler = ({ socket }) => {
    // One by one: of hundreds at once none is passed on.
    const more = (): void => {
      if (socket.destroyed) return
      sent++
      socket.write('HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n')
      setImmediate(more)
    }
    more()
  }
  const answer = await bench.raw(
    `GET / HTTP/1.1\r\nHost: ${name}\r\nAccept: application/json\r\nConnection: close\r\n\r\n`,
    5_000,
  )
  assert.equal(answer.match(/^HTTP\/1\.1 103 /gm)!.length, 16)
  assert.match(answer, /\r\n\r\nHTTP\/1\.1 502 /)
  await bench.until(() => bench.origin.requests[0]!.socket.destroyed)
  assert.ok(sent < 10_000, `${sent} sent`)
  const session = await bench.session()
  const { status, interim } = await ask(session)
  assert.deepEqual([status, interim.length], [502, 16])
  session.destroy()
})

test('interim answers to a peer that does not read are not kept for it', async () => {
  await using bench = await Bench.start()
  const hint = `HTTP/1.1 103 Early Hints\r\nLink: </${'x'.repeat(12_000)}>; rel=preload\r\n\r\n`
  bench.origin.handler = ({ socket }) => {
    for (let i = 0; i < 90; i++) socket.write(hint)
  }
  const socket = await bench.connect()
  socket.pause()
  socket.write(`GET / HTTP/1.1\r\nHost: ${name}\r\n\r\n`)
  await bench.until(() => bench.origin.requests.length === 1)
  await new Promise((resolve) => setTimeout(resolve, 300))
  let got = 0
  socket.on('data', (piece: Buffer) => {
    got += piece.length
  })
  socket.resume()
  await new Promise((resolve) => setTimeout(resolve, 300))
  assert.ok(got > 0 && got <= 17 * hint.length, `${got} bytes`)
  socket.destroy()
})

test('an interim answer gives the app no more time', async () => {
  await using bench = await Bench.start({ options: { responseTimeout: 1_500 } })
  bench.origin.handler = (_request, response) => {
    const timer = setInterval(() => response.writeEarlyHints({ link: '</a>; rel=preload' }), 400)
    response.once('close', () => clearInterval(timer))
  }
  const begun = performance.now()
  const answer = await bench.fetch({ headers: { accept: 'application/json' } })
  assert.equal(answer.status, 504)
  assert.match(answer.text, /GH_UPSTREAM_TIMEOUT/)
  assert.ok(performance.now() - begun < 4_000)
})
