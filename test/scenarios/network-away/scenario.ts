import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Scenario } from '../stage.ts'

export const scenario: Scenario = {
  fault: 'the network is away for half a minute',
  holds: 'it serves again by itself, over a direct path, and nothing was started anew',
  async run(stage) {
    const before = await stage.unit('gatehouse')
    const port = await stage.port()
    await stage.bridge('link', 'set', port, 'nomaster')
    await assert.rejects(stage.fetch('/', { timeout: 10_000 }))
    await sleep(20_000)
    await stage.bridge('link', 'set', port, 'master', 'br0')
    const seconds = await stage.served()
    const address = (await stage.lab.nodes()).find((node) => node.hostname === 'gatehouse')!
      .addresses[0]!
    assert.equal((await stage.client.pingDirect(address, 120_000)).direct, true)
    assert.deepEqual(await stage.unit('gatehouse'), before)
    return `serves ${seconds.toFixed(0)} s after it is back`
  },
}
