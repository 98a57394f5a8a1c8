import assert from 'node:assert/strict'
import { constants } from 'node:fs'
import { copyFile, open, rename, rm, stat, truncate } from 'node:fs/promises'
import { type Scenario, type Stage, answers } from '../stage.ts'
import { block, readTables } from '../../../tools/gpt.ts'
import { eventually } from '../../vm/appliance.ts'

/** Bytes of the card before the data partition, and of the partition. */
async function data(disk: string): Promise<{ begins: number; size: number }> {
  const file = await open(disk, 'r')
  try {
    const [table] = await readTables(file, (await file.stat()).size)
    const found = table?.partitions.find(({ name }) => name === 'gatehouse-var')
    assert.ok(found, 'the card has a data partition')
    return { begins: found.first * block, size: (found.last + 1 - found.first) * block }
  } finally {
    await file.close()
  }
}

/** The identity was not whole: it has joined as another node, and its log says why. */
async function another(stage: Stage, id: number): Promise<string> {
  const { name } = await eventually('it joins as another node', 500, async () =>
    (await stage.lab.nodes()).find((node) => node.hostname === 'gatehouse' && node.id > id),
  )
  await stage.run('journalctl -b -u gatehouse --no-pager | grep -q GH_IDENTITY_DAMAGED')
  return `joins as ${name}`
}

export const scenario: Scenario = {
  fault: 'the card is copied to a larger one, and the copy breaks off within the data',
  holds:
    'it serves what is whole, as the same node, or as another where the identity is not, and says ' +
    'so; or it says on console and card that the data are damaged. The whole copy, made after it, ' +
    'is the same node with its flows',
  async run(stage) {
    const before = await stage.node()
    assert.equal((await stage.deploy(answers('copied', 'with all its flows'))).status, 204)
    await stage.machine.powerOff({ timeout: 200 })
    const { disk } = stage.machine
    const whole = `${disk}.whole`
    await rename(disk, whole)
    const { begins, size } = await data(whole)
    const larger = (await stat(whole)).size + 512 * 1024 * 1024
    const seen: string[] = []
    for (const part of [0.1, 0.5]) {
      await copyFile(whole, disk, constants.COPYFILE_FICLONE)
      await truncate(disk, begins + Math.floor((size * part) / block) * block)
      await truncate(disk, larger)
      const known = Math.max(...(await stage.lab.nodes()).map(({ id }) => id))
      await stage.machine.start()
      const what = await Promise.race([
        stage.machine
          .waitFor(/Gatehouse cannot start: the data partition is damaged/, { timeout: 500 })
          .then(() => 'said to be damaged'),
        stage.served(500).then(async () => {
          assert.deepEqual(await stage.node(), before)
          return `serves, the flow answers ${(await stage.fetch('/app/copied')).status}`
        }),
        another(stage, known),
      ])
      seen.push(`${100 * part} % of the data: ${what}`)
      await stage.machine.kill()
      await rm(disk)
    }
    await rename(whole, disk)
    await truncate(disk, larger)
    await stage.machine.start()
    const seconds = await stage.served(500)
    assert.deepEqual(await stage.node(), before)
    const answer = await eventually('the flow answers', 200, async () => {
      const got = await stage.fetch('/app/copied')
      return got.status === 200 ? got.body.toString() : undefined
    })
    assert.equal(answer, 'with all its flows')
    return `${seen.join('; ')}; copied whole: serves ${seconds.toFixed(0)} s after the start`
  },
}
