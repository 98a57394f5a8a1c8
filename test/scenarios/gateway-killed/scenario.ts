import assert from 'node:assert/strict'
import type { Scenario } from '../stage.ts'

export const scenario: Scenario = {
  fault: 'the gateway is killed (SIGKILL)',
  holds: 'systemd starts it again, and it serves under the same name',
  async run(stage) {
    const before = await stage.unit('gatehouse')
    const begun = performance.now()
    await stage.run(`kill -KILL ${before.pid}`)
    await stage.served()
    const after = await stage.unit('gatehouse')
    assert.equal(after.restarts, before.restarts + 1)
    assert.notEqual(after.pid, before.pid)
    return `serves again after ${((performance.now() - begun) / 1000).toFixed(0)} s`
  },
}
