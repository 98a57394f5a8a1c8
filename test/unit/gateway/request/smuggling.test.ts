import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Bench, name } from '../../support/bench.ts'

const smuggled = `GET /smuggled HTTP/1.1\r\nHost: ${name}\r\n\r\n`
const post = `POST /outer HTTP/1.1\r\nHost: ${name}\r\n`

/**
 * Each is refused, and nothing of it may reach the origin: neither itself nor what hides in its
 * body.
 */
const refused: Record<string, string> = {
  'CL.TE: Content-Length and Transfer-Encoding':
    `${post}Content-Length: ${smuggled.length + 5}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n` +
    `\r\n${smuggled}`,
  'TE.CL: Transfer-Encoding and Content-Length':
    `${post}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n${smuggled}\r\n0\r\n` +
    '\r\n',
  'TE.TE: an obscured second Transfer-Encoding': `${post}Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n${smuggled}`,
  'Transfer-Encoding twice, chunked last': `${post}Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n${smuggled}`,
  'a coding before chunked': `${post}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n${smuggled}`,
  'chunked not last': `${post}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n${smuggled}`,
  'a vertical tab before chunked': `${post}Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n${smuggled}`,
  'Transfer-Encoding in HTTP/1.0':
    `POST /outer HTTP/1.0\r\nHost: ${name}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n` +
    `${smuggled}`,
  'two Content-Lengths that differ': `${post}Content-Length: 0\r\nContent-Length: ${smuggled.length}\r\n\r\n${smuggled}`,
  'two Content-Lengths that agree': `${post}Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc${smuggled}`,
  'a list of Content-Lengths': `${post}Content-Length: 3, 3\r\n\r\nabc${smuggled}`,
  'a signed Content-Length': `${post}Content-Length: +3\r\n\r\nabc${smuggled}`,
  'a space before the colon': `${post}Content-Length : 3\r\n\r\nabc${smuggled}`,
  'a folded header (obs-fold)': `${post}X-A: b\r\n Content-Length: 3\r\n\r\n${smuggled}`,
  'a folded Host': `GET /outer HTTP/1.1\r\nHost:\r\n ${name}\r\n\r\n${smuggled}`,
  'lines that end in a bare LF': `GET /outer HTTP/1.1\nHost: ${name}\n\n${smuggled}`,
  'one line that ends in a bare LF': `GET /outer HTTP/1.1\r\nX: y\nHost: ${name}\r\n\r\n${smuggled}`,
  'a bare CR in a value': `${post}X: y\rContent-Length: 3\r\n\r\n${smuggled}`,
  'NUL in a value': `${post}X: y\0z\r\n\r\n${smuggled}`,
  'a chunk size with a prefix': `${post}Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n${smuggled}`,
  'a bare LF in a chunk extension': `${post}Transfer-Encoding: chunked\r\n\r\n3;a\nb\r\nabc\r\n0\r\n\r\n${smuggled}`,
  'a chunk that ends in a bare LF': `${post}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\n0\r\n\r\n${smuggled}`,
  'two Hosts': `GET /outer HTTP/1.1\r\nHost: ${name}\r\nHost: evil.example\r\n\r\n${smuggled}`,
  'no Host': `GET /outer HTTP/1.1\r\n\r\n${smuggled}`,
  'a Host with a path': `GET /outer HTTP/1.1\r\nHost: ${name}/x\r\n\r\n${smuggled}`,
  'a Host with user information': `GET /outer HTTP/1.1\r\nHost: a@${name}\r\n\r\n${smuggled}`,
  'no version (HTTP/0.9)': `GET /outer\r\n\r\n${smuggled}`,
  'HTTP/2.0 in a request line': `GET /outer HTTP/2.0\r\nHost: ${name}\r\n\r\n${smuggled}`,
  'an absolute-form target that names another host': `GET https://evil.example/outer HTTP/1.1\r\nHost: ${name}\r\n\r\n${smuggled}`,
  'an absolute-form target with user information': `GET https://${name}@evil.example/outer HTTP/1.1\r\nHost: ${name}\r\n\r\n${smuggled}`,
  'asterisk form': `OPTIONS * HTTP/1.1\r\nHost: ${name}\r\n\r\n${smuggled}`,
  'more headers than are looked at': `GET /outer HTTP/1.1\r\nHost: ${name}\r\n${'X: y\r\n'.repeat(300)}\r\n${smuggled}`,
  'headers larger than the limit': `GET /outer HTTP/1.1\r\nHost: ${name}\r\nX: ${'y'.repeat(40_000)}\r\n\r\n${smuggled}`,
  CONNECT: `CONNECT evil.example:80 HTTP/1.1\r\nHost: ${name}\r\n\r\n${smuggled}`,
}

for (const [what, bytes] of Object.entries(refused)) {
  test(`refused: ${what}`, async () => {
    await using bench = await Bench.start()
    const answer = await bench.raw(bytes)
    assert.match(
      answer,
      /^(?:HTTP\/1\.1 (?:400|405|431|505) [^]*|)$/,
      'an error, or the connection closed',
    )
    assert.equal(answer.split('HTTP/1.1 ').length <= 2, true, `one answer at most: ${answer}`)
    assert.deepEqual(
      bench.origin.requests.map((request) => request.url),
      [],
    )
    assert.equal((await bench.fetch()).status, 200, 'and the gateway goes on')
  })
}

test('a body of a GET ends where its length says: what follows is a request of its own', async () => {
  await using bench = await Bench.start()
  const inner = 'GET /inner HTTP/1.1\r\nHost: x\r\n\r\n'
  const answer = await bench.raw(
    `GET /outer HTTP/1.1\r\nHost: ${name}\r\nContent-Length: ${inner.length}\r\n\r\n` +
      `${inner}GET /next HTTP/1.1\r\nHost: ${name}\r\n\r\n`,
    400,
  )
  assert.equal(answer.split('HTTP/1.1 200').length - 1, 2)
  assert.deepEqual(
    bench.origin.requests.map((request) => request.url),
    ['/outer', '/next'],
  )
  assert.deepEqual(
    bench.origin.requests.map((request) => request.headers['content-length']),
    [String(inner.length), undefined],
  )
})

test('Connection: content-length cannot take the length off a body', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = (request, response) => {
    request.pipe(response)
  }
  const body = smuggled
  const answer = await bench.fetch({
    method: 'POST',
    body,
    headers: {
      connection: 'close, content-length, host, transfer-encoding',
      'content-length': String(body.length),
    },
  })
  assert.deepEqual([answer.status, answer.text], [200, body])
  assert.equal(bench.origin.requests.length, 1)
  assert.equal(bench.origin.requests[0]!.headers.host, name)
})

test('trailers of a request do not become headers', async () => {
  await using bench = await Bench.start()
  const answer = await bench.raw(
    `${post}Transfer-Encoding: chunked\r\nTrailer: Tailscale-User-Login\r\n\r\n3\r\nabc\r\n` +
      '0\r\nTailscale-User-Login: root@example.com\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n',
  )
  assert.match(answer, /^HTTP\/1\.1 200 /)
  const [request] = bench.origin.requests
  assert.deepEqual(
    [
      request!.headers['tailscale-user-login'],
      request!.headers['x-forwarded-for'],
      request!.trailers,
    ],
    ['alice@example.com', '100.64.0.7', {}],
  )
})
