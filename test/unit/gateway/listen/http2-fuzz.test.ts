import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { defaults } from '../../../../src/config/config.ts'
import { Bench, name } from '../../support/bench.ts'
import { RawPeer, ask, block, flag, frame, request } from '../../support/h2.ts'
import { generator } from '../../support/random.ts'

/** As in fuzz.test.ts. */
const seed = Number(process.env.GATEHOUSE_FUZZ_SEED ?? 20_261_121)
const rounds = Number(process.env.GATEHOUSE_FUZZ_ROUNDS ?? 300)

const names = [
  ':path',
  ':method',
  ':authority',
  ':scheme',
  ':protocol',
  'host',
  'content-length',
  'transfer-encoding',
  'connection',
  'te',
  'expect',
  'upgrade',
  'cookie',
  'x',
  'x-forwarded-for',
  'tailscale-user-login',
  'tailscale_user_login',
  'trailer',
  'range',
  'X-Capital',
  '',
  'a b',
]
const values = [
  '/a',
  '/a?b',
  '/%66',
  '//x',
  '/../x',
  '*',
  'GET',
  'POST',
  'HEAD',
  'CONNECT',
  name,
  'evil.example',
  'https',
  '0',
  '5',
  '99',
  'chunked',
  'trailers',
  '100-continue',
  'a\r\nb: c',
  'a\0',
  '\x80\xff',
  '6.6.6.6',
  'root@example.com',
  'bytes=0-1',
  '',
  ' a ',
]

/**
 * What a peer might send after its preface: frames that make sense, some that do not, and bytes
 * changed at random in some.
 */
function frames(
  pick: (n: number) => number,
): Array<[type: number, flags: number, stream: number, payload: Buffer]> {
  const sent: Array<[number, number, number, Buffer]> = []
  for (let i = 0, stream = 1; i < 1 + pick(8); i++) {
    const headers = request({ ':path': `/f${pick(5)}` }, ['GET', 'POST', 'HEAD', 'PUT'][pick(4)])
    for (let j = pick(3); j > 0; j--)
      headers.splice(pick(3) === 0 ? pick(headers.length) : headers.length, pick(6) === 0 ? 1 : 0, [
        names[pick(names.length)]!,
        values[pick(values.length)]!,
      ])
    const bytes = block(headers)
    if (pick(12) === 0 && bytes.length > 0) bytes[pick(bytes.length)] = pick(256)
    const end = pick(2)
    if (pick(8) === 0)
      sent.push(
        [frame.headers, end, stream, bytes.subarray(0, 20)],
        [frame.continuation, flag.endHeaders, stream, bytes.subarray(20)],
      )
    else sent.push([frame.headers, flag.endHeaders | end, stream, bytes])
    for (let j = pick(3); j > 0; j--) {
      const any = pick(10) === 0 ? pick(20) : stream
      const kind = pick(8)
      if (kind < 3) sent.push([frame.data, pick(2), any, Buffer.alloc(pick(30), 'd')])
      else if (kind === 3) sent.push([frame.reset, 0, any, Buffer.from([0, 0, 0, pick(14)])])
      else if (kind === 4)
        sent.push([frame.window, 0, pick(2) * any, Buffer.from([0, 0, pick(256), pick(256)])])
      else if (kind === 5)
        sent.push([
          frame.headers,
          flag.endHeaders | flag.endStream,
          any,
          block([[names[pick(names.length)]!, values[pick(values.length)]!]]),
        ])
      else if (kind === 6)
        sent.push([frame.settings, 0, 0, Buffer.from([0, 1 + pick(6), 0, 0, pick(256), pick(256)])])
      else sent.push([pick(12), pick(256), pick(4), Buffer.alloc(pick(40), pick(256))])
    }
    stream += 2
  }
  return sent
}

test(
  `${rounds} mutated HTTP/2 connections: it lives, leaks nothing, and the app sees no request but those that were logged (seed ${seed})`,
  { timeout: 240_000 },
  async () => {
    await using bench = await Bench.start()
    bench.gateway.configure({
      ...defaults(),
      limits: { ...defaults().limits, newConnections: 0, newConnectionsPerPeer: 0 },
    })
    bench.origin.handler = (asked, response) => {
      asked
        .resume()
        .on('end', () => response.end('taken'))
        .on('error', () => {})
    }
    const pick = generator(seed)
    for (let done = 0; done < rounds; done += 20) {
      const peers = await Promise.all(
        Array.from(
          { length: Math.min(20, rounds - done) },
          async () => await RawPeer.connect(bench),
        ),
      )
      for (const peer of peers)
        for (const [type, flags, stream, payload] of frames(pick))
          peer.send(type, flags, stream, payload)
      await sleep(100)
      for (const peer of peers) peer.socket.destroy()
    }
    const session = await bench.session()
    assert.equal((await ask(session)).status, 200)
    session.destroy()
    await bench.until(() => bench.gateway.connections === 0)

    const logged = new Map<string, number>()
    for (const line of bench.lines)
      if (line.msg === 'request')
        logged.set(
          `${String(line.method)} ${String(line.path)}`,
          (logged.get(`${String(line.method)} ${String(line.path)}`) ?? 0) + 1,
        )
    const seen = new Map<string, number>()
    for (const { method, url, rawHeaders } of bench.origin.requests) {
      const of = (header: string): string[] =>
        rawHeaders.filter(
          (_, i) => i % 2 === 1 && rawHeaders[i - 1]!.toLowerCase().replaceAll('_', '-') === header,
        )
      assert.deepEqual(
        [of('x-forwarded-for'), of('tailscale-user-login'), of('host')],
        [['100.64.0.7'], ['alice@example.com'], [name]],
        JSON.stringify(rawHeaders),
      )
      assert.ok(
        of('transfer-encoding').length + of('content-length').length <= 1,
        JSON.stringify(rawHeaders),
      )
      const key = `${method!} ${url!.split('?', 1)[0]!}`
      seen.set(key, (seen.get(key) ?? 0) + 1)
    }
    for (const [key, count] of seen)
      assert.ok(
        count <= (logged.get(key) ?? 0),
        `${key}: ${count} at the app, ${logged.get(key) ?? 0} in the log`,
      )
    assert.ok(
      bench.origin.requests.length > rounds / 10,
      `the frames are worth something: ${bench.origin.requests.length} requests reached the app`,
    )
    assert.deepEqual(
      bench.lines.filter((line) => line.level >= 50),
      [],
      "no error of the gateway's own",
    )
  },
)
