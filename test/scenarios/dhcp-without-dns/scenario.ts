import assert from 'node:assert/strict'
import type { Scenario } from '../stage.ts'
import { eventually } from '../../vm/appliance.ts'

export const scenario: Scenario = {
  fault: "the network's DHCP names no DNS server any more",
  holds:
    'what is open stays open, and doctor says what is missing and where; with one again all is well',
  async run(stage) {
    const resolver = async (): Promise<{ result: string; found: string; cure?: string }> =>
      JSON.parse(
        (await stage.machine.run('gatehouse doctor --json', { timeout: 120 })).stdout,
      ).find((check: { name: string }) => check.name === 'resolver')
    await stage.lab.setDHCP({ dns: false })
    try {
      await stage.run('networkctl renew $(ls /sys/class/net | grep -v lo)')
      const found = await eventually('doctor sees it', 300, async () => {
        const check = await resolver()
        return check.result === 'fail' ? check : undefined
      })
      assert.match(found.found, /no DNS server/)
      assert.match(found.cure ?? '', /DHCP/)
      await stage.served(60)
    } finally {
      await stage.lab.setDHCP({ dns: true })
    }
    await stage.run('networkctl renew $(ls /sys/class/net | grep -v lo)')
    const again = await eventually('doctor is content', 300, async () => {
      const check = await resolver()
      return check.result === 'ok' ? check : undefined
    })
    return `serves on; doctor: no DNS server; then: ${again.found}`
  },
}
