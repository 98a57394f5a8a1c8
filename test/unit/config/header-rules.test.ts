import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { IncomingMessage, RequestListener } from 'node:http'
import type { AddressInfo } from 'node:net'
import { test } from 'node:test'
import { WebSocket, WebSocketServer } from 'ws'
import { parseConfig, serialize } from '../../../src/config/config.ts'
import { Bench, name } from '../support/bench.ts'

/** An app that says what headers it got. */
async function origin(
  handler: RequestListener = (request, response) => {
    response.end(JSON.stringify(request.headers))
  },
) {
  const server = createServer(handler)
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  server.unref()
  return { server, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` }
}

const toml = (url: string, rules: string) =>
  `[[app]]\npath = "/a/"\nupstreams = ["${url}"]\n${rules}`

test("headers to the app: removed, set, added; the gateway's own as ever", async () => {
  await using bench = await Bench.start()
  const { url } = await origin()
  bench.gateway.configure(
    parseConfig(
      toml(
        url,
        'request_remove = ["Accept-Language", "x-gone"]\n' +
          'request_set = ["X-Set: ours", "User-Agent: gatehouse"]\n' +
          'request_add = ["X-Added: two", "X-New: one: two"]',
      ),
      'f',
    ),
  )
  const answer = await bench.fetch({
    path: '/a/',
    headers: {
      'accept-language': 'de',
      'X-Gone': '1',
      'x-set': 'theirs',
      'user-agent': 'x',
      'x-added': 'one',
      'x-kept': 'k',
      'x-forwarded-for': '6.6.6.6',
    },
  })
  const seen = JSON.parse(answer.text) as Record<string, string>
  assert.deepEqual(
    [
      'accept-language',
      'x-gone',
      'x-set',
      'user-agent',
      'x-added',
      'x-new',
      'x-kept',
      'x-forwarded-for',
      'host',
    ].map((header) => seen[header]),
    [undefined, undefined, 'ours', 'gatehouse', 'one, two', 'one: two', 'k', '100.64.0.7', name],
  )
  await bench.fetch({ path: '/flows', headers: { 'accept-language': 'de' } })
  assert.equal(
    bench.origin.requests.at(-1)!.headers['accept-language'],
    'de',
    'Node-RED and other apps are not meant',
  )
})

test('headers of its answers: removed, set, added, cookies each on its own; what is stored is what the rules made of it', async () => {
  await using bench = await Bench.start()
  let asked = 0
  const { url } = await origin((_request, response) => {
    asked++
    response
      .writeHead(200, {
        'x-debug': 'secret',
        'x-frame-options': 'SAMEORIGIN',
        'cache-control': 'public, max-age=60',
        'set-cookie': ['a=1', 'b=2'],
        vary: 'Accept',
      })
      .end('text')
  })
  const rules =
    'response_remove = ["X-Debug"]\nresponse_set = ["X-Frame-Options: DENY"]\n' +
    'response_add = ["Set-Cookie: c=3", "Vary: Cookie"]\n'
  bench.gateway.configure(parseConfig(toml(url, rules), 'f'))
  const { headers } = await bench.fetch({ path: '/a/' })
  assert.deepEqual(
    [
      headers['x-debug'],
      headers['x-frame-options'],
      headers['set-cookie'],
      headers.vary?.startsWith('Accept, Cookie'),
      headers['strict-transport-security'],
    ],
    [undefined, 'DENY', ['a=1', 'b=2', 'c=3'], true, 'max-age=31536000'],
  )
  bench.gateway.configure(
    parseConfig(
      toml(url, `${rules}\n`).replace('"X-Frame-Options: DENY"', '"Cache-Control: no-store"'),
      'f',
    ),
  )
  const before = asked
  for (let i = 0; i < 2; i++)
    assert.equal(
      (await bench.fetch({ path: '/a/' })).headers['x-frame-options'],
      'SAMEORIGIN',
      'nothing of the rules before',
    )
  assert.equal(asked, before + 2)
})

test('what peers are not to get, they get neither before an answer nor behind it', async () => {
  await using bench = await Bench.start()
  const { url } = await origin((_request, response) => {
    response.writeEarlyHints({ link: '</a.css>; rel=preload', 'x-debug': 'early' })
    response.writeHead(200, { trailer: 'x-debug, x-sum' })
    response.write('text')
    response.addTrailers({ 'x-debug': 'late', 'x-sum': '1' })
    response.end()
  })
  bench.gateway.configure(parseConfig(toml(url, 'response_remove = ["X-Debug"]'), 'f'))
  const got = await bench.raw(
    `GET /a/ HTTP/1.1\r\nHost: ${name}\r\nTE: trailers\r\nConnection: close\r\n\r\n`,
  )
  assert.match(got, /HTTP\/1\.1 103 [^]*link: <\/a\.css>[^]*HTTP\/1\.1 200 [^]*x-sum: 1/i)
  assert.doesNotMatch(got, /early|late/)
})

test("a WebSocket's handshake and its answer go by the rules too", async () => {
  await using bench = await Bench.start()
  const { server, url } = await origin()
  let seen: IncomingMessage | undefined
  new WebSocketServer({ server })
    .on('headers', (lines) => {
      lines.push('X-Debug: secret', 'X-Set: theirs')
    })
    .on('connection', (_ws, request) => {
      seen = request
    })
  bench.gateway.configure(
    parseConfig(
      toml(
        url,
        'request_set = ["X-Set: ours"]\nresponse_remove = ["X-Debug"]\n' +
          'response_set = ["X-Set: ours"]\nresponse_add = ["X-New: n"]',
      ),
      'f',
    ),
  )
  const socket = await bench.connect()
  const ws = new WebSocket(`wss://${name}/a/ws`, { createConnection: () => socket })
  const [upgrade] = (await once(ws, 'upgrade')) as [IncomingMessage]
  assert.deepEqual(
    [upgrade.headers['x-debug'], upgrade.headers['x-set'], upgrade.headers['x-new']],
    [undefined, 'ours', 'n'],
  )
  if (ws.readyState !== ws.OPEN) await once(ws, 'open')
  await bench.until(() => seen !== undefined)
  assert.equal(seen!.headers['x-set'], 'ours')
  ws.terminate()
})

test("what is the gateway's own, of the connection, secret or no header at all is refused with file and line", () => {
  for (const [rule, says] of [
    ...[
      'Host',
      'X-Forwarded-For',
      'x_forwarded_proto',
      'X-Forwarded-Anything',
      'Forwarded',
      'X-Real-IP',
      'Tailscale-User-Login',
      'tailscale_user_name',
      'Tailscale-Anything',
      'X-Gatehouse-User',
    ].flatMap((header): Array<[string, RegExp]> => [
      [`request_set = ["${header}: x"]`, /gateway's own word to the app/],
      [`request_add = ["${header}: x"]`, /own word/],
      [`request_remove = ["${header}"]`, /own word/],
    ]),
    ...[
      'Connection',
      'Keep-Alive',
      'TE',
      'Trailer',
      'Transfer-Encoding',
      'Upgrade',
      'Content-Length',
      'content_length',
      'Proxy-Authorization',
      'Expect',
      'Sec-WebSocket-Key',
    ].flatMap((header): Array<[string, RegExp]> => [
      [`request_set = ["${header}: x"]`, /of the connection/],
      [`response_set = ["${header}: x"]`, /of the connection/],
      [`response_remove = ["${header}"]`, /of the connection/],
    ]),
    ['response_set = ["Strict-Transport-Security: max-age=0"]', /own word to the peer/],
    ['request_set = ["Authorization: Bearer x"]', /is a secret.*Node-RED/],
    ['request_add = ["Cookie: a=b"]', /is a secret/],
    ['request_set = ["X-Example"]', /is not a header. Write "X-Example: value"/],
    ['request_remove = ["X-Example: value"]', /is not the name of a header/],
    ['request_set = ["X Example: value"]', /is not a header/],
    ['request_set = [": value"]', /is not a header/],
    ['request_set = ["X-Example:"]', /is empty/],
    ['response_set = ["X-Example: a\\r\\nX-Forged: b"]', /characters no header may have/],
    ['response_set = ["X-Example: ü"]', /characters no header may have/],
  ] as Array<[string, RegExp]>) {
    assert.throws(
      () => parseConfig(toml('http://a', rule), 'f'),
      (err: Error & { line?: string }) =>
        (/^f line 4: an entry of (?:request|response)_/.test(err.message) &&
          says.test(err.line ?? '')) ||
        assert.fail(`${rule}: ${err.message}`),
      rule,
    )
  }
  const config = parseConfig(
    toml('http://a', 'request_remove = ["Authorization"]\nresponse_set = ["X-A: b"]'),
    'f',
  )
  assert.deepEqual(parseConfig(serialize(config), 'f'), config)
})
