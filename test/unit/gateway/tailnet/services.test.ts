import assert from 'node:assert/strict'
import { createServer, request as httpRequest } from 'node:http'
import type { IncomingMessage } from 'node:http'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import { parseConfig } from '../../../../src/config/config.ts'
import { call } from '../../../../src/base/control-client.ts'
import { Bench, name } from '../../support/bench.ts'
import { LoopbackTailnet } from '../../support/tailnet.ts'

const grafana = 'grafana.tail.ts.net'
const vip = '100.100.7.1'

const approved = {
  ...LoopbackTailnet.running(),
  services: { 'svc:grafana': [vip] },
  certDomains: [name, grafana],
}

/** An app that says what it was asked. */
async function origin(): Promise<string> {
  const server = createServer((request, response) => {
    response.end(JSON.stringify({ who: 'grafana', url: request.url, headers: request.headers }))
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  server.unref()
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}

const configured = (toml: string) => parseConfig(toml, 'gatehouse.toml')

/** A gateway that hosts svc:grafana, approved and with a certificate. */
async function hosting(more = ''): Promise<Bench> {
  const bench = await Bench.start({
    before: (made) => {
      made.tailnet.current = approved
      made.putCertificate(made.authority.issue(grafana), `${grafana}.pem`)
    },
  })
  bench.gateway.configure(
    configured(`[[app]]\nservice = "svc:grafana"\nupstreams = ["${await origin()}"]\n${more}`),
  )
  await bench.until(
    () =>
      bench.tailnet.advertised.get('svc:grafana')?.size === 2 &&
      bench.gateway.certificates.get(grafana) !== undefined,
  )
  return bench
}

const ask = async (
  bench: Bench,
  host: string,
  path: string,
  to: number | string = 'svc:grafana-443',
  servername = grafana,
) =>
  await bench.fetch({
    socket: await bench.connect(to, servername),
    path,
    headers: { host, accept: 'application/json' },
  })

test('an app with a name of its own: host and path decide, the certificate is its own, rights as for any app', async () => {
  await using bench = await hosting(
    '[[app]]\nservice = "svc:grafana"\npath = "/api/"\nstrip = true\nupstreams = ["http://127.0.0.1:1"]\n',
  )
  const answer = await ask(bench, grafana, '/d/1?x')
  const seen = JSON.parse(answer.text) as {
    who: string
    url: string
    headers: Record<string, string>
  }
  assert.deepEqual(
    [
      answer.status,
      seen.who,
      seen.url,
      seen.headers['host'],
      seen.headers['x-forwarded-host'],
      seen.headers['tailscale-user-login'],
      seen.headers['x-gatehouse-user'],
    ],
    [200, 'grafana', '/d/1?x', grafana, grafana, 'alice@example.com', undefined],
  )
  assert.equal((await ask(bench, grafana, '/api/x')).status, 502, 'the app below a path of it')
  assert.equal(
    (await ask(bench, grafana, '/.gatehouse/status')).status,
    200,
    'no page of the gateway there',
  )
  assert.match((await ask(bench, grafana, '/.gatehouse/status')).text, /"who":"grafana"/)
  assert.equal(JSON.parse((await bench.fetch({ path: '/d/1' })).text).url, '/d/1')
  assert.equal(bench.origin.requests.at(-1)!.url, '/d/1', "the node's name keeps Node-RED")
  bench.tailnet.peer = { ...(bench.tailnet.peer as object), capMap: {} } as never
  await new Promise((resolve) => setTimeout(resolve, 5_100))
  assert.equal((await ask(bench, grafana, '/d/1')).status, 403)
})

test('who came to the address of one gets that one alone: another Host is 421, both ways', async () => {
  await using bench = await hosting()
  for (const [host, to] of [
    [name, 'svc:grafana-443'],
    ['evil.example', 'svc:grafana-443'],
    [grafana, 443],
    ['svc:grafana', 'svc:grafana-443'],
  ] as const) {
    const answer = await ask(bench, host, '/', to, to === 443 ? name : grafana)
    assert.equal(answer.status, host.includes(':') ? 400 : 421, `${host} at ${to}`)
  }
  assert.equal(bench.origin.requests.length, 0)
})

test("a Service's short name and addresses are sent to its full name, port 80 to https", async () => {
  await using bench = await hosting()
  for (const host of ['grafana', vip, `${vip}:443`]) {
    const answer = await ask(bench, host, '/d?x=1')
    assert.deepEqual(
      [answer.status, answer.headers.location],
      [308, `https://${grafana}/d?x=1`],
      host,
    )
  }
  const socket = bench.tailnet.connect('svc:grafana-80')
  const [answer] = (await once(
    httpRequest({
      createConnection: () => socket,
      path: '/d?x=1',
      headers: { host: 'grafana' },
    }).end(),
    'response',
  )) as [IncomingMessage]
  answer.resume()
  assert.deepEqual([answer.statusCode, answer.headers.location], [308, `https://${grafana}/d?x=1`])
})

test('a path that no app of a Service has is 404, and Node-RED does not see it', async () => {
  await using bench = await hosting()
  bench.gateway.configure(
    configured(
      `[[app]]\nservice = "svc:grafana"\npath = "/only/"\nupstreams = ["${await origin()}"]`,
    ),
  )
  const answer = await ask(bench, grafana, '/other')
  assert.deepEqual(
    [answer.status, (JSON.parse(answer.text) as { error: { code: string } }).error.code],
    [404, 'GH_NO_APP'],
  )
  assert.deepEqual(
    [(await ask(bench, grafana, '/only/x')).status, bench.origin.requests.length],
    [200, 0],
  )
})

test('without a certificate of its own a Service is not served under another name; port 80 says why', async () => {
  await using bench = await Bench.start({
    before: (made) => {
      made.tailnet.current = approved
    },
  })
  bench.gateway.configure(
    configured('[[app]]\nservice = "svc:grafana"\nupstreams = ["http://127.0.0.1:1"]'),
  )
  await bench.until(() => bench.tailnet.advertised.get('svc:grafana')?.size === 2)
  await assert.rejects(bench.connect('svc:grafana-443', grafana), /disconnected|ECONNRESET/)
  const socket = bench.tailnet.connect('svc:grafana-80')
  const [answer] = (await once(
    httpRequest({ createConnection: () => socket, headers: { host: grafana } }).end(),
    'response',
  )) as [IncomingMessage]
  assert.equal(answer.statusCode, 503)
  answer.resume()
  await bench.until(
    async () =>
      (await readFile(join(bench.runtime, 'names'), 'utf8').catch(() => '')) ===
      `${name}\n${grafana}\n`,
  )
  bench.putCertificate(bench.authority.issue(grafana), `${grafana}.pem`)
  await bench.until(
    async () =>
      await bench.connect('svc:grafana-443', grafana).then(
        (socket) => {
          socket.destroy()
          return true
        },
        () => false,
      ),
  )
})

test('challenges: of a Service that is hosted, until it goes; then its name is asked for no more', async () => {
  await using bench = await hosting()
  const challenge = async (host: string) =>
    (
      await call(bench.certs, 'PUT', '/v1/challenge', {
        name: `_acme-challenge.${host}`,
        value: 'x'.repeat(43),
      })
    ).status
  assert.deepEqual(
    [
      await challenge(grafana),
      await challenge('other.tail.ts.net'),
      await challenge(`x.${grafana}`),
    ],
    [204, 403, 403],
  )
  bench.gateway.configure(configured(''))
  // The control server goes on giving the name out for a while.
  assert.equal(await challenge(grafana), 403)
  assert.equal(bench.gateway.certificates.get(grafana), undefined)
  await bench.until(() => bench.tailnet.advertised.size === 0)
  await bench.until(
    async () =>
      (await readFile(join(bench.runtime, 'names'), 'utf8').catch(() => '')) === `${name}\n`,
  )
})

test('not approved, not tagged: each is said with what to do, and is over by itself', async () => {
  await using bench = await Bench.start()
  bench.gateway.services.patience = 50
  bench.tailnet.serviceError = Object.assign(new Error('only a tagged node may host a Service'), {
    code: 'TSNET_SERVICE',
  })
  bench.gateway.configure(
    configured('[[app]]\nservice = "svc:grafana"\nupstreams = ["http://127.0.0.1:1"]'),
  )
  const problem = () => bench.gateway.problems.get('service')
  await bench.until(() => problem()?.code === 'GH_SERVICE_TAG')
  assert.match(`${problem()!.message} ${problem()!.cure}`, /svc:grafana.*not tagged.*Edit ACL tags/)
  bench.tailnet.serviceError = undefined
  await bench.until(() => problem()?.code === 'GH_SERVICE_APPROVAL')
  assert.match(problem()!.cure, /approve this device/)
  assert.ok(
    bench.states.some((line) => line.includes('not approved as a host of svc:grafana')),
    'told to systemd',
  )
  const { services } = await bench.gateway.status()
  assert.deepEqual(
    services.map(({ service, name, problem }) => [service, name, problem?.code]),
    [['svc:grafana', grafana, 'GH_SERVICE_APPROVAL']],
  )
  bench.tailnet.become({ ...LoopbackTailnet.running(), services: { 'svc:grafana': [vip] } })
  await bench.until(() => problem()?.code === 'GH_SERVICE_CERTIFICATE')
  bench.tailnet.become(approved)
  await bench.until(() => problem() === undefined)
})

test('a service that cannot be is refused with what to write', () => {
  for (const [toml, says] of [
    [
      'service = "grafana"\nupstreams = ["http://a"]',
      /line 2: service "grafana" is not the name of a Tailscale Service: svc:/,
    ],
    ['service = "svc:Grafana"\nupstreams = ["http://a"]', /not the name of a Tailscale Service/],
    ['service = "svc:a.b"\nupstreams = ["http://a"]', /not the name of a Tailscale Service/],
    [
      'service = "svc:a"\nupstreams = ["http://a"]\n[[app]]\nservice = "svc:a"\npath = "/"\nupstreams = ["http://b"]',
      /line 4: two \[\[app\]\]/,
    ],
    ['service = "svc:a"', /has no upstreams/],
  ] as const)
    assert.throws(
      () => configured(`[[app]]\n${toml}`),
      (err: Error) => says.test(err.message) || assert.fail(err.message),
      toml,
    )
  assert.equal(
    configured('[[app]]\nservice = "svc:a"\npath = "/app/"\nupstreams = ["http://a"]').app[0]!
      .service,
    'svc:a',
    "Node-RED's paths are its own at its own name alone",
  )
})
