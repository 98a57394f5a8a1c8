import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { test } from 'node:test'
import { promisify } from 'node:util'
import { defaults } from '../../../../src/config/config.ts'
import { Bench, name } from '../../support/bench.ts'
import { alice } from '../../support/tailnet.ts'

/** An origin that answers everything alike and counts. */
function serve(
  bench: Bench,
  headers: Record<string, string | string[]>,
  body: string | Buffer = 'body',
): void {
  bench.origin.handler = (request: IncomingMessage, response: ServerResponse) => {
    const etag = headers.etag as string | undefined
    if (etag !== undefined && request.headers['if-none-match'] === etag) {
      response.writeHead(304, headers).end()
      return
    }
    response
      .writeHead(200, { ...headers, 'content-length': Buffer.byteLength(body) })
      .end(request.method === 'HEAD' ? undefined : body)
  }
}

const asked = (bench: Bench): number => bench.origin.requests.length

test('a public answer is used again while it is fresh, for GET and HEAD', async () => {
  await using bench = await Bench.start()
  serve(bench, {
    'cache-control': 'public, max-age=60',
    'content-type': 'text/plain',
    'x-own': '1',
  })
  for (let i = 0; i < 3; i++) {
    const { status, text, headers } = await bench.fetch()
    assert.deepEqual(
      [status, text, headers['content-type'], headers['x-own'], headers['content-length']],
      [200, 'body', 'text/plain', '1', '4'],
    )
    assert.equal(
      headers['cache-status'],
      i === 0 ? 'gatehouse; fwd=miss; stored' : 'gatehouse; hit',
    )
    assert.equal(headers['strict-transport-security'], 'max-age=31536000')
  }
  const head = await bench.fetch({ method: 'HEAD' })
  assert.deepEqual([head.status, head.text, head.headers['content-length']], [200, '', '4'])
  assert.equal(asked(bench), 1)
  assert.equal((await bench.fetch({ path: '/?other' })).text, 'body')
  assert.equal(asked(bench), 2)
})

test('nothing private is stored: each of these is asked for every time', async () => {
  await using bench = await Bench.start()
  const never: Array<Record<string, string | string[]>> = [
    {},
    { 'cache-control': 'max-age=60' },
    { 'cache-control': 'private, max-age=60' },
    { 'cache-control': 'public, no-store' },
    { 'cache-control': 'public, max-age=60', 'set-cookie': ['a=1'] },
    { 'cache-control': 'public, max-age=60', vary: 'Cookie' },
    { 'cache-control': 'public, max-age=60', vary: 'Tailscale-User-Login' },
    { 'cache-control': 'public, max-age=60', vary: '*' },
    { expires: new Date(Date.now() + 60_000).toUTCString() },
    { etag: '"x"', 'last-modified': 'Mon, 01 Jan 2024 00:00:00 GMT' },
  ]
  for (const headers of never) {
    serve(bench, headers)
    const before = asked(bench)
    assert.equal((await bench.fetch()).text, 'body')
    assert.equal((await bench.fetch()).headers['cache-status'], undefined, JSON.stringify(headers))
    assert.equal(asked(bench) - before, 2, JSON.stringify(headers))
  }
  serve(bench, { 'cache-control': 'public, max-age=60' })
  const before = asked(bench)
  for (let i = 0; i < 2; i++) await bench.fetch({ method: 'POST', body: 'x' })
  for (let i = 0; i < 2; i++) await bench.fetch({ path: '/range', headers: { range: 'bytes=0-1' } })
  for (let i = 0; i < 2; i++)
    await bench.fetch({ path: '/no-store', headers: { 'cache-control': 'no-store' } })
  assert.equal(asked(bench) - before, 6)
})

test('who may not see it gets no stored answer either', async () => {
  await using bench = await Bench.start()
  serve(bench, { 'cache-control': 'public, max-age=60' })
  assert.equal((await bench.fetch({ path: '/red/red.min.js' })).status, 200)
  bench.tailnet.peer = { ...alice, capMap: {} }
  const refused = await bench.fetch({ path: '/red/red.min.js' })
  assert.deepEqual([refused.status, refused.headers['cache-status']], [403, undefined])
})

test("a stale answer is asked about, not fetched again; the browser's own copy is 304 (Node-RED says max-age=0)", async () => {
  await using bench = await Bench.start()
  const body = 'x'.repeat(5_000)
  serve(
    bench,
    { 'cache-control': 'public, max-age=0', etag: 'W/"1"', 'content-type': 'text/javascript' },
    body,
  )
  assert.equal((await bench.fetch()).text, body)
  const again = await bench.fetch()
  assert.deepEqual(
    [again.status, again.text, again.headers['cache-status'], again.headers.etag],
    [200, body, 'gatehouse; hit; detail=revalidated', 'W/"1"'],
  )
  assert.equal(bench.origin.requests[1]!.headers['if-none-match'], 'W/"1"')
  const known = await bench.fetch({ headers: { 'if-none-match': 'W/"1"' } })
  assert.deepEqual(
    [known.status, known.text, known.headers.etag, known.headers['content-length']],
    [304, '', 'W/"1"', undefined],
  )
  const old = await bench.fetch({ headers: { 'if-none-match': 'W/"0"' } })
  assert.deepEqual([old.status, old.text], [200, body])
  serve(
    bench,
    { 'cache-control': 'public, max-age=0', etag: 'W/"2"', 'content-type': 'text/javascript' },
    'new',
  )
  const changed = await bench.fetch({ headers: { 'if-none-match': 'W/"1"' } })
  assert.deepEqual([changed.status, changed.text, changed.headers.etag], [200, 'new', 'W/"2"'])
})

test('a change of a resource forgets what is stored of it (RFC 9111 §4.4), and an error is not stored over it', async () => {
  await using bench = await Bench.start()
  serve(bench, { 'cache-control': 'public, max-age=60' })
  await bench.fetch({ path: '/a' })
  await bench.fetch({ path: '/a', method: 'PUT', body: 'x' })
  await bench.fetch({ path: '/a' })
  assert.equal(asked(bench), 3)
  bench.origin.handler = (_request, response) => {
    response.writeHead(500, { 'cache-control': 'public, max-age=60', 'content-length': 1 }).end('!')
  }
  assert.equal((await bench.fetch({ path: '/b' })).status, 500)
  serve(bench, { 'cache-control': 'public, max-age=60' })
  assert.equal((await bench.fetch({ path: '/b' })).status, 200)
})

test('memory is bounded: what was used longest ago goes first, and what is too large is not stored', async () => {
  await using bench = await Bench.start()
  bench.gateway.configure({
    ...defaults(),
    limits: { ...defaults().limits, newConnectionsPerPeer: 0, newConnections: 0 },
    cache: { memoryMib: 1, compress: true },
  })
  const { cache } = bench.gateway.delivery
  serve(bench, { 'cache-control': 'public, max-age=60' }, randomBytes(200_000))
  for (let i = 0; i < 12; i++) {
    await bench.fetch({ path: `/${i}` })
    await bench.fetch({ path: '/0' })
    assert.ok(cache.size <= 1024 * 1024, String(cache.size))
  }
  assert.equal(cache.count, 5)
  assert.equal((await bench.fetch({ path: '/0' })).headers['cache-status'], 'gatehouse; hit')
  assert.equal(
    (await bench.fetch({ path: '/1' })).headers['cache-status'],
    'gatehouse; fwd=miss; stored',
  )
  serve(bench, { 'cache-control': 'public, max-age=60' }, randomBytes(300_000))
  assert.equal((await bench.fetch({ path: '/large' })).headers['cache-status'], undefined)
  bench.gateway.configure({ ...defaults(), cache: { memoryMib: 0, compress: true } })
  assert.deepEqual([cache.count, cache.size], [0, 0])
})

test('an origin that breaks off is 502, and nothing of it is stored', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = (request, response) => {
    response
      .writeHead(200, { 'cache-control': 'public, max-age=60', 'content-length': 100 })
      .write('half')
    setTimeout(() => request.socket.destroy(), 20)
  }
  assert.equal((await bench.fetch()).status, 502)
  assert.equal(bench.gateway.delivery.cache.count, 0)
})

test('gatehouse cache purge', async () => {
  await using bench = await Bench.start()
  serve(bench, { 'cache-control': 'public, max-age=60' }, 'x'.repeat(2_000_000))
  await bench.fetch()
  const { stdout } = await promisify(execFile)(
    process.execPath,
    ['src/main.ts', 'cache', 'purge'],
    { env: { ...process.env, GATEHOUSE_ADMIN_SOCKET: bench.admin } },
  )
  assert.equal(stdout, 'Forgot 1 answers, 1.9 MiB.\n')
  await bench.fetch()
  assert.equal(asked(bench), 2)
  assert.match(
    await bench.gateway.metrics.registry.metrics(),
    /gatehouse_cache_answers_total\{how="stored"\} 2\n[^]*gatehouse_cache_entries 1\n/,
  )
  assert.equal(bench.origin.requests[0]!.headers.host, name)
})
