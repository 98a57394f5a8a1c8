/** Ways in, and out again: keys of all kinds, OAuth, approval, expiry, logging out. */
import assert from 'node:assert/strict'
import path from 'node:path'
import { after, afterEach, before, test } from 'node:test'
import { Lab } from '../../../test/lab/lab.ts'
import { eventually, WasmNode } from './support.ts'

let lab: Lab
/** A process whose Server is made anew by each test. */
let node: WasmNode
let dirs = 0
const freshDir = (): string => path.join(lab.dir, `login-${++dirs}`)
const named = async (hostname: string) => (await lab.nodes()).find((n) => n.hostname === hostname)

before(async () => {
  lab = await Lab.start({ name: 'tlog' })
  node = await WasmNode.process(lab)
})
after(async () => await lab?.stop())
afterEach(async () => {
  if (node.child.exitCode === null && node.child.signalCode === null)
    await node.run((k) => void k.server?.close())
})

test('an expired key is TSNET_AUTH in the words of the control server, with the cure', async () => {
  await node.make({ dir: freshDir(), authKey: await lab.key('expired') })
  const err = await node.fails((k) => k.server.up())
  assert.equal(err.code, 'TSNET_AUTH')
  assert.match(err.message, /invalid key: API key does not exist: .*make a new one/)
  await node.run((k) => k.server.close())
})

test('a key for one use works once: another node is refused, the same one comes back', async () => {
  const authKey = await lab.key('once')
  const dir = freshDir()
  await node.up({ dir, authKey, hostname: 'first' })
  await node.run((k) => k.server.close())
  await node.make({ dir: freshDir(), authKey, hostname: 'second' })
  const err = await node.fails((k) => k.server.up())
  assert.equal(err.code, 'TSNET_AUTH')
  assert.match(err.message, /API key k\w+ not valid/)
  await node.run((k) => k.server.close())
  assert.equal(await named('second'), undefined)
  assert.equal(
    (await node.up({ dir, authKey, hostname: 'first' })).self?.dnsName,
    `first.${lab.ready.suffix}`,
  )
  await node.run((k) => k.server.close())
})

test('the environment: TS_AUTHKEY before TS_AUTH_KEY before TS_CLIENT_SECRET, the option before all; empty is none', async () => {
  const { authKey, wrongAuthKey, controlURL, clientSecret } = lab.ready
  const secret = `${clientSecret}?baseURL=${controlURL}&ephemeral=false`
  const cases: {
    env: Record<string, string>
    options?: object
    joins: boolean
    tagged?: boolean
  }[] = [
    {
      env: { TS_AUTHKEY: authKey, TS_AUTH_KEY: wrongAuthKey, TS_CLIENT_SECRET: 'tskey-client-x' },
      joins: true,
    },
    { env: { TS_AUTHKEY: wrongAuthKey, TS_AUTH_KEY: authKey }, joins: false },
    {
      env: { TS_AUTHKEY: '', TS_AUTH_KEY: authKey, TS_CLIENT_SECRET: 'tskey-client-x' },
      joins: true,
    },
    { env: { TS_AUTHKEY: wrongAuthKey }, options: { authKey }, joins: true },
    {
      env: { TS_CLIENT_SECRET: secret },
      options: { advertiseTags: ['tag:lab'] },
      joins: true,
      tagged: true,
    },
    {
      env: { TS_CLIENT_SECRET: 'tskey-client-x' },
      options: { clientSecret: secret, authKey: '', advertiseTags: ['tag:lab'] },
      joins: true,
      tagged: true,
    },
    {
      env: { TS_AUTHKEY: secret },
      options: { advertiseTags: ['tag:lab'] },
      joins: true,
      tagged: true,
    },
  ]
  for (const [i, { env, options, joins, tagged }] of cases.entries()) {
    const got = await node.run(
      async (k, env, options) => {
        const before = { ...process.env }
        Object.assign(process.env, env)
        await using server = new k.Server(options as never)
        try {
          const status = await server.up({ signal: AbortSignal.timeout(30_000) })
          return status.self!.tags
        } catch (err) {
          return (err as Error & { code: string }).code
        } finally {
          process.env = before
        }
      },
      { TS_CONTROL_URL: controlURL, ...env },
      { dir: freshDir(), hostname: `env${i}`, ...options },
    )
    const tags = tagged ? ['tag:lab'] : []
    assert.deepEqual(got, joins ? tags : 'TSNET_AUTH', `case ${i}`)
  }
})

test('an OAuth client secret needs tags, and is refused in the words of the API; a node that is known starts without', async () => {
  const { controlURL, clientSecret } = lab.ready
  const dir = freshDir()
  const secret = `${clientSecret}?baseURL=${controlURL}&ephemeral=false`
  await node.make({ dir, authKey: '', clientSecret: secret })
  let err = await node.fails((k) => k.server.up())
  assert.equal(err.code, 'TSNET_AUTH')
  assert.match(err.message, /OAuth client secret.*tags/)
  await node.run((k) => k.server.close())

  const wrong = {
    clientSecret: `tskey-client-wrong?baseURL=${controlURL}`,
    advertiseTags: ['tag:lab'],
    hostname: 'oauth',
    authKey: '',
  }
  await node.make({ dir, ...wrong })
  err = await node.fails((k) => k.server.up())
  assert.equal(err.code, 'TSNET_AUTH')
  assert.match(err.message, /API token invalid/)
  await node.run((k) => k.server.close())

  const status = await node.up({ dir, ...wrong, clientSecret: secret })
  assert.deepEqual(status.self?.tags, ['tag:lab'])
  await node.run((k) => k.server.close())
  assert.equal((await node.up({ dir, ...wrong })).self?.id, status.self?.id)
  assert.match(
    await node.run((k) => k.events.find(([n]) => n === 'message')![1]),
    /API token invalid/,
  )
  await node.run((k) => k.server.close())
})

test('device approval: the node waits, says for what, and goes on when it is approved', async () => {
  await lab.requireApproval(true)
  await node.make({ dir: freshDir(), hostname: 'pending' })
  const err = await node.fails(async (k) => {
    const enough = new AbortController()
    k.server.on(
      'state',
      (state) => state === 'NeedsMachineAuth' && setTimeout(() => enough.abort(), 500),
    )
    await k.server.up({ signal: enough.signal })
  })
  assert.equal(err.code, 'TSNET_ABORTED')
  assert.match(err.message, /until an admin of the tailnet approves/)
  assert.equal((await node.run((k) => k.server.status())).backendState, 'NeedsMachineAuth')
  await node.run((k) => void (k.kept.up = k.server.up()))
  await lab.requireApproval(false)
  await lab.approve('pending')
  assert.equal((await node.run((k) => k.kept.up)).backendState, 'Running')
  await node.run((k) => k.server.close())
})

test('a key that expires: the node says so beforehand and then, and a login renews it, with name and addresses', async () => {
  const before = await node.up({
    dir: freshDir(),
    hostname: 'expiring',
    authKey: await lab.key('once'),
  })
  await node.run((k) => {
    k.kept.notices = []
    void (async () => {
      for await (const n of k.server.watch()) k.kept.notices.push(n)
    })()
  })
  const notices = (): Promise<
    { type: string; state?: string; url?: string; expiry?: { at?: string; expired: boolean } }[]
  > => node.run((k) => k.kept.notices)
  await lab.expire('expiring', 3600)
  await eventually('word of the end to come', async () =>
    (await notices()).some((n) => n.type === 'keyExpiry' && n.expiry!.at && !n.expiry!.expired),
  )
  assert.match(
    (await node.run((k) => k.server.status())).self?.keyExpiry ?? '',
    /^\d{4}-\d\d-\d\dT/,
  )

  await lab.expire('expiring')
  await eventually('word of the end', async () =>
    (await notices()).some((n) => n.type === 'keyExpiry' && n.expiry!.expired),
  )
  const url = await eventually(
    'a login URL',
    async () => (await notices()).find((n) => n.type === 'loginURL')?.url,
    20_000,
  )
  const waiting = await node.run((k) =>
    k.server.up({ signal: AbortSignal.timeout(300) }).catch((e) => e.message as string),
  )
  assert.match(String(waiting), /not logged in.*loginURL/)
  await lab.completeLogin(url)
  const status = await node.run((k) => k.server.up())
  assert.deepEqual(
    [status.self?.dnsName, status.tailscaleIPs],
    [before.self?.dnsName, before.tailscaleIPs],
  )
  assert.notEqual(status.self?.expired, true)
  const peer = await lab.client('peer')
  await node.run(
    async (k) =>
      void (await k.server.listen(7)).on('connection', (c) => c.on('error', () => {}).pipe(c)),
  )
  const stream = await eventually(
    'a connection',
    () => peer.dial(status.tailscaleIPs[0]!, 7).catch(() => undefined),
    20_000,
  )
  stream.end()
  await node.run((k) => k.server.close())
})

test('a key that expires is renewed with the auth key, where that is still good', async () => {
  const before = await node.up({ dir: freshDir(), hostname: 'renewed' })
  const first = await node.run((k) => k.events.length)
  await lab.expire('renewed')
  await eventually(
    'the end and the new beginning',
    async () => {
      const states = (await node.run((k) => k.events))
        .slice(first)
        .filter(([n]) => n === 'state')
        .map(([, v]) => v)
      return states.includes('NeedsLogin') && states.at(-1) === 'Running'
    },
    20_000,
  )
  const { self } = await node.run((k) => k.server.status())
  assert.deepEqual(self?.tailscaleIPs, before.tailscaleIPs)
  assert.equal((await named('renewed'))?.expired, false)
  await node.run((k) => k.server.close())
})

test('a key that is extended by an admin needs no login, while the login URL is offered', async () => {
  await node.make({ dir: freshDir(), hostname: 'extended', authKey: '' })
  const loginURL = (): Promise<string> =>
    node.run(async (k) => ((await k.once(k.server, 'loginURL')) as string[])[0]!)
  const up = node.run((k) => k.server.up())
  await lab.completeLogin(await loginURL())
  await up
  const offered = loginURL()
  await lab.expire('extended')
  await offered
  await lab.expire('extended', 3600)
  await eventually(
    'the node running again',
    async () => (await node.run((k) => k.server.status())).backendState === 'Running',
    30_000,
  )
  await node.run((k) => k.server.close())
})

test('a node whose key has expired while it was away rejoins with an auth key', async () => {
  const dir = freshDir()
  const before = await node.up({ dir, hostname: 'away' })
  await node.run((k) => k.server.close())
  await lab.expire('away')
  const status = await node.up({ dir, hostname: 'away' })
  assert.equal(status.backendState, 'Running')
  assert.equal(status.self?.dnsName, before.self?.dnsName)
  await node.run((k) => k.server.close())
})

test('logout() gives the key up at the control server: the node is expired there, and a new login is a new beginning', async () => {
  const dir = freshDir()
  await node.up({ dir, hostname: 'leaver' })
  await node.run((k) => k.server.logout())
  assert.equal((await node.run((k) => k.server.status())).backendState, 'NeedsLogin')
  await eventually('the control server knows', async () => (await named('leaver'))?.expired)
  const again = await eventually(
    'a URL of the same control server',
    async () => (await node.run((k) => k.server.status())).authURL,
  )
  assert.ok((await lab.logins()).includes(again), again)
  await node.run((k) => k.server.close())
  await node.make({ dir, authKey: '', hostname: 'leaver' })
  const url = await node.run(async (k) => {
    k.kept.up = k.server.up().catch(() => {})
    for await (const n of k.server.watch()) if (n.type === 'loginURL') return n.url
    return undefined
  })
  assert.match(url ?? '', /\/login\//)
  await node.run((k) => k.server.close())
})

test('nothing left the lab, and the process ends by itself', async () => {
  assert.equal(node.stderr, '')
  assert.equal(await node.end(), 0)
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
