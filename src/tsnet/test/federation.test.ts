/** Workload identity: what is asked of the API for a token, and what comes of its answers. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import http from 'node:http'
import type { AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'
import { after, before, test } from 'node:test'
import { federatedKey } from '../federation.ts'
import { checkOptions, federation, logLevel } from '../options.ts'
import type { ServerOptions } from '../types.ts'

let api: http.Server
let controlURL: string
let asked: { url: string; type: string; authorization: string; body: string }[] = []
let flavor = ''
let answers: [status: number, body: string][] = []

before(async () => {
  api = http.createServer(async (req, res) => {
    const { authorization = '', 'content-type': type = '' } = req.headers
    asked.push({ url: req.url!, type, authorization, body: await text(req) })
    const [status, body] = answers.shift()!
    res.writeHead(status, {
      'Content-Type': 'application/json',
      ...(flavor && { 'Metadata-Flavor': flavor }),
    })
    res.end(body)
  })
  api.listen(0, '127.0.0.1')
  await once(api, 'listening')
  controlURL = `http://127.0.0.1:${(api.address() as AddressInfo).port}/`
})
after(() => api.close())

const key = (clientID = 'abc', idToken: string | (() => Promise<string>) = 'signed') =>
  federatedKey({ clientID, idToken, controlURL, tags: ['tag:ci'] })

test('the token for an access token, that for a key with the tags', async () => {
  asked = []
  answers = [
    [200, '{"access_token":"access"}'],
    [200, '{"key":"tskey-auth-made"}'],
  ]
  assert.equal(await key('abc?preauthorized=true', async () => 'fresh'), 'tskey-auth-made')
  assert.equal(asked[0]!.url, '/api/v2/oauth/token-exchange')
  const form = new URLSearchParams(asked[0]!.body)
  assert.deepEqual([form.get('client_id'), form.get('jwt')], ['abc', 'fresh'])
  assert.equal(asked[1]!.url, '/api/v2/tailnet/-/keys')
  assert.equal(asked[1]!.authorization, `Basic ${btoa('access:')}`)
  assert.deepEqual(JSON.parse(asked[1]!.body).capabilities.devices.create, {
    reusable: false,
    // As Tailscale has it: with attributes of which none says so, it is not.
    ephemeral: false,
    preauthorized: true,
    tags: ['tag:ci'],
  })
})

test('a refusal is TSNET_AUTH, in the words of the API and without the token', async () => {
  answers = [[401, '{"message":"token expired"}']]
  await assert.rejects(key(), (err: Error & { code: string }) => {
    assert.equal(err.code, 'TSNET_AUTH')
    assert.match(err.message, /no access token for the ID token: 401 .*token expired/)
    return !err.message.includes('signed')
  })
  answers = [
    [200, '{"access_token":"access"}'],
    [403, '{"message":"tag:ci is not yours"}'],
  ]
  await assert.rejects(key(), { code: 'TSNET_AUTH', message: /403 .*tag:ci is not yours/ })
  answers = [[200, '{}']]
  await assert.rejects(key(), { code: 'TSNET_AUTH', message: /the answer has none/ })
})

/** What an option `audience` makes of an environment. */
const token = async (env: Record<string, string>): Promise<string> => {
  const params = { authKey: '', clientSecret: '', controlURL, advertiseTags: ['tag:ci'] }
  const { idToken } = federation({ dir: 'x', clientID: 'abc', audience: 'us' }, env, params)!
  return await (idToken as () => Promise<string>)()
}

test('an audience: GitHub Actions is asked for the token, by the right that the job has', async () => {
  asked = []
  answers = [[200, '{"value":"of github"}']]
  const env = {
    ACTIONS_ID_TOKEN_REQUEST_URL: `${controlURL}token?api-version=2`,
    ACTIONS_ID_TOKEN_REQUEST_TOKEN: 'right',
    GCE_METADATA_HOST: '127.0.0.1:1',
  }
  assert.equal(await token(env), 'of github')
  assert.deepEqual(
    [asked[0]!.url, asked[0]!.authorization],
    ['/token?api-version=2&audience=us', 'Bearer right'],
  )
  answers = [[403, 'no permission']]
  await assert.rejects(token(env), (err: Error & { code: string }) => {
    assert.equal(err.code, 'TSNET_AUTH')
    assert.match(err.message, /GitHub Actions gave no ID token: 403 no permission/)
    return !err.message.includes('right')
  })
  answers = [[200, '{}']]
  await assert.rejects(token(env), { code: 'TSNET_AUTH', message: /answer has none/ })
})

test('an audience: else the metadata server of Google Cloud; without either it says so', async () => {
  const env = { GCE_METADATA_HOST: new URL(controlURL).host }
  asked = []
  answers = [[200, 'of google\n']]
  flavor = 'Google'
  assert.equal(await token(env), 'of google')
  assert.equal(
    asked[0]!.url,
    '/computeMetadata/v1/instance/service-accounts/default/identity?audience=us&format=full',
  )
  // Some other server at that address.
  flavor = ''
  answers = [[200, 'a page']]
  const message = /neither a job of GitHub Actions .* nor a machine of Google Cloud/
  await assert.rejects(token(env), { code: 'TSNET_AUTH', message })
  await assert.rejects(token({ GCE_METADATA_HOST: '127.0.0.1:1' }), { code: 'TSNET_AUTH', message })
})

test('what cannot work is said before anything is asked', async () => {
  asked = []
  await assert.rejects(key('abc?ephemeral=perhaps'), { code: 'TSNET_OPTIONS' })
  const none = { clientID: 'a', idToken: 'b', controlURL, tags: [] }
  await assert.rejects(federatedKey(none), { code: 'TSNET_OPTIONS', message: /advertiseTags/ })
  assert.deepEqual(asked, [])
})

test('precedence: a key or a client secret first; half of it is an error', () => {
  const of = (options: Partial<ServerOptions>, env: Record<string, string> = {}, authKey = '') =>
    federation({ dir: 'x', ...options } as ServerOptions, env, {
      authKey,
      clientSecret: '',
      controlURL: '',
      advertiseTags: ['tag:a'],
    })
  assert.equal(of({}), undefined)
  assert.equal(of({ clientID: 'a', idToken: 'b' }, {}, 'tskey-auth-x'), undefined)
  const made = { clientID: 'a', idToken: 'b', controlURL: '', tags: ['tag:a'] }
  assert.deepEqual(of({}, { TS_CLIENT_ID: 'a', TS_ID_TOKEN: 'b' }), made)
  assert.throws(() => of({ clientID: 'a' }), {
    code: 'TSNET_OPTIONS',
    message: /idToken \(or audience\) is missing/,
  })
  assert.throws(() => of({ audience: 'a' }), {
    code: 'TSNET_OPTIONS',
    message: /clientID is missing/,
  })
  assert.throws(() => of({ clientID: 'a', idToken: 'b' }, { TS_AUDIENCE: 'c' }), {
    code: 'TSNET_OPTIONS',
    message: /not both/,
  })
})

test('options that cannot work', () => {
  for (const [options, message] of [
    [{}, /dir is required/],
    [{ memory: true, store: { read: () => '', write: () => {} } }, /give one of both/],
    [{ dir: 'x', advertiseRoutes: ['10.0.0.0'] }, /write it as/],
    [{ dir: 'x', advertiseRoutes: ['10.0.0.0/33'] }, /write it as/],
    [{ dir: 'x', advertiseRoutes: ['0.0.0.0/0'] }, /exit node is not supported/],
    [{ dir: 'x', verbose: 3 }, /use true, false, 0, 1 or 2/],
  ] as const)
    assert.throws(() => checkOptions(options as unknown as ServerOptions), {
      code: 'TSNET_OPTIONS',
      message,
    })
  checkOptions({ memory: true, advertiseRoutes: ['10.0.0.0/8', 'fd00::/8'] })
})

test('the level of a line of the log', () => {
  assert.deepEqual(logLevel('magicsock: [v1] x'), { level: 1, text: 'magicsock: x' })
  assert.deepEqual(logLevel('[v2] y'), { level: 2, text: 'y' })
  assert.deepEqual(logLevel('z'), { level: 0, text: 'z' })
})
