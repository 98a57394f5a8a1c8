import assert from 'node:assert/strict'
import type { Scenario } from '../stage.ts'
import { eventually } from '../../vm/appliance.ts'

export const scenario: Scenario = {
  fault: 'the gateway runs out of memory, again and again',
  holds:
    'systemd starts it anew, more and more slowly, and never gives up; Node-RED goes on; ' +
    'once there is memory it serves',
  async run(stage) {
    const [before, nodeRed] = [await stage.unit('gatehouse'), await stage.unit('node-red')]
    await stage.run('systemctl set-property --runtime gatehouse MemoryMax=60M MemorySwapMax=0')
    await eventually(
      'it is ended twice',
      300,
      async () => (await stage.unit('gatehouse')).restarts >= before.restarts + 2 || undefined,
    )
    const log = await stage.run('journalctl -b --no-pager -o cat _PID=1 -n 100')
    assert.match(log, /gatehouse\.service: .*(oom-kill|OOM killer)/)
    await stage.run(
      'systemctl set-property --runtime gatehouse MemoryMax=infinity MemorySwapMax=infinity',
    )
    const seconds = await stage.served()
    assert.deepEqual(await stage.unit('node-red'), nodeRed)
    return (
      `started anew ${(await stage.unit('gatehouse')).restarts - before.restarts} times; ` +
      `serves ${seconds.toFixed(0)} s after it may have memory`
    )
  },
}
