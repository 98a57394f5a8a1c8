import assert from 'node:assert/strict'
import { once } from 'node:events'
import { buffer } from 'node:stream/consumers'
import { test } from 'node:test'
import { brotliDecompressSync, gunzipSync, zstdDecompressSync } from 'node:zlib'
import { defaults } from '../../../../src/config/config.ts'
import { negotiate } from '../../../../src/gateway/cache/compress.ts'
import { Bench } from '../../support/bench.ts'

const text = Array.from({ length: 4_000 }, (_, i) => `line ${i} of a script;\n`).join('')
const decode: Record<string, (data: Buffer) => Buffer> = {
  br: brotliDecompressSync,
  zstd: zstdDecompressSync,
  gzip: gunzipSync,
}

for (const control of ['public, max-age=60', 'no-store']) {
  test(`brotli, zstd and gzip by Accept-Encoding: ${control}`, async () => {
    await using bench = await Bench.start()
    bench.origin.handler = (_request, response) => {
      response
        .writeHead(200, {
          'content-type': 'application/javascript; charset=utf-8',
          'cache-control': control,
          etag: '"strong"',
          'content-length': text.length,
        })
        .end(text)
    }
    for (const [accept, coding] of [
      ['br', 'br'],
      ['zstd', 'zstd'],
      ['gzip, deflate', 'gzip'],
      // What is made while the peer waits is made by the fastest, what is kept by the smallest.
      ['gzip, deflate, br, zstd', control === 'no-store' ? 'zstd' : 'br'],
      ['gzip;q=1, br;q=0.5', 'gzip'],
      ['identity', undefined],
      ['br;q=0', undefined],
      ['', undefined],
    ] as const) {
      const response = await bench.send({ headers: { 'accept-encoding': accept } })
      const body = await buffer(response)
      assert.equal(response.headers['content-encoding'], coding, accept)
      assert.equal(response.headers.vary, 'Accept-Encoding')
      assert.equal(response.headers.etag, coding === undefined ? '"strong"' : 'W/"strong"')
      assert.equal((coding === undefined ? body : decode[coding]!(body)).toString(), text)
      if (coding !== undefined) assert.ok(body.length < text.length / 3)
    }
    assert.ok(
      bench.origin.requests.every((request) => request.headers['accept-encoding'] === 'identity'),
      'compressed once, here',
    )
  })
}

test('a stored answer is compressed once for each coding, and made smaller in the background', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = (_request, response) => {
    response
      .writeHead(200, {
        'content-type': 'text/css',
        'cache-control': 'public, max-age=60',
        'content-length': text.length,
      })
      .end(text)
  }
  const first = await buffer(await bench.send({ headers: { 'accept-encoding': 'br' } }))
  let smaller = first
  await bench.until(async () => {
    smaller = await buffer(await bench.send({ headers: { 'accept-encoding': 'br' } }))
    return smaller.length < first.length
  })
  assert.equal(brotliDecompressSync(smaller).toString(), text)
  assert.equal(bench.origin.requests.length, 1)
})

test('what must not be compressed is not', async () => {
  await using bench = await Bench.start()
  const never: Array<Record<string, string>> = [
    { 'content-type': 'image/png' },
    { 'content-type': 'font/woff2' },
    { 'content-type': 'application/octet-stream' },
    {},
    { 'content-type': 'text/plain', 'content-encoding': 'x-own' },
    { 'content-type': 'text/plain', 'cache-control': 'no-transform' },
    { 'content-type': 'application/zip' },
    { 'content-type': 'text/plain', 'content-range': 'bytes 0-9/10' },
  ]
  for (const headers of never) {
    bench.origin.handler = (_request, response) => {
      response.writeHead(200, { ...headers, 'content-length': text.length }).end(text)
    }
    const response = await bench.send({ headers: { 'accept-encoding': 'br, gzip' } })
    assert.equal((await buffer(response)).toString(), text)
    assert.equal(
      response.headers['content-encoding'],
      headers['content-encoding'],
      JSON.stringify(headers),
    )
  }
  bench.origin.handler = (_request, response) => {
    response.writeHead(200, { 'content-type': 'text/plain', 'content-length': 5 }).end('short')
  }
  assert.equal(
    (await bench.fetch({ headers: { 'accept-encoding': 'br' } })).headers['content-encoding'],
    undefined,
  )
  bench.gateway.configure({ ...defaults(), cache: { memoryMib: 32, compress: false } })
  bench.origin.handler = (_request, response) => {
    response
      .writeHead(200, { 'content-type': 'text/plain', 'content-length': text.length })
      .end(text)
  }
  assert.equal(
    (await bench.fetch({ headers: { 'accept-encoding': 'br' } })).headers['content-encoding'],
    undefined,
  )
})

test('what comes bit by bit comes at once: event streams and answers without a length', async () => {
  await using bench = await Bench.start()
  for (const type of ['text/event-stream', 'text/plain', 'application/x-ndjson']) {
    const more = Promise.withResolvers<void>()
    bench.origin.handler = (_request, response) => {
      response.writeHead(200, { 'content-type': type }).write('one\n')
      void more.promise.then(() => response.end('two\n'))
    }
    const response = await bench.send({ headers: { 'accept-encoding': 'br, zstd, gzip' } })
    assert.equal(((await once(response, 'data')) as [Buffer])[0].toString(), 'one\n')
    more.resolve()
    assert.equal((await buffer(response)).toString(), 'two\n')
  }
})

test('an origin that breaks off in a compressed answer breaks it off: nothing half looks whole', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = (request, response) => {
    response
      .writeHead(200, { 'content-type': 'text/plain', 'content-length': text.length })
      .write(text.slice(0, 50_000))
    setTimeout(() => request.socket.destroy(), 50)
  }
  await assert.rejects(bench.send({ headers: { 'accept-encoding': 'gzip' } }).then(buffer))
})

test('negotiation by quality', () => {
  for (const [accept, coding] of [
    [undefined, undefined],
    ['*', 'br'],
    ['*;q=0.1, br;q=0', 'zstd'],
    ['gzip;q=0.2, identity;q=0.9', undefined],
    ['GZIP', 'gzip'],
    ['x-unknown', undefined],
    [' br ; q=0.3 , gzip ; q=0.4', 'gzip'],
    ['identity;q=0, *;q=0', undefined],
  ] as Array<[string | undefined, string | undefined]>) {
    assert.equal(negotiate(accept), coding, String(accept))
  }
})
