import type { Scenario } from '../stage.ts'
import { bootAppliance, tried } from '../../vm/appliance.ts'

export const scenario: Scenario = {
  fault: 'the card is a little too small for all partitions',
  holds: 'console and card say so, and how large it must be',
  async run(stage) {
    const machine = await bootAppliance(stage.lab, tried, { diskSize: 1400 })
    try {
      const begun = performance.now()
      const [said] = await machine.waitFor(
        /Gatehouse cannot start: there is no room for the data partition: the card has 1400 MB, and 2000 are needed/,
        { timeout: 400 },
      )
      await machine.waitFor(/What to do: Write the image to a larger card/)
      return `"${said}" ${((performance.now() - begun) / 1000).toFixed(0)} s after power-on`
    } finally {
      await machine.destroy()
    }
  },
}
