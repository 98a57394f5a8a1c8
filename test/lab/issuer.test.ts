/**
 * The certificate agent's issuer (src/certs/acme.ts) against the lab's authority: a second
 * certificate with the same account, and what goes wrong.
 */
import assert from 'node:assert/strict'
import { X509Certificate } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { Lab, type LabClient, type Result } from './lab.ts'

let lab: Lab
let node: LabClient
let name: string

before(async () => {
  lab = await Lab.start({ name: 'issue' })
  node = await lab.client('gateway')
  name = (await node.status()).name
})
after(async () => await lab?.stop())

/** Runs issue.ts in the node's namespace: prints the PEM, or the error's code and line. */
async function issue(domain: string, directory = lab.ready.acmeDirectory): Promise<Result> {
  return await lab.run(node.ns, [
    process.execPath,
    path.join(import.meta.dirname, 'issue.ts'),
    directory,
    lab.ready.authority,
    domain,
    path.join(node.dir, 'client.sock'),
    path.join(lab.dir, 'agent'),
  ])
}

test('a first certificate makes an account; the next uses it and has a key of its own', async () => {
  const first = await issue(name)
  assert.equal(first.code, 0, first.stderr)
  const account = await readFile(path.join(lab.dir, 'agent/account.pem'), 'utf8')
  const second = await issue(name)
  assert.equal(second.code, 0, second.stderr)
  assert.equal(await readFile(path.join(lab.dir, 'agent/account.pem'), 'utf8'), account)
  const [a, b] = [first, second].map(({ stdout }) => new X509Certificate(stdout))
  assert.equal(a!.subjectAltName, `DNS:${name}`)
  assert.notEqual(
    a!.publicKey.export({ type: 'spki', format: 'pem' }),
    b!.publicKey.export({ type: 'spki', format: 'pem' }),
  )
})

test('a name of another node: refused where the record is published, and the error says so', async () => {
  const { code, stderr } = await issue(`laptop.${lab.ready.suffix}`)
  assert.equal(code, 1)
  assert.match(stderr, /GH_CERTS_CHALLENGE: .*was not published/)
})

test('an authority that is not there is unreachable, not a refusal', async () => {
  const { code, stderr } = await issue(name, 'https://10.77.0.4:444/dir')
  assert.equal(code, 1)
  assert.match(stderr, /GH_CERTS_AUTHORITY_DOWN: .*cannot be reached \(ECONNREFUSED\)/)
})
