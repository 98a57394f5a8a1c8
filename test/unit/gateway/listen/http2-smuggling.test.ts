import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Bench, name } from '../../support/bench.ts'
import { RawPeer, ask, block, flag, frame, request } from '../../support/h2.ts'

const smuggled = `GET /smuggled HTTP/1.1\r\nHost: ${name}\r\n\r\n`

/** HEADERS, and DATA if there is a body. */
function sends(headers: Array<[string, string]>, body?: string) {
  return (peer: RawPeer): void => {
    peer.send(
      frame.headers,
      flag.endHeaders | (body === undefined ? flag.endStream : 0),
      1,
      block(headers),
    )
    if (body !== undefined) peer.send(frame.data, flag.endStream, 1, body)
  }
}

const post = (headers: Record<string, string>, body = smuggled): ReturnType<typeof sends> =>
  sends(request(headers, 'POST'), body)

/**
 * Each is refused, by a status, a reset stream or the end of the connection; nothing of it reaches
 * the origin.
 */
const refused: Record<string, (peer: RawPeer) => void> = {
  'a path with a request line in it': sends(
    request({ ':path': '/outer HTTP/1.1\r\nHost: x\r\n\r\nGET /smuggled' }),
  ),
  'a path with a space': sends(request({ ':path': '/outer x' })),
  'a path with NUL': sends(request({ ':path': '/outer\0' })),
  'a path with bytes beyond ASCII': sends(request({ ':path': '/outer\xff' })),
  'an absolute :path': sends(request({ ':path': `https://${name}/outer` })),
  'an absolute :path to another host': sends(request({ ':path': 'http://evil.example/outer' })),
  'an empty :path': sends(request({ ':path': '' })),
  'asterisk form': sends(request({ ':path': '*' }, 'OPTIONS')),
  'a dot segment': sends(request({ ':path': '/a/../outer' })),
  'an escaped dot segment': sends(request({ ':path': '/a/%2e%2e/outer' })),
  'a method with a request in it': sends(
    request({}, 'GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\nGET'),
  ),
  'a method with a space': sends(request({}, 'GET ')),
  'an empty method': sends(request({}, '')),
  CONNECT: sends([
    [':method', 'CONNECT'],
    [':authority', 'evil.example:80'],
  ]),
  'CONNECT with the pseudo-headers of a request': sends(request({}, 'CONNECT')),
  'extended CONNECT, which is not offered (RFC 8441)': sends(
    request({ ':protocol': 'websocket' }, 'CONNECT'),
  ),
  'a scheme of another kind': sends(request({ ':scheme': 'http' })),
  'a scheme with a URL in it': sends(request({ ':scheme': `https://${name}/x?` })),
  'no :scheme': sends(request().filter(([header]) => header !== ':scheme')),
  'no :path': sends(request().filter(([header]) => header !== ':path')),
  'no :method': sends(request().filter(([header]) => header !== ':method')),
  'neither :authority nor Host': sends(request().filter(([header]) => header !== ':authority')),
  'Host that differs from :authority': sends(request({ host: 'evil.example' })),
  'two Hosts': sends([
    ...request().filter(([header]) => header !== ':authority'),
    ['host', name],
    ['host', 'evil.example'],
  ]),
  'an :authority with user information': sends(request({ ':authority': `a@${name}` })),
  'an :authority with a line break': sends(request({ ':authority': `${name}\r\nX: y` })),
  'two :paths': sends([...request(), [':path', '/smuggled']]),
  'two :methods': sends([...request(), [':method', 'POST']]),
  'two :authorities': sends([...request(), [':authority', 'evil.example']]),
  'a pseudo-header after a header': sends([
    ...request().slice(0, 3),
    ['x', 'y'],
    [':path', '/outer'],
  ]),
  'a pseudo-header that does not exist': sends(request({ ':host': name })),
  ':status in a request': sends(request({ ':status': '200' })),
  'Transfer-Encoding (H2.TE)': post({ 'transfer-encoding': 'chunked' }, `0\r\n\r\n${smuggled}`),
  Connection: post({ connection: 'close, content-length' }),
  'Keep-Alive': post({ 'keep-alive': 'timeout=5' }),
  'Proxy-Connection': post({ 'proxy-connection': 'keep-alive' }),
  Upgrade: post({ upgrade: 'websocket' }),
  'HTTP2-Settings': post({ 'http2-settings': 'AAMAAABkAAQAAP__' }),
  'TE other than trailers': post({ te: 'chunked' }),
  'Content-Length below the data (H2.CL)': post({ 'content-length': String(smuggled.length - 1) }),
  'Content-Length above the data': post({ 'content-length': String(smuggled.length + 1) }),
  'Content-Length without data': sends(request({ 'content-length': '5' }, 'POST')),
  'two Content-Lengths that differ': sends(
    [...request({ 'content-length': '0' }, 'POST'), ['content-length', String(smuggled.length)]],
    smuggled,
  ),
  'two Content-Lengths that agree': sends(
    [
      ...request({ 'content-length': String(smuggled.length) }, 'POST'),
      ['content-length', String(smuggled.length)],
    ],
    smuggled,
  ),
  'a list of Content-Lengths': post({ 'content-length': `${smuggled.length}, ${smuggled.length}` }),
  'a signed Content-Length': post({ 'content-length': `+${smuggled.length}` }),
  'a name in capitals': post({ 'Transfer-Encoding': 'chunked' }),
  'more headers than are looked at': sends([
    ...request(),
    ...Array.from({ length: 202 }, (_, i): [string, string] => [`x-${i}`, 'y']),
  ]),
  'many more headers': sends([
    ...request(),
    ...Array.from({ length: 400 }, (_, i): [string, string] => [`x-${i}`, 'y']),
  ]),
  'DATA before HEADERS': (peer) => {
    peer.send(frame.data, flag.endStream, 1, smuggled)
  },
  "HEADERS on a stream of the server's": (peer) => {
    peer.send(frame.headers, flag.endHeaders | flag.endStream, 2, block(request()))
  },
  'PUSH_PROMISE of a client': (peer) => {
    peer.send(
      frame.push,
      flag.endHeaders,
      1,
      Buffer.concat([Buffer.from([0, 0, 0, 2]), block(request())]),
    )
  },
  'CONTINUATION without HEADERS': (peer) => {
    peer.send(frame.continuation, flag.endHeaders, 1, block(request()))
  },
  'another frame between HEADERS and CONTINUATION': (peer) => {
    peer.send(frame.headers, flag.endStream, 1, block(request().slice(0, 2)))
    peer.send(frame.data, flag.endStream, 1, smuggled)
    peer.send(frame.continuation, flag.endHeaders, 1, block(request().slice(2)))
  },
  'trailers with a pseudo-header': (peer) => {
    peer.send(frame.headers, flag.endHeaders, 1, block(request({}, 'POST')))
    peer.send(frame.headers, flag.endHeaders | flag.endStream, 1, block([[':path', '/smuggled']]))
  },
}

for (const [what, write] of Object.entries(refused)) {
  test(`refused over HTTP/2: ${what}`, async () => {
    await using bench = await Bench.start()
    bench.origin.handler = (asked, response) => {
      asked.resume().on('end', () => response.end('taken'))
    }
    const peer = await RawPeer.connect(bench)
    write(peer)
    const outcome = await peer.see('1: ', '2: ', 'GOAWAY', 'closed')
    assert.match(
      outcome ?? '',
      /^(?:1: (?:400|405|413|421|431|501|RST \d+)|2: RST \d+|GOAWAY [1-9]\d*|closed)$/,
    )
    peer.socket.destroy()
    const session = await bench.session()
    assert.equal((await ask(session)).status, 200, 'and the gateway goes on')
    session.destroy()
    // What was begun with a body that turned out to be wrong may have been passed on, but never as
    // a whole.
    assert.deepEqual(
      bench.origin.requests.filter((asked) => asked.complete).map((asked) => asked.url),
      ['/'],
    )
    assert.ok(!bench.origin.requests.some((asked) => asked.url === '/smuggled'))
  })
}

/** Each is a header that cannot be said in HTTP/1.1: dropped, or refused with the request. */
const unsayable: Record<string, [string, string]> = {
  'CR LF in a value': ['x', `y\r\n\r\n${smuggled}`],
  'LF in a value': ['x', 'y\nTransfer-Encoding: chunked'],
  'CR in a value': ['x', 'y\rz: 1'],
  'NUL in a value': ['x', 'y\0z'],
  'CR LF in a name': ['x: y\r\ntransfer-encoding', 'chunked'],
  'a colon in a name': ['transfer-encoding: chunked\r\nx', 'y'],
  'a space in a name': ['transfer-encoding ', 'chunked'],
  'an empty name': ['', 'chunked'],
}

for (const [what, header] of Object.entries(unsayable)) {
  test(`not passed on over HTTP/1.1: ${what}`, async () => {
    await using bench = await Bench.start()
    const peer = await RawPeer.connect(bench)
    peer.send(frame.headers, flag.endHeaders | flag.endStream, 1, block([...request(), header]))
    const outcome = await peer.see('1: ', 'GOAWAY', 'closed')
    assert.match(outcome ?? '', /^(?:1: (?:200|400|RST \d+)|GOAWAY \d+|closed)$/)
    assert.deepEqual(
      bench.origin.requests.map((asked) => asked.url),
      outcome === '1: 200' ? ['/outer'] : [],
    )
    for (const { headers } of bench.origin.requests)
      assert.deepEqual(
        [headers.x, headers.z, headers['transfer-encoding']],
        [undefined, undefined, undefined],
      )
    peer.socket.destroy()
  })
}

test('identity cannot be brought along over HTTP/2, in headers nor in trailers', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = (asked, response) => {
    asked.resume().on('end', () => response.end('taken'))
  }
  const peer = await RawPeer.connect(bench)
  const forged: Array<[string, string]> = [
    ['tailscale-user-login', 'root@example.com'],
    ['tailscale_user_login', 'root@example.com'],
    ['x-forwarded-for', '1.1.1.1'],
    ['forwarded', 'for=1.1.1.1'],
    ['x-gatehouse-user', 'x.y'],
  ]
  peer.send(frame.headers, flag.endHeaders, 1, block([...request({}, 'POST'), ...forged]))
  peer.send(frame.data, 0, 1, 'abc')
  peer.send(frame.headers, flag.endHeaders | flag.endStream, 1, block(forged))
  assert.equal(await peer.see('1: '), '1: 200')
  const [asked] = bench.origin.requests
  assert.deepEqual(
    [
      asked!.headers['tailscale-user-login'],
      asked!.headers.tailscale_user_login,
      asked!.headers['x-forwarded-for'],
      asked!.trailers,
    ],
    ['alice@example.com', undefined, '100.64.0.7', {}],
  )
  assert.match(asked!.headers.forwarded!, /^for=100\.64\.0\.7;/)
  assert.ok(!asked!.rawHeaders.some((part) => part.startsWith(':') || part.includes('root@')))
  peer.socket.destroy()
})

test('Content-Length: 0 with data (H2.CL): the request goes without them, and that is the end', async () => {
  await using bench = await Bench.start()
  const peer = await RawPeer.connect(bench)
  post({ 'content-length': '0' })(peer)
  // It may have been answered by then.
  assert.match(
    (await peer.see('1: ', 'GOAWAY', 'closed')) ?? '',
    /^(?:1: (?:200|RST \d+)|GOAWAY \d+|closed)$/,
  )
  const session = await bench.session()
  await ask(session)
  session.destroy()
  assert.deepEqual(
    bench.origin.requests.map((asked) => asked.url).filter((url) => url !== '/outer'),
    ['/'],
  )
  peer.socket.destroy()
})

test('a body of a GET goes with it, and does not become a request', async () => {
  await using bench = await Bench.start()
  const peer = await RawPeer.connect(bench)
  peer.send(
    frame.headers,
    flag.endHeaders,
    1,
    block(request({ 'content-length': String(smuggled.length) })),
  )
  peer.send(frame.data, flag.endStream, 1, smuggled)
  assert.equal(await peer.see('1: '), '1: 200')
  const session = await bench.session()
  await ask(session)
  session.destroy()
  assert.deepEqual(
    bench.origin.requests.map((asked) => [
      asked.url,
      asked.headers['content-length'],
      asked.headers['transfer-encoding'],
    ]),
    [
      ['/outer', String(smuggled.length), undefined],
      ['/', undefined, undefined],
    ],
  )
  peer.socket.destroy()
})

test('a path that starts with two slashes leads to itself with one, at the same host', async () => {
  await using bench = await Bench.start()
  const session = await bench.session()
  const { status, headers } = await ask(session, { ':path': '//evil.example/outer' })
  session.destroy()
  assert.equal(status, 308)
  assert.equal(new URL(String(headers.location), `https://${name}`).host, name)
  assert.equal(bench.origin.requests.length, 0)
})
