import assert from 'node:assert/strict'
import { once } from 'node:events'
import { rmSync, writeFileSync } from 'node:fs'
import { request } from 'node:http'
import { text } from 'node:stream/consumers'
import { join } from 'node:path'
import { test } from 'node:test'
import { connect as tlsConnect } from 'node:tls'
import { writeFileAtomic } from '../../../../src/base/files.ts'
import { Bench, name } from '../../support/bench.ts'
import { LoopbackTailnet } from '../../support/tailnet.ts'

/** A plain request to port 80 of the node. */
async function plain(
  bench: Bench,
  path: string,
  method = 'GET',
): Promise<{ status: number; location: string | undefined; text: string }> {
  const outgoing = request({
    createConnection: () => bench.tailnet.connect(80),
    method,
    path,
    headers: { host: 'gatehouse' },
  })
  outgoing.end()
  const [response] = await once(outgoing, 'response')
  return {
    status: response.statusCode,
    location: response.headers.location,
    text: await text(response),
  }
}

test('without a certificate 443 is refused and 80 says why; it serves as soon as there is one', async () => {
  await using bench = await Bench.start({ certificate: false })
  await bench.until(() => bench.gateway.problems.get('certificate') !== undefined)
  const [err] = (await once(bench.tailnet.connect(443), 'error')) as [NodeJS.ErrnoException]
  assert.equal(err.code, 'ENOENT', 'nothing listens')
  const before = await plain(bench, '/')
  assert.equal(before.status, 503)
  assert.match(before.text, /waiting for a certificate for gatehouse\.tail\.ts\.net/)
  const waiting = await bench.gateway.status()
  assert.deepEqual(
    [waiting.ok, waiting.problems.map((problem) => problem.code)],
    [false, ['GH_CERTIFICATE_WAITING']],
  )

  await writeFileAtomic(join(bench.tls, `${name}.pem`), bench.authority.issue(name), 0o640)
  await bench.until(() => bench.log('serving https').length > 0)
  assert.equal((await bench.fetch()).status, 200)
  assert.equal((await bench.gateway.status()).ok, true)
  for (const method of ['GET', 'POST']) {
    const after = await plain(bench, '/a?b=c', method)
    assert.deepEqual([after.status, after.location], [308, `https://${name}/a?b=c`])
  }
  assert.equal((await plain(bench, 'http://evil.example/x')).location, `https://${name}/`)
})

test('a new certificate is served from the next connection on, and drops none', async () => {
  await using bench = await Bench.start()
  const old = await bench.connect()
  const serial = old.getPeerCertificate().serialNumber
  bench.origin.handler = (request_, response) => {
    if (request_.url === '/stream') response.write('one')
    else response.end('well')
    bench.once('more', () => response.end('two'))
  }
  const stream = await bench.send({ path: '/stream' })
  await writeFileAtomic(join(bench.tls, `${name}.pem`), bench.authority.issue(name), 0o640)
  await bench.until(() => bench.log('in use').length === 2)
  const fresh = await bench.connect()
  assert.notEqual(fresh.getPeerCertificate().serialNumber, serial)
  fresh.destroy()
  assert.equal(
    (await bench.fetch({ socket: old })).text,
    'well',
    'the connection from before goes on',
  )
  bench.emit('more')
  assert.equal(await text(stream), 'onetwo')
  old.destroy()
})

test('a file that does not hold together is refused, said once, and the one before is served', async () => {
  await using bench = await Bench.start()
  const { serialNumber } = (await bench.connect()).getPeerCertificate()
  const good = bench.authority.issue(name)
  const other = bench.authority.issue('other.tail.ts.net')
  const key = (pem: string): string => /-----BEGIN PRIVATE KEY-----[^]*/.exec(pem)![0]
  const chain = (pem: string): string => pem.slice(0, pem.indexOf('-----BEGIN PRIVATE KEY-----'))
  const bad: Array<[string, RegExp]> = [
    [chain(good) + key(other), /key does not belong/],
    [other, /is not for gatehouse\.tail\.ts\.net/],
    [chain(good), /no private key/],
    ['', /no certificate/],
    [good.slice(0, 300), /no certificate|no private key/],
  ]
  for (const [pem, says] of bad) {
    writeFileSync(join(bench.tls, `${name}.pem`), pem)
    await bench.gateway.certificates.reload()
    await bench.gateway.certificates.reload()
    assert.match(bench.gateway.certificates.refused(name)!, says)
    const socket = await bench.connect()
    assert.equal(socket.getPeerCertificate().serialNumber, serialNumber)
    socket.destroy()
  }
  assert.match((await bench.gateway.status()).certificate.names[0]!.problem!, /is not used/)
})

test('a name the node has no more is served no longer, a file that vanishes takes nothing away', async () => {
  await using bench = await Bench.start()
  const app = 'app.tail.ts.net'
  bench.putCertificate(bench.authority.issue(app), `${app}.pem`)
  bench.tailnet.become({ ...LoopbackTailnet.running(), certDomains: [name, app] })
  await bench.until(() => bench.gateway.certificates.names.length === 2)
  const served = async (servername: string): Promise<string> => {
    const socket = tlsConnect({
      socket: bench.tailnet.connect(443),
      servername,
      ca: bench.authority.certificate,
      rejectUnauthorized: false,
    })
    await once(socket, 'secureConnect')
    const { subject } = socket.getPeerCertificate()
    socket.destroy()
    return String(subject.CN)
  }
  assert.equal(await served(app), app)
  rmSync(join(bench.tls, `${app}.pem`))
  await bench.gateway.certificates.reload()
  assert.equal(await served(app), app, 'the node has the name still')
  bench.putCertificate(bench.authority.issue(app), `${app}.pem`)
  await bench.gateway.certificates.reload()
  bench.tailnet.become(LoopbackTailnet.running())
  await bench.until(() => bench.log('served no longer').length === 1)
  assert.equal(await served(app), name)
  bench.putCertificate(bench.authority.issue(app), `${app}.pem`)
  await bench.gateway.certificates.reload()
  assert.deepEqual(bench.gateway.certificates.names, [name], 'nor loaded')
  bench.tailnet.become({
    ...LoopbackTailnet.running(),
    backendState: 'NeedsLogin',
    certDomains: [],
  })
  await bench.gateway.status()
  assert.equal(await served(name), name, 'a node that is off its tailnet keeps its names')
})

test('a certificate that has expired, or is not renewed in time, is a problem', async () => {
  const day = 86_400_000
  for (const [from, to, code] of [
    [-90, -1, 'GH_CERTIFICATE_EXPIRED'],
    [-80, 10, 'GH_CERTIFICATE_RENEWAL'],
    [-65, 25, undefined],
  ] as const) {
    await using bench = await Bench.start({
      before: (made) => {
        made.putCertificate(
          made.authority.issue(
            name,
            new Date(Date.now() + from * day),
            new Date(Date.now() + to * day),
          ),
        )
      },
    })
    assert.equal((await bench.gateway.status()).problems[0]?.code, code)
  }
})
