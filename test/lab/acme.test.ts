/**
 * A certificate from the lab's authority, ordered with a native client's SetDNS, and served and
 * verified across the tailnet.
 */
import assert from 'node:assert/strict'
import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import https from 'node:https'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { WebSocket, WebSocketServer } from 'ws'
import { Lab, type LabClient, type Result } from './lab.ts'

let lab: Lab
let gateway: LabClient
let laptop: LabClient
let name: string

before(async () => {
  lab = await Lab.start({ name: 'acme' })
  gateway = await lab.client('gateway')
  laptop = await lab.client('laptop')
  name = (await gateway.status()).name
})
after(async () => await lab?.stop())

async function order(
  domain: string,
  out: string,
  env: Record<string, string> = {},
): Promise<Result> {
  const { acmeDirectory, authority } = lab.ready
  const argv = [
    process.execPath,
    path.join(import.meta.dirname, 'acme-order.ts'),
    acmeDirectory,
    domain,
    path.join(gateway.dir, 'client.sock'),
    out,
  ]
  const variables = Object.entries({ NODE_EXTRA_CA_CERTS: authority, ...env }).map(
    ([k, v]) => `${k}=${v}`,
  )
  return await lab.run(gateway.ns, ['env', ...variables, ...argv])
}

test('a wrong challenge value gets no certificate', async () => {
  const result = await order(name, path.join(lab.dir, 'wrong.pem'), { WRONG: '1' })
  assert.notEqual(result.code, 0)
  assert.match(result.stderr, /Correct value not found for DNS challenge/)
})

test("another node's name gets no certificate", async () => {
  const result = await order((await laptop.status()).name, path.join(lab.dir, 'foreign.pem'))
  assert.notEqual(result.code, 0)
  assert.match(result.stderr, /setdns: 502/)
})

test('an issued certificate verifies across the tailnet, over a direct path', async (t) => {
  const file = path.join(lab.dir, 'gateway.pem')
  const result = await order(name, file)
  assert.equal(result.code, 0, result.stderr)
  const pem = await readFile(file)
  const leaf = new X509Certificate(pem)
  assert.equal(leaf.subjectAltName, `DNS:${name}`)
  const days = (leaf.validToDate.getTime() - Date.now()) / 86_400_000
  assert.ok(days > 88 && days < 91, `valid for ${days} days`)

  const server = https.createServer({ key: pem, cert: pem }, (req, res) => {
    if (req.url === '/away')
      return void res.writeHead(302, { location: `https://${name}/there` }).end()
    res.setHeader('x-host', req.headers.host ?? '')
    req.pipe(res)
  })
  const echo = new WebSocketServer({ server })
  echo.on('connection', (socket, req) => {
    socket.send(`origin ${req.headers.origin}`)
    socket.on('message', (data) => socket.send(data.toString()))
  })
  t.after(() => {
    server.closeAllConnections()
    server.close()
  })
  const socket = path.join(lab.dir, 'https.sock')
  await once(server.listen(socket), 'listening')
  await gateway.serve(443, socket)
  await laptop.pingDirect((await gateway.status()).ips[0]!)

  await t.test('fetch', async () => {
    const answer = await laptop.fetch(`https://${name}/`, {
      method: 'POST',
      body: 'knock',
      headers: { 'content-type': 'text/plain' },
    })
    assert.equal(answer.status, 200)
    assert.equal(answer.body.toString(), 'knock')
    assert.deepEqual(answer.headers['X-Host'], [name])
    assert.equal(answer.tls?.verified, true)
    assert.deepEqual(answer.tls?.dnsNames, [name])
    assert.match(answer.tls?.issuer ?? '', /Pebble/)
    assert.equal(answer.path.direct, true)
    assert.match(answer.path.endpoint ?? '', new RegExp(`^${gateway.ip}:`))
  })

  await t.test('fetch trusts the given authorities alone', async () => {
    await assert.rejects(
      laptop.fetch(`https://${name}/`, { roots: lab.ready.authority }),
      /unknown authority/,
    )
    const ip = (await gateway.status()).ips[0]!
    await assert.rejects(
      laptop.fetch(`https://${ip}/`),
      /cannot validate certificate|doesn't contain any IP SANs/,
    )
  })

  await t.test('fetch goes to peers alone', async () => {
    await assert.rejects(
      laptop.fetch('https://acme.lab.test/dir', { roots: lab.ready.authority }),
      /is no peer/,
    )
    assert.equal(await lab.leaked(), 0)
  })

  await t.test('dial: a WebSocket over TLS over a raw stream', async () => {
    const raw = await laptop.dial(name, 443)
    const ca = await readFile(lab.ready.acmeRoots)
    const { connect } = await import('node:tls')
    const ws = new WebSocket(`wss://${name}/`, {
      createConnection: () => connect({ socket: raw, servername: name, ca }),
    })
    const [greeting] = await once(ws, 'message')
    assert.equal(greeting.toString(), 'origin undefined')
    ws.send('hello')
    const [reply] = await once(ws, 'message')
    assert.equal(reply.toString(), 'hello')
    ws.terminate()
  })

  await t.test('browse: a local port for a browser, WebSocket too', async () => {
    const url = await laptop.browse(`https://${name}`)
    assert.match(url, /^http:\/\/127\.0\.0\.1:\d+\/$/)
    const res = await fetch(url, { method: 'POST', body: 'knock' })
    assert.equal(await res.text(), 'knock')
    assert.equal(res.headers.get('x-host'), name)
    const away = await fetch(`${url}away`, { redirect: 'manual' })
    assert.equal(away.headers.get('location'), '/there')
    const ws = new WebSocket(url.replace('http', 'ws'), { origin: url.slice(0, -1) })
    const [greeting] = await once(ws, 'message')
    assert.equal(greeting.toString(), `origin https://${name}`)
    ws.send('hello')
    const [reply] = await once(ws, 'message')
    assert.equal(reply.toString(), 'hello')
    ws.terminate()
  })
})
