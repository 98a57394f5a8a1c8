import assert from 'node:assert/strict'
import { once } from 'node:events'
import { get } from 'node:http'
import type { IncomingMessage } from 'node:http'
import { connect as connectHTTP2 } from 'node:http2'
import { connect, createServer } from 'node:net'
import type { AddressInfo } from 'node:net'
import { connect as tlsConnect } from 'node:tls'
import type { TLSSocket } from 'node:tls'
import { test } from 'node:test'
import { defaults, parseConfig } from '../../../../src/config/config.ts'
import type { Config } from '../../../../src/config/config.ts'
import type { GatehouseError } from '../../../../src/base/errors.ts'
import { redirection } from '../../../../src/firewall/apply.ts'
import { gatehouseDropIn } from '../../../../src/provision/gatehouse-unit.ts'
import { Bench, name } from '../../support/bench.ts'

const toml = (...rights: string[]): string =>
  `[local_network]\nlisten = true\nrights = ${JSON.stringify(rights)}\n`

/** A gateway that serves, with this in force. */
async function bench(
  text: string,
): Promise<{ bench: Bench; set: (text: string) => Promise<void> }> {
  let config: Config = parseConfig(text, 'gatehouse.toml')
  const made = await Bench.start({
    options: { localPorts: { http: 0, https: 0, flows: 0 }, load: async () => config },
  })
  const set = async (changed: string): Promise<void> => {
    config = parseConfig(changed, 'gatehouse.toml')
    await made.gateway.reloader.reload()
    await made.until(() => made.gateway.localNetwork.listening === config.local_network.listen)
  }
  await set(text)
  return { bench: made, set }
}

/** A TLS connection from the local network, to the name. */
async function dial(bench: Bench): Promise<TLSSocket> {
  const socket = tlsConnect({
    host: '127.0.0.1',
    port: bench.gateway.localNetwork.ports.https!,
    servername: name,
    ca: bench.authority.certificate,
    ALPNProtocols: ['http/1.1'],
  })
  await once(socket, 'secureConnect')
  return socket
}

test('off by default: no port is open; on, it says what everybody may do, or it is refused', async () => {
  assert.deepEqual(defaults().local_network, { listen: false, rights: [] })
  assert.throws(
    () => parseConfig('[local_network]\nlisten = true\n', 'gatehouse.toml'),
    (err: GatehouseError) =>
      /line 1: \[local_network\] listen = true does not say what everybody/.test(err.message) &&
      err.cure.includes('rights = ["use"]'),
  )
  assert.throws(
    () => parseConfig(toml('edit'), 'gatehouse.toml'),
    /edit/,
    'running programs is for people who are known',
  )
  const { bench: made } = await bench('')
  await using gateway = made
  assert.deepEqual(gateway.gateway.localNetwork.ports, {})
  assert.equal((await gateway.gateway.status()).access.localNetwork, undefined)
})

test('who comes from the local network is nobody: what is configured and nothing else, whatever a request claims', async () => {
  const { bench: made } = await bench(toml('use'))
  await using gateway = made
  const claims = {
    'tailscale-user-login': 'alice@example.com',
    'x-gatehouse-user': 'forged',
    'x-forwarded-for': '100.64.0.7',
  }
  const app = await gateway.fetch({
    socket: await dial(gateway),
    path: '/app/hello',
    headers: claims,
  })
  assert.equal(app.status, 200)
  const { headers } = JSON.parse(app.text) as { headers: Record<string, string> }
  assert.deepEqual(
    [headers['x-forwarded-for'], headers['tailscale-user-login'], headers['x-gatehouse-user']],
    ['127.0.0.1', undefined, undefined],
  )
  const before = gateway.origin.requests.length
  for (const [method, path] of [
    ['GET', '/'],
    ['GET', '/flows'],
    ['POST', '/flows'],
    ['GET', '/.gatehouse/status'],
  ] as const) {
    const refused = await gateway.fetch({
      socket: await dial(gateway),
      method,
      path,
      headers: { ...claims, accept: 'application/json' },
    })
    assert.equal(refused.status, 403, path)
    assert.match(refused.text, /From the local network nobody may/)
  }
  const h2 = connectHTTP2(`https://${name}`, {
    createConnection: () =>
      tlsConnect({
        host: '127.0.0.1',
        port: gateway.gateway.localNetwork.ports.https!,
        servername: name,
        ca: gateway.authority.certificate,
        ALPNProtocols: ['h2'],
      }),
  })
  const over = async (path: string): Promise<unknown> =>
    (await once(h2.request({ ':path': path, ...claims }), 'response'))[0][':status']
  assert.deepEqual(
    [await over('/flows'), await over('/.gatehouse/status')],
    [403, 403],
    'over HTTP/2 likewise',
  )
  assert.equal(gateway.origin.requests.length, before, 'nothing of it reached Node-RED')
  assert.equal(await over('/app/hello'), 200)
  h2.destroy()
  assert.deepEqual(gateway.tailnet.whoIsCalls, [], 'an address there is no address of the tailnet')
  assert.equal(
    (await gateway.fetch({ path: '/flows', method: 'POST' })).status,
    200,
    'the tailnet is as it was',
  )
  // Another name, and none: as on the tailnet.
  assert.equal(
    (
      await gateway.fetch({
        socket: await dial(gateway),
        path: '/app/hello',
        headers: { host: '192.168.1.5' },
      })
    ).status,
    421,
  )
  const [redirect] = (await once(
    get({
      port: gateway.gateway.localNetwork.ports.http,
      path: '/app/x',
      headers: { host: 'anything' },
    }),
    'response',
  )) as [IncomingMessage]
  assert.deepEqual([redirect.statusCode, redirect.headers.location], [308, `https://${name}/app/x`])
  redirect.resume()
})

test('"view" shows the flows to "local network", read-only', async () => {
  const { bench: made } = await bench(toml('view'))
  await using gateway = made
  const editor = await gateway.fetch({ socket: await dial(gateway), path: '/flows' })
  assert.equal(editor.status, 200)
  const [payload] = (JSON.parse(editor.text) as { headers: Record<string, string> }).headers[
    'x-gatehouse-user'
  ]!.split('.')
  const { username, permissions } = JSON.parse(
    Buffer.from(payload!, 'base64url').toString(),
  ) as Record<string, string>
  assert.deepEqual([username, permissions], ['local network', 'read'])
  assert.equal(
    (await gateway.fetch({ socket: await dial(gateway), path: '/flows', method: 'POST' })).status,
    403,
  )
  assert.equal(
    (await gateway.fetch({ socket: await dial(gateway), path: '/app/hello' })).status,
    403,
  )
})

test('status and log warn; switched off, the ports and what came in by them are gone', async () => {
  const { bench: made, set } = await bench(toml('view', 'use'))
  await using gateway = made
  assert.deepEqual((await gateway.gateway.status()).access.localNetwork, ['view', 'use'])
  assert.equal(
    gateway.log('answer on the local network, to everybody there')[0]?.code,
    'GH_LOCAL_NETWORK_OPEN',
  )
  const open = await dial(gateway)
  const { port } = open.address() as AddressInfo
  assert.ok(port > 0)
  const { https } = gateway.gateway.localNetwork.ports
  const closed = once(open, 'close')
  open.on('error', () => {})
  await set('')
  await closed
  const again = connect(https!, '127.0.0.1')
  const [error] = (await once(again, 'error')) as [NodeJS.ErrnoException]
  assert.equal(error.code, 'ECONNREFUSED')
  assert.equal((await gateway.gateway.status()).access.localNetwork, undefined)
})

test('a port that cannot be had: the tailnet is served all the same, and the status says so', async () => {
  const taken = createServer().listen({ host: '::', port: 0 })
  await once(taken, 'listening')
  const { port } = taken.address() as AddressInfo
  await using gateway = await Bench.start({
    options: {
      localPorts: { http: 0, https: port, flows: 0 },
      load: async () => parseConfig(toml('use'), 'gatehouse.toml'),
    },
  })
  await gateway.gateway.reloader.reload()
  await gateway.until(() => gateway.gateway.problems.get('local network') !== undefined)
  assert.match(
    gateway.gateway.problems.get('local network')!.message,
    /cannot listen on the local network: .*EADDRINUSE/,
  )
  assert.deepEqual(gateway.gateway.localNetwork.ports, {}, 'both or neither')
  assert.equal((await gateway.fetch()).status, 200)
  taken.close()
})

test('unit and rules: the three ports and no others, only while it is on', () => {
  const settings = parseConfig(toml('use'), 'gatehouse.toml')
  assert.equal(gatehouseDropIn(defaults()), '')
  assert.deepEqual(gatehouseDropIn(settings).match(/^SocketBindAllow=.*$/gm), [
    'SocketBindAllow=tcp:41080',
    'SocketBindAllow=tcp:41443',
    'SocketBindAllow=tcp:48443',
  ])
  assert.equal(redirection(false, false), '', 'no address translation in a kernel that needs none')
  assert.match(redirection(true, false), /tcp dport 443 redirect to :41443/)
  assert.match(redirection(true, false), /tcp dport 8443 redirect to :48443/)
  assert.match(redirection(false, true), /delete chain/)
})
