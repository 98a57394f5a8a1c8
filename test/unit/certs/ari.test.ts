/**
 * When certificates are renewed: what the authority says (RFC 9773), and what counts when it says
 * nothing. Time is moved, the files are real.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { X509Certificate } from 'node:crypto'
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { IssueError } from '../../../src/certs/failure.ts'
import type { IssueOptions } from '../../../src/certs/acme.ts'
import { renew } from '../../../src/certs/agent.ts'
import type { AgentOptions } from '../../../src/certs/agent.ts'
import { certificateId, Plans } from '../../../src/certs/ari.ts'
import type { RenewalInfo } from '../../../src/certs/ari.ts'
import { Ledger, limits } from '../../../src/certs/ledger.ts'
import { parseCertificate } from '../../../src/certs/pem.ts'
import type { CertsRecord, Severity } from '../../../src/certs/record.ts'
import { Authority } from '../support/authority.ts'

const name = 'gatehouse.tail.ts.net'
const minute = 60_000
const hour = 60 * minute
const day = 24 * hour
const authority = new Authority()
// Years of runs write thousands of files through to the disk: in memory where there is such a
// place.
const root = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'gh-ari-'))
after(() => {
  authority.close()
  rmSync(root, { recursive: true, force: true })
})

/**
 * An agent of whose authority and clock the test is master. Each run opens its files anew, as each
 * start of the unit does.
 */
class Agent {
  readonly tls: string
  readonly state: string
  names = [name]
  now = Date.now()
  /** Lifetime of what is issued. */
  lifetime = 90 * day
  asked: Array<{ at: number; replaces: string | undefined }> = []
  polled: number[] = []
  said: Array<{ line: string; severity: Severity | undefined }> = []
  /** What the authority says about a certificate; default: nothing. */
  info: (issued: Date, expires: Date) => RenewalInfo | undefined = () => undefined
  /** Runs while a certificate is asked for. */
  during: (options: IssueOptions) => Promise<void> = async ({ validating, issuing }) => {
    await validating?.()
    await issuing?.()
  }

  constructor() {
    const directory = mkdtempSync(join(root, 'a-'))
    this.tls = join(directory, 'tls')
    this.state = join(directory, 'state')
    mkdirSync(this.tls)
    mkdirSync(this.state)
  }

  get file(): string {
    return join(this.tls, `${name}.pem`)
  }

  async run(directory = 'https://acme.example/dir'): Promise<CertsRecord> {
    const options: AgentOptions = {
      names: this.names,
      tls: this.tls,
      ledger: await Ledger.open(this.state, directory),
      plans: await Plans.open(this.state, directory),
      now: () => new Date(this.now),
      say: (line, severity) => {
        this.said.push({ line, severity })
      },
      issuer: async () => ({
        renewalInfo: async () => {
          this.polled.push(this.now)
          const { notBefore, notAfter } = parseCertificate(readFileSync(this.file, 'utf8'), name)
          return this.info(notBefore, notAfter)
        },
        issue: async (which, options = {}) => {
          this.asked.push({ at: this.now, replaces: options.replaces })
          await this.during(options)
          return authority.issue(which, new Date(this.now), new Date(this.now + this.lifetime))
        },
      }),
    }
    return await renew(options)
  }
}

const window = (start: number, end: number, more: Partial<RenewalInfo> = {}): RenewalInfo => ({
  start: new Date(start),
  end: new Date(end),
  explanation: undefined,
  retryAfter: undefined,
  ...more,
})

test('a certificate is called what RFC 9773 §4.1 calls it, its serial number beginning with a zero byte', () => {
  const dir = mkdtempSync(join(root, 'id-'))
  const openssl = (...args: string[]): void => {
    execFileSync('openssl', args, { cwd: dir, stdio: ['ignore', 'ignore', 'pipe'] })
  }
  openssl(
    'req',
    '-x509',
    '-newkey',
    'ec',
    '-pkeyopt',
    'ec_paramgen_curve:P-256',
    '-nodes',
    '-keyout',
    'ca.key',
    '-out',
    'ca.pem',
    '-subj',
    '/CN=a',
    '-addext',
    'subjectKeyIdentifier=69885B6B87464041E1B37B847BA0AE2CDE01C8D4',
  )
  openssl(
    'req',
    '-newkey',
    'ec',
    '-pkeyopt',
    'ec_paramgen_curve:P-256',
    '-nodes',
    '-keyout',
    'leaf.key',
    '-out',
    'leaf.csr',
    '-subj',
    '/CN=b',
  )
  writeFileSync(join(dir, 'ext'), 'authorityKeyIdentifier=keyid\n')
  openssl(
    'x509',
    '-req',
    '-in',
    'leaf.csr',
    '-CA',
    'ca.pem',
    '-CAkey',
    'ca.key',
    '-set_serial',
    '0x87654321',
    '-extfile',
    'ext',
    '-out',
    'leaf.pem',
  )
  assert.equal(
    certificateId(new X509Certificate(readFileSync(join(dir, 'leaf.pem')))),
    'aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE',
  )
  writeFileSync(join(dir, 'ext'), 'authorityKeyIdentifier=none\n')
  openssl(
    'x509',
    '-req',
    '-in',
    'leaf.csr',
    '-CA',
    'ca.pem',
    '-CAkey',
    'ca.key',
    '-set_serial',
    '1',
    '-extfile',
    'ext',
    '-out',
    'none.pem',
  )
  assert.equal(certificateId(new X509Certificate(readFileSync(join(dir, 'none.pem')))), undefined)
})

test('a random moment of the window is chosen once, survives restarts, and the order says what it replaces', async () => {
  const moments: number[] = []
  for (let i = 0; i < 4; i++) {
    const agent = new Agent()
    await agent.run()
    const begin = agent.now
    agent.info = () => window(begin + 40 * day, begin + 50 * day)
    const first = (await agent.run()).certificates![0]!
    const at = Date.parse(first.renewAt)
    assert.equal(first.from, 'authority')
    assert.ok(at >= begin + 40 * day && at < begin + 50 * day)
    moments.push(at)
    for (const when of [begin + 20 * day, at - minute]) {
      agent.now = when
      const record = await agent.run()
      assert.deepEqual(
        [record.result, Date.parse(record.certificates![0]!.renewAt), agent.asked.length],
        ['ok', at, 1],
      )
    }
    const id = certificateId(new X509Certificate(readFileSync(agent.file)))!
    agent.now = at
    await agent.run()
    assert.deepEqual(agent.asked.slice(1), [{ at, replaces: id }])
    assert.match(agent.said.at(-1)!.line, /the moment the authority suggested has come/)
  }
  assert.equal(new Set(moments).size, 4, 'not all at the same moment')
})

test('the authority is asked as often as it says, within a minute and a day; every six hours when it does not say', async () => {
  for (const [retryAfter, wait] of [
    [undefined, 6 * hour],
    [3 * hour, 3 * hour],
    [1000, minute],
    [30 * day, day],
  ] as const) {
    const agent = new Agent()
    await agent.run()
    const begin = agent.now
    agent.info = () => window(begin + 60 * day, begin + 61 * day, { retryAfter })
    await agent.run()
    agent.now = begin + wait - 1
    await agent.run()
    assert.deepEqual(agent.polled, [begin])
    agent.now = begin + wait
    await agent.run()
    assert.deepEqual(agent.polled, [begin, begin + wait])
  }
})

test('a certificate the authority wants replaced at once (it was revoked) is, and the page that says why is told', async () => {
  const agent = new Agent()
  await agent.run()
  const begin = agent.now
  agent.info = () => window(begin + 60 * day, begin + 61 * day)
  await agent.run()
  agent.now += 7 * hour
  agent.info = () =>
    window(agent.now - 2 * hour, agent.now - hour, { explanation: 'https://acme.example/incident' })
  await agent.run()
  assert.equal(agent.asked.length, 2)
  assert.ok(agent.said.some(({ line }) => line.includes('https://acme.example/incident')))
})

test('an authority that fails to say: what it said before counts, else two thirds of the lifetime; it is asked again within the hour', async () => {
  const agent = new Agent()
  await agent.run()
  const begin = agent.now
  const down = (): never => {
    throw new IssueError('GH_CERTS_AUTHORITY_DOWN', 'the authority answers 503', 'Wait')
  }
  agent.info = down
  const fallback = (await agent.run()).certificates![0]!
  assert.deepEqual(
    [fallback.from, Math.round((Date.parse(fallback.renewAt) - begin) / day)],
    ['lifetime', 60],
  )
  assert.match(
    agent.said.at(-1)!.line,
    /does not say when to renew \(the authority answers 503\): two thirds/,
  )
  agent.now += hour
  agent.info = () => window(begin + 30 * day, begin + 31 * day)
  const told = (await agent.run()).certificates![0]!
  assert.equal(told.from, 'authority')
  agent.now += 7 * hour
  agent.info = down
  assert.deepEqual((await agent.run()).certificates![0], told)
  agent.info = () => {
    throw new IssueError('GH_CERTS_RATE_LIMITED', 'rate limited', 'Wait', { retryAfter: 5 * hour })
  }
  agent.now += hour
  await agent.run()
  const before = agent.polled.length
  agent.now += 4 * hour
  await agent.run()
  assert.equal(agent.polled.length, before, 'Retry-After of the error is kept to')
})

test('a window that lies too late is not waited for, and files of windows that are damaged are none', async () => {
  const agent = new Agent()
  await agent.run()
  const begin = agent.now
  agent.info = () => window(begin + 400 * day, begin + 401 * day)
  assert.equal(
    Math.round((Date.parse((await agent.run()).certificates![0]!.renewAt) - begin) / day),
    72,
  )
  for (const damage of [
    '',
    '{',
    'null',
    '[]',
    '{"plans":{"x":{}}}',
    `{"plans":{"${name}":{"directory":"https://acme.example/dir","id":"x","check":1e99,"window":{"at":"now"}}}}`,
  ]) {
    writeFileSync(join(agent.state, 'renewals.json'), damage)
    assert.equal((await agent.run()).result, 'ok', damage)
  }
  assert.equal(agent.asked.length, 1)
})

for (const [lifetime, step, said] of [
  [90 * day, 12 * hour, true],
  [90 * day, 12 * hour, false],
  [45 * day, 12 * hour, true],
  [6 * day, 6 * hour, true],
  [6 * day, 12 * hour, false],
  [5 * hour, 30 * minute, false],
] as const) {
  const span = lifetime > day ? 365 * day : 4 * day
  test(`${span / day} days of ${lifetime > day ? `${lifetime / day}-day` : `${lifetime / hour}-hour`} certificates, ${said ? 'renewed as the authority says' : 'the authority saying nothing'}: never expired, never one too many`, async () => {
    const agent = new Agent()
    agent.lifetime = lifetime
    if (said)
      agent.info = (from, to) =>
        window(
          from.getTime() + (to.getTime() - from.getTime()) * 0.6,
          from.getTime() + (to.getTime() - from.getTime()) * 0.7,
        )
    const end = agent.now + span
    await agent.run()
    for (let runs = 0; agent.now < end; runs++) {
      agent.now += step
      assert.ok(
        parseCertificate(readFileSync(agent.file, 'utf8'), name).notAfter.getTime() > agent.now,
      )
      assert.equal((await agent.run()).result, 'ok')
      // The unit is started at odd moments too.
      if (runs % 7 === 0) await agent.run()
    }
    const gaps = agent.asked.slice(1).map(({ at }, i) => (at - agent.asked[i]!.at) / lifetime)
    const most = 0.7 + (2 * step) / lifetime
    assert.ok(
      gaps.every((gap) => gap >= 0.6 && gap <= most),
      gaps.join(),
    )
    assert.ok(
      agent.asked.length >= Math.floor(span / lifetime / most),
      `${agent.asked.length} certificates`,
    )
    assert.ok(agent.asked.slice(1).every(({ replaces }) => replaces !== undefined))
  })
}

test('a certificate that lives for hours is not waited for as long as one of months', async () => {
  const longest = async (lifetime: number): Promise<number> => {
    const agent = new Agent()
    agent.lifetime = lifetime
    await agent.run()
    agent.now += lifetime
    agent.during = async () => {
      throw new IssueError('GH_CERTS_ORDER', 'no', 'Wait')
    }
    let wait = 0
    for (let round = 0; round < 8; round++) {
      const { next } = await agent.run()
      wait = Math.max(wait, Date.parse(next!) - agent.now)
      agent.now = Date.parse(next!)
    }
    return wait
  }
  const [short, long] = [await longest(4 * hour), await longest(90 * day)]
  assert.ok(short >= 20 * minute && short <= 25 * minute, `${short / minute} minutes`)
  assert.ok(long >= 12 * hour && long <= 15 * hour, `${long / hour} hours`)
})

test('validations: never more than the authority counts in an hour, however often it is started or cut short', async () => {
  const agent = new Agent()
  // A power cut the moment validation was asked for: nothing after that is written down.
  agent.during = async ({ validating }) => {
    await validating!()
    throw new Error('cut')
  }
  const failed = Ledger.prototype.failed
  Ledger.prototype.failed = async function () {
    throw new Error('power cut')
  }
  const begin = agent.now
  try {
    for (; agent.now < begin + day; agent.now += minute) await agent.run().catch(() => {})
  } finally {
    Ledger.prototype.failed = failed
  }
  const times = agent.asked.map(({ at }) => at)
  const most = Math.max(
    ...times.map((from) => times.filter((at) => at >= from && at < from + hour).length),
  )
  assert.ok(
    times.length >= 5 && most <= limits.validationsAnHour,
    `${times.length} in a day, ${most} in an hour`,
  )
})

test('certificates that are lost over and over: four, then one when the authority would give another', async () => {
  const agent = new Agent()
  const begin = agent.now
  for (; agent.now < begin + 14 * day; agent.now += 10 * minute) {
    await agent.run()
    rmSync(agent.file, { force: true })
  }
  const times = agent.asked.map(({ at }) => at)
  const week = Math.max(
    ...times.map((from) => times.filter((at) => at >= from && at < from + 7 * day).length),
  )
  assert.ok(week <= 4 + Math.ceil((7 * day) / limits.refill), `${week} in a week`)
  assert.deepEqual(
    times.slice(0, 5).map((at) => Math.round((at - begin) / hour)),
    [0, 0, 0, 1, 35],
    `hours: ${times.map((at) => (at - begin) / hour).join()}`,
  )
  assert.equal((await agent.run()).result, 'waiting')
})

test('an authority that wants every certificate replaced at once gets no more orders than it counts', async () => {
  const agent = new Agent()
  agent.info = (from) => window(from.getTime() - hour, from.getTime() - minute)
  const begin = agent.now
  for (; agent.now < begin + 14 * day; agent.now += hour) await agent.run()
  const times = agent.asked.map(({ at }) => at)
  const week = Math.max(
    ...times.map((from) => times.filter((at) => at >= from && at < from + 7 * day).length),
  )
  assert.ok(
    times.length >= 8 && week <= 4 + Math.ceil((7 * day) / limits.refill),
    `${times.length} in two weeks, ${week} in a week`,
  )
  const record = await agent.run()
  assert.deepEqual([record.result, record.severity], ['waiting', 'info'])
})

test('a clock that jumps ten years ahead and back: what is in place stays, the authority is spared, and all is well again at once', async () => {
  const agent = new Agent()
  await agent.run()
  const good = readFileSync(agent.file, 'utf8')
  const begin = agent.now
  const issue = authority.issue.bind(authority)
  // The authority's own clock is right.
  authority.issue = (which, from = new Date(begin), to) =>
    issue(
      which,
      new Date(Math.min(from.getTime(), begin)),
      to === undefined ? undefined : new Date(begin + 90 * day),
    )
  try {
    agent.now = begin + 3650 * day
    for (let i = 0; i < 60; i++, agent.now += minute) {
      const record = await agent.run()
      assert.match(record.problem!, /Check that the network lets NTP/)
    }
  } finally {
    authority.issue = issue
  }
  assert.ok(
    agent.asked.length - 1 <= limits.certificatesAWeek,
    `${agent.asked.length - 1} asked for`,
  )
  assert.equal(readFileSync(agent.file, 'utf8'), good)
  agent.now = begin + hour
  assert.equal((await agent.run()).result, 'ok')
  agent.now = begin - 365 * day
  const asked = agent.asked.length
  const behind = await agent.run()
  assert.deepEqual(
    [behind.result, behind.severity, agent.asked.length],
    ['failed', 'warning', asked],
  )
  assert.match(
    behind.problem!,
    /^the clock says .*, which is before the certificate for .* was issued .*Check that the network lets NTP \(UDP port 123\) out: the clock is set from it$/,
  )
  assert.equal(readFileSync(agent.file, 'utf8'), good)
  agent.now = begin + 61 * day
  assert.equal((await agent.run()).result, 'ok')
  assert.notEqual(readFileSync(agent.file, 'utf8'), good)
})

test('a ledger that is damaged is as good as none; one of another authority does not hold this one back', async () => {
  for (const damage of [
    '',
    'null',
    '[1]',
    '{"https://acme.example/dir":{"gatehouse.tail.ts.net":{"failures":"x","next":"x","validations":[null,"x"],"issues":[null,{}]}}}',
  ]) {
    const agent = new Agent()
    writeFileSync(join(agent.state, 'attempts.json'), damage)
    assert.equal((await agent.run()).result, 'ok', damage)
  }
  const agent = new Agent()
  const issue = agent.during
  agent.during = async () => {
    throw new IssueError('GH_CERTS_ORDER', 'no', 'Wait')
  }
  await agent.run()
  agent.during = issue
  assert.equal((await agent.run()).result, 'waiting')
  assert.equal((await agent.run('https://other.example/dir')).result, 'ok')
})

test('nothing is asked for when it could not be counted or kept, and the message says which', async () => {
  const uncounted = new Agent()
  mkdirSync(join(uncounted.state, 'attempts.json'))
  const record = await uncounted.run()
  assert.deepEqual(
    [record.result, record.code, record.totals!.failures],
    ['failed', 'GH_CERTS_DISK', { GH_CERTS_DISK: 1 }],
  )
  assert.match(record.problem!, /the attempt cannot be written down: .*Make room/)
  assert.ok(Date.parse(record.next!) > uncounted.now, 'not at once again')
  assert.equal(uncounted.asked.length, 0)
})

test('what the authority sends replaces the one in place only when it is proven', async () => {
  const agent = new Agent()
  await agent.run()
  const good = readFileSync(agent.file, 'utf8')
  const at = agent.now + 61 * day
  const other = authority.issue(name, new Date(at))
  const [leaf, ca] = other.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----\n/g)!
  const key = /-----BEGIN PRIVATE KEY-----[^-]+-----END PRIVATE KEY-----\n/.exec(other)![0]
  const stranger = /-----BEGIN PRIVATE KEY-----[^-]+-----END PRIVATE KEY-----\n/.exec(good)![0]
  const cases: Array<[string, RegExp]> = [
    ['', /holds no certificate/],
    [leaf! + ca!, /holds no private key/],
    [leaf! + ca! + stranger, /key does not belong/],
    [ca! + leaf! + key, /key does not belong/],
    [leaf! + leaf! + key, /chain does not hold together/],
    [authority.issue('laptop.tail.ts.net', new Date(at)), /is not for gatehouse/],
    [authority.issue(name, new Date(at - 2 * day), new Date(at - day)), /valid from .* and now is/],
    [authority.issue(name, new Date(at + 2 * day)), /valid from .* and now is/],
    [good.slice(0, good.length / 2), /holds no private key|is damaged/],
  ]
  agent.now = at
  for (const [pem, message] of cases) {
    rmSync(join(agent.state, 'attempts.json'), { force: true })
    const record = await renew({
      names: [name],
      tls: agent.tls,
      say: () => {},
      now: () => new Date(agent.now),
      ledger: await Ledger.open(agent.state, 'd'),
      plans: await Plans.open(agent.state, 'd'),
      issuer: async () => ({ renewalInfo: async () => undefined, issue: async () => pem }),
    })
    assert.equal(record.result, 'failed')
    assert.match(record.problem!, message)
    assert.match(record.problem!, /The one in use is good for 2[89] days more/)
    assert.equal(readFileSync(agent.file, 'utf8'), good)
  }
})

test('a directory that was tampered with: files that are no files, links, modes', async () => {
  const agent = new Agent()
  const elsewhere = join(agent.state, 'elsewhere')
  writeFileSync(elsewhere, 'not to be touched')
  mkdirSync(agent.file)
  writeFileSync(join(agent.file, 'x'), '')
  mkdirSync(join(agent.tls, 'status.json'))
  mkdirSync(join(agent.tls, '.left.tmp'))
  assert.equal((await agent.run()).result, 'ok')
  assert.deepEqual(readdirSync(agent.tls).toSorted(), [`${name}.pem`, 'status.json'])
  const pem = readFileSync(agent.file)
  writeFileSync(elsewhere, pem)
  rmSync(agent.file)
  symlinkSync(elsewhere, agent.file)
  assert.equal((await agent.run()).result, 'ok')
  assert.ok(lstatSync(agent.file).isFile())
  assert.deepEqual(readFileSync(elsewhere), pem)
  chmodSync(agent.file, 0o644)
  await agent.run()
  assert.equal(statSync(agent.file).mode & 0o7777, 0o640)
  assert.match(agent.said.at(-1)!.line, /had mode 644 and has 640 again/)
  assert.equal(agent.asked.length, 2)
})

test('a name that went away is renewed no more, and its key removed after a day; one that came back by then keeps it', async () => {
  const agent = new Agent()
  const old = 'old.tail.ts.net'
  agent.names = [name, old]
  await agent.run()
  agent.names = [name]
  await agent.run()
  agent.now += 23 * hour
  await agent.run()
  assert.ok(readdirSync(agent.tls).includes(`${old}.pem`))
  agent.names = [name, old]
  await agent.run()
  assert.equal(agent.asked.length, 2)
  agent.names = [name]
  await agent.run()
  agent.now += 23 * hour
  await agent.run()
  assert.ok(readdirSync(agent.tls).includes(`${old}.pem`), 'the day begins anew')
  agent.now += 2 * hour
  await agent.run()
  assert.deepEqual(readdirSync(agent.tls).toSorted(), [`${name}.pem`, 'status.json'])
  assert.match(agent.said.at(-1)!.line, /old\.tail\.ts\.net removed/)
  assert.equal(agent.asked.length, 2)
})

test('renewals that keep failing grow loud weeks before the end, with the days that are left', async () => {
  const agent = new Agent()
  await agent.run()
  const begin = agent.now
  agent.during = async () => {
    throw new IssueError('GH_CERTS_ACCOUNT', 'the account was closed', 'Make a new one')
  }
  const seen: Array<[number, Severity, number]> = []
  for (agent.now = begin + 59 * day; agent.now < begin + 92 * day; agent.now += 13 * hour) {
    const record = await agent.run()
    if (record.severity === undefined) continue
    assert.match(record.problem!, /the account was closed\. Make a new one\. The one in use/)
    if (seen.at(-1)?.[1] !== record.severity)
      seen.push([Math.floor((agent.now - begin) / day), record.severity, record.daysLeft!])
  }
  assert.deepEqual(
    seen.map(([, severity]) => severity),
    ['info', 'warning', 'error'],
  )
  const [info, warning, error] = seen.map(([, , left]) => left)
  assert.ok(
    info! >= 28 && warning! >= 20 && warning! <= 22 && error! >= 13 && error! <= 15,
    JSON.stringify(seen),
  )
  assert.match((await agent.run()).problem!, /The one in use expired at/)
  assert.ok(agent.said.some(({ severity }) => severity === 'error'))
})
