/**
 * Two booted appliances as hosts of one Tailscale Service, which is another name of their editors:
 * one loses its power while requests come, and the other goes on; it comes back, and nothing has to
 * be done. (In seconds, by processes of this machine: test/lab/services-several.test.ts.)
 */
import assert from 'node:assert/strict'
import { after, before, test, type TestContext } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { capability } from '../../src/gateway/access/access.ts'
import type { GatewayStatus } from '../../src/gateway/operate/status.ts'
import { Lab, type LabClient } from '../lab/lab.ts'
import {
  bootAppliance,
  editor,
  eventually,
  joined,
  settings,
  statusOf,
  tried,
} from './appliance.ts'
import type { Machine } from './machine.ts'

const skip = process.env['GATEHOUSE_LONG'] === '1' ? false : 'boots two machines: make test-long'
const service = 'svc:flows'
const hosts = ['one', 'two']
const json = { accept: 'application/json' }

let lab: Lab
let laptop: LabClient
let name: string
const machines: Machine[] = []

/** A flow that answers `/who` with the device's name. */
const flows = (host: string) => [
  { id: 'tab', type: 'tab', label: host },
  { id: 'in', z: 'tab', type: 'http in', url: '/who', method: 'get', wires: [['set']] },
  {
    ...{ id: 'set', z: 'tab', type: 'change', wires: [['out']] },
    rules: [{ t: 'set', p: 'payload', pt: 'msg', to: host, tot: 'str' }],
  },
  { id: 'out', z: 'tab', type: 'http response', wires: [] },
]

before(async () => {
  if (skip !== false) return
  lab = await Lab.start({ name: 'service' })
  name = `flows.${lab.ready.suffix}`
  laptop = await lab.client('laptop')
  // The one after the other: two boots at a time take each other's processors.
  for (const host of hosts) {
    const toml = settings(lab)
      .replace('[tailnet]\n', `[tailnet]\nhostname = "${host}"\n`)
      .concat(`[node_red]\nservice = "${service}"\n`)
    machines.push(await bootAppliance(lab, tried, { toml, memory: 768 }))
    const own = (await joined(lab, host, 900)).name
    await lab.setOwner(own, { tags: ['tag:gatehouse'] })
    await lab.setGrants([
      {
        ...{ src: ['laptop'], dst: ['tag:gatehouse'] },
        app: { [capability]: [{ may: ['use', 'view', 'edit'] }] },
      },
    ])
    await editor(laptop, own, 900)
    const deployed = await laptop.fetch(`https://${own}/flows`, {
      method: 'POST',
      headers: { ...json, 'content-type': 'application/json' },
      body: JSON.stringify(flows(host)),
    })
    assert.equal(deployed.status, 204, deployed.body.toString())
    await lab.hostService(own, service, '100.100.77.2')
  }
})
after(async () => {
  for (const machine of machines) await machine.destroy()
  await lab?.stop()
})

const who = async (): Promise<string> => {
  const { status, body } = await laptop.fetch(`https://${name}:8443/who`, { headers: json })
  return `${status} ${body.toString()}`
}

test(
  'both have a certificate of the Service’s name, and one of them answers',
  { skip },
  async () => {
    for (const machine of machines)
      await eventually('a certificate with the name', 600, async () => {
        const { certificate } = (await statusOf(machine)) as GatewayStatus
        return certificate.names.some((one) => one.name === name && one.notAfter) || undefined
      })
    const page = await editor(laptop, name, 300)
    assert.equal(page.tls?.verified, true)
    assert.equal(await who(), '200 one')
  },
)

test('one loses its power under load: the other goes on', { skip }, async (t: TestContext) => {
  const answers: { at: number; got: string }[] = []
  let stop = false
  const load = (async () => {
    while (!stop) {
      const at = performance.now()
      const got = await Promise.race([
        who().catch((err: Error) => `failed: ${err.message}`),
        sleep(5_000, 'late', { ref: false }),
      ])
      answers.push({ at, got })
      await sleep(100)
    }
  })()
  try {
    await eventually('requests are answered', 60, async () => answers.length > 10 || undefined)
    assert.ok(
      answers.every(({ got }) => got === '200 one'),
      JSON.stringify(answers),
    )
    const cut = performance.now()
    await machines[0]!.kill()
    await eventually(
      'the other answers',
      180,
      async () => answers.at(-1)?.got === '200 two' || undefined,
    )
    const away = (answers.find(({ got }) => got === '200 two')!.at - cut) / 1000
    const without = answers.filter(({ got }) => !got.startsWith('200')).length
    t.diagnostic(`away for ${away.toFixed(1)} s; ${without} requests without an answer`)
    const begun = answers.length
    await sleep(10_000)
    assert.ok(
      answers.slice(begun).every(({ got }) => got === '200 two'),
      JSON.stringify(answers.slice(begun)),
    )
  } finally {
    stop = true
    await load
  }
})

test('it starts again, and is a host as before', { skip }, async () => {
  await machines[0]!.start()
  const own = (await joined(lab, 'one')).name
  await editor(laptop, own, 900)
  await eventually(
    'the Service is served',
    300,
    async () => (await who()).startsWith('200') || undefined,
  )
  const { services } = await statusOf(machines[0]!)
  assert.match(JSON.stringify(services), new RegExp(name))
})

test('nothing left the lab', { skip }, async () => {
  assert.equal(await lab.leaked(), 0)
})
