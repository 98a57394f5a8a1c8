import assert from 'node:assert/strict'
import { existsSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { call } from '../../../../src/base/control-client.ts'
import { systemdSockets } from '../../../../src/base/sockets.ts'
import { Bench, name } from '../../support/bench.ts'
import { LoopbackTailnet } from '../../support/tailnet.ts'

const value = 'LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0'

test("a challenge of one of the node's own names is published", async () => {
  await using bench = await Bench.start()
  assert.deepEqual((await call(bench.certs, 'GET', '/v1/names')).body, { names: [name] })
  const answer = await call(bench.certs, 'PUT', '/v1/challenge', {
    name: `_acme-challenge.${name}`,
    value,
  })
  assert.equal(answer.status, 204)
  assert.deepEqual(bench.tailnet.dns, [[`_acme-challenge.${name}`, value]])
})

test('nothing else is', async () => {
  await using bench = await Bench.start()
  const put = async (body: unknown): Promise<number> =>
    (await call(bench.certs, 'PUT', '/v1/challenge', body)).status
  for (const other of [
    name,
    `_acme-challenge.other.tail.ts.net`,
    `_acme-challenge.sub.${name}`,
    `_acme-challenge.${name}.`,
    `x._acme-challenge.${name}`,
    `_ACME-challenge.${name}`,
    '',
    '_acme-challenge.',
  ]) {
    assert.equal(await put({ name: other, value }), 403, other)
  }
  const own = `_acme-challenge.${name}`
  for (const bad of [
    `${value}a`,
    value.slice(1),
    `${value.slice(1)}=`,
    `${value.slice(1)}+`,
    '',
    1,
    null,
    [value],
    `${value}\n`,
  ]) {
    assert.equal(await put({ name: own, value: bad }), 400, String(bad))
  }
  for (const body of [
    { name: own },
    { value },
    { name: own, value, type: 'A' },
    [own, value],
    null,
    'x',
    { name: [own], value },
  ])
    assert.equal(await put(body), 400, JSON.stringify(body))
  assert.equal(await put({ name: own, value, pad: 'x'.repeat(2000) }), 413)
  for (const [method, path, status] of [
    ['GET', '/', 404],
    ['GET', '/v1/status', 404],
    ['GET', '/v1/challenge', 405],
    ['POST', '/v1/challenge', 405],
    ['DELETE', '/v1/names', 405],
    ['GET', '/v1/names?x', 404],
    ['GET', '/constructor', 404],
  ] as const) {
    assert.equal((await call(bench.certs, method, path)).status, status, `${method} ${path}`)
  }
  assert.deepEqual(bench.tailnet.dns, [])
})

test('before the node has joined there are no names and no challenges', async () => {
  await using bench = await Bench.start({
    certificate: false,
    before: (made) => {
      made.tailnet.online = new Promise(() => {})
    },
  })
  assert.deepEqual((await call(bench.certs, 'GET', '/v1/names')).body, { names: [] })
  assert.equal(
    (await call(bench.certs, 'PUT', '/v1/challenge', { name: `_acme-challenge.${name}`, value }))
      .status,
    403,
  )
})

test('the names are written for the certificate unit when the node has joined', async () => {
  await using bench = await Bench.start()
  const path = join(bench.runtime, 'names')
  const written = (): string => (existsSync(path) ? readFileSync(path, 'utf8') : '')
  await bench.until(() => written() === `${name}\n`)
  assert.equal(statSync(path).mode & 0o777, 0o644)
  bench.tailnet.become({ ...LoopbackTailnet.running(), certDomains: [name, 'app.tail.ts.net'] })
  await bench.until(() => written() === `${name}\napp.tail.ts.net\n`)
})

test('the sockets are for their owner alone, and the admin socket cannot publish', async () => {
  await using bench = await Bench.start()
  for (const path of [bench.admin, bench.certs]) assert.equal(statSync(path).mode & 0o777, 0o600)
  assert.equal((await call(bench.admin, 'PUT', '/v1/challenge', {})).status, 404)
  assert.equal((await call(bench.admin, 'GET', '/v1/status')).status, 200)
})

test('sockets of systemd are taken by name, only when they are for this process', () => {
  const env: NodeJS.ProcessEnv = {
    LISTEN_FDS: '2',
    LISTEN_FDNAMES: 'admin:certs',
    LISTEN_PID: '42',
  }
  assert.deepEqual(systemdSockets({ ...env }, 7), new Map())
  assert.deepEqual(
    systemdSockets(env, 42),
    new Map([
      ['admin', 3],
      ['certs', 4],
    ]),
  )
  assert.deepEqual(env, {}, 'children do not see them')
})
