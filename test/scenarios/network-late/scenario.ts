import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Scenario } from '../stage.ts'

export const scenario: Scenario = {
  fault: 'the device starts without a network, which comes minutes later with an hour gone by',
  holds:
    'status and card say that there is none; with one it serves by itself, and nothing has to be started anew',
  async run(stage) {
    const before = await stage.node()
    await stage.machine.powerOff()
    await stage.machine.start()
    const port = await stage.port()
    await stage.bridge('link', 'set', port, 'nomaster')
    let said: string
    let unit: { pid: number; restarts: number }
    try {
      ;({ message: said } = await stage.problem(/^GH_CONTROL_UNREACHABLE$/, 400))
      await stage.onCard(/cannot be reached/)
      // What backs off and what keeps time have to find out by themselves that an hour has gone by.
      await stage.run('date -s "@$(($(date +%s) + 3600))"')
      await sleep(60_000)
      unit = await stage.unit('gatehouse')
    } finally {
      await stage.bridge('link', 'set', port, 'master', 'br0')
    }
    const seconds = await stage.served()
    assert.deepEqual(await stage.unit('gatehouse'), unit)
    assert.deepEqual(await stage.node(), before)
    assert.equal(await stage.run('systemctl --failed --no-legend --plain'), '')
    return `"${said}"; serves ${seconds.toFixed(0)} s after the network is there`
  },
}
