/**
 * The gateway as on a board with 512 MB, three quarters of which it may have, with the real
 * bindings: what many downloads and connections at a time leave behind does not keep the next one
 * out. On the booted image: test/vm/memory.test.ts.
 */
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { after, before, test } from 'node:test'
import { Appliance, eventually } from './appliance.ts'
import { Downloads } from './downloads.ts'
import { Lab, type LabClient } from './lab.ts'

let lab: Lab
let client: LabClient
let appliance: Appliance
let name: string
let downloads: Downloads

before(async () => {
  lab = await Lab.start({ name: 'memory' })
  client = await lab.client('laptop')
  appliance = await Appliance.start(lab, {
    settings: '[limits]\nmemory_mib = 384\n',
    env: { NODE_OPTIONS: '--max-semi-space-size=4' },
  })
  name = (await appliance.status()).tailnet.name!
  downloads = new Downloads(client, name, await readFile(lab.ready.acmeRoots))
})
after(async () => {
  await appliance?.stop()
  await lab?.stop()
})

async function serves(): Promise<boolean> {
  return (await client.fetch(`https://${name}/`)).status === 200
}

/** MiB that the gateway has. */
async function resident(): Promise<number> {
  const status = await readFile(`/proc/${appliance.pid}/status`, 'utf8')
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)![1]) / 1024
}

test('eight downloads at a time, 40 that stall, 1,000 connections opened and closed: then it serves', async (t) => {
  const start = await resident()
  const stalled = await downloads.stall(40)
  const bytes = await Promise.all(
    Array.from({ length: 8 }, async () => await downloads.download(3)),
  )
  // Age is not of one length in all of them.
  assert.ok(
    bytes.every((all) => Math.abs(all - bytes[0]!) < 1_000 && all > 3 * 2 ** 20),
    bytes.join(),
  )
  const downloaded = await resident()
  for (const secure of stalled) secure.destroy()
  const freed = performance.now()
  await eventually('it serves', 90, serves)
  const again = (performance.now() - freed) / 1000
  const opened = await downloads.openThousand()
  const end = await resident()
  t.diagnostic(
    `${opened} of 1,000 connections let in; MiB: ${start.toFixed(0)}, with 48 downloads ` +
      `${downloaded.toFixed(0)}, ${again.toFixed(0)} s later it served; at the end ` +
      `${end.toFixed(0)}`,
  )
  assert.ok(opened > 500, `${opened} opened`)
  await eventually('it serves', 90, serves)
  const { problems } = await appliance.status()
  assert.deepEqual(
    problems.filter(({ part }) => part === 'memory'),
    [],
  )
})

test('nothing left the lab', async () => {
  assert.equal(await lab.leaked(), 0)
})
