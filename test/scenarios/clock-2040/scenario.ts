import assert from 'node:assert/strict'
import type { Scenario } from '../stage.ts'
import { eventually } from '../../vm/appliance.ts'

/** Runs after power-cut-deploy, which starts the machine with the clock in 2040. */
export const scenario: Scenario = {
  fault: 'the clock says 2040 at power-on',
  holds:
    'the network puts it right; the certificate is not taken for expired and asked for anew; it serves',
  async run(stage) {
    const year = Number(
      await stage.run('journalctl -b --no-pager -o short-iso -k | head -1 | cut -c1-4'),
    )
    assert.equal(year, 2040, 'it did begin in 2040')
    await eventually(
      'the clock is right',
      200,
      async () =>
        Math.abs(Number(await stage.run('date +%s')) - Date.now() / 1000) < 30 || undefined,
    )
    await stage.served()
    assert.equal(await stage.certificate(), stage.before.certificate)
    const begun = await stage.run(
      'journalctl -b --no-pager -o short-iso -u systemd-timesyncd | tail -1',
    )
    return `it began in ${year}; ${begun.replace(/^\S+ \S+ /, '')}`
  },
}
