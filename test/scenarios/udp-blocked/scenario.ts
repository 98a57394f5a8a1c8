import assert from 'node:assert/strict'
import type { Scenario } from '../stage.ts'
import { eventually } from '../../vm/appliance.ts'

const ruleset = `table bridge blocked {
  chain forward { type filter hook forward priority 0; ether type ip ip protocol udp drop; }
  chain input { type filter hook input priority 0; ether type ip udp dport 3478 drop; }
}`

export const scenario: Scenario = {
  fault: 'the network drops all UDP but DHCP, DNS and NTP',
  holds: 'it serves by the relay (DERP, TCP 443); without the block over a direct path again',
  async run(stage) {
    const address = (await stage.lab.nodes()).find((node) => node.hostname === 'gatehouse')!
      .addresses[0]!
    const relayed = await stage.underRules(
      ruleset,
      async () =>
        await eventually('the page comes by the relay', 200, async () => {
          const answer = await stage.fetch('/', { timeout: 20_000 })
          return answer.status === 200 && !answer.path.direct ? answer : undefined
        }),
    )
    assert.equal((await stage.client.pingDirect(address, 120_000)).direct, true)
    return `page by relay "${relayed.path.derp}" in ${relayed.ms.toFixed(0)} ms; then direct again`
  },
}
