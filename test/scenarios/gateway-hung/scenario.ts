import assert from 'node:assert/strict';
import type { Scenario } from '../stage.ts';
import { eventually } from '../../vm/appliance.ts';

export const scenario: Scenario = {
  fault: 'the gateway hangs (SIGSTOP)',
  holds: 'systemd hears no sign of life, ends it and starts it again; it serves',
  // On the appliance three minutes: a test need not wait so long. Ending it takes the time a stopped process may take to write a core.
  credentials: { 'systemd.unit-dropin.gatehouse.service~watchdog': '[Service]\nWatchdogSec=40s\nTimeoutAbortSec=5s\n' },
  async run(stage) {
    const before = await stage.unit('gatehouse');
    const begun = performance.now();
    await stage.run(`kill -STOP ${before.pid}`);
    await eventually('systemd starts it anew', 180, async () => (await stage.unit('gatehouse')).restarts === before.restarts + 1 || undefined);
    await stage.served();
    assert.match(await stage.run('journalctl -b --no-pager -o cat -u gatehouse | grep -i watchdog | tail -1'), /[Ww]atchdog/);
    return `serves again after ${((performance.now() - begun) / 1000).toFixed(0)} s, 40 of them the watchdog's`;
  },
};
