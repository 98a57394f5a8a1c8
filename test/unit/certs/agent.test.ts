import assert from 'node:assert/strict'
import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { createServer } from 'node:https'
import type { AddressInfo } from 'node:net'
import { once } from 'node:events'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { createIssuer, parseRetryAfter } from '../../../src/certs/acme.ts'
import { tailnetProver } from '../../../src/certs/proof.ts'
import { IssueError } from '../../../src/certs/failure.ts'
import { renew } from '../../../src/certs/agent.ts'
import type { AgentOptions } from '../../../src/certs/agent.ts'
import { Plans } from '../../../src/certs/ari.ts'
import { Ledger } from '../../../src/certs/ledger.ts'
import { readRecord } from '../../../src/certs/record.ts'
import { runCerts } from '../../../src/certs/run.ts'
import { paths } from '../../../src/base/paths.ts'
import { Authority } from '../support/authority.ts'

const name = 'gatehouse.tail.ts.net'
const minute = 60_000
const day = 86_400_000
const authority = new Authority()
const root = mkdtempSync(join(tmpdir(), 'gh-certs-'))
after(() => {
  authority.close()
  rmSync(root, { recursive: true, force: true })
})

/** An agent whose clock and authority are the test's. */
function agent(): {
  options: () => Promise<AgentOptions>
  tls: string
  state: string
  clock: { now: number }
  asked: string[]
  said: string[]
  fail: { with?: IssueError }
} {
  const directory = mkdtempSync(join(root, 'a-'))
  const tls = join(directory, 'tls')
  const state = join(directory, 'state')
  mkdirSync(tls)
  mkdirSync(state)
  const clock = { now: Date.now() }
  const asked: string[] = []
  const said: string[] = []
  const fail: { with?: IssueError } = {}
  // A ledger opened anew each time: what one run learns, the next must read from disk.
  const options = async (): Promise<AgentOptions> => ({
    names: [name],
    tls,
    ledger: await Ledger.open(state, 'https://acme.example/dir'),
    plans: await Plans.open(state, 'https://acme.example/dir'),
    now: () => new Date(clock.now),
    say: (line) => {
      said.push(line)
    },
    issuer: async () => ({
      renewalInfo: async () => undefined,
      issue: async (which) => {
        asked.push(which)
        if (fail.with !== undefined) throw fail.with
        return authority.issue(which, new Date(clock.now - 3_600_000))
      },
    }),
  })
  return { options, tls, state, clock, asked, said, fail }
}

test('a certificate is got once and left alone for two thirds of its lifetime', async () => {
  const { options, tls, clock, asked } = agent()
  assert.equal((await renew(await options())).result, 'ok')
  assert.equal(statSync(join(tls, `${name}.pem`)).mode & 0o777, 0o640)
  assert.deepEqual(readdirSync(tls).toSorted(), [`${name}.pem`, 'status.json'])
  clock.now += 59 * day
  assert.equal((await renew(await options())).result, 'ok')
  assert.equal(asked.length, 1)
  clock.now += 2 * day
  await renew(await options())
  assert.equal(asked.length, 2)
})

test('a file that does not hold together is replaced, and what a power cut left is removed', async () => {
  const { options, tls, asked } = agent()
  writeFileSync(join(tls, `${name}.pem`), '')
  writeFileSync(join(tls, `.${name}.pem.123.tmp`), 'half a key')
  await renew(await options())
  assert.equal(asked.length, 1)
  assert.deepEqual(readdirSync(tls).toSorted(), [`${name}.pem`, 'status.json'])
})

test('after a failure the wait is kept on disk, doubles, and is not shortened by restarts', async () => {
  const { options, clock, asked, fail, tls } = agent()
  fail.with = new IssueError('GH_CERTS_ORDER', 'no', 'Wait')
  let last = 0
  for (let i = 1; i <= 4; i++) {
    const record = await renew(await options())
    assert.deepEqual([record.result, asked.length], ['failed', i])
    const wait = Date.parse(record.next!) - clock.now
    const full = 15 * minute * 2 ** (i - 1)
    assert.ok(wait >= full && wait <= full * 1.25, `attempt ${i}: ${wait / minute} min`)
    assert.ok(wait > last)
    last = wait
    // However often it is started in between, the authority is not asked.
    for (const part of [0, 0.5, 0.99]) {
      clock.now += 0
      const held = await renew({
        ...(await options()),
        now: () => new Date(clock.now + wait * part),
      })
      assert.deepEqual([held.result, held.next, asked.length], ['waiting', record.next, i])
      assert.match(held.problem!, /no certificate for gatehouse\.tail\.ts\.net: no\. Wait/)
    }
    clock.now += wait + 1
  }
  assert.equal((await readRecord(tls))!.result, 'waiting')
  delete fail.with
  assert.equal((await renew(await options())).result, 'ok')
  rmSync(join(tls, `${name}.pem`))
  fail.with = new IssueError('GH_CERTS_ORDER', 'no', 'Wait')
  const fresh = await renew(await options())
  assert.ok(
    Date.parse(fresh.next!) - clock.now <= 15 * 1.25 * minute,
    'a success forgets the failures',
  )
})

test('Retry-After is kept to when it is longer', async () => {
  const { options, clock, fail } = agent()
  fail.with = new IssueError('GH_CERTS_RATE_LIMITED', 'rate limited', 'Wait', {
    retryAfter: 30 * 3_600_000,
  })
  assert.equal(Date.parse((await renew(await options())).next!), clock.now + 30 * 3_600_000)
  assert.deepEqual(
    [
      parseRetryAfter('120'),
      parseRetryAfter(new Date(10_000).toUTCString(), 4_000),
      parseRetryAfter('soon'),
      parseRetryAfter(undefined),
    ],
    [120_000, 6_000, undefined, undefined],
  )
})

test('a wait written by a clock that was years ahead does not hold for years', async () => {
  const { options, clock, asked, fail } = agent()
  const now = clock.now
  clock.now = now + 3 * 365 * day
  fail.with = new IssueError('GH_CERTS_ORDER', 'no', 'Wait')
  await renew(await options())
  clock.now = now
  delete fail.with
  assert.equal((await renew(await options())).result, 'ok')
  assert.equal(asked.length, 2)
})

test('one name that fails does not keep the others from being tried', async () => {
  const { options, tls } = agent()
  const base = await options()
  const record = await renew({
    ...base,
    names: ['bad.tail.ts.net', name],
    issuer: async () => ({
      renewalInfo: async () => undefined,
      issue: async (which) => {
        if (which !== name) throw new IssueError('GH_CERTS_ORDER', 'no', 'Wait')
        return authority.issue(which)
      },
    }),
  })
  assert.equal(record.result, 'failed')
  assert.ok(readdirSync(tls).includes(`${name}.pem`))
})

test('an authority over real TLS: its rate limit is told with Retry-After, and the account key is made once', async () => {
  const pem = authority.issue('localhost')
  const newAccounts: string[] = []
  const server = createServer({ cert: pem, key: pem }, (request, response) => {
    const base = `https://localhost:${(server.address() as AddressInfo).port}`
    response.setHeader('replay-nonce', 'abc')
    if (request.url === '/dir') {
      response.setHeader('content-type', 'application/json')
      response.end(
        JSON.stringify({
          newNonce: `${base}/nonce`,
          newAccount: `${base}/account`,
          newOrder: `${base}/order`,
        }),
      )
    } else if (request.url === '/account') {
      request
        .setEncoding('utf8')
        .on('data', (data: string) => newAccounts.push(data))
        .on('end', () => {
          response.writeHead(429, {
            'retry-after': '7200',
            'content-type': 'application/problem+json',
          })
          response.end(
            JSON.stringify({
              type: 'urn:ietf:params:acme:error:rateLimited',
              detail: 'too many registrations',
            }),
          )
        })
    } else if (request.url === '/down') {
      response.writeHead(503, { 'retry-after': new Date(Date.now() + 3_600_000).toUTCString() })
      response.end('maintenance')
    } else {
      response.end()
    }
  }).listen(0, 'localhost')
  await once(server, 'listening')
  const state = mkdtempSync(join(root, 's-'))
  const directory = `https://localhost:${(server.address() as AddressInfo).port}/dir`
  const issue = async (authorities: string | undefined): Promise<IssueError> => {
    const issuer = await createIssuer({
      directory,
      authorities,
      email: 'a@example.org',
      state,
      prover: tailnetProver(async () => {}),
    })
    return await issuer.issue(name).then(
      () => assert.fail('issued'),
      (err: IssueError) => err,
    )
  }
  try {
    const limited = await issue(authority.certificate)
    assert.deepEqual([limited.code, limited.retryAfter], ['GH_CERTS_RATE_LIMITED', 7_200_000])
    assert.match(limited.message, /limits the rate: too many registrations/)
    assert.equal(newAccounts.length, 1, 'asked once, not again and again')
    const key = readFileSync(join(state, 'account.pem'), 'utf8')
    assert.equal(statSync(join(state, 'account.pem')).mode & 0o777, 0o600)
    await issue(authority.certificate)
    assert.equal(readFileSync(join(state, 'account.pem'), 'utf8'), key)
    const down = await createIssuer({
      directory: directory.replace('/dir', '/down'),
      authorities: authority.certificate,
      email: undefined,
      state,
      prover: tailnetProver(async () => {}),
    })
    for (const asked of [down.issue(name), down.renewalInfo('a.b')]) {
      const err = await asked.then(
        () => assert.fail('answered'),
        (err: IssueError) => err,
      )
      assert.equal(err.code, 'GH_CERTS_AUTHORITY_DOWN')
      assert.match(err.message, /answers 503/)
      assert.ok(err.retryAfter! > 3_590_000 && err.retryAfter! <= 3_600_000, `${err.retryAfter}`)
    }
    const none = await createIssuer({
      directory,
      authorities: authority.certificate,
      email: undefined,
      state,
      prover: tailnetProver(async () => {}),
    })
    assert.equal(await none.renewalInfo('a.b'), undefined, 'its directory has no such service')
    const stranger = new Authority()
    const untrusted = await issue(stranger.certificate)
    stranger.close()
    assert.equal(untrusted.code, 'GH_CERTS_AUTHORITY_DOWN', untrusted.message)
    assert.match(untrusted.message, /is not trusted/)
  } finally {
    server.closeAllConnections()
    server.close()
  }
  const gone = await issue(authority.certificate)
  assert.deepEqual(
    [gone.code, gone.message],
    [
      'GH_CERTS_AUTHORITY_DOWN',
      `the ACME directory ${URL.parse(directory)!.host} cannot be reached (ECONNREFUSED)`,
    ],
  )
})

test('an account key that is damaged is put aside; one that cannot be read is left where it is, and said', async () => {
  const state = mkdtempSync(join(root, 'k-'))
  const issuer = async (): Promise<unknown> =>
    await createIssuer({
      directory: 'https://127.0.0.1:1/dir',
      authorities: undefined,
      email: undefined,
      state,
      prover: tailnetProver(async () => {}),
    })
  writeFileSync(join(state, 'account.pem'), '-----BEGIN PRIVATE KEY-----\nhalf')
  await issuer()
  assert.match(readFileSync(join(state, 'account.pem'), 'utf8'), /-----END PRIVATE KEY-----/)
  assert.match(readFileSync(join(state, 'account.pem.damaged'), 'utf8'), /half/)
  rmSync(join(state, 'account.pem'))
  mkdirSync(join(state, 'account.pem'))
  await assert.rejects(issuer(), /the account key .*account\.pem cannot be read: EISDIR/)
  assert.ok(statSync(join(state, 'account.pem')).isDirectory())
})

test('a clock before the build is refused, and said in the record', async () => {
  const { tls, state } = agent()
  const where = paths({
    GATEHOUSE_TLS_DIR: tls,
    STATE_DIRECTORY: state,
    GATEHOUSE_CONFIG_DIR: '/nonexistent',
  })
  assert.equal(await runCerts(where, {}, () => new Date(0)), 1)
  assert.match((await readRecord(tls))!.problem!, /the clock says 1970-01-01.*GH_CERTS_CLOCK/)
  assert.deepEqual(readdirSync(state), [], 'nothing was made')
})
