import assert from 'node:assert/strict'
import type { Scenario } from '../stage.ts'

export const scenario: Scenario = {
  fault: 'the control server is away, and the device starts without it',
  holds:
    'status, console and card name the control server and what to look at; when it is back, ' +
    'it serves by itself, and is the same node',
  async run(stage) {
    const before = await stage.node()
    await stage.lab.stopControl()
    let said: string
    try {
      await stage.machine.powerOff()
      await stage.machine.start()
      const problem = await stage.problem(/^GH_CONTROL_UNREACHABLE$/, 400)
      assert.match(problem.message, /the control server .* cannot be reached/)
      assert.match(problem.cure, /The gateway goes on trying/)
      said = problem.message
      await stage.onCard(/the control server .* cannot be reached/)
      assert.match(
        await stage.machine.console(),
        /! tailnet: the control server .* cannot be reached/,
      )
    } finally {
      await stage.lab.startControl()
    }
    const seconds = await stage.served()
    assert.deepEqual(await stage.node(), before)
    return `"${said}"; serves ${seconds.toFixed(0)} s after it is back`
  },
}
