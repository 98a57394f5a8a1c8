import assert from 'node:assert/strict'
import { createHmac, randomBytes } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import {
  allRights,
  capability,
  decide,
  needed,
  policyFor,
} from '../../../../src/gateway/access/access.ts'
import type { Access, Right } from '../../../../src/gateway/access/access.ts'
import { channelHeader } from '../../../../src/config/header-names.ts'
import { assertion } from '../../../../src/gateway/access/channel.ts'
import { makeChannelKey } from '../../../../src/provision/channel.ts'
import type { WhoIs } from '@gatehouse/tsnet'
import { Bench } from '../../support/bench.ts'
import { alice, tagged } from '../../support/tailnet.ts'

const none = { view: [], edit: [], use: [] }
const person = (id: number, loginName: string, capMap: WhoIs['capMap'] = {}): WhoIs => ({
  node: { ...alice.node, id: `n${id}` },
  user: { id, loginName, displayName: loginName, profilePicURL: '' },
  capMap,
})
const grant = (...may: unknown[]): WhoIs['capMap'] => ({
  [capability]: may.map((right) => ({ may: right })),
})
const rights = (access: Access): Right[] => [...access.rights].toSorted()
const own = person(1, 'alice@example.com')
const sensor: WhoIs = { ...tagged, capMap: {} }
const appliance: WhoIs = {
  node: { ...tagged.node, tags: ['tag:gatehouse'], addresses: ['100.64.0.1'] },
  capMap: {},
}

test('without any grant the owner may do everything, and nobody else anything', () => {
  assert.deepEqual(
    [rights(decide(own, own, none)), decide(own, own, none).from],
    [[...allRights].toSorted(), 'owner'],
  )
  for (const peer of [
    person(2, 'bob@example.com'),
    sensor,
    undefined,
    { ...own, user: undefined } as unknown as WhoIs,
  ])
    assert.deepEqual(decide(peer, own, none), { rights: new Set(), from: 'none' })
})

test('a tagged node belongs to nobody: not to who tagged it, not to other tagged nodes', () => {
  for (const peer of [own, sensor]) assert.equal(decide(peer, appliance, none).from, 'none')
  // A control server may send the one user of all tagged nodes on both sides.
  assert.equal(
    decide(
      tagged.user === undefined ? tagged : { ...tagged, capMap: {} },
      { ...appliance, user: tagged.user! },
      none,
    ).from,
    'none',
  )
  assert.equal(
    decide({ ...own, node: { ...own.node, tags: ['tag:laptop'] } }, own, none).from,
    'none',
  )
  assert.equal(
    decide(own, undefined, none).from,
    'none',
    'nor is anybody the owner as long as it is not known who is',
  )
})

test('grants add up, edit includes view, and less than everything counts for the owner too', () => {
  assert.deepEqual(rights(decide(person(2, 'b@x', grant(['view'], ['use'])), own, none)), [
    'use',
    'view',
  ])
  assert.deepEqual(rights(decide(person(2, 'b@x', grant(['edit'])), appliance, none)), [
    'edit',
    'view',
  ])
  assert.deepEqual(rights(decide(person(1, 'alice@example.com', grant(['view'])), own, none)), [
    'view',
  ])
  assert.deepEqual(rights(decide({ ...sensor, capMap: grant(['use']) }, appliance, none)), ['use'])
  assert.deepEqual(
    rights(decide(person(2, 'b@x', { 'other.example/cap/app': [{ may: ['edit'] }] }), own, none)),
    [],
  )
})

test('a grant that is not understood gives nothing, says why, and takes nothing from the others', () => {
  for (const [value, why] of [
    ['edit', /is not an object/],
    [null, /is not an object/],
    [['edit'], /is not an object/],
    [{}, /is not a list/],
    [{ may: 'edit' }, /is not a list/],
    [{ may: ['edit', 'admin'] }, /"admin" is not one of view, edit, use, status/],
    [{ may: [['edit']] }, /is not one of/],
    [{ may: ['edit'], only: 'x' }, /"only" is not known/],
  ] as const) {
    const access = decide(person(2, 'b@x', { [capability]: [value, { may: ['view'] }] }), own, none)
    assert.deepEqual(rights(access), ['view'], JSON.stringify(value))
    assert.match(access.problem!, why)
  }
  // A grant was meant for the owner: that it is broken does not make it none.
  assert.deepEqual(
    rights(decide(person(1, 'alice@example.com', { [capability]: ['x'] }), own, none)),
    [],
  )
})

test('gatehouse.toml names people and tags, and a tagged device does not count as its person', () => {
  const settings = {
    view: ['bob@example.com'],
    edit: ['tag:ci'],
    use: ['bob@example.com', 'tagged-devices@x'],
  }
  assert.deepEqual(rights(decide(person(2, 'bob@example.com'), appliance, settings)), [
    'use',
    'view',
  ])
  assert.deepEqual(rights(decide({ ...tagged, capMap: {} }, appliance, settings)), ['edit', 'view'])
  assert.deepEqual(
    rights(
      decide(
        { ...person(2, 'bob@example.com'), node: { ...alice.node, tags: ['tag:x'] } },
        appliance,
        settings,
      ),
    ),
    [],
  )
  assert.deepEqual(
    rights(decide(person(2, 'bob@example.com', grant(['edit'])), appliance, settings)),
    ['edit', 'use', 'view'],
  )
})

test('what a request needs', () => {
  for (const [method, path, upgrade, rights] of [
    ['GET', '/', false, ['view']],
    ['GET', '/flows', false, ['view']],
    ['HEAD', '/red/red.min.js', false, ['view']],
    ['POST', '/flows', false, ['edit']],
    ['PUT', '/flow/1', false, ['edit']],
    ['DELETE', '/flow/1', false, ['edit']],
    ['POST', '/auth/revoke', false, ['view']],
    ['POST', '/inject/1', false, ['edit']],
    ['GET', '/app%2Fx', false, ['view']],
    ['GET', '/comms', true, ['view']],
    ['POST', '/comms', true, ['edit']],
    ['GET', '/other', true, ['edit']],
    ['GET', '//app/', false, ['view']],
  ] as const)
    assert.deepEqual(needed(method, path, upgrade), rights, `${method} ${path}`)
})

test('the policy to paste gives exactly these rights once it is in force', () => {
  const text = policyFor(own, appliance, ['edit', 'use'])
  const {
    grants: [entry],
  } = JSON.parse(`{${text}}`) as {
    grants: [{ src: string[]; dst: string[]; ip: string[]; app: Record<string, unknown[]> }]
  }
  assert.deepEqual([entry.src, entry.dst], [['alice@example.com'], ['tag:gatehouse']])
  assert.deepEqual(entry.ip, ['tcp:443', 'tcp:80', 'tcp:8443', 'tcp:10000'])
  assert.deepEqual(rights(decide({ ...own, capMap: entry.app }, appliance, none)), [
    'edit',
    'use',
    'view',
  ])
  assert.match(
    policyFor({ ...sensor }, own, ['use']),
    /"src": \["tag:ci"\],\n {4}"dst": \["100\.64\.0\.7"\]/,
  )
})

test('who may not is told so with the lines to paste, and nothing reaches Node-RED', async () => {
  await using bench = await Bench.start()
  bench.tailnet.peer = { ...alice, capMap: {} }
  const page = await bench.fetch({ headers: { accept: 'text/html' } })
  assert.equal(page.status, 403)
  assert.match(
    page.text,
    /alice@example\.com may not see the flows\. This device is tagged, so it has no owner/,
  )
  assert.ok(
    page.text.includes('<pre>') &&
      page.text.includes(capability) &&
      page.text.includes('&#34;tag:gatehouse&#34;'),
    page.text,
  )
  const json = await bench.fetch({
    method: 'POST',
    path: '/flows',
    body: 'x'.repeat(100_000),
    headers: { accept: 'application/json' },
  })
  const { error } = JSON.parse(json.text) as { error: { code: string; lines: string } }
  assert.deepEqual([json.status, error.code], [403, 'GH_FORBIDDEN'])
  assert.match(error.lines, /"may": \["edit"\]/)
  assert.deepEqual(bench.origin.requests, [])
})

test('a viewer reads and does not write; who may use may only use', async () => {
  await using bench = await Bench.start()
  const status = async (method: string, path: string): Promise<number> =>
    (await bench.fetch({ method, path })).status
  bench.tailnet.peer = { ...alice, capMap: grant(['view']) }
  assert.deepEqual(
    await Promise.all([status('GET', '/flows'), status('POST', '/flows'), status('GET', '/app/x')]),
    [200, 403, 403],
  )
  bench.tailnet.peer = { ...alice, capMap: grant(['use']) }
  assert.deepEqual(
    await Promise.all([
      status('GET', '/'),
      status('GET', '/flows'),
      status('POST', '/app/x'),
      status('GET', '/App/x'),
    ]),
    [403, 403, 200, 200],
  )
})

test('rights that change count for connections that are open', { timeout: 20_000 }, async () => {
  await using bench = await Bench.start()
  const socket = await bench.connect()
  assert.equal((await bench.fetch({ socket })).status, 200)
  bench.tailnet.peer = { ...alice, capMap: {} }
  await bench.until(async () => (await bench.fetch({ socket })).status === 403)
})

test('Node-RED is told who asks by the gateway alone, for the editor alone', async () => {
  await using bench = await Bench.start()
  const seen = async (path: string): Promise<string | undefined> => {
    const answer = await bench.fetch({
      path,
      headers: { [channelHeader]: 'forged', X_Gatehouse_User: 'forged' },
    })
    return (JSON.parse(answer.text) as { headers: Record<string, string> }).headers[channelHeader]
  }
  const said = await seen('/flows')
  assert.deepEqual(
    JSON.parse(Buffer.from(said!.split('.')[0]!, 'base64url').toString()).username,
    'alice@example.com',
  )
  assert.equal(
    await seen('/app/x'),
    undefined,
    'what flows see of a request holds nothing they could use',
  )
})

const adminAuth = createRequire(import.meta.url)(
  '../../../../overlays/usr/lib/gatehouse/node-red-auth.cjs',
) as (key: Buffer) => {
  tokenHeader: string
  tokens: (token: string) => Promise<{ username: string; permissions: string } | null>
}

test("Node-RED's side believes what the gateway says, for a minute, and nothing else", async () => {
  const key = randomBytes(32)
  const { tokenHeader, tokens } = adminAuth(key)
  assert.equal(tokenHeader, channelHeader)
  const access = (...list: Right[]): Access => ({ rights: new Set(list), from: 'grant' })
  const word = assertion(key, alice, access('view', 'edit'))
  assert.deepEqual(await tokens(word), { username: 'alice@example.com', permissions: '*' })
  assert.deepEqual(await tokens(assertion(key, alice, access('view'))), {
    username: 'alice@example.com',
    permissions: 'read',
  })
  assert.deepEqual(await tokens(assertion(key, alice, access('use'))), {
    username: 'alice@example.com',
    permissions: '',
  })
  assert.deepEqual(await tokens(assertion(key, tagged, access('view'))), {
    username: 'ci.tail.ts.net',
    permissions: 'read',
  })
  const [payload, signature] = word.split('.') as [string, string]
  const other = Buffer.from(
    JSON.stringify({ username: 'root', permissions: '*', expires: Date.now() + 60_000 }),
  ).toString('base64url')
  for (const bad of [
    '',
    '.',
    payload,
    `${payload}.`,
    `${payload}.${signature}.x`,
    `${other}.${signature}`,
    `${payload}.${signature.slice(2)}`,
    assertion(randomBytes(32), alice, access('edit')),
    assertion(key, alice, access('edit'), Date.now() - 61_000),
    `${other}.${createHmac('sha256', '').update(other).digest('base64url')}`,
  ]) {
    assert.equal(await tokens(bad), null, bad)
  }
  assert.throws(() => adminAuth(Buffer.alloc(0)), /missing or too short/)
})

test('a login name cannot write HTML into the editor, which puts it into its menu unescaped', async () => {
  const key = randomBytes(32)
  const peer = person(1, '<img/src=x onerror=alert(1)>"@example.com')
  assert.equal(
    (await adminAuth(key).tokens(
      assertion(key, peer, { rights: new Set(['view']), from: 'grant' }),
    ))!.username,
    '_img/src=x onerror=alert(1)__@example.com',
  )
})

test('the key is made once a boot, and for root alone', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'gh-channel-'))
  const path = join(directory, 'run', 'channel')
  await makeChannelKey(path)
  const key = readFileSync(path, 'utf8')
  assert.match(key, /^[0-9a-f]{64}$/)
  assert.equal(statSync(path).mode & 0o777, 0o600)
  await makeChannelKey(path)
  assert.equal(readFileSync(path, 'utf8'), key)
  rmSync(directory, { recursive: true })
})

test('login names without a domain, as Headscale has them: alice and alice@ are one, alice@example.com is another', () => {
  const local = person(9, 'alice')
  for (const written of ['alice', 'alice@'])
    assert.deepEqual(rights(decide(local, undefined, { ...none, use: [written] })), ['use'])
  for (const [login, written] of [
    ['alice', 'alice@example.com'],
    ['alice@example.com', 'alice'],
    ['alice@example.com', 'alice@'],
    ['alicex', 'alice'],
  ] as const)
    assert.deepEqual(rights(decide(person(9, login), undefined, { ...none, use: [written] })), [])
  assert.match(policyFor(local, appliance, ['use']), /"src": \["alice@"\]/)
  assert.match(policyFor(own, appliance, ['use']), /"src": \["alice@example\.com"\]/)
})
