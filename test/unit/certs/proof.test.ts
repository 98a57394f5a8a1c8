import assert from 'node:assert/strict'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { IncomingMessage, Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { once } from 'node:events'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, test } from 'node:test'
import { defaults } from '../../../src/config/config.ts'
import type { Config } from '../../../src/config/config.ts'
import type { IssueError } from '../../../src/certs/failure.ts'
import { allows, ownProver } from '../../../src/certs/proof.ts'
import type { Lookup, Prover, ProverOptions } from '../../../src/certs/proof.ts'
import { Secrets } from '../../../src/certs/secrets.ts'

let state: string
beforeEach(async () => {
  state = await mkdtemp(join(tmpdir(), 'gh-proof-'))
})
afterEach(async () => {
  await rm(state, { recursive: true })
})

async function prover(
  settings: Partial<Config['certificates']>,
  lookup: Partial<Lookup>,
  handed: Partial<ProverOptions['handed']> = {},
): Promise<Prover> {
  return await ownProver({
    settings: { ...defaults().certificates, mode: 'acme', dnsWait: 0, ...settings },
    authorities: undefined,
    handed: { tsigKey: undefined, acmeDnsPassword: undefined, ...handed },
    secrets: await Secrets.open(state),
    state,
    say: () => {},
    lookup: {
      cname: async () => await Promise.resolve(undefined),
      txt: async () => await Promise.resolve([]),
      ...lookup,
    },
  })
}

const challenge = { issuers: ['ca.example'], account: 'https://ca.example/acct/1' }
const record = 'ca.example; accounturi=https://ca.example/acct/1'

test('what a dns-persist-01 record allows', () => {
  for (const [text, plain, wildcard] of [
    [record, true, false],
    [`${record}; policy=wildcard`, true, true],
    [`${record};POLICY=Wildcard`, true, true],
    [`  ca.example ;accounturi = https://ca.example/acct/1 `, true, false],
    [`${record}; persistUntil=4102444800`, true, false],
    [`${record}; persistUntil=1`, false, false],
    ['other.example; accounturi=https://ca.example/acct/1', false, false],
    ['ca.example; accounturi=https://ca.example/acct/12', false, false],
    ['ca.example', false, false],
    ['', false, false],
  ] as const) {
    assert.equal(allows(text, challenge, false), plain, text)
    assert.equal(allows(text, challenge, true), wildcard, text)
  }
})

test('dns-persist-01: the record is told and waited for, remembered, and asks nothing when it is there', async () => {
  let there: string[] = []
  const lookup = { txt: async (): Promise<string[]> => await Promise.resolve(there) }
  const settings = { proof: 'dns-persist', name: ['a.example', '*.a.example'] } as const
  const first = await prover({ ...settings, name: [...settings.name] }, lookup)
  // Nothing is known yet: the authority has to say what it is called.
  await first.prepare('a.example', false)
  await assert.rejects(
    first.persist('a.example', false, challenge),
    (err: IssueError) =>
      err.code === 'GH_CERTS_RECORD' && err.cure.includes(`${record}; policy=wildcard`),
  )
  const second = await prover({ ...settings, name: [...settings.name] }, lookup)
  await assert.rejects(second.prepare('a.example', true), { code: 'GH_CERTS_RECORD' })
  there = ['something else', `${record}; policy=wildcard`]
  await second.prepare('a.example', true)
  assert.deepEqual(second.records(), [
    {
      name: '_validation-persist.a.example',
      type: 'TXT',
      value: `${record}; policy=wildcard`,
      there: true,
    },
  ])
})

test('dns-persist-01: a resolver that does not answer is no reason to wait', async () => {
  const silent = await prover(
    { proof: 'dns-persist', name: ['a.example'] },
    { txt: async () => await Promise.reject(new Error('ESERVFAIL')) },
  )
  await silent.persist('a.example', false, challenge)
})

/** What acme-dns answers, by its documentation; test/lab/own-names.test.ts has the real one. */
async function acmeDNS(
  answer: (request: IncomingMessage, body: string) => [number, unknown],
): Promise<{ server: Server; url: string }> {
  const server = createServer((request, response) => {
    let body = ''
    request
      .setEncoding('utf8')
      .on('data', (text: string) => {
        body += text
      })
      .on('end', () => {
        const [status, out] = answer(request, body)
        response.writeHead(status).end(typeof out === 'string' ? out : JSON.stringify(out))
      })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return { server, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/sub/` }
}

test('acme-dns: an account is made once, its alias waited for, its password in no message', async () => {
  const seen: string[] = []
  const { server, url } = await acmeDNS((request, body) => {
    seen.push(`${request.method} ${request.url} ${request.headers['x-api-user']} ${body}`)
    return request.url === '/sub/register'
      ? [201, { username: 'u', password: 'pw-secret', subdomain: 'd42', fulldomain: 'd42.auth.x' }]
      : [200, { txt: 'v' }]
  })
  const alias: { leads?: string } = {}
  const lookup = {
    cname: async (name: string): Promise<string | undefined> =>
      await Promise.resolve(name.startsWith('_acme') ? alias.leads : undefined),
  }
  const settings = { proof: 'acme-dns', acmeDns: url, name: ['a.example'] } as const
  const first = await prover({ ...settings, name: ['a.example'] }, lookup)
  await assert.rejects(
    first.prepare('a.example', false),
    (err: IssueError) =>
      err.code === 'GH_CERTS_RECORD' &&
      err.cure.includes('_acme-challenge.a.example CNAME d42.auth.x') &&
      !err.message.includes('pw-secret'),
  )
  alias.leads = 'd42.auth.x'
  const second = await prover({ ...settings, name: ['a.example'] }, lookup)
  await second.prepare('a.example', false)
  await second.publish('_acme-challenge.a.example', 'v'.repeat(43))
  assert.deepEqual(seen, [
    'POST /sub/register undefined ',
    `POST /sub/update u {"subdomain":"d42","txt":"${'v'.repeat(43)}"}`,
  ])
  server.close()
})

test('acme-dns: what it refuses, and what is no acme-dns', async () => {
  for (const [answer, expected] of [
    [[401, { error: 'forbidden' }], /401 \(forbidden\)\. ?|401/],
    [[500, 'oops'], /500/],
    [[200, '<html>a login page</html>'], /200/],
  ] as const) {
    const { server, url } = await acmeDNS(() => [answer[0], answer[1]])
    const given = await prover(
      { proof: 'acme-dns', acmeDns: url, acmeDnsUser: 'u', acmeDnsSubdomain: 's' },
      {},
      { acmeDnsPassword: 'wrong' },
    )
    await assert.rejects(
      given.publish('n', 'v'.repeat(43)),
      (err: IssueError) => err.code === 'GH_CERTS_UPDATE' && expected.test(err.message),
    )
    server.close()
  }
  await assert.rejects(readFile(join(state, 'secrets.json')), /ENOENT/, 'nothing is kept')
})

test('a secret is kept for what it is the secret of, and no longer found under another name', async () => {
  const secrets = await Secrets.open(state)
  await secrets.keep('tsig_key', 'one', 'abc')
  const again = await Secrets.open(state)
  assert.equal(again.get('tsig_key', 'one', undefined), 'abc')
  assert.equal(again.get('tsig_key', 'two', undefined), undefined)
  assert.equal(again.get('tsig_key', 'one', 'new'), 'new', 'what is on the card comes first')
  assert.equal(again.has('tsig_key', 'one', 'new'), false)
})
