import assert from 'node:assert/strict'
import type { Scenario } from '../stage.ts'
import { eventually } from '../../vm/appliance.ts'

// Of what the machine gets and of what it sends, whoever the other side is: half of each would be a
// quarter of the answers.
const ruleset = `table bridge lossy {
  chain forward { type filter hook forward priority 0; ether type ip numgen random mod 100 < 30 drop; }
  chain input { type filter hook input priority 0; ether type ip numgen random mod 100 < 30 drop; }
  chain output { type filter hook output priority 0; ether type ip numgen random mod 100 < 30 drop; }
}`

export const scenario: Scenario = {
  fault: 'half of the packets are lost on their way there and back (30 % each way)',
  holds: 'pages still come, slowly; nothing is started anew, and afterwards all is as before',
  async run(stage) {
    const before = await stage.unit('gatehouse')
    const took: number[] = []
    await stage.underRules(ruleset, async () => {
      for (let i = 0; i < 3; i++) {
        const { ms } = await eventually('a page comes', 300, async () => {
          const answer = await stage.fetch('/', { timeout: 120_000 })
          return answer.status === 200 ? answer : undefined
        })
        took.push(ms / 1000)
      }
    })
    await stage.served()
    assert.deepEqual(await stage.unit('gatehouse'), before)
    return `pages in ${took.map((seconds) => seconds.toFixed(1)).join(', ')} s`
  },
}
