import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { createServer } from 'node:http'
import type { IncomingMessage, RequestListener } from 'node:http'
import { createServer as createTLSServer } from 'node:https'
import { createServer as createTCPServer } from 'node:net'
import type { AddressInfo, Server } from 'node:net'
import { Readable } from 'node:stream'
import { text } from 'node:stream/consumers'
import { test } from 'node:test'
import { defaults, parseConfig } from '../../../../src/config/config.ts'
import { announcedTrailers } from '../../../../src/gateway/apps/headers.ts'
import { Bench, name } from '../../support/bench.ts'
import { RawPeer, answerTo, block, flag, frame, open, request } from '../../support/h2.ts'
import type { Answer } from '../../support/h2.ts'

/** What the app is to say of a request: all of it, once its body has ended. */
const told: RequestListener = (asked, response) => {
  response.writeHead(200, { trailer: 'x-answered' })
  void text(asked)
    .then((body) => {
      response.write(
        JSON.stringify({
          body,
          announced: asked.headers.trailer,
          coding: asked.headers['transfer-encoding'],
          trailers: asked.trailers,
          user: asked.headers['tailscale-user-login'],
          asked: asked.url,
        }),
      )
      response.addTrailers({ 'x-answered': 'yes' })
      response.end()
    })
    .catch(() => {})
}

interface Told {
  body: string
  announced: string | undefined
  coding: string | undefined
  trailers: Record<string, string>
  user: string
  asked: string
}

/** A request with trailers over HTTP/1.1, in two chunks. */
const chunked = (
  trailers: Record<string, string>,
  announced = Object.keys(trailers).join(', '),
  head = `POST /path HTTP/1.1\r\nHost: ${name}\r\n`,
): string =>
  `${head}Content-Type: a/b\r\nTrailer: ${announced}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n${Object.entries(
    trailers,
  )
    .map(([field, value]) => `${field}: ${value}\r\n`)
    .join('')}\r\n`

/** What {@link told} said, in one chunk. */
const bodyOf = (answer: string): string => /\{.*\}/.exec(answer)?.[0] ?? answer

/** The same over HTTP/2. */
async function over2(
  bench: Bench,
  trailers: Record<string, string>,
  body: string | Readable = 'abcde',
  path = '/path',
): Promise<Answer> {
  const session = await bench.session()
  const stream = session.request(
    {
      ':authority': name,
      ':method': 'POST',
      ':path': path,
      trailer: Object.keys(trailers).join(', '),
    },
    { waitForTrailers: true },
  )
  stream.on('wantTrailers', () => stream.sendTrailers(trailers))
  const answer = await answerTo(stream, body)
  session.destroy()
  return answer
}

/** An app beside Node-RED. */
async function listen(server: Server): Promise<string> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  server.unref()
  return `127.0.0.1:${(server.address() as AddressInfo).port}`
}

test('trailers of a request reach the app behind its body, and its own come back', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = told
  const sent = { 'x-sum': '5', 'grpc-status': '0' }
  const over1 = await bench.raw(chunked(sent), 400)
  assert.match(over1, /^HTTP\/1\.1 200 [^]*\r\nx-answered: yes\r\n\r\n$/i)
  const answer = await over2(bench, sent)
  assert.equal(answer.trailers['x-answered'], 'yes')
  for (const got of [bodyOf(over1), answer.text]) {
    assert.deepEqual(JSON.parse(got), {
      body: 'abcde',
      announced: 'x-sum, grpc-status',
      coding: 'chunked',
      trailers: sent,
      user: 'alice@example.com',
      asked: '/path',
    })
  }
})

const forged = {
  'x-sum': '5',
  'tailscale-user-login': 'root@example.com',
  tailscale_user_login: 'root@example.com',
  'x-forwarded-for': '1.1.1.1',
  'x-forwarded-anything': '1',
  forwarded: 'for=1.1.1.1',
  'x-gatehouse-user': 'x.y',
  host: 'evil.example',
  content_length: '3',
  authorization: 'Basic x',
  cookie: 'a=b',
  'content-type': 'text/html',
  te: 'gzip',
  upgrade: 'x',
  'keep-alive': '1',
  'if-match': '"a"',
  range: 'bytes=0-0',
  expect: '100-continue',
  'sec-websocket-key': 'x',
  'x-named': 'hop',
}

test("trailers that are the gateway's own, of the connection or to be known before the body are not passed on", async () => {
  await using bench = await Bench.start()
  bench.origin.handler = told
  const head = `POST /path HTTP/1.1\r\nHost: ${name}\r\nConnection: keep-alive, x-named\r\n`
  const got = [bodyOf(await bench.raw(chunked(forged, undefined, head), 400))]
  // HTTP/2 has no fields of a connection.
  const { te: _te, upgrade: _upgrade, 'keep-alive': _alive, 'x-named': _named, ...sayable } = forged
  got.push((await over2(bench, sayable)).text)
  for (const answer of got) {
    const { trailers, announced, user, body } = JSON.parse(answer) as Told
    assert.deepEqual(
      [trailers, announced, user, body],
      [{ 'x-sum': '5' }, 'x-sum', 'alice@example.com', 'abcde'],
    )
  }
})

test('trailers that are not announced, or announced and none, are no harm; with none to pass on the request goes as any', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = told
  for (const [announced, trailers, expected] of [
    ['x-sum', { 'x-other': '1' }, 'x-sum'],
    ['x-sum', {}, 'x-sum'],
    ['x-sum, , "x", x y', { 'x-sum': '1' }, 'x-sum'],
    ['cookie', { cookie: 'a=b' }, undefined],
  ] as const) {
    const got = JSON.parse(
      bodyOf(await bench.raw(chunked(trailers as Record<string, string>, announced), 400)),
    ) as Told
    assert.deepEqual(
      [got.announced, got.trailers, got.body],
      [expected, 'x-sum' in trailers ? { 'x-sum': '1' } : {}, 'abcde'],
      announced,
    )
  }
  // Its length is told: nothing comes behind it.
  const got = JSON.parse(
    bodyOf(
      await bench.raw(
        `POST /path HTTP/1.1\r\nHost: ${name}\r\nTrailer: x-sum\r\nContent-Length: 3\r\n\r\nabc`,
        400,
      ),
    ),
  ) as Told
  assert.deepEqual([got.announced, got.coding, got.body], [undefined, undefined, 'abc'])
  assert.deepEqual([...announcedTrailers({ trailer: 'X-A,x-b , x-a' })], ['x-a', 'x-b'])
})

test('what [[app]] removes, sets or adds does not come as a trailer; prefix, own authority and SNI are as without', async () => {
  await using bench = await Bench.start({
    options: { authority: () => bench.authority.certificate },
  })
  const pem = bench.authority.issue('app.internal')
  const asked: unknown[] = []
  const at = await listen(
    createTLSServer(
      {
        key: pem,
        cert: pem,
        SNICallback: (servername, done) => {
          asked.push(servername)
          done(null)
        },
      },
      told,
    ),
  )
  const toml = (more: string): string =>
    `[[app]]\npath = "/a/"\nstrip = true\nupstreams = ["https://${at}"]\nserver_name = "app.internal"\n${more}`
  bench.gateway.configure(
    parseConfig(
      toml(
        'ca_file = "own.pem"\nrequest_remove = ["X-Gone"]\nrequest_set = ["X-Set: ours"]\n' +
          'request_add = ["X-Added: ours"]\n',
      ),
      'f',
    ),
  )
  const got = JSON.parse(
    (
      await over2(
        bench,
        { 'x-sum': '1', 'x-gone': '1', 'x-set': 'theirs', 'x-added': 'theirs' },
        'body',
        '/a/b',
      )
    ).text,
  ) as Told
  assert.deepEqual(
    [got.asked, got.body, got.announced, got.trailers],
    ['/b', 'body', 'x-sum', { 'x-sum': '1' }],
  )
  bench.gateway.configure(parseConfig(toml(''), 'f'))
  assert.equal(
    (await over2(bench, { 'x-sum': '1' }, 'body', '/a/b')).status,
    502,
    'who shows a certificate nobody vouches for gets nothing',
  )
  assert.deepEqual([...new Set(asked)], ['app.internal'])
})

test('limits hold for a request with trailers as for any: connection, answer, pause, whole, size', async () => {
  await using bench = await Bench.start()
  const silent = await listen(
    createTCPServer((socket) => {
      socket.on('error', () => {}).resume()
    }),
  )
  const started = await listen(
    createServer((asked, response) => {
      asked.resume()
      response.write('begun')
    }),
  )
  const configure = (url: string, more = ''): void => {
    bench.gateway.configure(
      parseConfig(`[[app]]\npath = "/a/"\nupstreams = ["${url}"]\n${more}`, 'f'),
    )
  }
  const head = `POST /a/ HTTP/1.1\r\nHost: ${name}\r\nAccept: application/json\r\nConnection: close\r\n`
  for (const [url, more, expected] of [
    [
      `https://${silent}`,
      'connect_timeout = "300 ms"',
      /^HTTP\/1\.1 504 [^]*took no connection in time/,
    ],
    [`http://${silent}`, 'response_timeout = "300 ms"', /^HTTP\/1\.1 504 [^]*did not answer/],
    [
      `http://${silent}`,
      'total_timeout = "300 ms"',
      /^HTTP\/1\.1 504 [^]*was not done with it in time/,
    ],
    ['http://127.0.0.1:1', '', /^HTTP\/1\.1 502 [^]*GH_UPSTREAM_DOWN/],
  ] as const) {
    configure(url, more)
    assert.match(
      await bench.raw(chunked({ 'x-sum': '5' }, undefined, head), 3_000),
      expected,
      `${url} ${more}`,
    )
  }
  configure(`http://${started}`, 'idle_timeout = "300 ms"')
  const broken = await over2(bench, { 'x-sum': '5' }, 'body', '/a/')
  assert.deepEqual([broken.status, broken.text], [200, 'begun'])
  assert.ok(broken.error !== undefined, 'never ended as if it were whole')
  assert.equal(bench.log('an answer was broken off, idle_timeout is over').length, 1)
  bench.gateway.configure({ ...defaults(), limits: { ...defaults().limits, bodyMib: 1 } })
  bench.origin.handler = told
  const large = await over2(
    bench,
    { 'x-sum': '5' },
    Readable.from(
      (function* () {
        for (let i = 0; i < 80; i++) yield Buffer.alloc(65_536)
      })(),
    ),
  )
  assert.ok(large.status === 413 || large.error !== undefined, JSON.stringify(large))
  assert.ok(!bench.origin.requests.some((asked) => asked.complete))
})

test('a request with trailers that is broken off never looks whole to the app, and one whose peer is gone ends there', async () => {
  await using bench = await Bench.start()
  const outcomes: string[] = []
  bench.origin.handler = (asked: IncomingMessage) => {
    asked
      .on('data', () => {})
      .on('end', () => outcomes.push('whole'))
      .on('error', () => {})
      .on('close', () => outcomes.push('closed'))
  }
  const [over1] = chunked({ 'x-sum': '5' }).split('0\r\nx-sum')
  const socket = await bench.connect()
  socket.write(over1!)
  await bench.until(() => bench.origin.requests.length === 1)
  socket.destroy()
  await bench.until(() => outcomes.length === 1)
  const peer = await RawPeer.connect(bench)
  peer.send(frame.headers, flag.endHeaders, 1, block(request({ trailer: 'x-sum' }, 'POST')))
  peer.send(frame.data, 0, 1, 'a part')
  await bench.until(() => bench.origin.requests.length === 2)
  peer.send(frame.reset, 0, 1, Buffer.from([0, 0, 0, 8]))
  await bench.until(() => outcomes.length === 2)
  peer.socket.destroy()
  assert.deepEqual(outcomes, ['closed', 'closed'])
  // Whole, but nobody waits for the answer any more.
  let gone = false
  bench.origin.handler = (asked, response) => {
    asked.resume()
    response.once('close', () => {
      gone = true
    })
  }
  const session = await bench.session()
  const stream = open(session, { ':method': 'POST', trailer: 'x-sum' }, false)
  stream.on('error', () => {}).end('body')
  await bench.until(() => bench.origin.requests.length === 3)
  stream.close(8)
  await bench.until(() => gone)
  session.destroy()
})

test('an app that answers before it has the whole body and its trailers: its answer arrives, and the connection ends with it', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = (_request, response) => {
    response.writeHead(413, { connection: 'close', 'content-length': '4' }).end('over')
  }
  const socket = await bench.connect()
  socket.on('error', () => {})
  let answer = ''
  socket.setEncoding('latin1').on('data', (piece: string) => {
    answer += piece
  })
  socket.write(
    `POST /x HTTP/1.1\r\nHost: ${name}\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n` +
      `\r\n${(50_000_000).toString(16)}\r\n`,
  )
  socket.write(Buffer.alloc(300_000))
  await new Promise((resolve) => socket.once('close', resolve))
  assert.match(answer, /^HTTP\/1\.1 413 [^]*\r\nconnection: close\r\n[^]*over$/i)
})

test(
  'a large body with trailers is streamed at the pace the app takes it',
  { timeout: 120_000 },
  async () => {
    await using bench = await Bench.start()
    const piece = Buffer.alloc(64 * 1024, 'gatehouse')
    const count = 1_000
    let meanwhile = count
    let sent = 0
    const whole = createHash('sha256')
    for (let i = 0; i < count; i++) whole.update(piece)
    bench.origin.handler = (asked, response) => {
      const hash = createHash('sha256')
      asked
        .on('data', (data: Buffer) => hash.update(data))
        .on('end', () => response.end(`${hash.digest('hex')} ${asked.trailers['x-sum']}`))
      // It does not read for a while: what comes meanwhile must wait at the peer.
      asked.pause()
      setTimeout(() => {
        meanwhile = sent
        asked.resume()
      }, 500)
    }
    const answer = await over2(
      bench,
      { 'x-sum': '7' },
      Readable.from(
        (function* () {
          for (; sent < count; sent++) yield piece
        })(),
      ),
    )
    assert.equal(answer.text, `${whole.digest('hex')} 7`)
    assert.ok(meanwhile < 100, `${meanwhile} of ${count} pieces were taken from the peer`)
  },
)

/** Each is nothing a trailer can be; what follows must be no request. */
const unsayable: Record<string, string> = {
  'a length': 'Content-Length: 3',
  'a coding': 'Transfer-Encoding: chunked',
  'a bare LF': 'x-sum: 1\nGET /smuggled HTTP/1.1',
  'a bare CR': 'x-sum: 1\rGET /smuggled HTTP/1.1',
  NUL: 'x-sum: 1\0',
  'a folded line': 'x-sum: 1\r\n GET /smuggled HTTP/1.1',
  'a space before the colon': 'x-sum : 1',
  'no colon': 'GET /smuggled HTTP/1.1',
  'more than fits': `x-sum: ${'y'.repeat(40_000)}`,
}

for (const [what, line] of Object.entries(unsayable)) {
  test(`refused in trailers: ${what}`, async () => {
    await using bench = await Bench.start()
    bench.origin.handler = told
    const answer = await bench.raw(
      chunked({}, 'x-sum').replace(
        /\r\n$/,
        `${line}\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: ${name}\r\n\r\n`,
      ),
      400,
    )
    assert.match(answer, /^(?:HTTP\/1\.1 (?:400|431) [^]*|)$/)
    assert.equal(answer.split('HTTP/1.1 ').length <= 2, true, answer)
    assert.deepEqual(
      bench.origin.requests
        .filter((asked) => asked.complete || asked.url !== '/path')
        .map((asked) => asked.url),
      [],
    )
    assert.equal((await bench.fetch()).status, 200, 'and the gateway goes on')
  })
}

for (const [what, value] of Object.entries({
  'CR LF': '1\r\nGET /smuggled HTTP/1.1',
  LF: '1\nx-forged: 1',
  NUL: '1\0',
})) {
  test(`not passed on from trailers over HTTP/2: ${what}`, async () => {
    await using bench = await Bench.start()
    bench.origin.handler = told
    const peer = await RawPeer.connect(bench)
    peer.send(
      frame.headers,
      flag.endHeaders,
      1,
      block(request({ trailer: 'x-sum, x-forged' }, 'POST')),
    )
    peer.send(frame.data, 0, 1, 'abc')
    peer.send(frame.headers, flag.endHeaders | flag.endStream, 1, block([['x-sum', value]]))
    const outcome = await peer.see('1: ', 'GOAWAY', 'closed')
    assert.match(outcome ?? '', /^(?:1: (?:200|400|RST \d+)|GOAWAY \d+|closed)$/)
    for (const asked of bench.origin.requests)
      assert.deepEqual([asked.url, asked.trailers], ['/outer', {}])
    peer.socket.destroy()
  })
}
