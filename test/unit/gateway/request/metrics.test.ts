import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { test } from 'node:test'
import { WebSocket } from 'ws'
import { call } from '../../../../src/base/control-client.ts'
import { Bench, name } from '../../support/bench.ts'
import { LoopbackTailnet } from '../../support/tailnet.ts'

/** Samples by name with labels, as `name{a="b"}`. */
async function scrape(bench: Bench): Promise<Map<string, number>> {
  const { status, body } = await call(bench.admin, 'GET', '/metrics')
  assert.equal(status, 200)
  const samples = (body as string)
    .split('\n')
    .filter((line) => line !== '' && !line.startsWith('#'))
  return new Map(
    samples.map((line) => {
      const at = line.lastIndexOf(' ')
      return [line.slice(0, at), Number(line.slice(at + 1))]
    }),
  )
}

test('requests are counted by route and class of status, and timed', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = (request, response) => {
    response.writeHead(request.url === '/missing' ? 404 : 200).end('x')
  }
  for (const path of ['/', '/?token=HUSHHUSH', '/missing']) await bench.fetch({ path })
  await bench.until(
    async () =>
      (await scrape(bench)).get('gatehouse_http_requests_total{route="node-red",status="4xx"}') ===
      1,
  )
  const samples = await scrape(bench)
  assert.equal(samples.get('gatehouse_http_requests_total{route="node-red",status="2xx"}'), 2)
  assert.equal(samples.get('gatehouse_http_request_duration_seconds_count{route="node-red"}'), 3)
  assert.equal(
    samples.get('gatehouse_http_request_duration_seconds_bucket{le="+Inf",route="node-red"}'),
    3,
  )
  assert.equal(samples.get('gatehouse_connections_total'), 3)
  assert.ok(
    ![...samples.keys()].some((key) => key.includes('HUSHHUSH') || key.includes('missing')),
    'no label holds what a client sent',
  )
})

test('open connections and WebSockets are gauges: up while open, down after', async () => {
  await using bench = await Bench.start()
  const socket = await bench.connect()
  const ws = new WebSocket(`wss://${name}/comms`, {
    createConnection: () => socket,
    headers: { host: name },
  } as never)
  await once(ws, 'open')
  const open = await scrape(bench)
  assert.deepEqual(
    [
      open.get('gatehouse_connections'),
      open.get('gatehouse_websockets'),
      open.get('gatehouse_websockets_total{route="node-red"}'),
    ],
    [1, 1, 1],
  )
  ws.close()
  await bench.until(async () => {
    const closed = await scrape(bench)
    return closed.get('gatehouse_connections') === 0 && closed.get('gatehouse_websockets') === 0
  })
  const after = await scrape(bench)
  assert.equal(after.get('gatehouse_websockets_total{route="node-red"}'), 1)
  assert.equal(
    after.get('gatehouse_http_request_duration_seconds_count{route="node-red"}'),
    undefined,
    'how long a WebSocket was open is no duration of a request',
  )
})

test('the tailnet, the upstream and the problems are told as they are now', async () => {
  await using bench = await Bench.start({ origin: false })
  await bench.gateway.upstream.check()
  let samples = await scrape(bench)
  assert.equal(samples.get('gatehouse_tailnet_state{state="Running"}'), 1)
  assert.equal(samples.get('gatehouse_tailnet_state{state="NeedsLogin"}'), 0)
  assert.equal(samples.get('gatehouse_tailnet_peers{path="direct"}'), 1)
  assert.equal(samples.get('gatehouse_tailnet_key_expiry_timestamp_seconds'), undefined)
  assert.equal(samples.get('gatehouse_upstream_up{upstream="node-red"}'), 0)
  assert.equal(samples.get('gatehouse_problem{part="upstream",code="GH_UPSTREAM_DOWN"}'), 1)
  await bench.origin.listen()
  await bench.gateway.upstream.check()
  const running = LoopbackTailnet.running()
  bench.tailnet.become({
    ...running,
    self: { ...running.self!, keyExpiry: '2030-01-01T00:00:00Z' },
  })
  await bench.until(
    async () =>
      (await scrape(bench)).get('gatehouse_tailnet_key_expiry_timestamp_seconds') ===
      Date.parse('2030-01-01T00:00:00Z') / 1000,
  )
  samples = await scrape(bench)
  assert.equal(samples.get('gatehouse_upstream_up{upstream="node-red"}'), 1)
  assert.ok(![...samples.keys()].some((key) => key.startsWith('gatehouse_problem{')))
})

test('alive as long as it answers, ready when a request would reach Node-RED', async () => {
  await using bench = await Bench.start({ origin: false })
  await bench.gateway.upstream.check()
  assert.deepEqual(await call(bench.admin, 'GET', '/healthz'), { status: 200, body: 'ok\n' })
  const not = await call(bench.admin, 'GET', '/readyz')
  assert.deepEqual(
    [not.status, (not.body as { error: { code: string } }).error.code],
    [503, 'GH_UPSTREAM_DOWN'],
  )
  await bench.origin.listen()
  await bench.gateway.upstream.check()
  assert.deepEqual(await call(bench.admin, 'GET', '/readyz'), { status: 200, body: 'ok\n' })
  bench.tailnet.online = new Promise(() => {})
  bench.tailnet.become({ ...bench.tailnet.current, backendState: 'NeedsLogin' })
  await bench.until(async () => (await call(bench.admin, 'GET', '/readyz')).status === 503)
})

test('nothing of it is on the tailnet', async () => {
  await using bench = await Bench.start()
  for (const path of ['/metrics', '/healthz', '/readyz', '/v1/status']) {
    const { text } = await bench.fetch({ path })
    assert.equal(
      (JSON.parse(text) as { url: string }).url,
      path,
      'passed on to the upstream like any path',
    )
  }
})

test('gatehouse metrics prints them; without a gateway it says what to do', async () => {
  await using bench = await Bench.start()
  bench.gateway.metrics.watchProcess()
  const run = async (admin: string): Promise<{ code: number; stdout: string; stderr: string }> => {
    const child = spawn(
      process.execPath,
      [join(import.meta.dirname, '../../../../src/main.ts'), 'metrics'],
      { env: { ...process.env, GATEHOUSE_ADMIN_SOCKET: admin } },
    )
    const [stdout, stderr, [code]] = await Promise.all([
      text(child.stdout),
      text(child.stderr),
      once(child, 'close') as Promise<[number]>,
    ])
    return { code, stdout, stderr }
  }
  const { code, stdout } = await run(bench.admin)
  assert.equal(code, 0)
  for (const line of [
    /^gatehouse_build_info\{version="test",node="v26/m,
    /^# TYPE gatehouse_http_requests_total counter$/m,
    /^process_resident_memory_bytes \d+$/m,
    /^nodejs_eventloop_lag_seconds /m,
  ])
    assert.match(stdout, line)
  const none = await run('/nonexistent/admin.sock')
  assert.deepEqual([none.code, none.stdout], [2, ''])
  assert.match(
    none.stderr,
    /nothing listens on \/nonexistent\/admin\.sock\.\n {2}→ The gateway starts again by itself/,
  )
})
