/**
 * The appliance at a control server that behaves as Headscale does (headscale.go): every row of
 * what differs, with the real gateway and bindings.
 */
import assert from 'node:assert/strict'
import { X509Certificate } from 'node:crypto'
import { readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { call } from '../../src/base/control-client.ts'
import type { Check } from '../../src/gateway/operate/doctor.ts'
import { capability } from '../../src/gateway/access/access.ts'
import { Appliance, eventually } from './appliance.ts'
import { Lab } from './lab.ts'
import type { LabClient } from './lab.ts'

let lab: Lab
let box: Appliance
let laptop: LabClient
let name: string

before(async () => {
  lab = await Lab.start({ name: 'hs', headscale: true, suffix: 'tail.headscale.test' })
  box = await Appliance.start(lab, { until: 'joined' })
  name = (await box.status()).tailnet.name!
  laptop = await lab.client('laptop')
})
after(async () => {
  await box?.stop()
  await lab?.stop()
})

const readyz = async (): Promise<{ status: number; body: unknown }> =>
  await call(box.env['GATEHOUSE_ADMIN_SOCKET']!, 'GET', '/readyz')
const certs = async (): Promise<void> => {
  const { code, stdout, stderr } = await box.gatehouse(['certs'], {
    STATE_DIRECTORY: path.join(box.dir, 'certs'),
  })
  assert.equal(code, 0, stdout + stderr)
}
const reload = async (): Promise<void> => {
  const { status, body } = await call(box.env['GATEHOUSE_ADMIN_SOCKET']!, 'POST', '/v1/reload')
  assert.equal(status, 200, JSON.stringify(body))
}
const root = (): string => path.join(lab.dir, 'device-root.pem')

test('keys have a form of their own and the device joins with one', () => {
  assert.match(lab.ready.authKey, /^hskey-auth-/)
  assert.equal(name, 'gatehouse.tail.headscale.test')
})

test('no names for certificates: status, readyz and port 80 name the other modes, and no admin console', async () => {
  const problem = await eventually('the problem is seen', 30, async () =>
    (await box.status()).problems.find(({ part }) => part === 'https'),
  )
  assert.equal(problem.code, 'GH_HTTPS_NAMES')
  for (const mode of ['"self"', '"acme"', '"files"']) assert.ok(problem.cure.includes(mode), mode)
  const ready = await readyz()
  assert.equal(ready.status, 503)
  assert.match(JSON.stringify(ready.body), /mode = .*self/)
  const page = await laptop.fetch(`http://${name}/`)
  assert.equal(page.status, 503)
  assert.match(page.body.toString(), /mode = &#34;self&#34;/)
  const said = JSON.stringify([await box.status(), ready.body]) + page.body.toString() + box.log
  assert.doesNotMatch(said, /admin console/i)
  assert.doesNotMatch(said, /hskey-auth-[0-9a-f]/)
})

test('doctor asks for the key as a client of today, and finds the control server well', async () => {
  const { body } = await call(box.env['GATEHOUSE_ADMIN_SOCKET']!, 'GET', '/v1/doctor')
  const control = (body as Check[]).find((check) => check.name === 'control server')!
  assert.equal(control.result, 'ok', control.found)
  const { asked, current } = await lab.keyVersions()
  assert.deepEqual(Object.keys(asked), [String(current)], 'by the gateway as by Tailscale itself')
})

test('mode = "self": an authority of the device, its root at port 80; HTTPS is served by it', async () => {
  await box.configure('mode = "self"\n')
  await reload()
  await certs()
  await eventually('HTTPS is served', 30, async () => (await readyz()).status === 200)
  const { status, headers, body } = await laptop.fetch(`http://${name}/ca.crt`)
  assert.deepEqual([status, headers['Content-Type']], [200, ['application/x-x509-ca-cert']])
  await writeFile(root(), body)
  const { certificate, problems, url } = await box.status()
  assert.equal(new X509Certificate(body).fingerprint256, certificate.authority!.fingerprint)
  assert.deepEqual([problems, url], [[], `https://${name}/`])
  await lab.setOwner('laptop', { user: 'alice' })
  await lab.setOwner('gatehouse', { user: 'alice' })
  // The gateway asks for its own owner every 30 s (guard.ts).
  const page = await eventually('the owner is known', 60, async () => {
    const answer = await laptop.fetch(`https://${name}/`, { roots: root() })
    return answer.status === 200 && answer
  })
  assert.equal(page.tls!.verified, true)
  assert.deepEqual(page.headers['Strict-Transport-Security'], ['max-age=0'])
  const redirected = await laptop.fetch(`http://${name}/x?y`)
  assert.deepEqual(
    [redirected.status, redirected.headers['Location']],
    [308, [`https://${name}/x?y`]],
  )
  // Nobody else's authority vouches for it, and it for nobody else.
  await assert.rejects(laptop.fetch(`https://${name}/`), /certificate/)
})

test('login names without a domain: [access] has alice and alice@; the 403 page has lines for that policy', async () => {
  await lab.setOwner('gatehouse', { user: 'carol' })
  const forbidden = await eventually('alice is no owner any more', 60, async () => {
    const answer = await laptop.fetch(`https://${name}/`, { roots: root() })
    return answer.status === 403 && answer
  })
  const text = forbidden.body.toString().replaceAll('&#34;', '"')
  assert.match(text, /"src": \["alice@"\]/)
  assert.doesNotMatch(text, /admin console/)
  for (const written of ['alice', 'alice@']) {
    await box.configure(`mode = "self"\n[access]\nview = ["${written}"]\n`)
    await reload()
    assert.equal((await laptop.fetch(`https://${name}/`, { roots: root() })).status, 200, written)
    await box.configure('mode = "self"\n[access]\nview = ["bob"]\n')
    await reload()
    assert.equal((await laptop.fetch(`https://${name}/`, { roots: root() })).status, 403)
  }
})

test('grants with the app capability work, within seconds', async () => {
  await lab.setGrants([
    { src: ['alice'], dst: ['gatehouse'], app: { [capability]: [{ may: ['view'] }] } },
  ])
  await eventually(
    'the grant holds',
    20,
    async () => (await laptop.fetch(`https://${name}/`, { roots: root() })).status === 200,
  )
  await lab.setGrants([])
})

test('[[app]] service: says that there are no Services, and no approval to wait for', async () => {
  await box.configure(
    'mode = "self"\n[[app]]\nservice = "svc:grafana"\nupstreams = ["http://127.0.0.1:3000"]\n',
  )
  await reload()
  const problem = await eventually('it is seen', 40, async () =>
    (await box.status()).problems.find(({ part }) => part === 'service'),
  )
  assert.equal(problem.code, 'GH_SERVICE_UNSUPPORTED')
  assert.doesNotMatch(`${problem.message} ${problem.cure}`, /admin console|approve this device/i)
  await box.configure('mode = "self"\n')
  await reload()
})

test('the control server restarts, and the key expires: the device comes back by itself', async () => {
  await lab.stopControl()
  assert.equal((await laptop.fetch(`http://${name}/`)).status, 308, 'peers that are known go on')
  await lab.startControl()
  await lab.expire('gatehouse')
  await eventually('it has a new key', 90, async () =>
    (await lab.nodes()).some((node) => node.name === name && !node.expired),
  )
  await eventually('it is back', 60, async () => (await box.status()).tailnet.state === 'Running')
  await eventually(
    'and serves',
    60,
    async () => (await laptop.fetch(`http://${name}/`)).status === 308,
  )
  assert.doesNotMatch(JSON.stringify(await box.status()), /admin console/i)
})

test('tags with a pre-auth key are refused: the cure is a key that has them', async () => {
  await box.stopGateway()
  const config = path.join(box.dir, 'config', 'gatehouse.toml')
  const text = await readFile(config, 'utf8')
  await writeFile(config, text.replace('[tailnet]\n', '[tailnet]\ntags = ["tag:lab"]\n'))
  const other = path.join(lab.dir, 'other-state')
  const before = box.env['STATE_DIRECTORY']!
  box.env['STATE_DIRECTORY'] = other
  await box.startGateway()
  const problem = await eventually('the refusal is seen', 60, async () =>
    (await box.status()).problems.find(({ code }) => code === 'GH_AUTH_KEY'),
  )
  assert.match(problem.message, /requested tags/)
  assert.match(problem.cure, /preauthkeys create --tags tag:lab/)
  assert.match(problem.cure, /remove tags from gatehouse\.toml/)
  box.env['STATE_DIRECTORY'] = before
})

test('nothing left the lab', async () => {
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
