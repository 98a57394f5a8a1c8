/**
 * What `gatehouse status`, the log and the metrics say of certificates: each thing that can go
 * wrong, and how loud it is at what time.
 */
import assert from 'node:assert/strict'
import { chmodSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { call } from '../../../../src/base/control-client.ts'
import { table } from '../../../../src/gateway/operate/status-text.ts'
import { renew, writeFailure, writeRecord } from '../../../../src/certs/agent.ts'
import { Plans } from '../../../../src/certs/ari.ts'
import { failures, IssueError } from '../../../../src/certs/failure.ts'
import type { FailureCode } from '../../../../src/certs/failure.ts'
import { Ledger } from '../../../../src/certs/ledger.ts'
import { parseCertificate } from '../../../../src/certs/pem.ts'
import { History, readRecord } from '../../../../src/certs/record.ts'
import type { CertsRecord } from '../../../../src/certs/record.ts'
import { GatehouseError } from '../../../../src/base/errors.ts'
import { judgeCertificates, wantedAt } from '../../../../src/gateway/certificates/health.ts'
import { Authority } from '../../support/authority.ts'
import { Bench, name } from '../../support/bench.ts'
import { LoopbackTailnet } from '../../support/tailnet.ts'

const hour = 3_600_000
const day = 24 * hour
const authority = new Authority()
const root = mkdtempSync(join(tmpdir(), 'gh-health-'))
after(() => {
  authority.close()
  rmSync(root, { recursive: true, force: true })
})

/** What /metrics says of a series, by name or name and label. */
async function metric(bench: Bench, series: string): Promise<number | undefined> {
  const { body } = (await call(bench.admin, 'GET', '/metrics')) as { body: string }
  const line = body.split('\n').find((one) => one.startsWith(`${series} `))
  return line === undefined ? undefined : Number(line.slice(series.length + 1))
}

test('each failure has its message in status, as table and as JSON, its code, its severity, and its metric', async () => {
  // 20 of 90 days are left: the failure is a warning. It is the agent itself that writes the
  // record.
  const pem = authority.issue(
    name,
    new Date(Date.now() - 70 * day),
    new Date(Date.now() + 20 * day),
  )
  for (const code of Object.keys(failures) as FailureCode[]) {
    if (code === 'GH_CERTS_NAMES' || code === 'GH_CERTS_HTTPS_DISABLED') continue
    await using bench = await Bench.start({
      before: (made) => {
        made.putCertificate(pem)
        chmodSync(join(made.tls, `${name}.pem`), 0o640)
      },
    })
    const state = mkdtempSync(join(root, 's-'))
    await renew({
      names: [name],
      tls: bench.tls,
      ledger: await Ledger.open(state, 'https://acme.example/dir'),
      plans: await Plans.open(state, 'https://acme.example/dir'),
      say: () => {},
      issuer: async () => ({
        renewalInfo: async () => undefined,
        issue: async () => {
          throw new IssueError(code, `what ${code} is about`, `What to do about ${code}`)
        },
      }),
    })
    const status = await bench.gateway.status()
    const problem = status.problems.find(({ part }) => part === 'certificate')!
    assert.deepEqual(
      [status.ok, problem.code, problem.severity],
      [false, 'GH_CERTIFICATE_RENEWAL', 'warning'],
    )
    assert.match(
      problem.message,
      new RegExp(
        `was not renewed and expires at .*what ${code} is about\\. What to do about ` +
          `${code}\\. The one in use is good for (19|20) days more \\(${code}\\)`,
      ),
    )
    assert.deepEqual(
      [
        status.certificate.lastRun!.code,
        status.certificate.lastRun!.severity,
        status.certificate.lastRun!.daysLeft,
      ],
      [code, 'warning', 19],
    )
    assert.match(
      table(status),
      new RegExp(
        `^! certificate: .*what ${code} is about[^]*last look .*failed \\(${code}, warning\\), next attempt`,
      ),
    )
    assert.equal(
      bench.lines.filter(
        ({ level, code: logged }) => level === 40 && logged === 'GH_CERTIFICATE_RENEWAL',
      ).length,
      2,
      'logged as a warning, without and then with its cause',
    )
    assert.equal(
      await metric(bench, `gatehouse_certificate_failures_total{code="${code}"}`),
      1,
      code,
    )
    assert.equal(await metric(bench, 'gatehouse_certificate_attempts_total'), 1)
    assert.equal(
      await metric(bench, 'gatehouse_problem{part="certificate",code="GH_CERTIFICATE_RENEWAL"}'),
      1,
    )
  }
})

test('no HTTPS on the tailnet: said by the gateway itself, and told to the agent by its code', async () => {
  await using bench = await Bench.start({
    certificate: false,
    before: (made) => {
      made.tailnet.current = { ...LoopbackTailnet.running(), certDomains: [] }
    },
  })
  await bench.until(() => bench.gateway.problems.get('https') !== undefined)
  const { body } = await call(bench.certs, 'GET', '/v1/names')
  assert.deepEqual(
    [(body as { names: string[] }).names, (body as { code: string }).code],
    [[], 'GH_HTTPS_DISABLED'],
  )
  assert.match(
    table(await bench.gateway.status()),
    /^! https: HTTPS is not enabled on the tailnet, so there can be no certificate\.\n {2}→ Enable it in the admin console/,
  )
})

test('loud weeks before the end: nothing while the next attempts will do, a warning at three weeks, an error at two, another when it is over', () => {
  const begin = new Date('2027-01-01T00:00:00Z')
  const certificate = parseCertificate(
    authority.issue(name, begin, new Date(begin.getTime() + 90 * day)),
    name,
  )
  const at = (days: number, record?: Partial<CertsRecord>): [string, string] | undefined => {
    const now = new Date(begin.getTime() + days * day)
    const full = { checkedAt: now.toISOString(), result: 'ok' as const, names: [name], ...record }
    const found = judgeCertificates({
      names: [name],
      certificates: { get: () => certificate, refused: () => undefined },
      record: full,
      now,
      uptime: day,
    })
    return found === undefined ? undefined : [found.error.code, found.severity]
  }
  const failed = {
    result: 'failed',
    problem: 'the authority is down',
    code: 'GH_CERTS_AUTHORITY_DOWN',
  } as const
  for (const days of [1, 59, 61, 67]) {
    assert.equal(at(days), undefined, `${days} days`)
    assert.equal(at(days, { ...failed, severity: 'info' }), undefined, `${days} days`)
  }
  // With or without the agent's word.
  for (const record of [{}, { ...failed, severity: 'warning' as const }]) {
    assert.deepEqual(at(69, record), ['GH_CERTIFICATE_RENEWAL', 'warning'])
    assert.deepEqual(at(76, record), ['GH_CERTIFICATE_RENEWAL', 'error'])
    assert.deepEqual(at(90.1, record), ['GH_CERTIFICATE_EXPIRED', 'error'])
  }
  assert.deepEqual(
    at(1, { ...failed, severity: 'warning', code: 'GH_CERTS' }),
    ['GH_CERTS', 'warning'],
    'settings that cannot be read are said although the certificate is young',
  )
  assert.equal(
    at(1, { ...failed, severity: 'warning', code: 'GH_CERTS_NAMES' }),
    undefined,
    'there are names now',
  )
})

test('a clock behind the last good time is told, not taken for a certificate that is good for years', () => {
  const certificate = parseCertificate(
    authority.issue(name, new Date('2027-01-01T00:00:00Z'), new Date('2027-03-01T00:00:00Z')),
    name,
  )
  const judge = (now: string): string | undefined =>
    judgeCertificates({
      names: [name],
      certificates: { get: () => certificate, refused: () => undefined },
      now: new Date(now),
      uptime: 0,
      record: { checkedAt: now, result: 'ok', names: [name], goodTime: '2027-02-01T00:00:00.000Z' },
    })?.error.line
  assert.match(
    judge('1970-01-01T00:00:10Z')!,
    /the clock says 1970-01-01.*nobody can tell whether a certificate has expired.*GH_CERTS_CLOCK/,
  )
  assert.match(
    judge('2027-01-20T00:00:00Z')!,
    /before 2027-01-31T23:59:00\.000Z, when it was certainly right/,
  )
  assert.equal(judge('2027-02-01T00:00:30Z'), undefined)
})

test('an agent that has not run for a day is told, but not one that could not, for want of power', () => {
  const certificate = parseCertificate(authority.issue(name), name)
  const judge = (hours: number, uptime: number, checked = true): string | undefined =>
    judgeCertificates({
      names: [name],
      certificates: { get: () => certificate, refused: () => undefined },
      now: new Date(),
      uptime,
      record: checked
        ? {
            checkedAt: new Date(Date.now() - hours * hour).toISOString(),
            result: 'ok',
            names: [name],
          }
        : undefined,
    })?.error.code
  assert.equal(judge(27, 4 * hour), 'GH_CERTIFICATE_AGENT')
  assert.equal(judge(0, 4 * hour, false), 'GH_CERTIFICATE_AGENT')
  assert.equal(judge(27, hour), undefined)
  assert.equal(judge(25, 4 * hour), undefined)
})

test('a file that does not hold together, beside one in use, is a problem; what the agent put right is noted, and both have metrics', async () => {
  await using bench = await Bench.start()
  bench.putCertificate(authority.issue('other.tail.ts.net'), `${name}.pem`)
  await bench.gateway.certificates.reload()
  const [problem] = (await bench.gateway.status()).problems
  assert.deepEqual([problem!.code, problem!.severity], ['GH_CERTIFICATE_REFUSED', 'warning'])
  assert.match(
    problem!.message,
    /is not for gatehouse\.tail\.ts\.net\. The one before stays in use/,
  )
  const state = mkdtempSync(join(root, 's-'))
  const run = async (): Promise<CertsRecord> =>
    await renew({
      names: [name],
      tls: bench.tls,
      ledger: await Ledger.open(state, 'https://acme.example/dir'),
      plans: await Plans.open(state, 'https://acme.example/dir'),
      say: () => {},
      issuer: async () => ({
        renewalInfo: async () => undefined,
        issue: async () => bench.authority.issue(name),
      }),
    })
  await run()
  await bench.gateway.certificates.reload()
  const status = await bench.gateway.status()
  assert.deepEqual(
    [status.ok, status.certificate.notes.map(({ code }) => code)],
    [true, ['GH_CERTS_MISMATCH']],
  )
  assert.match(
    table(status),
    /\d+ s ago: the certificate for gatehouse\.tail\.ts\.net on disk was not usable: its certificate is not for .*It was replaced \(GH_CERTS_MISMATCH\)/,
  )
  assert.equal(
    await metric(bench, 'gatehouse_certificate_failures_total{code="GH_CERTS_MISMATCH"}'),
    1,
  )
  assert.equal(await metric(bench, 'gatehouse_certificate_issued_total'), 1)
  await run()
  assert.equal((await readRecord(bench.tls))!.notes!.length, 1, 'the next run does not forget it')
})

test('metrics of the certificate served; what has never happened is absent, not 1970', async () => {
  await using bench = await Bench.start()
  const { notAfter } = bench.gateway.certificates.get(name)!
  assert.equal(
    await metric(bench, `gatehouse_certificate_not_after_timestamp_seconds{name="${name}"}`),
    notAfter.getTime() / 1000,
  )
  const left = await metric(bench, `gatehouse_certificate_expiry_seconds{name="${name}"}`)
  assert.ok(Math.abs(left! - (notAfter.getTime() - Date.now()) / 1000) < 30, String(left))
  const moments = ['run', 'attempt', 'success'].map(
    (what) => `gatehouse_certificate_last_${what}_timestamp_seconds`,
  )
  for (const moment of moments) assert.equal(await metric(bench, moment), undefined, moment)
  const now = '2027-05-06T07:08:09.000Z'
  await writeRecord(bench.tls, {
    checkedAt: now,
    result: 'ok',
    names: [name],
    certificates: [{ name, notAfter: now, renewAt: now, from: 'authority' }],
    totals: {
      attempts: 3,
      issued: 2,
      failures: { GH_CERTS_DNS: 1 },
      lastAttempt: now,
      lastSuccess: now,
    },
  })
  await bench.gateway.status()
  for (const moment of [
    ...moments,
    `gatehouse_certificate_renewal_timestamp_seconds{name="${name}"}`,
  ])
    assert.equal(await metric(bench, moment), Date.parse(now) / 1000, moment)
  assert.deepEqual(
    [
      await metric(bench, 'gatehouse_certificate_attempts_total'),
      await metric(bench, 'gatehouse_certificate_issued_total'),
    ],
    [3, 2],
  )
  assert.deepEqual(
    [
      await metric(bench, 'gatehouse_certificate_failures_total{code="GH_CERTS_DNS"}'),
      await metric(bench, 'gatehouse_certificate_failures_total{code="GH_CERTS_DISK"}'),
    ],
    [1, 0],
  )
})

test('a record from disk is believed in nothing that is not as this program writes it', () => {
  const { totals, notes } = new History({
    checkedAt: 'x',
    result: 'ok',
    names: [],
    totals: {
      attempts: -1,
      issued: 'many',
      failures: { GH_CERTS_DNS: 2, nonsense: 7, GH_CERTS_DISK: 'x' },
      lastAttempt: 'never',
    } as never,
    notes: [
      { at: 'x', code: 'GH_CERTS', message: 'm' },
      { at: new Date().toISOString(), code: 'nonsense', message: 'm' },
      undefined,
    ] as never,
  })
  assert.deepEqual([totals, notes], [{ attempts: 0, issued: 0, failures: { GH_CERTS_DNS: 2 } }, []])
})

test('a run that never got to look: what is in place decides how loud it is, and the counts go on', async () => {
  const tls = mkdtempSync(join(root, 't-'))
  const error = new GatehouseError('GH_CERTS_HTTPS_DISABLED', 'HTTPS is not enabled', 'Enable it')
  const now = new Date()
  assert.deepEqual(
    (({ code, severity, daysLeft }) => [code, severity, daysLeft])(
      await writeFailure(tls, error, now, undefined),
    ),
    ['GH_CERTS_HTTPS_DISABLED', 'warning', undefined],
  )
  for (const [left, severity] of [
    [80, 'warning'],
    [20, 'warning'],
    [10, 'error'],
    [-1, 'error'],
  ] as const) {
    writeFileSync(
      join(tls, `${name}.pem`),
      authority.issue(
        name,
        new Date(now.getTime() - (90 - left) * day),
        new Date(now.getTime() + left * day + hour),
      ),
    )
    const record = await writeFailure(tls, error, now, now)
    assert.deepEqual(
      [record.severity, record.daysLeft, record.goodTime],
      [severity, Math.max(0, left), now.toISOString()],
    )
    assert.match(
      record.problem!,
      left < 0 ? /The one in use expired at/ : new RegExp(`good for ${left} days more`),
    )
  }
  assert.equal((await readRecord(tls))!.totals!.failures.GH_CERTS_HTTPS_DISABLED, 5)
})

test('the agent is woken when its record says so, once for each record', async () => {
  assert.equal(wantedAt(undefined), undefined)
  const renewAt = ['2027-01-02T00:00:00.000Z', '2027-01-01T00:00:00.000Z']
  const record: CertsRecord = {
    checkedAt: new Date().toISOString(),
    result: 'ok',
    names: [name],
    certificates: renewAt.map((at) => ({ name, notAfter: at, renewAt: at, from: 'lifetime' })),
  }
  assert.equal(wantedAt(record)!.toISOString(), renewAt[1])
  assert.equal(wantedAt({ ...record, result: 'failed' }), undefined, 'the timer does')
  assert.equal(
    wantedAt({ ...record, result: 'failed', next: renewAt[0]! })!.toISOString(),
    renewAt[0],
  )

  await using bench = await Bench.start()
  const path = join(bench.runtime, 'names')
  await bench.until(() => statSync(path, { throwIfNoEntry: false }) !== undefined)
  const inode = (): number => statSync(path).ino
  const due = {
    ...record,
    certificates: [
      { ...record.certificates![0]!, renewAt: new Date(Date.now() - 1000).toISOString() },
    ],
  }
  const before = inode()
  await writeRecord(bench.tls, due)
  await bench.until(() => inode() !== before)
  const woken = inode()
  await bench.gateway.status()
  await bench.gateway.status()
  assert.equal(inode(), woken, 'once')
})
