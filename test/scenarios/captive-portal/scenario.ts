import assert from 'node:assert/strict'
import { once } from 'node:events'
import path from 'node:path'
import type { Scenario } from '../stage.ts'

const [http, https] = [8980, 8943]
/** Where the portal sends everybody. */
const address = '10.77.0.1'
/**
 * Names are found, and every connection lands at the portal; UDP goes nowhere but to DHCP, DNS and
 * NTP.
 */
const ruleset = `table ip captive {
  chain prerouting { type nat hook prerouting priority dstnat;
    iifname br0 ip saddr 10.77.0.100-10.77.0.150 tcp dport 80 redirect to :${http}
    iifname br0 ip saddr 10.77.0.100-10.77.0.150 tcp dport != { 53, ${http} } redirect to :${https}
  }
}
table bridge captive {
  chain forward { type filter hook forward priority 0; ether type ip ip protocol udp drop; }
  chain input { type filter hook input priority 0; ether type ip udp dport 3478 drop; }
}`

export const scenario: Scenario = {
  fault: 'the network lets nothing through but to its own login page (a captive portal)',
  holds:
    'status and card say that somebody else answers, and what to do; once it is let through ' +
    'it serves by itself, as the same node',
  async run(stage) {
    const before = await stage.node()
    const portal = stage.lab.exec(
      stage.lab.ns,
      [
        process.execPath,
        '--disable-warning=ExperimentalWarning',
        path.join(import.meta.dirname, 'portal.ts'),
        address,
        String(http),
        String(https),
      ],
      { stdio: ['pipe', 'pipe', 'inherit'] },
    )
    await once(portal.stdout!, 'data')
    portal.stdout!.resume()
    let said: { message: string; cure: string }
    try {
      said = await stage.underRules(ruleset, async () => {
        await stage.machine.powerOff()
        await stage.machine.start()
        const problem = await stage.problem(/^GH_CONTROL_UNREACHABLE$/, 400)
        assert.match(problem.message, /its certificate is not trusted/)
        assert.match(problem.cure, /log in/)
        await stage.onCard(/its certificate is not trusted/)
        return problem
      })
    } finally {
      portal.kill()
    }
    const seconds = await stage.served()
    assert.deepEqual(await stage.node(), before)
    return `"${said.message}"; serves ${seconds.toFixed(0)} s after it is let through`
  },
}
