/**
 * Alerts from a gateway with something wrong to real receivers: what it writes down, provisioning,
 * `gatehouse firewall apply` with the image's own ruleset, and the sender as its user, who may reach
 * the servers that are named and nobody else.
 */
import assert from 'node:assert/strict'
import { chmod, chown, mkdir, readFile, writeFile } from 'node:fs/promises'
import type { Server } from 'node:http'
import { once } from 'node:events'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { provision } from '../../src/provision/provision.ts'
import { eventually } from './appliance.ts'
import { bundleConsole } from '../../tools/console.ts'
import { Lab } from './lab.ts'
import type { LabClient, Result } from './lab.ts'
import { startManaged } from './managed.ts'
import type { Managed } from './managed.ts'
import { receiver } from './receiver.ts'
import type { Received } from './receiver.ts'
import { asUser, ruleset, users } from './ruleset.ts'

let lab: Lab
let device: Managed
let laptop: LabClient
let name: string
let uid: string
let paths: { boot: string; config: string; problem: string }
const got: Received[] = []
let refuse = false
const servers: Server[] = []

before(async () => {
  lab = await Lab.start({ name: 'alerts' })
  // The sender is not root: it must get at its directories.
  await chmod(lab.dir, 0o711)
  const pages = path.join(lab.dir, 'console')
  await bundleConsole(pages)
  const alerts = path.join(lab.dir, 'alerts-state')
  await mkdir(alerts)
  device = await startManaged(lab, {
    ...{ pages, alerts, trialTime: 10_000, settings: '' },
    does: async (args) => {
      if (args.includes('gatehouse-alerts@test.service')) await sender('test')
    },
  })
  paths = {
    boot: path.join(lab.dir, 'card'),
    config: path.join(lab.dir, 'provisioned'),
    problem: path.join(lab.dir, 'provision', 'problem'),
  }
  await mkdir(path.dirname(paths.problem))
  name = (await device.appliance.names())[0]!
  laptop = await lab.client('laptop')
  uid = (await users()).get('gatehouse-alerts')!
  await chown(alerts, Number(uid), Number(uid))
  for (const [host, ip, full] of [
    ['receiver', '10.77.0.90', 'hooks.lab.test'],
    ['stranger', '10.77.0.91', 'elsewhere.lab.test'],
  ] as const)
    servers.push(
      await receiver(lab, host, ip, full, (alert) => {
        if (refuse) return 503
        got.push(alert)
        return 200
      }),
    )
  await writeFile(path.join(lab.dir, 'hosts'), '')
  await eventually(
    'the gateway knows the client',
    60,
    async () => (await laptop.fetch(`https://${name}:10000/api/v1/me`)).status === 200,
  )
})
after(async () => {
  for (const server of servers) server.close()
  await device?.broker.close()
  await device?.appliance.stop()
  await lab?.stop()
})

const main = path.resolve(import.meta.dirname, '../../src/main.ts')

/** `gatehouse alerts watch | test` as its unit has it: its user, its credential, its directories. */
async function sender(what: 'watch' | 'test'): Promise<Result> {
  const credentials = path.join(lab.dir, 'alerts-credentials')
  await mkdir(credentials, { recursive: true })
  const secret = path.join(credentials, 'alerts')
  await writeFile(secret, await readFile(path.join(path.dirname(paths.problem), 'alerts')))
  return await lab.run(device.appliance.ns, [
    'env',
    `CREDENTIALS_DIRECTORY=${credentials}`,
    `STATE_DIRECTORY=${path.join(lab.dir, 'alerts-state')}`,
    `GATEHOUSE_ALERTS_DIR=${lab.dir}`,
    ...asUser(uid, process.execPath, '--disable-warning=ExperimentalWarning', main, 'alerts', what),
  ])
}

/** Takes a gatehouse.toml over, and puts the firewall's lists in force, as the units do. */
async function configure(toml: string): Promise<void> {
  const boot = path.join(lab.dir, 'alerts-card')
  await mkdir(boot, { recursive: true })
  await writeFile(path.join(boot, 'gatehouse.toml'), toml)
  const { problem } = await provision({ ...paths, boot })
  assert.equal(problem, undefined)
  const applied = await lab.run(device.appliance.ns, [
    'env',
    `GATEHOUSE_CONFIG_DIR=${paths.config}`,
    `GATEHOUSE_FIREWALL_DIR=${lab.dir}`,
    `GATEHOUSE_PROBLEM_FILE=${paths.problem}`,
    ...[process.execPath, '--disable-warning=ExperimentalWarning', main, 'firewall', 'apply'],
  ])
  assert.equal(applied.code, 0, applied.stderr)
}

const toml = `[alerts]
webhook = "http://hooks.lab.test:8080/in/secret-path"
webhook_token = "hook-token"
ntfy = "http://hooks.lab.test:8080/base/my-topic"
ntfy_token = "tk_abc"
after = "1 s"
`

test('the firewall opens the server that is named, for who sends, and nothing is on /var', async () => {
  // In the place of systemd-resolved, which the sender may ask: root's, and so let through.
  const resolver = `const dgram = require('node:dgram')
    const own = dgram.createSocket('udp4')
    own.on('message', (query, { address, port }) => {
      const out = dgram.createSocket('udp4')
      out.on('message', (answer) => { own.send(answer, port, address); out.close() })
      out.on('error', () => out.close())
      out.send(query, 53, '10.77.0.1')
    })
    own.bind(53, '127.0.0.53', () => console.log('up'))`
  const child = lab.exec(device.appliance.ns, [process.execPath, '-e', resolver])
  await once(child.stdout!, 'data')
  await lab.setResolver(device.appliance.ns, 'nameserver 127.0.0.53')
  await lab.nft(
    device.appliance.ns,
    `${await ruleset()}\ninsert rule inet gatehouse out meta skuid 0 accept\ninsert rule inet gatehouse in accept\n`,
  )
  await configure(toml)
  const hosts = await readFile(path.join(path.dirname(paths.problem), 'alert-hosts'), 'utf8')
  assert.equal(hosts, 'http://hooks.lab.test:8080\n')
  const kept = await readFile(path.join(paths.config, 'gatehouse.toml'), 'utf8')
  assert.doesNotMatch(kept, /secret-path|hook-token|my-topic|tk_abc/)
  const reach = async (host: string, as: string): Promise<string> => {
    const program = `fetch('http://${host}:8080/', { method: 'POST', body: '{}', signal: AbortSignal.timeout(1500) })
      .then(({ status }) => console.log(status), () => console.log('silence'))`
    const user = ['setpriv', `--reuid=${as}`, `--regid=${as}`, '--clear-groups']
    return (await lab.within(device.appliance.ns, ...user, process.execPath, '-e', program)).trim()
  }
  assert.equal(await reach('10.77.0.90', uid), '200')
  assert.equal(await reach('10.77.0.91', uid), 'silence')
  const ids = await users()
  for (const user of ['gatehouse', 'node-red', 'gatehouse-certs', 'gatehouse-update'])
    assert.equal(await reach('10.77.0.90', ids.get(user)!), 'silence', user)
  got.length = 0
})

test('a problem that lasts is told by both, and once', { timeout: 120_000 }, async () => {
  await device.appliance.stopNodeRed()
  await eventually('the gateway says so', 60, async () => {
    const wrong = await readFile(path.join(lab.dir, 'problems.json'), 'utf8')
    return wrong.includes('GH_UPSTREAM_DOWN')
  })
  const { code, stdout, stderr } = await sender('watch')
  assert.equal(code, 0, stdout + stderr)
  assert.equal(got.length, 2, stdout + stderr)
  const [hook, ntfy] = got.toSorted((a, b) => b.path.localeCompare(a.path))
  assert.equal(hook!.path, '/in/secret-path')
  assert.equal(hook!.authorization, 'Bearer hook-token')
  const { event, device: of, part, code: id, cure } = hook!.body
  assert.deepEqual([event, of, part, id], ['problem', name, 'upstream', 'GH_UPSTREAM_DOWN'])
  assert.ok(cure!.length > 10)
  assert.equal(ntfy!.path, '/base/')
  assert.equal(ntfy!.authorization, 'Bearer tk_abc')
  assert.equal(ntfy!.body['topic'], 'my-topic')
  assert.match(ntfy!.body['message']!, /What to do: [^]*GH_UPSTREAM_DOWN/)
  assert.doesNotMatch(stdout + stderr, /secret-path|hook-token|my-topic|tk_abc/)
  assert.equal((await sender('watch')).code, 0)
  assert.equal(got.length, 2, 'it is told once')
})

test(
  'that it is over is told too, later where the server is away',
  { timeout: 300_000 },
  async () => {
    got.length = 0
    await device.appliance.startNodeRed()
    await eventually('the gateway says so', 60, async () => {
      const wrong = await readFile(path.join(lab.dir, 'problems.json'), 'utf8')
      return !wrong.includes('GH_UPSTREAM_DOWN')
    })
    refuse = true
    const failed = await sender('watch')
    assert.equal(failed.code, 1, 'systemd is to try again')
    assert.match(
      failed.stdout,
      /cannot be told by webhook: hooks.lab.test:8080 answers with status 503/,
    )
    refuse = false
    assert.equal((await sender('watch')).code, 0)
    assert.equal(got.length, 2)
    assert.equal(got.find(({ path: to }) => to !== '/base/')!.body['event'], 'over')
    assert.match(got.find(({ path: to }) => to === '/base/')!.body['message']!, /^Over: /)
    got.length = 0
    assert.equal((await sender('watch')).code, 0)
    assert.deepEqual(got, [])
  },
)

test('the button says what came of it', { timeout: 60_000 }, async () => {
  const post = async (): Promise<{ status: number; body: Record<string, any> }> => {
    const { status, body } = await laptop.fetch(`https://${name}:10000/api/v1/alerts/test`, {
      ...{ method: 'POST', headers: { 'content-type': 'application/json' }, body: '{}' },
    })
    return { status, body: JSON.parse(body.toString()) as Record<string, any> }
  }
  const well = await post()
  assert.equal(well.status, 200, JSON.stringify(well.body))
  assert.deepEqual(well.body['results'], [
    { channel: 'webhook', ok: true, said: 'sent' },
    { channel: 'ntfy', ok: true, said: 'sent' },
  ])
  assert.equal(got.length, 2)
  refuse = true
  const { body } = await post()
  assert.match(body['results'][0].said, /^hooks\.lab\.test:8080 answers with status 503$/)
  refuse = false
  await configure('')
  const none = await post()
  assert.equal(none.body['error'].code, 'GH_ALERTS_NONE')
})

test('what is no longer named is closed again', async () => {
  await configure(toml.replaceAll('hooks.lab.test', 'elsewhere.lab.test'))
  got.length = 0
  assert.equal((await sender('test')).code, 0)
  assert.deepEqual([...new Set(got.map(({ host }) => host))], ['elsewhere.lab.test'])
  await configure('')
  const list = 'nft list chain inet gatehouse gatehouse-alerts-allow'.split(' ')
  const rules = await lab.within(device.appliance.ns, ...list)
  assert.match(rules, /chain gatehouse-alerts-allow \{\s*\}/)
})
