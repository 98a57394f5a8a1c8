import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Bench, name } from '../../support/bench.ts'

test('the short name and the addresses are sent to the full name, method and query kept (ts#11330, caddy-tailscale#77)', async () => {
  await using bench = await Bench.start()
  for (const host of [
    'gatehouse',
    'GATEHOUSE',
    'gatehouse:443',
    '100.64.0.1',
    '[fd7a:115c:a1e0::1]',
    '[fd7a:115c:a1e0::1]:443',
  ]) {
    const answer = await bench.fetch({
      method: 'POST',
      path: '/a%20b?x=%2F',
      body: 'x',
      headers: { host },
    })
    assert.deepEqual(
      [answer.status, answer.headers.location],
      [308, `https://${name}/a%20b?x=%2F`],
      host,
    )
  }
  assert.equal(bench.origin.requests.length, 0)
})

test("any other name is 421: a name of somebody else's that points here (DNS rebinding)", async () => {
  await using bench = await Bench.start()
  for (const host of [
    'evil.example',
    `${name}.evil.example`,
    '127.0.0.1',
    'localhost',
    `x.${name}`,
  ]) {
    const answer = await bench.fetch({ headers: { host, accept: 'application/json' } })
    assert.deepEqual(
      [
        answer.status,
        (JSON.parse(answer.text) as { error: { code: string } }).error.code,
        answer.headers.connection,
      ],
      [421, 'GH_HOST', 'close'],
      host,
    )
  }
  assert.equal(bench.origin.requests.length, 0)
})

test('the full name is known in capitals, with its port and with its dot', async () => {
  await using bench = await Bench.start()
  for (const host of [name, name.toUpperCase(), `${name}:443`, `${name}.`])
    assert.equal((await bench.fetch({ headers: { host } })).status, 200, host)
})

test('an absolute-form target of the same host is a path to the origin (RFC 9112 §3.2.2)', async () => {
  await using bench = await Bench.start()
  for (const [target, path] of [
    [`https://${name}/a?b`, '/a?b'],
    [`HTTP://${name.toUpperCase()}:443/a`, '/a'],
    [`https://${name}`, '/'],
    [`https://${name}?q`, '/?q'],
  ]) {
    assert.match(
      await bench.raw(`GET ${target} HTTP/1.1\r\nHost: ${name}\r\nConnection: close\r\n\r\n`),
      /^HTTP\/1\.1 200 /,
    )
    assert.equal(bench.origin.requests.at(-1)!.url, path)
  }
})
