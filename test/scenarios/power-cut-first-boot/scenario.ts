import { randomInt } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Scenario, rounds } from '../stage.ts'

/** Runs first, on a card that has never booted. */
export const scenario: Scenario = {
  fault: 'the power goes at a random moment of the first boot',
  holds:
    'the next boot goes on where it was: partitions, settings, joining; it serves, and there is one node of it',
  async run(stage) {
    const cuts: string[] = []
    for (let round = 0; round < rounds; round++) {
      // From the boot loader to joining: in emulation the first boot takes about a minute and a
      // half.
      const ms = randomInt(8_000, 60_000)
      await sleep(ms)
      await stage.machine.kill()
      cuts.push(`${(ms / 1000).toFixed(0)} s`)
      await stage.machine.start()
    }
    const seconds = await stage.served(500)
    const nodes = (await stage.lab.nodes()).filter((node) => node.hostname === 'gatehouse')
    if (nodes.length !== 1)
      throw new Error(`${nodes.length} nodes of it: ${nodes.map((node) => node.name).join(', ')}`)
    const failed = await stage.run('systemctl --failed --no-legend --plain')
    if (failed !== '') throw new Error(`units have failed: ${failed}`)
    return `cut after ${cuts.join(', ')}; serves ${seconds.toFixed(0)} s after the last start`
  },
}
