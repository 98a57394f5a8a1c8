import assert from 'node:assert/strict'
import { test } from 'node:test'
import { qEncode, requestHeaders } from '../../../../src/gateway/apps/headers.ts'
import { Bench, name } from '../../support/bench.ts'
import { tagged } from '../../support/tailnet.ts'

const forged = {
  'Tailscale-User-Login': 'root@example.com',
  'tailscale-user-name': 'Root',
  'TAILSCALE-USER-PROFILE-PIC': 'x',
  'Tailscale-App-Capabilities': '{"a":[1]}',
  'Tailscale-Funnel-Request': '?1',
  'Tailscale-Headers-Info': 'x',
  Tailscale_User_Login: 'underscore@example.com',
  'X-Forwarded-For': '10.0.0.1',
  'X-Forwarded-Host': 'evil.example',
  'X-Forwarded-Proto': 'http',
  'X-Forwarded-Port': '80',
  'X-Real-IP': '10.0.0.1',
  Forwarded: 'for=10.0.0.1',
}

async function seen(
  bench: Bench,
  headers: Record<string, string>,
): Promise<Record<string, string>> {
  const answer = await bench.fetch({ headers })
  return (JSON.parse(answer.text) as { headers: Record<string, string> }).headers
}

const identity = (headers: Record<string, string>): Record<string, string> =>
  Object.fromEntries(
    Object.entries(headers).filter(([key]) =>
      /^(?:tailscale|x-forwarded|forwarded|x-real)/i.test(key),
    ),
  )

test('a person is named by the tailnet, whatever the request claims (caddy GHSA-7r4p-vjf4-gxv4, tsdproxy GHSA-j8rq-87gr-gm9q)', async () => {
  await using bench = await Bench.start()
  assert.deepEqual(identity(await seen(bench, forged)), {
    'tailscale-user-login': 'alice@example.com',
    'tailscale-user-name': '=?utf-8?q?Alic=C3=A9_L=C3=B6we?=',
    'tailscale-user-profile-pic': 'https://example.com/a.png',
    'tailscale-headers-info': 'https://tailscale.com/s/serve-headers',
    'x-forwarded-for': '100.64.0.7',
    'x-forwarded-host': name,
    'x-forwarded-proto': 'https',
    forwarded: `for=100.64.0.7;host="${name}";proto=https`,
  })
  assert.match(bench.tailnet.whoIsCalls[0]!, /^100\.64\.0\.7:\d+$/)
})

test('a tagged node has no identity, not even a forged one; a peer the tailnet does not know gets nowhere', async () => {
  const none = {
    'x-forwarded-for': '100.64.0.7',
    'x-forwarded-host': name,
    'x-forwarded-proto': 'https',
    forwarded: `for=100.64.0.7;host="${name}";proto=https`,
  }
  await using bench = await Bench.start()
  bench.tailnet.peer = tagged
  assert.deepEqual(identity(await seen(bench, forged)), none)
  bench.tailnet.peer = new Error('no such peer')
  const before = bench.origin.requests.length
  assert.equal((await bench.fetch({ headers: forged })).status, 403)
  assert.equal(bench.origin.requests.length, before)
})

test('Connection cannot be used to remove what the gateway says', async () => {
  await using bench = await Bench.start()
  const headers = await seen(bench, {
    connection: 'close, x-forwarded-for, tailscale-user-login, x-drop',
    'x-drop': '1',
    'x-keep': '1',
  })
  assert.equal(headers['x-forwarded-for'], '100.64.0.7')
  assert.equal(headers['tailscale-user-login'], 'alice@example.com')
  assert.deepEqual([headers['x-drop'], headers['x-keep']], [undefined, '1'])
})

test('hop-by-hop headers stay on their side', () => {
  const out = requestHeaders(
    {
      host: 'h',
      connection: 'keep-alive',
      'keep-alive': 'timeout=5',
      te: 'trailers',
      'transfer-encoding': 'chunked',
      'proxy-authorization': 'x',
      cookie: 'a=b',
    },
    { address: '1.2.3.4', host: 'h', whoIs: undefined },
  )
  assert.deepEqual(out, {
    host: 'h',
    cookie: 'a=b',
    'x-forwarded-for': '1.2.3.4',
    'x-forwarded-host': 'h',
    'x-forwarded-proto': 'https',
    forwarded: 'for=1.2.3.4;host="h";proto=https',
  })
})

test('an IPv6 peer stands in brackets and quotes in Forwarded (RFC 7239 §6)', () => {
  const out = requestHeaders({}, { address: 'fd7a:115c:a1e0::7', host: 'h', whoIs: undefined })
  assert.equal(out.forwarded, 'for="[fd7a:115c:a1e0::7]";host="h";proto=https')
  assert.equal(out['x-forwarded-for'], 'fd7a:115c:a1e0::7')
})

test('names are Q-encoded as Go does it', () => {
  // Expected values from mime.QEncoding.Encode("utf-8", …).
  assert.equal(qEncode('Plain Name'), 'Plain Name')
  assert.equal(qEncode('Zoë=?_'), '=?utf-8?q?Zo=C3=AB=3D=3F=5F?=')
  assert.equal(qEncode('a\r\nX-Evil: 1'), '=?utf-8?q?a=0D=0AX-Evil:_1?=')
  const long = qEncode('ä'.repeat(20))
  assert.deepEqual(long.split(' '), [
    `=?utf-8?q?${'=C3=A4'.repeat(10)}?=`,
    `=?utf-8?q?${'=C3=A4'.repeat(10)}?=`,
  ])
  assert.ok(long.split(' ').every((word) => word.length <= 75))
})
