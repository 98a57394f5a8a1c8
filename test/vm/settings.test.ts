/**
 * Settings changed from the tailnet on the booted image: what would cut the device off is taken back
 * by itself, each wrong value alone and all of them in one change; and what is set there is in force
 * in units and firewall.
 */
import assert from 'node:assert/strict'
import type { Server } from 'node:http'
import { after, before, test } from 'node:test'
import { Lab, type LabClient } from '../lab/lab.ts'
import { receiver } from '../lab/receiver.ts'
import type { Received } from '../lab/receiver.ts'
import { bootAppliance, editor, eventually, joined } from './appliance.ts'
import type { Machine } from './machine.ts'

let lab: Lab
let client: LabClient
let machine: Machine
let name: string
let server: Server
const got: Received[] = []
const skip = process.env['GATEHOUSE_LONG'] === '1' ? false : 'takes eight minutes: GATEHOUSE_LONG=1'

before(async () => {
  if (skip !== false) return
  lab = await Lab.start({ name: 'settings' })
  client = await lab.client('laptop')
  server = await receiver(lab, 'receiver', '10.77.0.90', 'hooks.lab.test', (alert) => {
    got.push(alert)
    return 200
  })
  machine = await bootAppliance(lab, 'amd64')
  name = (await joined(lab)).name
  await editor(client, name)
})

after(async () => {
  server?.close()
  await machine?.destroy()
  await lab?.stop()
})

type Answer = Record<string, any>

/** A call of the device's API. */
async function call(method: string, path: string, body?: object): Promise<Answer> {
  const answer = await client.fetch(`https://${name}:10000/api/v1/${path}`, {
    ...{ method, timeout: 120_000 },
    ...(body === undefined
      ? {}
      : { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }),
  })
  return { status: answer.status, ...(JSON.parse(answer.body.toString()) as Answer) }
}

const card = async (): Promise<string> => (await machine.run('cat /efi/gatehouse.toml')).stdout

/** Has a change tried, with the code from the screen where it is wanted. */
async function tryChange(change: (text: string) => string): Promise<Answer> {
  const { text, digest } = await call('GET', 'settings')
  const next = { text: change(text as string), digest }
  const first = await call('POST', 'settings/try', next).catch((err: Error) => ({
    status: 0,
    error: { code: err.message },
  }))
  if ((first as Answer)['error']?.code !== 'GH_SETTINGS_CODE') return first
  const pattern = /the code for a change of settings is (\d{6})/g
  const code = await eventually(
    'the screen shows a code',
    30,
    async () => [...(await machine.console()).matchAll(pattern)].at(-1)?.[1],
  )
  // What starts the gateway anew takes the answer with it.
  return await call('POST', 'settings/try', { ...next, code }).catch(() => ({ status: 0 }))
}

test(
  'the doctor knows clock, resolver and services, through gateway and broker',
  { skip },
  async () => {
    const { checks } = await call('GET', 'doctor')
    const results = Object.fromEntries(
      (checks as Array<{ name: string; result: string; found: string }>).map((check) => [
        check.name,
        check,
      ]),
    )
    for (const part of ['configuration', 'resolver', 'services', 'control server', 'Node-RED'])
      assert.equal(results[part]?.result, 'ok', JSON.stringify(results[part]))
    assert.notEqual(results['clock']?.result, 'skip', JSON.stringify(results['clock']))
  },
)

test(
  'alerts that are set from the tailnet arrive, and nothing else is open',
  { skip },
  async () => {
    const tried = await tryChange(
      (text) => `${text}\n[alerts]\nwebhook = "http://hooks.lab.test:8080/secret"\nafter = "1 s"\n`,
    )
    assert.equal(tried['status'], 200, JSON.stringify(tried))
    assert.equal((await call('POST', 'settings/confirm', { id: tried['id'] }))['status'], 200)
    await eventually('one arrives', 60, async () => {
      const { results } = await call('POST', 'alerts/test', {})
      return results?.[0]?.ok === true ? true : undefined
    })
    assert.deepEqual([got.at(-1)!.path, got.at(-1)!.body['event']], ['/secret', 'test'])
    const leaked = await machine.run(
      'grep -rls hooks.lab.test:8080/secret /var /run /etc --exclude-dir=gatehouse-test; ' +
        'journalctl -b --no-pager | grep -c 8080/secret',
    )
    assert.equal(leaked.stdout.trim(), '/run/gatehouse-provision/alerts\n0')
    got.length = 0
    await machine.run('systemctl stop node-red')
    const told = await eventually('that Node-RED is down is told', 90, async () => got[0])
    assert.deepEqual([told.body['event'], told.body['code']], ['problem', 'GH_UPSTREAM_DOWN'])
    await machine.run('systemctl start node-red')
    await eventually('that it is over, too', 120, async () =>
      got.find(({ body }) => body['event'] === 'over'),
    )
    assert.equal((await machine.run('systemctl --failed --no-legend --plain')).stdout, '')
  },
)

/** Each would keep the person out for good. */
const wrong: Record<string, (text: string) => string> = {
  'another control server': (text) =>
    text.replace(/control_url = ".*"/, 'control_url = "https://nowhere.lab.test"'),
  'an address of another network': (text) =>
    `${text}\n[network]\naddresses = ["10.99.0.5/24"]\ngateway = "10.99.0.1"\ndns = ["10.99.0.1"]\n`,
  'an access list without anybody who is there': (text) =>
    `${text}\n[access]\nmanage = ["nobody@example.com"]\nview = ["nobody@example.com"]\n`,
}
const changes = [
  ...Object.entries(wrong),
  [
    'all that would keep a person out, in one change',
    (text: string) => Object.values(wrong).reduce((so, change) => change(so), text),
  ] as const,
]

for (const [what, change] of changes)
  test(`${what}: the device is back by itself`, { skip, timeout: 400_000 }, async (t) => {
    const before = await card()
    const begun = performance.now()
    const tried = await tryChange(change)
    const onCard = await card()
    assert.notEqual(onCard, before, JSON.stringify(tried))
    await eventually('the file is the one before', 120, async () =>
      (await card()) === before ? true : undefined,
    )
    const back = performance.now()
    await eventually('it answers, with all rights', 180, async () =>
      (await call('GET', 'settings'))['status'] === 200 ? true : undefined,
    )
    await editor(client, name)
    const seconds = (ms: number): string => (ms / 1000).toFixed(0)
    t.diagnostic(
      `taken back after ${seconds(back - begun)} s, answers ${seconds(performance.now() - back)} s later`,
    )
    assert.equal((await machine.run('ls /efi/gatehouse.toml.before')).code, 2)
    const { entries } = await call('GET', 'audit')
    assert.ok((entries as Array<{ what: string }>).some((entry) => entry.what === 'settings.try'))
  })
