import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { createBroker } from '../../../../src/broker/server.ts'
import { Settings } from '../../../../src/broker/settings.ts'
import { GatehouseError } from '../../../../src/base/errors.ts'
import { describe } from '../../../../src/config/describe.ts'
import { capability } from '../../../../src/gateway/access/access.ts'
import { Bench, name } from '../../support/bench.ts'
import { ask } from '../../support/h2.ts'
import { alice, tagged } from '../../support/tailnet.ts'
import type { WhoIs } from '@gatehouse/tsnet'

const own = 10_000
const file = '[access]\nview = ["bob@example.com"]\n'

/** A gateway with the real broker behind its API; what the broker asks of systemd is kept. */
async function start({ owned = false } = {}) {
  const asked: string[][] = []
  let boot = ''
  const bench = await Bench.start({
    before: (made) => {
      boot = join(made.directory, 'efi')
      const { tailnet } = made
      if (owned)
        tailnet.self = {
          ...tailnet.self,
          node: { ...tailnet.self.node, tags: [] },
          user: alice.user!,
        }
      mkdirSync(boot)
      mkdirSync(join(made.directory, 'state'))
      writeFileSync(join(boot, 'gatehouse.toml'), file)
    },
    options: {
      get broker() {
        return join(boot, '../broker.sock')
      },
      get state() {
        return join(boot, '../state')
      },
    },
  })
  const system = {
    systemctl: async (...args: string[]) => {
      asked.push(args)
      return ''
    },
    // journalctl, with one line of the firewall's that is one of the journal's as well.
    stream: () =>
      spawn('echo', [
        JSON.stringify({
          ...{ __REALTIME_TIMESTAMP: '1790000000000000', PRIORITY: '6' },
          _SYSTEMD_UNIT: 'node-red.service',
          MESSAGE:
            'gatehouse-drop out-node-red: IN= OUT=eth0 DST=192.168.1.10 PROTO=TCP DPT=1883 UID=603',
        }),
      ]),
  }
  const paths = {
    ...{ boot, admin: bench.admin, config: join(boot, '../config') },
    problem: join(boot, '../problem'),
    data: join(boot, '../lib'),
  }
  const say = (): void => {}
  const settings = new Settings({ paths, system, say, showCode: async () => {} })
  process.env['GATEHOUSE_UPDATE_ASKED'] = join(boot, '../asked')
  const alerts = join(boot, '../alerts')
  mkdirSync(alerts)
  const tested = {
    at: '2099-01-01T00:00:00.000Z',
    results: [{ channel: 'webhook', ok: true, said: '200' }],
  }
  writeFileSync(join(alerts, 'tested.json'), JSON.stringify(tested))
  const broker = await createBroker({ paths, settings, system, say, alerts })
  await broker.listen({ path: join(boot, '../broker.sock') })
  const call = async (method: string, path: string, body?: unknown, headers = {}) => {
    const { status, text } = await bench.fetch({
      ...{ port: own, method, path: `/api/v1${path}` },
      headers: {
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        ...headers,
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    })
    return { status, text, body: text.startsWith('{') ? JSON.parse(text) : undefined }
  }
  return {
    ...{ bench, broker, call, asked, boot },
    async [Symbol.asyncDispose]() {
      await bench[Symbol.asyncDispose]()
      await broker.close()
    },
  }
}

test('the owner changes settings from the tailnet, and the audit log says so', async () => {
  await using device = await start()
  const { call, boot, asked } = device
  const me = await call('GET', '/me')
  assert.ok(me.body.rights.includes('manage'))
  const { body: shown } = await call('GET', '/settings')
  assert.equal(shown.text, file)
  const text = file.replace('bob', 'carol')
  const tried = await call('POST', '/settings/try', { text, digest: shown.digest })
  assert.equal(tried.status, 200, tried.text)
  assert.equal(readFileSync(join(boot, 'gatehouse.toml'), 'utf8'), text)
  assert.deepEqual(asked[0], ['restart', 'gatehouse-provision.service'])
  assert.equal((await call('POST', '/settings/confirm', { id: tried.body.id })).status, 200)
  const { body: audit } = await call('GET', '/audit')
  assert.deepEqual(
    audit.entries.map(({ what }: { what: string }) => what),
    ['settings.confirm', 'settings.try'],
  )
  assert.deepEqual(audit.entries[1].detail, [
    { key: 'access.view', before: ['bob@example.com'], after: ['carol@example.com'] },
  ])
  assert.equal(audit.entries[1].who, me.body.who)
})

test('every call as one who may see the status, who may edit flows, and who may nothing', async () => {
  await using device = await start()
  const { bench, call, asked } = device
  const reads = [
    '/status',
    '/figures',
    '/me',
    '/schema',
    '/metrics',
    '/healthz',
    '/access?who=a%40b',
  ]
  const changes: Array<[string, string, unknown]> = [
    ['GET', '/settings', undefined],
    ['GET', '/audit', undefined],
    ['GET', '/journal?unit=node-red', undefined],
    ['GET', '/devices', undefined],
    ['GET', '/doctor', undefined],
    ['GET', '/refused', undefined],
    ['GET', '/support', undefined],
    ['GET', '/update', undefined],
    ['POST', '/settings/check', { text: '' }],
    ['POST', '/settings/try', { text: '', digest: '0'.repeat(64) }],
    ['POST', '/settings/confirm', { id: 'AAAAAAAAAAAA' }],
    ['POST', '/settings/revert', { id: 'AAAAAAAAAAAA' }],
    ['POST', '/node-red/restart', {}],
    ['POST', '/device/restart', {}],
    ['POST', '/device/power-off', {}],
    ['POST', '/device/reset', { name: 'gatehouse' }],
    ['POST', '/update/check', {}],
    ['POST', '/backup', { passphrase: 'correct horse' }],
    ['POST', '/restore', {}],
    ['POST', '/status', {}],
  ]
  for (const [may, expected] of [
    [['status'], 200],
    [['edit', 'use'], 403],
    [[], 403],
  ] as const) {
    bench.tailnet.peer = { ...alice, capMap: { [capability]: [{ may }] } }
    for (const path of reads) {
      const { status } = await call('GET', path)
      assert.equal(status, expected, `${may.join()} ${path}`)
    }
    for (const [method, path, body] of changes) {
      const { status } = await call(method, path, body)
      assert.equal(status, 403, `${may.join()} ${method} ${path}`)
    }
  }
  assert.deepEqual(asked, [])
  bench.tailnet.peer = {
    ...alice,
    capMap: { [capability]: [{ may: ['manage'] }] },
  }
  assert.equal((await call('GET', '/settings')).status, 200)
  assert.equal((await call('POST', '/node-red/restart', {})).status, 200)
  assert.deepEqual(asked, [['restart', 'node-red.service']])
})

/** Bodies of calls that want one; what each would do is refused or harmless here. */
const bodies: Record<string, unknown> = {
  '/settings/check': { text: '' },
  '/settings/try': { text: '', digest: '0'.repeat(64) },
  '/settings/confirm': { id: 'AAAAAAAAAAAA' },
  '/settings/revert': { id: 'AAAAAAAAAAAA' },
  '/device/reset': { name: 'another' },
  '/backup': { passphrase: 'correct horse' },
}
const queries: Record<string, string> = { '/access': '?who=a%40b', '/journal': '?lines=5' }

/** Calls of the API, as its own document has them. */
interface Document {
  openapi: string
  paths: Record<
    string,
    Record<
      string,
      {
        summary?: string
        'x-gatehouse-right'?: string
        requestBody?: object
        responses: Record<string, { content?: Record<string, { schema?: object }> }>
      }
    >
  >
}

async function described(call: (method: string, path: string) => Promise<{ text: string }>) {
  const document = JSON.parse((await call('GET', '/openapi.json')).text) as Document
  return Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, described]) => ({
      ...{ method: method.toUpperCase(), path: path.replace('/api/v1', ''), described },
    })),
  )
}

test('each call that there is describes itself, and needs the right that it says', async () => {
  await using device = await start()
  const { bench, call, asked } = device
  const { limits } = bench.gateway
  // Each call has a connection of its own: more of them a second than one peer may have.
  limits.settings = { ...limits.settings, newConnections: 0, newConnectionsPerPeer: 0 }
  const all = await described(call)
  assert.ok(all.length >= 30, `${all.length} calls`)
  for (const { method, path, described: says } of all) {
    const what = `${method} ${path}`
    assert.ok((says.summary ?? '') !== '', what)
    const content = Object.values(says.responses['200']?.content ?? {})
    assert.ok(content.every(({ schema }) => schema !== undefined) && content.length === 1, what)
    assert.ok(says.responses['4XX'] !== undefined && says.responses['5XX'] !== undefined, what)
    if (method === 'POST' && path !== '/restore') assert.ok(says.requestBody !== undefined, what)
  }
  const grant = (may: readonly string[]) => ({ [capability]: [{ may }] })
  const peers: Array<[who: string, peer: WhoIs | Error, may: readonly string[]]> = [
    ['viewer', { ...alice, capMap: grant(['status']) }, ['status']],
    ['editor', { ...alice, capMap: grant(['view', 'edit', 'use']) }, []],
    ['one who may nothing', { ...alice, capMap: grant([]) }, []],
    ['stranger', { ...alice, capMap: {}, user: { ...alice.user!, id: 99 } }, []],
    ['tagged node', { ...tagged, capMap: {} }, []],
    ['tagged node with a grant', { ...tagged, capMap: grant(['status']) }, ['status']],
    ['one that the tailnet does not know', new Error('peer not found'), []],
  ]
  for (const [who, peer, may] of peers) {
    bench.tailnet.peer = peer
    for (const { method, path, described: says } of all) {
      const body = method === 'POST' ? (bodies[path] ?? {}) : undefined
      const { status, text } = await call(method, `${path}${queries[path] ?? ''}`, body)
      const open = may.includes('status') && says['x-gatehouse-right'] === 'status'
      assert.equal(status, open ? 200 : 403, `${who} ${method} ${path}: ${text}`)
    }
  }
  // The owner's browser, on a page of somebody else's.
  bench.tailnet.peer = alice
  const foreign = { 'sec-fetch-site': 'cross-site', origin: 'https://evil.example' }
  for (const { method, path } of all) {
    const body = method === 'POST' ? (bodies[path] ?? {}) : undefined
    const { status } = await call(method, `${path}${queries[path] ?? ''}`, body, foreign)
    assert.equal(status, 403, `another origin: ${method} ${path}`)
  }
  assert.deepEqual(asked, [])
})

test('answers are as their schema says, and nothing of them is lost', async () => {
  await using device = await start()
  const { bench, broker, call } = device
  const same = async (path: string, made: unknown): Promise<void> => {
    const { status, text } = await call('GET', path)
    assert.equal(status, 200, `${path}: ${text}`)
    // Times of "now" differ.
    const still = (value: string): unknown =>
      JSON.parse(value.replaceAll(/\d{4}-\d\d-\d\dT[\d:.]+Z/g, ''))
    assert.deepEqual(still(text), still(JSON.stringify(made)), path)
  }
  bench.gateway.problems.set('upstream', new GatehouseError('GH_X', 'it is down', 'wait'), 'error')
  await same('/status', await bench.gateway.status())
  for (const path of ['/settings', '/update', '/devices', '/refused'])
    await same(path, JSON.parse((await broker.inject({ url: `/v1${path}` })).body))
  await same('/schema', { tables: describe() })
  const { body: doctor } = await call('GET', '/doctor')
  const examined = await bench.gateway.examine()
  assert.deepEqual(
    doctor.checks
      .map((check: object) => Object.keys(check).toSorted().join())
      .slice(-examined.length),
    examined.map((check) => Object.keys(check).toSorted().join()),
  )
  const { body: checked } = await call('POST', '/settings/check', {
    text: '[console]\nlogin = true\n[access]\nview = ["carol@example.com"]\n',
  })
  assert.deepEqual(checked, {
    changes: [
      { key: 'access.view', before: ['bob@example.com'], after: ['carol@example.com'] },
      { key: 'console.login', after: true },
    ],
    ...{ issues: [], guarded: ['console.login'] },
  })
  const { body: wrong } = await call('POST', '/settings/check', { text: 'x = 1\n' })
  assert.deepEqual(Object.keys(wrong.issues[0]).toSorted(), ['code', 'cure', 'line', 'message'])
  assert.equal((await call('POST', '/alerts/test', {})).body.results[0].said, '200')
  assert.deepEqual((await call('POST', '/node-red/restart', {})).body, { done: true })
  assert.equal((await call('GET', '/me')).body.fresh, true)
  assert.deepEqual((await call('GET', '/backup')).body, { nightly: false, busy: false })
  assert.deepEqual((await call('POST', '/update/look', {})).body, {})
  assert.equal((await call('POST', '/update/back', {})).body.error.code, 'GH_UPDATE_BACK')
  assert.equal((await call('POST', '/backup/now', {})).body.error.code, 'GH_BACKUP_NONE')
  for (const path of [
    '/welcome/done',
    '/update/check',
    '/learn',
    '/device/restart',
    '/device/power-off',
  ])
    assert.equal((await call('POST', path, {})).status, 200, path)
  assert.match((await call('GET', '/journal?lines=5')).text, /^\{"at":".*","unit":"node-red"/)
  assert.match((await call('GET', '/metrics')).text, /^# HELP /)
  assert.equal((await call('GET', '/me')).body.fresh, undefined)
  const bundle = (await call('GET', '/support')).body
  assert.equal(bundle.settings.text, file)
  // What no schema describes is refused.
  assert.equal((await call('POST', '/learn', { more: 1 })).status, 400)
  assert.equal((await call('POST', '/settings/check', { text: 1 })).status, 400)
  assert.equal((await call('GET', '/journal?program=sh')).status, 400)
})

test('the key of the device is renewed by its owner alone: with a login, or an auth key that is good', async () => {
  await using tagged = await start()
  const none = await tagged.call('POST', '/tailnet/renew', {})
  assert.equal(none.body.error.code, 'GH_KEY_OWNER')
  await using device = await start({ owned: true })
  const { bench, call } = device
  const { tailnet } = bench
  const renew = async () => await call('POST', '/tailnet/renew', {})
  const expiring = (at: string | undefined): void => {
    const { self, ...rest } = tailnet.current
    const { keyExpiry: _, ...node } = self!
    tailnet.become({ ...rest, self: { ...node, ...(at === undefined ? {} : { keyExpiry: at }) } })
  }
  assert.deepEqual(tailnet.locals, [])
  expiring('2099-01-01T00:00:00Z')
  tailnet.onLocal = (path) => {
    if (path === 'login-interactive') tailnet.emit('loginURL', 'https://control.example/a/1')
  }
  const asked = await renew()
  assert.deepEqual(
    asked.body,
    { renewed: false, loginURL: 'https://control.example/a/1' },
    asked.text,
  )
  // An auth key that is used up is let go of, which takes a moment, and then there is a URL.
  let refused = true
  tailnet.locals.length = 0
  tailnet.onLocal = (path) => {
    if (path === 'start') refused = false
    else if (refused) tailnet.emit('message', 'invalid key: tskey-auth-abc is used up')
    else tailnet.emit('loginURL', 'https://control.example/a/2')
  }
  assert.equal((await renew()).body.loginURL, 'https://control.example/a/2')
  assert.deepEqual(tailnet.locals, ['login-interactive', 'start', 'login-interactive'])
  tailnet.onLocal = () => expiring('2099-07-01T00:00:00Z')
  assert.deepEqual((await renew()).body, { renewed: true })
  expiring(undefined)
  assert.equal((await renew()).body.error.code, 'GH_KEY_RENEW')
  assert.ok(bench.lines.every((line) => !JSON.stringify(line).includes('tskey-auth-abc')))
})

test('no page of another origin, and no port but its own', async () => {
  await using device = await start()
  const { bench, call, asked } = device
  for (const headers of [
    { 'sec-fetch-site': 'same-site', origin: 'https://gatehouse.tail.ts.net:8443' },
    { 'sec-fetch-site': 'cross-site', origin: 'https://evil.example' },
    { origin: 'null' },
    { origin: 'https://gatehouse.tail.ts.net' },
  ])
    for (const method of ['GET', 'POST'])
      assert.equal((await call(method, '/device/restart', undefined, headers)).status, 403)
  for (const port of [443, 8_443]) {
    const before = bench.origin.requests.length
    const { status } = await bench.fetch({ port, path: '/api/v1/settings' })
    // That is an address of Node-RED's there.
    assert.equal(status, 200)
    assert.equal(bench.origin.requests.length, before + 1)
  }
  assert.deepEqual(asked, [])
})

test('what is wrong is said as JSON with its cure: mistakes, an unknown call, no broker', async () => {
  await using device = await start()
  const { call, bench } = device
  const wrong = await call('POST', '/settings/try', {
    text: '[tailnet]\nhostnam = "x"\n',
    digest: 'x',
  })
  assert.equal(wrong.status, 422)
  const { body: shown } = await call('GET', '/settings')
  const mistake = { text: '[tailnet]\nhostnam = "x"\n', digest: shown.digest }
  const answer = await call('POST', '/settings/try', mistake)
  assert.match(answer.body.error.message, /line 2: .*hostnam/)
  assert.match(answer.body.error.cure, /hostname/)
  assert.equal((await call('POST', '/settings/try', { text: '' })).status, 400)
  assert.equal((await call('POST', '/settings/try', 'text')).status, 400)
  const nothing = await call('GET', '/nothing')
  assert.equal(nothing.body.error.code, 'GH_API_PATH')
  const reset = await call('POST', '/device/reset', { name: 'other' })
  assert.equal(reset.body.error.code, 'GH_RESET_NAME')
  await using alone = await Bench.start()
  const { status, text } = await alone.fetch({ port: own, path: '/api/v1/settings' })
  assert.equal(status, 503)
  assert.match(text, /GH_BROKER/)
  assert.ok(bench.lines.every((line) => !JSON.stringify(line).includes('correct horse')))
})

test('over HTTP/2 too', async () => {
  await using device = await start()
  const session = await device.bench.session({}, own)
  const { status, text } = await ask(session, {
    ':authority': `${name}:${own}`,
    ':path': '/api/v1/me',
  })
  assert.equal(status, 200)
  assert.match(text, /"manage"/)
  session.close()
})
