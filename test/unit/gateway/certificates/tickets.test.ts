/**
 * Session tickets: resumed with, refused when their keys were replaced, by Node's TLS client and by
 * OpenSSL's.
 */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { connect } from 'node:tls'
import type { SecureVersion } from 'node:tls'
import { Bench, name } from '../../support/bench.ts'
import { LoopbackTailnet } from '../../support/tailnet.ts'

const app = 'app.tail.ts.net'

/** One connection: whether a session was resumed, and one to resume. */
async function visit(
  bench: Bench,
  version: SecureVersion,
  session?: Buffer,
  servername = name,
): Promise<{ reused: boolean; session: Buffer }> {
  const socket = connect({
    socket: bench.tailnet.connect(443),
    servername,
    ca: bench.authority.certificate,
    minVersion: version,
    maxVersion: version,
    ...(session === undefined ? {} : { session }),
  })
  const ticket = once(socket.resume(), 'session') as Promise<[Buffer]>
  await once(socket, 'secureConnect')
  // With TLS 1.3 tickets come after the handshake, here with the first answer. A resumed session
  // brings none.
  socket.write(`HEAD / HTTP/1.1\r\nhost: ${servername}\r\n\r\n`)
  const reused = socket.isSessionReused()
  const next = reused ? session! : (await ticket)[0]
  socket.destroy()
  return { reused, session: next }
}

for (const version of ['TLSv1.3', 'TLSv1.2'] as const) {
  test(`${version}: resumed before the keys are replaced, a full handshake after, resumed again with the new ones`, async () => {
    await using bench = await Bench.start()
    const { certificates } = bench.gateway
    const first = await visit(bench, version)
    assert.equal(first.reused, false)
    const second = await visit(bench, version, first.session)
    assert.equal(second.reused, true)
    certificates.rotateTicketKeys()
    const third = await visit(bench, version, second.session)
    assert.equal(third.reused, false)
    assert.equal((await visit(bench, version, third.session)).reused, true)
    // A new certificate: what began under the old one is not gone on with.
    bench.putCertificate(bench.authority.issue(name))
    await bench.gateway.certificates.reload()
    assert.equal((await visit(bench, version, third.session)).reused, false)
  })

  test(`${version}: a ticket of one name is opened although the node has several`, async () => {
    await using bench = await Bench.start()
    bench.putCertificate(bench.authority.issue(app), `${app}.pem`)
    bench.tailnet.become({ ...LoopbackTailnet.running(), certDomains: [name, app] })
    await bench.until(() => bench.gateway.certificates.names.length === 2)
    // Taken over whole, new ticket keys with it.
    await bench.gateway.certificates.reload()
    const first = await visit(bench, version, undefined, app)
    assert.equal((await visit(bench, version, first.session, app)).reused, true)
  })
}

test("OpenSSL's client: New, Reused, and New again after the keys were replaced", async () => {
  await using bench = await Bench.start()
  const directory = mkdtempSync(join(tmpdir(), 'gh-tickets-'))
  try {
    const [session, ca] = [join(directory, 'session'), join(directory, 'ca.pem')]
    writeFileSync(ca, bench.authority.certificate)
    const client = async (...args: string[]): Promise<string> =>
      await new Promise((resolve, reject) => {
        const child = execFile(
          'openssl',
          [
            's_client',
            '-unix',
            bench.tailnet.path(443),
            '-servername',
            name,
            '-CAfile',
            ca,
            '-verify_return_error',
            '-ign_eof',
            ...args,
          ],
          { timeout: 30_000 },
          (err, stdout) => {
            if (err === null || /^(New|Reused), TLS/m.test(stdout))
              resolve(/^(New|Reused), TLS/m.exec(stdout)?.[1] ?? stdout)
            else reject(err)
          },
        )
        child.stdin!.end(`GET / HTTP/1.1\r\nhost: ${name}\r\nconnection: close\r\n\r\n`)
      })
    assert.equal(await client('-sess_out', session), 'New')
    assert.equal(await client('-sess_in', session), 'Reused')
    bench.gateway.certificates.rotateTicketKeys()
    assert.equal(await client('-sess_in', session), 'New')
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
})
