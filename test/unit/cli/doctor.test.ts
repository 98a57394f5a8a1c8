import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { test } from 'node:test'
import { report } from '../../../src/cli/findings.ts'
import type { Check } from '../../../src/gateway/operate/doctor.ts'
import { Bench, name } from '../support/bench.ts'
import { alice, LoopbackTailnet } from '../support/tailnet.ts'

const adminAuth = createRequire(import.meta.url)(
  '../../../overlays/usr/lib/gatehouse/node-red-auth.cjs',
) as (key: Buffer) => { tokenHeader: string; tokens: (token: string) => Promise<unknown> }

async function doctor(bench: Bench, ...args: string[]): Promise<{ code: number; stdout: string }> {
  const child = spawn(
    process.execPath,
    [join(import.meta.dirname, '../../../src/main.ts'), 'doctor', ...args],
    {
      env: {
        ...process.env,
        GATEHOUSE_ADMIN_SOCKET: bench.admin,
        GATEHOUSE_PROBLEM_FILE: join(bench.directory, 'problem'),
        GATEHOUSE_TLS_DIR: bench.tls,
      },
    },
  )
  const [stdout, [code]] = await Promise.all([
    text(child.stdout),
    once(child, 'close') as Promise<[number]>,
  ])
  return { code, stdout }
}

async function checks(bench: Bench): Promise<Map<string, Check>> {
  const { stdout } = await doctor(bench, '--json')
  return new Map((JSON.parse(stdout) as Check[]).map((check) => [check.name, check]))
}

/**
 * A gateway with a control server that answers, and an origin that knows who is logged in as
 * Node-RED does.
 */
async function healthy(): Promise<Bench & { control: string }> {
  const control = createServer((_request, response) => {
    response.end('{}')
  })
    .listen(0, '127.0.0.1')
    .unref()
  await once(control, 'listening')
  const url = `http://127.0.0.1:${(control.address() as AddressInfo).port}`
  const bench = await Bench.start({ node: { controlURL: url } })
  const auth = adminAuth(bench.channelKey)
  bench.origin.handler = (request, response) => {
    void auth.tokens(String(request.headers[auth.tokenHeader])).then((user) => {
      response
        .writeHead(request.url === '/settings' && user === null ? 401 : 200)
        .end(JSON.stringify({ user }))
    })
  }
  return Object.assign(bench, { control: url })
}

test('every link is looked at, and well', async () => {
  await using bench = await healthy()
  const found = await checks(bench)
  for (const name of [
    'configuration',
    'control server',
    'tailnet',
    'node key',
    'path',
    'certificate',
    'Node-RED',
    'login',
    'access',
    'disk',
  ])
    assert.equal(found.get(name)?.result, 'ok', `${name}: ${found.get(name)?.found}`)
  assert.match(
    found.get('certificate')!.found,
    /^gatehouse\.tail\.ts\.net, valid for 89 more days, by Throw-away authority$/,
  )
  assert.match(found.get('access')!.found, /of 1 devices 1 may edit/)
  // This machine's own, whatever they are: looked at, not left out.
  for (const name of ['clock', 'firewall', 'services'])
    assert.ok(['ok', 'warn', 'fail', 'skip'].includes(found.get(name)!.result))
})

test('what is broken is named with cause and cure: Node-RED down, key near its end, nobody who may edit, a file that is wrong', async () => {
  await using bench = await healthy()
  await bench.origin.stop()
  bench.tailnet.peer = { ...alice, capMap: {} }
  const running = LoopbackTailnet.running()
  bench.tailnet.become({
    ...running,
    self: { ...running.self!, keyExpiry: new Date(Date.now() + 5 * 86_400_000).toISOString() },
  })
  writeFileSync(join(bench.directory, 'problem'), 'gatehouse.toml line 3: unknown key x.\n')
  const found = await checks(bench)
  assert.deepEqual([found.get('Node-RED')!.result, found.get('login')!.result], ['fail', 'skip'])
  assert.match(found.get('Node-RED')!.cure!, /page Node-RED of the web console/)
  assert.deepEqual(
    [found.get('node key')!.result, /in [45] days/.test(found.get('node key')!.found)],
    ['warn', true],
  )
  assert.equal(found.get('access')!.result, 'warn')
  assert.match(
    found.get('access')!.cure!,
    /"src": \["alice@example\.com"\],\n {4}"dst": \["tag:gatehouse"\]/,
  )
  assert.match(found.get('configuration')!.found, /unknown key x/)
  const { code, stdout } = await doctor(bench)
  assert.equal(code, 1)
  assert.match(stdout, /^FAIL configuration +gatehouse\.toml line 3/m)
  assert.match(stdout, /^FAIL Node-RED .*\n +→ Look at/m)
})

test('two keys that differ are told from a Node-RED that is down', async () => {
  await using bench = await healthy()
  const other = adminAuth(Buffer.alloc(32, 1))
  bench.origin.handler = (request, response) => {
    void other
      .tokens(String(request.headers[other.tokenHeader]))
      .then((user) =>
        response.writeHead(request.url === '/settings' && user === null ? 401 : 200).end('{}'),
      )
  }
  const { result, found, cure } = (await checks(bench)).get('login')!
  assert.deepEqual(
    [result, found],
    ['fail', 'Node-RED does not believe the gateway: their keys differ'],
  )
  assert.match(cure!, /^Restart the device/)
})

test('without a gateway the rest is looked at all the same', async () => {
  await using bench = await Bench.start()
  await bench.gateway.close(100)
  const { code, stdout } = await doctor(bench)
  assert.equal(code, 2)
  assert.match(stdout, /^FAIL gateway +it cannot be asked: nothing listens/m)
  assert.match(stdout, /^(?:ok {2}|WARN|FAIL) disk/m)
})

test('the report counts what needs attention, and lines up a cure of several lines', () => {
  assert.equal(
    report([
      { name: 'clock', result: 'ok', found: 'set' },
      { name: 'access', result: 'warn', found: 'nobody', cure: 'Add:\nx\n  y' },
    ]),
    'ok   clock   set\nWARN access  nobody\n             → Add:\n               x\n' +
      '                 y\n\n1 of 2 need attention.\n',
  )
})

test('the status page is for those with the right, and says what gatehouse status says', async () => {
  await using bench = await Bench.start()
  const port = 10_000
  const page = await bench.fetch({ port, path: '/status', headers: { accept: 'text/html' } })
  assert.equal(page.status, 200)
  assert.match(page.text, /<h1>All is well<\/h1>[^]*Node-RED +up/)
  assert.equal(page.headers['cache-control'], 'no-store')
  const json = await bench.fetch({
    port,
    path: '/status',
    headers: { accept: 'application/json' },
  })
  assert.equal((JSON.parse(json.text) as { ok: boolean }).ok, true)
  assert.equal((await bench.fetch({ port, path: '/other' })).status, 404)
  assert.equal((await bench.fetch({ port, path: '/status', method: 'POST' })).status, 405)
  const moved = async (path: string, at?: number): Promise<[number, string | undefined]> => {
    const { status, headers } = await bench.fetch({
      path,
      ...(at === undefined ? {} : { port: at }),
    })
    return [status, headers.location]
  }
  assert.deepEqual(await moved('/', port), [307, '/status'])
  assert.deepEqual(await moved('/.gatehouse/status?x'), [308, `https://${name}:10000/status?x`])
  assert.deepEqual(await moved('/.gatehouse/status', port), [308, `https://${name}:10000/status`])
  bench.tailnet.peer = {
    ...alice,
    capMap: { 'gatehouse.internal/cap/app': [{ may: ['edit', 'use'] }] },
  }
  assert.equal((await bench.fetch({ port, path: '/status' })).status, 403)
  assert.equal((await bench.fetch({ path: '/.gatehouse/status' })).status, 403)
  assert.deepEqual(bench.origin.requests, [], 'nothing of it went to Node-RED')
})
