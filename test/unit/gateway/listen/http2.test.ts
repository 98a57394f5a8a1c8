import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import type { IncomingMessage } from 'node:http'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { test } from 'node:test'
import { connect as tlsConnect } from 'node:tls'
import { promisify } from 'node:util'
import { WebSocket } from 'ws'
import { defaults } from '../../../../src/config/config.ts'
import { Bench, name } from '../../support/bench.ts'
import {
  RawPeer,
  answerTo,
  ask,
  block,
  ended,
  flag,
  frame,
  open,
  request,
} from '../../support/h2.ts'
import { alice } from '../../support/tailnet.ts'

test('by ALPN: HTTP/2 for those who offer it, HTTP/1.1 for the others, WebSockets beside it', async () => {
  await using bench = await Bench.start()
  for (const [offered, chosen] of [
    [['h2', 'http/1.1'], 'h2'],
    [['http/1.1', 'h2'], 'h2'],
    [['h2'], 'h2'],
    [['http/1.1'], 'http/1.1'],
  ] as const) {
    const socket = await bench.connect(443, name, [...offered])
    assert.equal(socket.alpnProtocol, chosen)
    socket.destroy()
  }
  const session = await bench.session()
  const socket = await bench.connect()
  const ws = new WebSocket(`wss://${name}/comms`, { createConnection: () => socket })
  await once(ws, 'message')
  assert.equal((await ask(session)).status, 200)
  assert.equal((await bench.fetch()).status, 200)
  ws.terminate()
  session.destroy()
})

test('HTTP/2 can be switched off, by a reload too', async () => {
  await using bench = await Bench.start()
  const session = await bench.session()
  assert.equal((await ask(session)).status, 200)
  bench.gateway.configure({
    ...defaults(),
    limits: { ...defaults().limits, streamsPerConnection: 0 },
  })
  const socket = await bench.connect(443, name, ['h2', 'http/1.1'])
  assert.equal(socket.alpnProtocol, 'http/1.1')
  socket.destroy()
  assert.equal((await ask(session)).status, 200, 'what is open stays')
  session.destroy()
})

test('the app gets the request it would get over HTTP/1.1', async () => {
  await using bench = await Bench.start()
  const session = await bench.session()
  const own = {
    'x-own': '1',
    'tailscale-user-login': 'root@example.com',
    'x-forwarded-for': '1.1.1.1',
    accept: 'application/json',
    cookie: 'a=1; b=2',
  }
  const over2 = JSON.parse((await ask(session, { ':path': '/path?q=1', ...own })).text) as {
    headers: Record<string, string>
  }
  const over1 = JSON.parse((await bench.fetch({ path: '/path?q=1', headers: own })).text) as {
    headers: Record<string, string>
  }
  for (const { headers } of [over1, over2]) assert.ok(headers['x-gatehouse-user'])
  const bare = ({ headers, ...rest }: typeof over1): unknown => ({
    ...rest,
    rawHeaders: undefined,
    headers: { ...headers, 'x-gatehouse-user': '' },
  })
  assert.deepEqual(bare(over2), bare(over1))
  assert.deepEqual(
    bench
      .log('request')
      .filter((line) => line.msg === 'request')
      .map(({ user, host, path, status, aborted }) => [user, host, path, status, aborted]),
    Array.from({ length: 2 }, () => ['alice@example.com', name, '/path', 200, undefined]),
  )
  session.destroy()
})

test('many at once: one that is slow holds up none', async () => {
  await using bench = await Bench.start()
  const { promise, resolve } = Promise.withResolvers<void>()
  bench.origin.handler = (request, response) => {
    if (request.url === '/slow') void promise.then(() => response.end('slow'))
    else response.end(request.url)
  }
  const session = await bench.session()
  const slow = ask(session, { ':path': '/slow' })
  const answers = await Promise.all(
    Array.from({ length: 90 }, async (_, i) => await ask(session, { ':path': `/${i}` })),
  )
  assert.deepEqual(
    answers.map(({ text }) => text),
    answers.map((_, i) => `/${i}`),
  )
  resolve()
  assert.equal((await slow).text, 'slow')
  assert.equal(bench.gateway.connections, 1)
  session.destroy()
})

const size = 64 * 1024 * 1024
const piece = Buffer.alloc(64 * 1024, 'gatehouse')
const pieces = (): Readable =>
  Readable.from(
    (function* () {
      for (let sent = 0; sent < size; sent += piece.length) yield piece
    })(),
  )

test(
  'uploads and downloads are streamed, with and without a length, in flat memory',
  { timeout: 120_000 },
  async () => {
    await using bench = await Bench.start()
    const told: Array<[string | undefined, string | undefined]> = []
    bench.origin.handler = (request, response) => {
      if (request.method === 'GET') {
        pieces().pipe(response)
        return
      }
      told.push([request.headers['content-length'], request.headers['transfer-encoding']])
      const hash = createHash('sha256')
      request
        .on('data', (data: Buffer) => hash.update(data))
        .on('end', () => response.end(hash.digest('hex')))
    }
    const hash = createHash('sha256')
    for await (const data of pieces()) hash.update(data as Buffer)
    const whole = hash.digest('hex')
    const session = await bench.session()
    const before = process.memoryUsage.rss()
    let most = 0
    const timer = setInterval(() => {
      most = Math.max(most, process.memoryUsage.rss())
    }, 20)
    assert.equal(
      (await ask(session, { ':method': 'POST', 'content-length': size }, pieces())).text,
      whole,
    )
    assert.equal((await ask(session, { ':method': 'PUT' }, pieces())).text, whole)
    assert.deepEqual(told, [
      [String(size), undefined],
      [undefined, 'chunked'],
    ])
    const down = createHash('sha256')
    const stream = open(session)
    for await (const data of stream) down.update(data as Buffer)
    assert.equal(down.digest('hex'), whole)
    clearInterval(timer)
    assert.ok(
      most - before < 150 * 1024 * 1024,
      `memory grew by ${Math.round((most - before) / 1024 / 1024)} MiB`,
    )
    session.destroy()
  },
)

test('an event stream is not held back: headers before the first event, each event at once', async () => {
  await using bench = await Bench.start()
  const answers: Array<{ write: (data: string) => void; end: () => void }> = []
  bench.origin.handler = (_request, response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' }).flushHeaders()
    answers.push(response)
  }
  const session = await bench.session()
  const stream = open(session)
  const [headers] = (await once(stream, 'response')) as [Record<string, string>]
  assert.equal(headers['content-type'], 'text/event-stream')
  for (const event of ['data: 1\n\n', 'data: 2\n\n']) {
    const came = once(stream, 'data') as Promise<[Buffer]>
    answers[0]!.write(event)
    assert.equal(String((await came)[0]), event)
  }
  answers[0]!.end()
  await once(stream, 'end')
  session.destroy()
})

test('HEAD, a range, 204 and 304 have no body, and answers no headers of an HTTP/1.1 connection', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = (request, response) => {
    response.setHeader('keep-alive', 'timeout=9')
    response.setHeader('proxy-connection', 'keep-alive')
    if (request.headers.range !== undefined)
      response
        .writeHead(206, {
          'content-range': 'bytes 2-4/10',
          'content-length': 3,
          connection: 'close, x-hop',
          'x-hop': '1',
          upgrade: 'x',
        })
        .end('cde')
    else if (request.url === '/204') response.writeHead(204).end()
    else if (request.url === '/304') response.writeHead(304, { etag: '"a"' }).end()
    else
      response
        .writeHead(200, { 'content-length': 4 })
        .end(request.method === 'HEAD' ? undefined : 'body')
  }
  const session = await bench.session()
  const head = await ask(session, { ':method': 'HEAD' })
  assert.deepEqual([head.status, head.headers['content-length'], head.text], [200, '4', ''])
  const range = await ask(session, { range: 'bytes=2-4' })
  assert.deepEqual(
    [range.status, range.headers['content-range'], range.text],
    [206, 'bytes 2-4/10', 'cde'],
  )
  const [empty, same] = [
    await ask(session, { ':path': '/204' }),
    await ask(session, { ':path': '/304', 'if-none-match': '"a"' }),
  ]
  assert.deepEqual([empty.status, empty.text, same.status, same.text], [204, '', 304, ''])
  for (const { headers } of [head, range, empty, same])
    for (const hop of [
      'connection',
      'keep-alive',
      'proxy-connection',
      'transfer-encoding',
      'upgrade',
      'x-hop',
    ])
      assert.equal(headers[hop], undefined, hop)
  session.destroy()
})

test('what the cache holds and what is compressed comes over HTTP/2 too', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = (_request, response) => {
    response
      .writeHead(200, {
        'content-type': 'text/javascript',
        'cache-control': 'public, max-age=60',
        'content-length': 6_500,
      })
      .end('// gatehouse\n'.repeat(500))
  }
  const session = await bench.session()
  const [first, second] = [
    await ask(session, { 'accept-encoding': 'identity' }),
    await ask(session, { 'accept-encoding': 'br' }),
  ]
  assert.deepEqual(
    [
      first.headers['cache-status'],
      second.headers['cache-status'],
      second.headers['content-encoding'],
    ],
    ['gatehouse; fwd=miss; stored', 'gatehouse; hit', 'br'],
  )
  assert.equal(bench.origin.requests.length, 1)
  session.destroy()
})

test('an app that sends a header twice that has one value does no harm', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = (_request, response) => {
    response
      .writeHead(200, [
        ['etag', '"a"'],
        ['etag', '"b"'],
        ['content-type', 'text/plain'],
        ['set-cookie', 'a=1'],
        ['set-cookie', 'b=2'],
      ] as never)
      .end('body')
  }
  const session = await bench.session()
  const { status, text, headers } = await ask(session)
  assert.deepEqual([status, text, headers['set-cookie']], [200, 'body', ['a=1', 'b=2']])
  session.destroy()
})

for (const code of [8, 0]) {
  test(`a request that is taken back (RST_STREAM ${code}) ends at the app, before its answer and within it`, async () => {
    await using bench = await Bench.start()
    const gone: string[] = []
    bench.origin.handler = (request, response) => {
      response.once('close', () => {
        if (!response.writableFinished) gone.push(request.url!)
      })
      if (request.url === '/within') response.write('begun')
    }
    const session = await bench.session()
    const before = open(session, { ':path': '/before' })
    const within = open(session, { ':path': '/within' })
    before.on('error', () => {})
    await once(within, 'data')
    await bench.until(() => bench.origin.requests.length === 2)
    before.close(code)
    within.close(code)
    await bench.until(() => gone.length === 2)
    assert.deepEqual(gone.toSorted(), ['/before', '/within'])
    bench.origin.handler = (_request, response) => {
      response.end()
    }
    assert.equal((await ask(session)).status, 200, 'the connection goes on')
    session.destroy()
  })

  for (const length of [undefined, 1_000]) {
    test(`an upload that is broken off (RST_STREAM ${code}, ${length === undefined ? 'no length' : 'a length'}) never looks whole to the app`, async () => {
      await using bench = await Bench.start()
      const outcomes: string[] = []
      bench.origin.handler = (request: IncomingMessage) => {
        request
          .on('data', () => {})
          .on('end', () => outcomes.push('whole'))
          .on('error', () => {})
          .on('close', () => outcomes.push('closed'))
      }
      const peer = await RawPeer.connect(bench)
      peer.send(
        frame.headers,
        flag.endHeaders,
        1,
        block(request(length === undefined ? {} : { 'content-length': String(length) }, 'POST')),
      )
      peer.send(frame.data, 0, 1, 'a part')
      await bench.until(() => bench.origin.requests.length === 1)
      peer.send(frame.reset, 0, 1, Buffer.from([0, 0, 0, code]))
      await bench.until(() => outcomes.length > 0)
      assert.deepEqual(outcomes, ['closed'])
      peer.socket.destroy()
    })
  }
}

test('an answer the app breaks off does not look whole: not to Node.js, nor to curl, which takes a reset with NO_ERROR for an end', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = (_request, response) => {
    response.write('a part')
    setTimeout(() => response.destroy(), 100)
  }
  const session = await bench.session()
  const { status, text, error } = await ask(session)
  assert.deepEqual([status, text, error], [200, 'a part', 'NGHTTP2_INTERNAL_ERROR'])
  session.destroy()
  writeFileSync(join(bench.directory, 'ca.pem'), bench.authority.certificate)
  await assert.rejects(
    promisify(execFile)('curl', [
      '--silent',
      '--http2',
      '--cacert',
      join(bench.directory, 'ca.pem'),
      '--unix-socket',
      bench.tailnet.path(443),
      `https://${name}/`,
    ]),
    { code: 92 },
  )
})

test('a connection that breaks ends its requests at the app', async () => {
  await using bench = await Bench.start()
  let gone = 0
  bench.origin.handler = (_request, response) => {
    response.once('close', () => {
      gone++
    })
  }
  const session = await bench.session()
  for (let i = 0; i < 5; i++) open(session).on('error', () => {})
  await bench.until(() => bench.origin.requests.length === 5)
  session.destroy()
  await bench.until(() => gone === 5 && bench.gateway.connections === 0)
})

test('a refused upload leaves the connection to the others', async () => {
  await using bench = await Bench.start()
  bench.gateway.configure({ ...defaults(), limits: { ...defaults().limits, bodyMib: 1 } })
  const session = await bench.session()
  const told = await ask(
    session,
    { ':method': 'POST', 'content-length': 5_000_000 },
    Buffer.alloc(5_000_000),
  )
  assert.equal(told.status, 413)
  assert.equal(bench.origin.requests.length, 0)
  bench.origin.handler = (request, response) => {
    request.resume().on('end', () => response.end('taken'))
  }
  const found = await ask(
    session,
    { ':method': 'POST' },
    Readable.from(
      (function* () {
        for (let i = 0; i < 40; i++) yield piece
      })(),
    ),
  )
  assert.ok(found.status === 413 || found.error !== undefined, JSON.stringify(found))
  assert.equal((await ask(session, { ':method': 'POST' }, 'small')).text, 'taken')
  assert.equal(bench.origin.requests.filter((request) => request.complete).length, 1)
  session.destroy()
})

test('another name is 421, the short one is sent to the full one, and the connection goes on', async () => {
  await using bench = await Bench.start()
  const session = await bench.session()
  assert.equal((await ask(session, { ':authority': 'evil.example' })).status, 421)
  const short = await ask(session, { ':authority': 'gatehouse', ':path': '/x?y' })
  assert.deepEqual([short.status, short.headers.location], [308, `https://${name}/x?y`])
  assert.equal((await ask(session)).status, 200)
  assert.equal(bench.origin.requests.length, 1)
  session.destroy()
})

test('rights are asked at each request, those of a connection that is open too', async () => {
  await using bench = await Bench.start({
    before: ({ tailnet }) => {
      tailnet.peer = { ...alice, capMap: {} }
    },
  })
  const session = await bench.session()
  // With no right at all the connection would end.
  const may = {
    ...bench.gateway.guard.settings,
    edit: ['alice@example.com'],
    use: ['alice@example.com'],
  }
  bench.gateway.guard.settings = may
  assert.equal((await ask(session)).status, 200)
  bench.gateway.guard.settings = { ...may, edit: [] }
  assert.equal((await ask(session)).status, 403)
  assert.equal((await ask(session, { ':method': 'POST', ':path': '/flows' }, 'flows')).status, 403)
  bench.gateway.guard.settings = may
  assert.equal((await ask(session)).status, 200)
  assert.deepEqual(
    bench.origin.requests.map(({ method }) => method),
    ['GET', 'GET'],
  )
  session.destroy()
})

test('an app that is down is 502, and the connection goes on', async () => {
  await using bench = await Bench.start()
  await bench.origin.stop()
  const session = await bench.session()
  const down = await ask(session, { accept: 'application/json' })
  assert.deepEqual(
    [down.status, (JSON.parse(down.text) as { error: { code: string } }).error.code],
    [502, 'GH_UPSTREAM_DOWN'],
  )
  session.destroy()
})

test('closing tells the peer (GOAWAY), lets requests under way finish, and takes no more', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = (_request, response) => {
    response.write('begun ')
    setTimeout(() => response.end('done'), 400)
  }
  const [busy, idle] = [await bench.session(), await bench.session()]
  const goaway = once(busy, 'goaway') as Promise<[number]>
  const stream = open(busy)
  await once(stream, 'response')
  const answer = answerTo(stream)
  const closing = bench.gateway.close(3_000)
  assert.equal((await goaway)[0], 0)
  assert.equal((await answer).text, 'begun done')
  await Promise.all([closing, ended(busy), ended(idle)])
})

test('a new certificate is used from the next connection on, those that are open go on; a ticket of before costs a handshake', async () => {
  await using bench = await Bench.start()
  const session = await bench.session()
  const serial = async (): Promise<string> => {
    const socket = await bench.connect(443, name, ['h2'])
    const { serialNumber } = socket.getPeerCertificate()
    socket.destroy()
    return serialNumber
  }
  const before = await serial()
  bench.putCertificate()
  await bench.until(async () => (await serial()) !== before)
  assert.equal((await ask(session)).status, 200)
  session.destroy()
})

test('a TLS session is resumed into HTTP/2', async () => {
  await using bench = await Bench.start()
  const first = await bench.connect(443, name, ['h2'])
  const ticket = once(first, 'session') as Promise<[Buffer]>
  first.on('data', () => {})
  const [resumable] = await ticket
  first.destroy()
  const again = tlsConnect({
    socket: bench.tailnet.connect(443),
    servername: name,
    ca: bench.authority.certificate,
    ALPNProtocols: ['h2'],
    session: resumable,
  })
  await once(again, 'secureConnect')
  assert.deepEqual([again.isSessionReused(), again.alpnProtocol], [true, 'h2'])
  again.destroy()
})

test('curl speaks HTTP/2 with it', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = (request, response) => {
    request.pipe(response)
  }
  writeFileSync(join(bench.directory, 'ca.pem'), bench.authority.certificate)
  const { stdout } = await promisify(execFile)('curl', [
    '--silent',
    '--show-error',
    '--http2',
    '--cacert',
    join(bench.directory, 'ca.pem'),
    '--unix-socket',
    bench.tailnet.path(443),
    '--data-binary',
    'sent',
    '--write-out',
    ' %{http_version} %{http_code}',
    `https://${name}/`,
  ])
  assert.equal(stdout, 'sent 2 200')
})
