/** A state of the tailnet that is damaged, with the real bindings. */
import assert from 'node:assert/strict'
import { readdir, readFile, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { Appliance, eventually } from './appliance.ts'
import { Lab } from './lab.ts'

let lab: Lab
let appliance: Appliance

before(async () => {
  lab = await Lab.start({ name: 'damaged' })
  appliance = await Appliance.start(lab, { until: 'joined' })
})

after(async () => {
  await appliance?.stop()
  await lab?.stop()
})

test('a device whose identity is damaged says so, and with an auth key joins as another node', async () => {
  const first = (await appliance.status()).tailnet.name
  const state = path.join(appliance.dir, 'state/tailscaled.state')
  const authKey = path.join(appliance.dir, 'credentials/authkey')
  const key = await readFile(authKey, 'utf8')
  await appliance.stopGateway()
  await writeFile(state, Buffer.alloc(2_623))
  // As on the device, where it is taken off the card when it has been used.
  await rm(authKey)
  await appliance.startGateway()
  const problem = await eventually('the problem is said', 60, async () =>
    (await appliance.status()).problems.find(({ code }) => code === 'GH_IDENTITY_DAMAGED'),
  )
  assert.match(problem.message, /tailscaled\.state is damaged \(invalid character .*\)$/)
  assert.match(problem.cure, /write a new auth_key into gatehouse\.toml/)
  assert.ok((await readFile(state)).equals(Buffer.alloc(2_623)), 'nothing is lost')

  await appliance.stopGateway()
  await writeFile(authKey, key, { mode: 0o600 })
  await appliance.startGateway()
  const second = await eventually(
    'it joins',
    60,
    async () => (await appliance.status()).tailnet.name,
  )
  assert.notEqual(second, first)
  const files = await readdir(path.dirname(state))
  assert.ok(files.includes('tailscaled.state.damaged'), files.join())
  assert.equal(appliance.log.match(/GH_IDENTITY_DAMAGED.*It joins as another node/g)?.length, 1)
})
