/**
 * Certificates for names of one's own, by `gatehouse certs` itself: Pebble validates through real
 * name servers. Knot takes the updates (RFC 2136, TSIG) and serves the records that a person sets;
 * with LAB_ACME_DNS=FILE an acme-dns of that file is the server of a delegation.
 */
import assert from 'node:assert/strict'
import { X509Certificate } from 'node:crypto'
import { copyFile, mkdir, readFile, readdir, rm, stat, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { parseCertificate } from '../../src/certs/pem.ts'
import { readRecord } from '../../src/certs/record.ts'
import type { CertsRecord } from '../../src/certs/record.ts'
import { handedFile } from '../../src/certs/secrets.ts'
import { eventually } from './appliance.ts'
import { Lab } from './lab.ts'
import type { Result } from './lab.ts'

const repository = path.resolve(import.meta.dirname, '../..')
const secret = 'pOqMp5HHIq1I5xM8fDqPx8hDfFxBW6KK3oIgpAJ5zZs='
const knotIP = '10.77.0.8'

let lab: Lab
let ns: string
let knot: string

before(async () => {
  lab = await Lab.start({ name: 'own' })
  ns = await lab.host('box', '10.77.0.60')
  knot = await lab.host('knot', knotIP)
  const dir = path.join(lab.dir, 'knot')
  await mkdir(path.join(dir, 'db'), { recursive: true })
  for (const zone of ['example.test', 'delegated.test'])
    await writeFile(
      path.join(dir, `${zone}.zone`),
      `$ORIGIN ${zone}.\n@ 60 SOA ns hostmaster 1 3600 600 86400 1\n@ 60 NS ns\nns 60 A ${knotIP}\n`,
    )
  await writeFile(
    path.join(dir, 'knot.conf'),
    `server:
    rundir: "${dir}"
    user: root
    listen: ${knotIP}@53
log:
  - target: stderr
    any: info
database:
    storage: "${dir}/db"
key:
  - id: gatehouse
    algorithm: hmac-sha256
    secret: ${secret}
  - id: person
    algorithm: hmac-sha256
    secret: ${secret}
acl:
  - id: device
    key: gatehouse
    action: update
    update-type: [TXT]
  - id: person
    key: person
    action: update
template:
  - id: default
    storage: "${dir}"
    file: "%s.zone"
    zonefile-sync: -1
    zonefile-load: difference
    journal-content: changes
zone:
  - domain: example.test
    acl: [device, person]
  - domain: delegated.test
    acl: [person]
`,
  )
  const server = lab.exec(knot, ['knotd', '-c', path.join(dir, 'knot.conf')])
  let said = ''
  for (const stream of [server.stdout!, server.stderr!])
    stream.setEncoding('utf8').on('data', (text: string) => {
      said += text
    })
  await eventually('knot is up', 30, async () => await Promise.resolve(/server started/.test(said)))
  for (const zone of ['example.test', 'delegated.test']) await lab.setZone(zone, knotIP)
})
after(async () => {
  await lab?.stop()
})

/** An agent of its own: configuration, credentials, state. */
class Agent {
  readonly dir: string
  readonly tls: string
  constructor(name: string) {
    this.dir = path.join(lab.dir, name)
    this.tls = path.join(this.dir, 'tls')
  }

  static async make(
    name: string,
    settings: string,
    secrets: Record<string, string> = {},
  ): Promise<Agent> {
    const agent = new Agent(name)
    for (const sub of ['config', 'credentials', 'state', 'tls'])
      await mkdir(path.join(agent.dir, sub), { recursive: true, mode: 0o700 })
    await copyFile(lab.ready.authority, path.join(agent.dir, 'config', 'authority.pem'))
    await agent.configure(settings)
    await agent.hand(secrets)
    return agent
  }

  async configure(settings: string): Promise<void> {
    await writeFile(
      path.join(this.dir, 'config', 'gatehouse.toml'),
      `[certificates]\ndirectory = "${lab.ready.acmeDirectory}"\nca_file = "authority.pem"\n` +
        `dns_wait = "0 s"\n${settings}`,
    )
  }

  /** What provisioning does with secrets on the card; none: what the next boot finds. */
  async hand(secrets: Record<string, string>): Promise<void> {
    for (const file of await readdir(path.join(this.dir, 'credentials')))
      await rm(path.join(this.dir, 'credentials', file))
    for (const [name, value] of Object.entries(secrets))
      await writeFile(path.join(this.dir, 'credentials', name), value)
    const problem = path.join(this.dir, 'problem')
    await writeFile(handedFile({ problem }), JSON.stringify({ mark: 'this boot', keys: [] }))
  }

  async run(env: Record<string, string> = {}): Promise<Result & { record: CertsRecord }> {
    const variables = {
      GATEHOUSE_CONFIG_DIR: path.join(this.dir, 'config'),
      GATEHOUSE_PROBLEM_FILE: path.join(this.dir, 'problem'),
      GATEHOUSE_TLS_DIR: this.tls,
      GATEHOUSE_CERTS_SOCKET: path.join(this.dir, 'none.sock'),
      STATE_DIRECTORY: path.join(this.dir, 'state'),
      CREDENTIALS_DIRECTORY: path.join(this.dir, 'credentials'),
      GATEHOUSE_CERTS_PATIENCE: '0',
      ...env,
    }
    const result = await lab.run(ns, [
      'env',
      ...Object.entries(variables).map(([name, value]) => `${name}=${value}`),
      process.execPath,
      path.join(repository, 'src/main.ts'),
      'certs',
    ])
    return { ...result, record: (await readRecord(this.tls))! }
  }

  /** As after the wait that a failure brings. */
  async forgetWaits(): Promise<void> {
    await rm(path.join(this.dir, 'state', 'attempts.json'), { force: true })
  }

  async certificate(file: string): Promise<string> {
    return await readFile(path.join(this.tls, file), 'utf8')
  }
}

/** Verifies against the ACME authority, and that it is for this name. */
async function verified(pem: string, name: string): Promise<void> {
  const { chain } = parseCertificate(pem, name)
  const root = new X509Certificate(await readFile(lab.ready.acmeRoots))
  const last = new X509Certificate(
    chain.match(/-----BEGIN[^-]+-----[^-]+-----END[^-]+-----/g)!.at(-1)!,
  )
  assert.ok(last.verify(root.publicKey), `${name}: by the lab's authority`)
}

/** Sets a record as a person does, at the name server itself. */
async function setRecord(zone: string, line: string): Promise<void> {
  const { code, stderr } = await lab.run(knot, [
    'knotc',
    '-s',
    path.join(lab.dir, 'knot', 'knot.sock'),
    'zone-begin',
    zone,
  ])
  assert.equal(code, 0, stderr)
  for (const args of [
    ['zone-set', zone, ...line.split(' ')],
    ['zone-commit', zone],
  ]) {
    const result = await lab.run(knot, [
      'knotc',
      '-s',
      path.join(lab.dir, 'knot', 'knot.sock'),
      ...args,
    ])
    assert.equal(result.code, 0, result.stderr + result.stdout)
  }
}

const rfc2136 = `mode = "acme"\nproof = "rfc2136"\ndns_server = "${knotIP}"\ntsig_name = "gatehouse"\n`

test('RFC 2136: a name and a wildcard, validated through the real name server; the records are gone again', async () => {
  const agent = await Agent.make(
    'update',
    `${rfc2136}name = ["gate.example.test", "*.gate.example.test"]\n`,
    { 'tsig-key': secret },
  )
  const { code, stdout, stderr, record } = await agent.run()
  assert.equal(code, 0, stdout + stderr)
  assert.equal(record.result, 'ok')
  await verified(await agent.certificate('gate.example.test.pem'), 'gate.example.test')
  await verified(await agent.certificate('_wildcard.gate.example.test.pem'), '*.gate.example.test')
  assert.deepEqual(record.kept, { mark: 'this boot', keys: ['tsig_key'] })
  const left = await lab.run(knot, [
    'knotc',
    '-s',
    path.join(lab.dir, 'knot', 'knot.sock'),
    'zone-read',
    'example.test',
  ])
  assert.doesNotMatch(left.stdout, /_acme-challenge/)
  assert.doesNotMatch(stdout + stderr + JSON.stringify(record), new RegExp(secret.slice(0, 12)))
  const kept = await stat(path.join(agent.dir, 'state', 'secrets.json'))
  assert.equal(kept.mode & 0o777, 0o600)
})

test('at the next boot the secret is not on the card any more: what was kept renews', async () => {
  const agent = new Agent('update')
  await agent.hand({})
  await rm(path.join(agent.tls, 'gate.example.test.pem'))
  const { code, stdout, stderr, record } = await agent.run()
  assert.equal(code, 0, stdout + stderr)
  assert.equal(record.result, 'ok')
  await verified(await agent.certificate('gate.example.test.pem'), 'gate.example.test')
})

test('a new secret that is wrong is said at once, though nothing is due; and is not taken off the card', async () => {
  const agent = new Agent('update')
  await agent.hand({ 'tsig-key': Buffer.alloc(32, 7).toString('base64') })
  const { record } = await agent.run()
  assert.deepEqual([record.result, record.code], ['waiting', 'GH_CERTS_UPDATE'])
  assert.match(record.problem!, /BADSIG.*check tsig_key/)
  assert.deepEqual(record.kept!.keys, [])
})

for (const [what, change, expected] of [
  ['a key the server does not know', ['"gatehouse"', '"stranger"'], /BADKEY.*tsig_name/],
  [
    'another algorithm',
    ['tsig_name', 'tsig_algorithm = "hmac-sha512"\ntsig_name'],
    /BADKEY.*tsig_algorithm/,
  ],
  ['a zone that is not its', ['gate.example.test', 'gate.example.org'], /REFUSED|NOTZONE|NOTAUTH/],
  [
    'a zone the key may not change',
    ['gate.example.test', 'gate.delegated.test'],
    /BADKEY.*or does not let it change this zone|REFUSED/,
  ],
  ['a name server that is not there', [knotIP, '10.77.0.77'], /ETIMEDOUT|EHOSTUNREACH|no answer/],
] as const) {
  test(`RFC 2136, refused: ${what}`, async () => {
    const agent = await Agent.make(
      `refused-${change[1].length}-${what.length}`,
      `${rfc2136}name = "gate.example.test"\n`.replaceAll(change[0], change[1]),
      { 'tsig-key': secret },
    )
    const { code, record } = await agent.run()
    assert.equal(code, 1)
    assert.equal(record.code, 'GH_CERTS_UPDATE')
    assert.match(record.problem!, expected)
    assert.deepEqual(record.kept!.keys, [], 'it stays on the card until it has been of use')
  })
}

test('no secret at all: the cure says where to write it', async () => {
  const agent = await Agent.make('none', `${rfc2136}name = "gate.example.test"\n`)
  const { record } = await agent.run()
  assert.equal(record.code, 'GH_CERTS_SECRET')
  assert.match(
    record.problem!,
    /Write tsig_key under \[certificates\] in gatehouse\.toml on the card/,
  )
})

test('an alias leads the challenge to a zone that the device may change', async () => {
  await setRecord(
    'delegated.test',
    '_acme-challenge.gate.delegated.test. 60 CNAME gate-delegated.example.test.',
  )
  const agent = await Agent.make('alias', `${rfc2136}name = "gate.delegated.test"\n`, {
    'tsig-key': secret,
  })
  const { code, stdout, stderr } = await agent.run()
  assert.equal(code, 0, stdout + stderr)
  await verified(await agent.certificate('gate.delegated.test.pem'), 'gate.delegated.test')
})

test('dns-persist-01: the record to set is told, waited for, and then enough for name and wildcard', async () => {
  const agent = await Agent.make(
    'persist',
    'mode = "acme"\nproof = "dns-persist"\nname = ["keep.example.test", "*.keep.example.test"]\n',
  )
  const first = await agent.run()
  assert.equal(first.record.code, 'GH_CERTS_RECORD')
  const [record] = first.record.records!
  assert.deepEqual(
    [record!.name, record!.type, record!.there],
    ['_validation-persist.keep.example.test', 'TXT', false],
  )
  assert.match(
    record!.value,
    /^acme\.lab\.test; accounturi=https:\/\/acme\.lab\.test\/my-account\/\w+; policy=wildcard$/,
  )
  // Until it is there nothing more is asked of the authority.
  await agent.forgetWaits()
  const before = (await readFile(path.join(lab.dir, 'acme.log'), 'utf8')).length
  assert.equal((await agent.run()).record.code, 'GH_CERTS_RECORD')
  const asked = (await readFile(path.join(lab.dir, 'acme.log'), 'utf8')).slice(before)
  assert.doesNotMatch(asked, /new-order|order-plz/i)
  await setRecordText('example.test', record!.name, record!.value)
  await agent.forgetWaits()
  const { code, stdout, stderr, record: done } = await agent.run()
  assert.equal(code, 0, stdout + stderr)
  assert.deepEqual(
    done.records!.map(({ there }) => there),
    [true],
  )
  await verified(await agent.certificate('keep.example.test.pem'), 'keep.example.test')
  await verified(await agent.certificate('_wildcard.keep.example.test.pem'), '*.keep.example.test')
  assert.deepEqual(await readdir(path.join(agent.dir, 'credentials')), [], 'no DNS secret at all')
})

/** A TXT record, whose value has spaces and semicolons. */
async function setRecordText(zone: string, name: string, value: string): Promise<void> {
  const socket = path.join(lab.dir, 'knot', 'knot.sock')
  for (const args of [
    ['zone-begin', zone],
    ['zone-set', zone, `${name}.`, '60', 'TXT', `"${value}"`],
    ['zone-commit', zone],
  ]) {
    const { code, stdout, stderr } = await lab.run(knot, ['knotc', '-s', socket, ...args])
    assert.equal(code, 0, stdout + stderr)
  }
}

const acmeDNS = process.env['LAB_ACME_DNS']
test(
  'acme-dns: an account is made, the alias to set is told, and the challenge goes through it',
  {
    skip:
      acmeDNS === undefined
        ? 'LAB_ACME_DNS names no acme-dns: its module is not to be had from the registries'
        : false,
  },
  async () => {
    const ip = '10.77.0.9'
    const host = await lab.host('acmedns', ip)
    const config = path.join(lab.dir, 'acme-dns.cfg')
    await writeFile(
      config,
      `[general]
listen = "${ip}:53"
protocol = "both"
domain = "auth.example.net"
nsname = "auth.example.net"
nsadmin = "admin.example.net"
records = ["auth.example.net. A ${ip}", "auth.example.net. NS auth.example.net."]
debug = false
[database]
engine = "sqlite3"
connection = "${lab.dir}/acme-dns.db"
[api]
ip = "${ip}"
disable_registration = false
port = "80"
tls = "none"
corsorigins = ["*"]
use_header = false
header_name = "X-Forwarded-For"
[logconfig]
loglevel = "info"
logtype = "stdout"
logformat = "text"
`,
    )
    const server = lab.exec(host, [acmeDNS!, '-c', config])
    server.stdout!.resume()
    server.stderr!.resume()
    await lab.setHost('auth.lab.test', ip)
    await lab.setZone('auth.example.net', ip)
    await eventually('it answers', 30, async () => {
      const { code } = await lab.run(ns, ['curl', '-sf', `http://${ip}/health`])
      return code === 0
    })
    const settings =
      'mode = "acme"\nproof = "acme-dns"\nacme_dns = "http://auth.lab.test"\n' +
      'name = ["far.example.test", "*.far.example.test"]\n'
    const agent = await Agent.make('acmedns', settings)
    const first = await agent.run()
    assert.equal(first.record.code, 'GH_CERTS_RECORD', first.stdout + first.stderr)
    const [record] = first.record.records!
    assert.deepEqual([record!.name, record!.type], ['_acme-challenge.far.example.test', 'CNAME'])
    await setRecord('example.test', `${record!.name}. 60 CNAME ${record!.value}.`)
    await agent.forgetWaits()
    const done = await agent.run()
    assert.equal(done.code, 0, done.stdout + done.stderr)
    await verified(await agent.certificate('far.example.test.pem'), 'far.example.test')
    await verified(await agent.certificate('_wildcard.far.example.test.pem'), '*.far.example.test')
    // The same account as a person has it: user, password and subdomain.
    const { user, password, subdomain } = JSON.parse(
      await readFile(path.join(agent.dir, 'state', 'acme-dns.json'), 'utf8'),
    ) as Record<string, string>
    const given = await Agent.make(
      'acmedns-given',
      `${settings}acme_dns_user = "${user}"\nacme_dns_subdomain = "${subdomain}"\n`,
      { 'acme-dns-password': password! },
    )
    const third = await given.run()
    assert.equal(third.code, 0, third.stdout + third.stderr)
    assert.deepEqual(third.record.kept!.keys, ['acme_dns_password'])
    const wrong = await Agent.make(
      'acmedns-wrong',
      `${settings}acme_dns_user = "${user}"\nacme_dns_subdomain = "${subdomain}"\n`,
      { 'acme-dns-password': 'x'.repeat(40) },
    )
    const refused = await wrong.run()
    assert.equal(refused.record.code, 'GH_CERTS_UPDATE')
    assert.match(refused.record.problem!, /401.*acme_dns_password/)
  },
)

test('nothing left the lab', async () => {
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
