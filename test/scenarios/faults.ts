/**
 * Faults on the booted image, a folder each: what breaks, and what must hold then. They share one
 * machine, in this order. The run prints a table of what was seen. GATEHOUSE_ROUNDS: power cuts in
 * each scenario that has them; GATEHOUSE_FAULTS: only these, by name.
 */
import assert from 'node:assert/strict'
import { globSync } from 'node:fs'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { Lab } from '../lab/lab.ts'
import { bootAppliance, card, tried } from '../vm/appliance.ts'
import { type Scenario, Stage } from './stage.ts'

const order = [
  'power-cut-first-boot',
  'gateway-killed',
  'gateway-hung',
  'gateway-out-of-memory',
  'node-red-crash-loop',
  'node-red-out-of-memory',
  'data-full',
  'files-full',
  'network-away',
  'dhcp-without-dns',
  'udp-blocked',
  'half-lost',
  'power-cut-deploy',
  'clock-2040',
  'power-cut-issue',
  'larger-card',
  'half-copied',
  'control-away',
  'captive-portal',
  'network-late',
  'data-read-only',
  'wrong-image',
  'data-damaged',
  'card-too-small',
]
const asked = process.env['GATEHOUSE_FAULTS']?.split(',') ?? order
const scenarios = new Map<string, Scenario>()
for (const name of order)
  scenarios.set(name, ((await import(`./${name}/scenario.ts`)) as { scenario: Scenario }).scenario)

let lab: Lab
let stage: Stage
const seen: string[] = []

before(async () => {
  assert.deepEqual(
    globSync('*/scenario.ts', { cwd: import.meta.dirname })
      .map((file) => path.dirname(file))
      .toSorted(),
    order.toSorted(),
    'each scenario has its place in the order',
  )
  lab = await Lab.start({ name: 'faults' })
  const client = await lab.client('laptop')
  const credentials = Object.assign(
    {},
    ...[...scenarios.values()].map((scenario) => scenario.credentials ?? {}),
  ) as Record<string, string>
  stage = new Stage(lab, client, await bootAppliance(lab, tried, { credentials, ...card }))
})

after(async () => {
  if (seen.length > 0) console.log(`\n${seen.join('\n')}\n`)
  await stage?.machine.destroy()
  await lab?.stop()
})

for (const [name, { fault, holds, run }] of scenarios) {
  test(`${fault}: ${holds}`, { skip: !asked.includes(name) }, async () => {
    const begun = performance.now()
    if (name !== order[0]) await stage.served(500)
    const what = await run(stage)
    seen.push(
      `${name.padEnd(24)} ${((performance.now() - begun) / 1000).toFixed(0).padStart(4)} s  ${what}`,
    )
  })
}

test('nothing left the lab', async () => {
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
