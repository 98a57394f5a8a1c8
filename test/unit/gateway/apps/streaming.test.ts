import assert from 'node:assert/strict'
import { Readable } from 'node:stream'
import { test } from 'node:test'
import { Bench, name } from '../../support/bench.ts'

const piece = Buffer.alloc(256 * 1024, 'gatehouse')
const total = 1024 * 1024 * 1024

/**
 * Resident memory at its most while something happens. Bytes; the origin and the peer are in this
 * process too.
 */
async function peak(work: () => Promise<unknown>): Promise<number> {
  let most = 0
  const timer = setInterval(() => {
    most = Math.max(most, process.memoryUsage.rss())
  }, 20)
  await work()
  clearInterval(timer)
  return most
}

test(
  'a gigabyte down and a gigabyte up pass through flat memory',
  { timeout: 240_000 },
  async () => {
    await using bench = await Bench.start()
    bench.origin.handler = (request, response) => {
      if (request.method === 'GET') {
        let left = total
        new Readable({
          read() {
            this.push(left > 0 ? piece : null)
            left -= piece.length
          },
        }).pipe(response)
        return
      }
      let bytes = 0
      request
        .on('data', (data: Buffer) => {
          bytes += data.length
        })
        .on('end', () => response.end(String(bytes)))
    }
    await bench.fetch({ method: 'POST', body: 'warm' })
    const before = process.memoryUsage.rss()
    let down = 0
    const most = await peak(async () => {
      for await (const data of await bench.send({ headers: { 'accept-encoding': 'br' } }))
        down += (data as Buffer).length
      const up = await bench.fetch({
        method: 'POST',
        body: Readable.from(
          (function* () {
            for (let sent = 0; sent < total; sent += piece.length) yield piece
          })(),
        ),
      })
      assert.equal(up.text, String(total))
    })
    assert.equal(down, total)
    assert.ok(
      most - before < 200 * 1024 * 1024,
      `memory grew by ${Math.round((most - before) / 1024 / 1024)} MiB for 2 GiB`,
    )
  },
)

test('a range request and its 206 pass as they are', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = (request, response) => {
    assert.equal(request.headers.range, 'bytes=2-4')
    response
      .writeHead(206, {
        'content-range': 'bytes 2-4/10',
        'content-length': 3,
        'content-type': 'text/plain',
        'cache-control': 'public, max-age=60',
        'accept-ranges': 'bytes',
      })
      .end('cde')
  }
  for (let i = 0; i < 2; i++) {
    const answer = await bench.fetch({ headers: { range: 'bytes=2-4', 'accept-encoding': 'gzip' } })
    assert.deepEqual(
      [
        answer.status,
        answer.text,
        answer.headers['content-range'],
        answer.headers['content-encoding'],
        answer.headers['accept-ranges'],
      ],
      [206, 'cde', 'bytes 2-4/10', undefined, 'bytes'],
    )
  }
  assert.equal(bench.origin.requests.length, 2)
})

test('HEAD has the headers of GET and no body, and the connection goes on', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = (request, response) => {
    response
      .writeHead(200, { 'content-length': 4, 'x-own': '1' })
      .end(request.method === 'HEAD' ? undefined : 'body')
  }
  const answer = await bench.raw(
    `HEAD / HTTP/1.1\r\nHost: ${name}\r\n\r\nGET / HTTP/1.1\r\nHost: ${name}\r\n\r\n`,
    400,
  )
  assert.match(
    answer,
    /^HTTP\/1\.1 200 OK\r\n[^]*content-length: 4\r\n[^]*\r\n\r\nHTTP\/1\.1 200 OK\r\n[^]*\r\n\r\nbody$/i,
  )
})

test('an app that answers before it has the whole body: its answer arrives, and the connection ends with it', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = (_request, response) => {
    response.writeHead(413, { connection: 'close', 'content-length': '4' }).end('over')
  }
  const socket = await bench.connect()
  // The rest of the body meets a closed door.
  socket.on('error', () => {})
  let answer = ''
  socket.setEncoding('latin1').on('data', (text: string) => {
    answer += text
  })
  socket.write(
    `POST /x HTTP/1.1\r\nHost: ${name}\r\nContent-Type: a/b\r\nContent-Length: 50000000\r\n\r\n`,
  )
  socket.write(Buffer.alloc(300_000))
  await new Promise((resolve) => socket.once('close', resolve))
  assert.match(answer, /^HTTP\/1\.1 413 [^]*\r\nconnection: close\r\n[^]*over$/i)
})
