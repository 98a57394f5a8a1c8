/**
 * Two gateways as hosts of one Tailscale Service, which is another name of the editor: one is taken
 * away while requests come, and the other goes on. The lab's control server sends peers to the next
 * host, as Tailscale's does; node, gateway, Node-RED and the client are the real ones.
 */
import assert from 'node:assert/strict'
import path from 'node:path'
import { after, before, test, type TestContext } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { capability } from '../../src/gateway/access/access.ts'
import { Appliance, eventually } from './appliance.ts'
import { Lab, type LabClient } from './lab.ts'

const service = 'svc:flows'
const vip = '100.100.77.2'
const settings = `[node_red]\nservice = "${service}"\n`
const json = { accept: 'application/json' }
/** What flows answer says which device it was. */
const flows = (who: string) => [
  { id: 'tab', type: 'tab', label: who },
  { id: 'in', z: 'tab', type: 'http in', url: '/who', method: 'get', wires: [['set']] },
  {
    ...{ id: 'set', z: 'tab', type: 'change', wires: [['out']] },
    rules: [{ t: 'set', p: 'payload', pt: 'msg', to: who, tot: 'str' }],
  },
  { id: 'out', z: 'tab', type: 'http response', wires: [] },
]

let lab: Lab
const hosts: Appliance[] = []
let laptop: LabClient
let name: string

before(async () => {
  lab = await Lab.start({ name: 'several' })
  name = `flows.${lab.ready.suffix}`
  for (const [i, who] of ['one', 'two'].entries()) {
    const host = await Appliance.start(lab, {
      name: who,
      ip: `10.77.0.${60 + i}`,
      flows: flows(who),
      settings,
    })
    hosts.push(host)
    const node = (await host.names())[0]!
    await lab.setOwner(node, { tags: ['tag:gatehouse'] })
  }
  await lab.setGrants([
    { src: ['laptop'], dst: ['tag:gatehouse'], app: { [capability]: [{ may: ['use', 'edit'] }] } },
  ])
  for (const host of hosts) {
    await lab.hostService((await host.names())[0]!, service, vip)
    await eventually('the name is there', 60, async () => (await host.names()).includes(name))
    const { code, stdout, stderr } = await host.gatehouse(['certs'], {
      STATE_DIRECTORY: path.join(host.dir, 'certs'),
    })
    assert.equal(code, 0, stdout + stderr)
  }
  laptop = await lab.client('laptop')
})
after(async () => {
  for (const host of hosts) await host.stop()
  await lab?.stop()
})

const who = async (): Promise<string> => {
  const { status, body } = await laptop.fetch(`https://${name}:8443/who`, { headers: json })
  return `${status} ${body.toString()}`
}

test('the editor behind a Service knows who is logged in, and flows have their origin there', async () => {
  const answer = await eventually(
    'the Service answers',
    60,
    async () => await laptop.fetch(`https://${name}/auth/login`, { headers: json }),
  )
  assert.deepEqual(answer.tls?.dnsNames, [name])
  assert.equal(answer.tls?.verified, true)
  const settings = await laptop.fetch(`https://${name}/settings`, { headers: json })
  assert.equal(settings.status, 200, settings.body.toString())
  const { user } = JSON.parse(settings.body.toString()) as {
    user?: { username: string; permissions: unknown }
  }
  assert.match(user!.username, /@/)
  assert.equal(await who(), '200 one')
  // What the node's name has beside it is not here.
  const own = await laptop.fetch(`https://${name}/.gatehouse/`, { headers: json })
  assert.equal(own.status, 404)
})

test('a deployment through the Service, by its own pages alone', async () => {
  const body = JSON.stringify(flows('one'))
  const headers = { ...json, 'content-type': 'application/json' }
  const post = async (site: Record<string, string>) =>
    (
      await laptop.fetch(`https://${name}/flows`, {
        method: 'POST',
        headers: { ...headers, ...site },
        body,
      })
    ).status
  assert.equal(await post({ 'sec-fetch-site': 'same-site', 'sec-fetch-mode': 'cors' }), 403)
  assert.equal(await post({ 'sec-fetch-site': 'same-origin', 'sec-fetch-mode': 'cors' }), 204)
})

test('one is taken away under load: the other goes on', async (t: TestContext) => {
  const answers: { at: number; got: string }[] = []
  let stop = false
  const load = Promise.all(
    Array.from({ length: 4 }, async () => {
      while (!stop) {
        const at = performance.now()
        const got = await Promise.race([
          who().catch((err: Error) => `failed: ${err.message}`),
          sleep(2_000, 'late', { ref: false }),
        ])
        answers.push({ at, got })
        // Fewer connections a second than one peer may have, on a quiet machine too.
        await sleep(250)
      }
    }),
  )
  await sleep(2_000)
  const before = answers.length
  assert.ok(before > 10 && answers.every(({ got }) => got === '200 one'), JSON.stringify(answers))
  const killed = performance.now()
  await hosts[0]!.stopGateway('SIGKILL')
  await eventually('the other answers', 60, async () => answers.at(-1)?.got === '200 two')
  const first = answers.find(({ got }) => got === '200 two')!
  await sleep(3_000)
  stop = true
  await load
  const after = answers.filter(({ at }) => at > first.at + 3_000)
  t.diagnostic(
    `away for ${((first.at - killed) / 1000).toFixed(1)} s; ${before} answers before, ${after.length} after, ` +
      `${answers.filter(({ got }) => !got.startsWith('200')).length} without`,
  )
  assert.ok(first.at - killed < 20_000, 'the other goes on within 20 s')
  assert.ok(
    after.every(({ got }) => got === '200 two'),
    JSON.stringify(after),
  )
  await hosts[0]!.startGateway()
})

test('nothing left the lab', async () => {
  assert.equal(await lab.leaked(), 0)
})
