import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, test } from 'node:test'
import { promisify } from 'node:util'
import { paths } from '../../../src/base/paths.ts'
import { parseCertificate } from '../../../src/certs/pem.ts'
import { authorityFile } from '../../../src/certs/record.ts'
import { runCerts } from '../../../src/certs/run.ts'
import { ownAuthority } from '../../../src/certs/self.ts'

const run = promisify(execFile)
const day = 86_400_000

let dir: string
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'gh-self-'))
})
afterEach(async () => {
  await rm(dir, { recursive: true })
})

const make = async (names: string[], now = new Date()): ReturnType<typeof ownAuthority> =>
  await ownAuthority({ names, state: dir, tls: dir, now: () => now })

/** What OpenSSL, another implementation, says of a certificate under the root. */
async function openssl(leaf: string, hostname: string): Promise<string> {
  await writeFile(join(dir, 'leaf.crt'), leaf)
  return await run('openssl', [
    'verify',
    '-x509_strict',
    '-purpose',
    'sslserver',
    '-verify_hostname',
    hostname,
    '-CAfile',
    join(dir, authorityFile),
    join(dir, 'leaf.crt'),
  ]).then(
    ({ stdout }) => stdout.trim().replace(/^.*: /, ''),
    (err: { stderr: string }) => err.stderr,
  )
}

test('an authority for the names: its certificate is one a client verifies; key and root are where they belong', async () => {
  const { authority, issuer } = await make(['gate.tail.example', 'door.example.org'])
  const root = new X509Certificate(await readFile(join(dir, authorityFile)))
  assert.equal(root.fingerprint256, authority.fingerprint)
  assert.deepEqual(authority.names, ['gate.tail.example', 'door.example.org'])
  assert.equal((await stat(join(dir, 'authority.json'))).mode & 0o777, 0o600)
  assert.doesNotMatch(await readFile(join(dir, authorityFile), 'utf8'), /PRIVATE/)
  for (const name of authority.names) {
    const pem = await issuer.issue(name)
    const leaf = parseCertificate(pem, name)
    assert.equal(await openssl(leaf.chain, name), 'OK')
    const life = leaf.notAfter.getTime() - leaf.notBefore.getTime()
    assert.ok(life < 8 * day, 'short-lived')
    assert.equal(new X509Certificate(leaf.chain).subjectAltName, `DNS:${name}`)
  }
})

test('it can vouch for its names alone: OpenSSL refuses what it signs for another, and for an address', async () => {
  const { issuer } = await make(['gate.tail.example'])
  for (const name of ['gate.tail.example.org', 'tail.example', 'www.example.com']) {
    const { chain } = parseCertificate(await issuer.issue(name), name)
    assert.match(await openssl(chain, name), /permitted subtree violation/, name)
  }
  const text = await run('openssl', ['x509', '-in', join(dir, authorityFile), '-noout', '-text'])
  assert.match(text.stdout, /Name Constraints: critical\s+Permitted:\s+DNS:gate\.tail\.example/)
  assert.match(text.stdout, /Excluded:\s+IP:0\.0\.0\.0\/0\.0\.0\.0\s+IP:/)
  assert.match(text.stdout, /Basic Constraints: critical\s+CA:TRUE, pathlen:0/)
  // An authority below it is none.
  assert.match(text.stdout, /Extended Key Usage:\s+TLS Web Server Authentication/)
})

test('it stays the same from run to run; another name makes another, and what the old one signed goes', async () => {
  const first = await make(['gate.tail.example'])
  const file = join(dir, 'gate.tail.example.pem')
  const pem = await first.issuer.issue('gate.tail.example')
  await writeFile(file, pem)
  const again = await make(['gate.tail.example'])
  assert.equal(again.authority.fingerprint, first.authority.fingerprint)
  assert.equal(await readFile(file, 'utf8'), pem)
  const other = await make(['gate.tail.example', 'new.tail.example'])
  assert.notEqual(other.authority.fingerprint, first.authority.fingerprint)
  await assert.rejects(readFile(file), /ENOENT/)
  // Of fewer names the one that is there is good for all.
  const fewer = await make(['new.tail.example'])
  assert.equal(fewer.authority.fingerprint, other.authority.fingerprint)
})

test('a damaged one, and one that is about to end, is made anew; a certificate does not outlive it', async () => {
  const first = await make(['gate.tail.example'])
  await writeFile(join(dir, 'authority.json'), '{"certificate":"-----BEGIN')
  const second = await make(['gate.tail.example'])
  assert.notEqual(second.authority.fingerprint, first.authority.fingerprint)
  const late = new Date(Date.parse(second.authority.notAfter) - 100 * day)
  const third = await make(['gate.tail.example'], late)
  assert.notEqual(third.authority.fingerprint, second.authority.fingerprint)
})

test('a wildcard is within the constraints too', async () => {
  const { issuer } = await make(['gate.example.org', '*.gate.example.org'])
  const { chain } = parseCertificate(await issuer.issue('*.gate.example.org'), '*.gate.example.org')
  assert.equal(await openssl(chain, 'x.gate.example.org'), 'OK')
})

test('a name that comes while the others are looked after has its certificate in the same run', async () => {
  const where = paths({
    STATE_DIRECTORY: join(dir, 'state'),
    GATEHOUSE_CONFIG_DIR: dir,
    GATEHOUSE_TLS_DIR: dir,
    GATEHOUSE_CERTS_SOCKET: join(dir, 'certs.sock'),
  })
  await writeFile(join(dir, 'gatehouse.toml'), '[certificates]\nmode = "self"\n')
  let asked = 0
  const gateway = createServer((_req, res) => {
    const names = asked++ === 0 ? ['one.tail.example'] : ['one.tail.example', 'two.tail.example']
    res.setHeader('content-type', 'application/json').end(JSON.stringify({ names }))
  }).listen(where.certs)
  await once(gateway, 'listening')
  try {
    assert.equal(await runCerts(where), 0)
  } finally {
    gateway.close()
  }
  for (const name of ['one', 'two']) {
    const pem = await readFile(join(dir, `${name}.tail.example.pem`))
    assert.equal(new X509Certificate(pem).subjectAltName, `DNS:${name}.tail.example`)
  }
})
