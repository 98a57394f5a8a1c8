import assert from 'node:assert/strict'
import { test } from 'node:test'
import { defaults } from '../../../../src/config/config.ts'
import { Bench, name } from '../../support/bench.ts'
import { generator } from '../../support/random.ts'

/** GATEHOUSE_FUZZ_SEED and GATEHOUSE_FUZZ_ROUNDS repeat a run or make it longer. */
const seed = Number(process.env.GATEHOUSE_FUZZ_SEED ?? 20_261_121)
const rounds = Number(process.env.GATEHOUSE_FUZZ_ROUNDS ?? 400)

const corpus = [
  `GET /a?b HTTP/1.1\r\nHost: ${name}\r\nConnection: keep-alive\r\nTE: trailers\r\n\r\n`,
  `POST /a HTTP/1.1\r\nHost: ${name}\r\nContent-Length: 5\r\n\r\nhello`,
  `POST /a HTTP/1.1\r\nHost: ${name}\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nX-T: 1\r\n\r\n`,
  `GET /comms HTTP/1.1\r\nHost: ${name}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n` +
    'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n',
  `PUT https://${name}/%66 HTTP/1.1\r\nHost: ${name}\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}`,
]
const pieces = [
  '\r\n',
  '\n',
  '\r',
  '\0',
  ' ',
  '\t',
  ':',
  ',',
  ';',
  '%',
  '%2e%2e/',
  '/../',
  '//',
  '\\',
  '#',
  '\x0b',
  '\x80',
  '\xff',
  '0\r\n\r\n',
  'Content-Length: 0\r\n',
  'Content-Length: 99\r\n',
  'Transfer-Encoding: chunked\r\n',
  'Transfer-Encoding:\x0bchunked\r\n',
  'Connection: content-length\r\n',
  'Host: evil.example\r\n',
  ' folded\r\n',
  'HTTP/1.0',
  'HTTP/2.0',
  'Upgrade: h2c\r\n',
  'X-Forwarded-For: 6.6.6.6\r\n',
  'Tailscale-User-Login: root@example.com\r\n',
  'Tailscale_User_Login: root@example.com\r\n',
  'Forwarded: for=6.6.6.6\r\n',
  `GET /x HTTP/1.1\r\nHost: ${name}\r\n\r\n`,
  'ffffffffffffffff\r\n',
  '-1',
  'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
]

function mutate(pick: (n: number) => number): Buffer {
  let bytes = Buffer.from(
    Array.from({ length: 1 + pick(3) }, () => corpus[pick(corpus.length)]!).join(''),
    'latin1',
  )
  for (let i = pick(6); i >= 0; i--) {
    const at = pick(bytes.length + 1)
    const before = bytes.subarray(0, at)
    switch (pick(5)) {
      case 0:
        bytes = Buffer.concat([
          before,
          Buffer.from(pieces[pick(pieces.length)]!, 'latin1'),
          bytes.subarray(at),
        ])
        break
      case 1:
        bytes = Buffer.concat([
          before,
          Buffer.from(pieces[pick(pieces.length)]!, 'latin1'),
          bytes.subarray(at + pick(12)),
        ])
        break
      case 2:
        bytes = Buffer.concat([before, bytes.subarray(at + pick(20))])
        break
      case 3:
        bytes = Buffer.concat([before, bytes.subarray(at, at + pick(60)), bytes.subarray(at)])
        break
      default:
        if (at < bytes.length) {
          bytes = Buffer.from(bytes)
          bytes[at] = pick(256)
        }
    }
  }
  return bytes
}

test(
  `${rounds} mutated byte streams at the listener: it lives, leaks nothing, and the origin sees no request but those that were logged (seed ${seed})`,
  { timeout: 240_000 },
  async () => {
    await using bench = await Bench.start()
    bench.gateway.configure({
      ...defaults(),
      limits: { ...defaults().limits, newConnections: 0, newConnectionsPerPeer: 0 },
    })
    const pick = generator(seed)
    for (let done = 0; done < rounds; done += 20) {
      const batch = Array.from({ length: Math.min(20, rounds - done) }, () => mutate(pick))
      // What is not a request ends the connection, what is one is answered; a request that is not
      // complete stays quiet.
      const answers = await Promise.all(batch.map(async (bytes) => await bench.raw(bytes, 60)))
      for (const [i, answer] of answers.entries()) {
        assert.match(
          answer,
          /^(?:HTTP\/1\.1 |$)/,
          `${JSON.stringify(batch[i]!.toString('latin1'))} got ${JSON.stringify(answer.slice(0, 200))}`,
        )
        assert.doesNotMatch(
          answer,
          /HTTP\/1\.1 500 | at .*\.ts:\d+|node:internal|fastify/i,
          JSON.stringify(batch[i]!.toString('latin1')),
        )
      }
    }
    assert.equal((await bench.fetch()).status, 200)

    // Everything at the origin went through the gateway's hands…
    for (const request of bench.origin.requests) {
      const of = (header: string): string[] =>
        request.rawHeaders.filter(
          (_, i) =>
            i % 2 === 1 && request.rawHeaders[i - 1]!.toLowerCase().replaceAll('_', '-') === header,
        )
      assert.deepEqual(
        [
          of('x-forwarded-for'),
          of('tailscale-user-login'),
          of('host').map((host) => host.toLowerCase().replace(/:\d+$|\.$/g, '')),
        ],
        [['100.64.0.7'], ['alice@example.com'], [name]],
        JSON.stringify(request.rawHeaders),
      )
      assert.equal(of('forwarded').length, 1)
      assert.deepEqual(
        of('transfer-encoding').length + of('content-length').length <= 1,
        true,
        JSON.stringify(request.rawHeaders),
      )
    }
    // … and nothing came of it that the gateway did not take for a request: each at the origin has
    // its line in the log.
    const key = (method: unknown, path: unknown): string => `${String(method)} ${String(path)}`
    const logged = new Map<string, number>()
    await bench.until(() => bench.gateway.connections === 0)
    for (const line of bench.lines)
      if (line.msg === 'request')
        logged.set(key(line.method, line.path), (logged.get(key(line.method, line.path)) ?? 0) + 1)
    const seen = new Map<string, number>()
    for (const request of bench.origin.requests) {
      const path = key(request.method, (request.url ?? '').split('?', 1)[0]!.slice(0, 200))
      seen.set(path, (seen.get(path) ?? 0) + 1)
    }
    for (const [path, count] of seen)
      assert.ok(
        count <= (logged.get(path) ?? 0),
        `${path}: ${count} at the origin, ${logged.get(path) ?? 0} in the log`,
      )
    assert.ok(
      bench.origin.requests.length > rounds / 10,
      `the corpus is worth something: ${bench.origin.requests.length} requests reached the origin`,
    )
    assert.deepEqual(
      bench.lines.filter((line) => line.level >= 50),
      [],
      "no error of the gateway's own",
    )
  },
)
