import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { installFiles } from '../../../src/certs/install.ts'
import { parseCertificate } from '../../../src/certs/pem.ts'
import { defaults } from '../../../src/config/config.ts'
import type { Config } from '../../../src/config/config.ts'
import { readCertificate } from '../../../src/provision/certificate-files.ts'
import type { CardCertificate } from '../../../src/provision/certificate-files.ts'

let dir: string
const openssl = (...args: string[]): void => {
  execFileSync('openssl', args, { cwd: dir, stdio: 'ignore' })
}

before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'gh-card-'))
  // A root, an authority below it, and certificates of that: as a company has them.
  openssl(
    ...['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'],
    ...['-keyout', 'root.key', '-out', 'root.crt', '-days', '3650', '-subj', '/CN=Root'],
  )
  const issue = async (
    name: string,
    ca: string,
    extensions: string,
    days = '400',
  ): Promise<void> => {
    await writeFile(join(dir, 'ext.cnf'), extensions)
    openssl(
      ...['req', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'],
      ...['-keyout', `${name}.key`, '-out', `${name}.csr`, '-subj', `/CN=${name}`],
    )
    openssl(
      ...['x509', '-req', '-in', `${name}.csr`, '-CA', `${ca}.crt`, '-CAkey', `${ca}.key`],
      ...['-CAcreateserial', '-out', `${name}.crt`, '-days', days, '-extfile', 'ext.cnf'],
    )
  }
  await issue('middle', 'root', 'basicConstraints=critical,CA:TRUE')
  await issue('leaf', 'middle', 'subjectAltName=DNS:gate.example.org,DNS:*.gate.example.org')
  await issue('wild', 'middle', 'subjectAltName=DNS:*.example.org')
  await issue('nameless', 'middle', 'basicConstraints=CA:FALSE')
  const text = async (...names: string[]): Promise<string> =>
    (await Promise.all(names.map(async (one) => await readFile(join(dir, one), 'utf8')))).join('')
  // In the wrong order, and with what a Windows editor leaves.
  await writeFile(
    join(dir, 'mixed.pem'),
    `\uFEFF${(await text('root.crt', 'leaf.crt', 'middle.crt')).replaceAll('\n', '\r\n')}`,
  )
  await writeFile(join(dir, 'two.pem'), await text('leaf.crt', 'wild.crt'))
  openssl('pkey', '-in', 'leaf.key', '-aes256', '-passout', 'pass:x', '-out', 'locked.key')
  openssl('ecparam', '-genkey', '-name', 'prime256v1', '-out', 'sec1.key')
})
after(async () => {
  await rm(dir, { recursive: true })
})

const read = async (
  settings: Partial<Config['certificates']>,
): Promise<CardCertificate | undefined> =>
  await readCertificate(
    dir,
    { ...defaults().certificates, mode: 'files', ...settings },
    async (path) => await readFile(path),
  )

test('a chain in any order, with its key: proven, put in order, the names first', async () => {
  const taken = (await read({ certFile: 'mixed.pem', keyFile: 'leaf.key' }))!
  assert.deepEqual(taken.names, ['gate.example.org', '*.gate.example.org'])
  const { issuer } = parseCertificate(taken.chain + taken.key!, 'gate.example.org')
  assert.equal(issuer, 'middle')
  assert.equal(taken.chain.match(/BEGIN CERTIFICATE/g)!.length, 3)
  assert.doesNotMatch(taken.chain, /PRIVATE/)
})

test('with another mode nothing is read; without a key_file the chain alone', async () => {
  assert.equal(await read({ mode: 'self', certFile: 'nowhere.pem' }), undefined)
  assert.equal((await read({ certFile: 'mixed.pem' }))!.key, undefined)
})

for (const [what, settings, code, expected] of [
  ['no such certificate', { certFile: 'x.pem' }, 'CERT', /cannot be read.*ENOENT/],
  ['no such key', { certFile: 'leaf.crt', keyFile: 'x.key' }, 'KEY', /cannot be read.*ENOENT/],
  [
    "another certificate's key",
    { certFile: 'mixed.pem', keyFile: 'wild.key' },
    'CERT',
    /does not belong to any certificate/,
  ],
  [
    'a key with a passphrase',
    { certFile: 'leaf.crt', keyFile: 'locked.key' },
    'KEY',
    /protected by a passphrase/,
  ],
  ['a certificate as key', { certFile: 'leaf.crt', keyFile: 'leaf.crt' }, 'KEY', /no private key/],
  ['a key as certificate', { certFile: 'leaf.key' }, 'CERT', /no certificate in PEM form/],
  ['two certificates', { certFile: 'two.pem', keyFile: 'leaf.key' }, 'CERT', /CN=wild.*not belong/],
  ['an authority', { certFile: 'root.crt' }, 'CERT', /authorities alone/],
  [
    'a name it is not for',
    { certFile: 'leaf.crt', keyFile: 'leaf.key', name: ['other.example.org'] },
    'CERT',
    /not for other\.example\.org, but for gate\.example\.org/,
  ],
  ['a wildcard alone', { certFile: 'wild.crt' }, 'CERT', /for \*\.example\.org alone/],
  ['no name at all', { certFile: 'nameless.crt' }, 'CERT', /for no name alone/],
] as const) {
  test(`refused: ${what}`, async () => {
    const mutable = { ...settings, ...('name' in settings ? { name: [...settings.name] } : {}) }
    await assert.rejects(
      read(mutable as Partial<Config['certificates']>),
      (err: Error & { code: string }) =>
        err.code === `GH_CONFIG_${code}_FILE` && expected.test(err.message),
    )
  })
}

test('a wildcard serves a name that is written; the key of another form is taken too', async () => {
  const taken = (await read({
    certFile: 'wild.crt',
    keyFile: 'wild.key',
    name: ['gate.example.org'],
  }))!
  assert.deepEqual(taken.names, ['gate.example.org'])
})

test('put in place for each name; the next time by the key that is there; a wrong one changes nothing', async () => {
  const tls = await mkdtemp(join(tmpdir(), 'gh-tls-'))
  const { chain, key, names } = (await read({ certFile: 'mixed.pem', keyFile: 'leaf.key' }))!
  const options = { names, chain, tls, say: () => {}, now: new Date(), goodTime: undefined }
  const record = await installFiles({ ...options, key })
  assert.equal(record.result, 'ok')
  assert.equal(record.totals!.issued, 2)
  const file = join(tls, 'gate.example.org.pem')
  const before = await readFile(file, 'utf8')
  parseCertificate(before, 'gate.example.org')
  parseCertificate(
    await readFile(join(tls, '_wildcard.gate.example.org.pem'), 'utf8'),
    '*.gate.example.org',
  )
  assert.equal((await installFiles({ ...options, key: undefined })).totals!.issued, 2)
  const other = await readFile(join(dir, 'wild.key'), 'utf8')
  await assert.rejects(installFiles({ ...options, key: other }), { code: 'GH_CERTS_FILES' })
  assert.equal(await readFile(file, 'utf8'), before)
  await rm(tls, { recursive: true })
  await assert.rejects(
    installFiles({ ...options, key: undefined, tls: '/nonexistent' }),
    /its key is not on the card, and the device has none/,
  )
})
