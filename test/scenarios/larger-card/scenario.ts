import assert from 'node:assert/strict'
import { stat, truncate } from 'node:fs/promises'
import { type Scenario, answers } from '../stage.ts'
import { eventually } from '../../vm/appliance.ts'

export const scenario: Scenario = {
  fault: 'the card is copied whole, to one twice as large',
  holds: 'it is the same node, with its flows and certificate, and has the room of the new card',
  async run(stage) {
    const room = async (): Promise<number> =>
      Number(await stage.run('df --output=size -B 1M /var | tail -1'))
    const before = {
      node: await stage.node(),
      certificate: await stage.certificate(),
      room: await room(),
    }
    assert.equal((await stage.deploy(answers('moved', 'with all its flows'))).status, 204)
    await stage.machine.powerOff({ timeout: 200 })
    const { size } = await stat(stage.machine.disk)
    // The copy of the partition table is in the middle then.
    await truncate(stage.machine.disk, 2 * size)
    await stage.machine.start()
    const seconds = await stage.served(500)
    const after = await eventually('the data partition has grown', 100, async () => {
      const now = await room()
      return now > before.room ? now : undefined
    })
    const added = size / 2 ** 20
    assert.ok(after > before.room + 0.9 * added, `${before.room} → ${after} of ${added} MiB more`)
    assert.deepEqual(
      { node: await stage.node(), certificate: await stage.certificate() },
      { node: before.node, certificate: before.certificate },
    )
    const answer = await eventually('the flow answers', 200, async () => {
      const got = await stage.fetch('/app/moved')
      return got.status === 200 ? got.body.toString() : undefined
    })
    assert.equal(answer, 'with all its flows')
    assert.equal(await stage.run('systemctl --failed --no-legend --plain'), '')
    return `/var has ${after} MiB instead of ${before.room}; serves ${seconds.toFixed(0)} s after the start`
  },
}
