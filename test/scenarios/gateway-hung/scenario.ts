import assert from 'node:assert/strict'
import type { Scenario } from '../stage.ts'
import { eventually } from '../../vm/appliance.ts'

const dropIn = '/run/systemd/system/gatehouse.service.d/99-test.conf'

export const scenario: Scenario = {
  fault: 'the gateway hangs (SIGSTOP)',
  holds: 'systemd hears no sign of life, ends it and starts it again; it serves',
  async run(stage) {
    // On the appliance three minutes: this test need not wait so long, but the others on a busy
    // machine might.
    await stage.run(
      `mkdir -p ${dropIn.slice(0, dropIn.lastIndexOf('/'))}; printf ` +
        `'[Service]\\nWatchdogSec=30s\\nTimeoutAbortSec=5s\\n' >${dropIn}; systemctl ` +
        'daemon-reload; systemctl restart gatehouse',
      300,
    )
    await stage.served()
    const before = await stage.unit('gatehouse')
    const begun = performance.now()
    await stage.run(`kill -STOP ${before.pid}`)
    await eventually(
      'systemd starts it anew',
      180,
      async () => (await stage.unit('gatehouse')).restarts === before.restarts + 1 || undefined,
    )
    await stage.run(`rm ${dropIn}; systemctl daemon-reload`)
    await stage.served()
    assert.match(
      await stage.run('journalctl -b --no-pager -o cat -u gatehouse | grep -i watchdog | tail -1'),
      /[Ww]atchdog/,
    )
    return `serves again after ${((performance.now() - begun) / 1000).toFixed(0)} s, 30 of them the watchdog's`
  },
}
