import assert from 'node:assert/strict'
import { constants } from 'node:fs'
import { copyFile, rename, rm, stat, truncate } from 'node:fs/promises'
import { type Scenario, type Stage, answers } from '../stage.ts'
import { block } from '../../../tools/gpt.ts'
import { cardFiles, eventually } from '../../vm/appliance.ts'
import { partitionOf } from '../../vm/disk.ts'

const mebi = 1024 * 1024

/** What the console says is done: with an auth key on the card it joins as another node. */
async function another(stage: Stage, known: number): Promise<string> {
  await stage.onCard(/What to do: If this card is a copy of another, copy it again/)
  await stage.machine.kill()
  await stage.machine.writeFiles(await cardFiles(stage.lab))
  await stage.machine.start()
  const { name } = await eventually('it joins as another node', 500, async () =>
    (await stage.lab.nodes()).find((node) => node.hostname === 'gatehouse' && node.id > known),
  )
  return `the identity is said to be damaged, and with a new auth key it joins as ${name}`
}

async function whatIsServed(stage: Stage, before: object): Promise<string> {
  assert.deepEqual(await stage.node(), before)
  return `serves, the flow answers ${(await stage.fetch('/app/copied')).status}`
}

export const scenario: Scenario = {
  fault: 'the card is copied to a larger one, and the copy breaks off within the data',
  holds:
    'it serves what is whole, as the same node; where its identity is not whole it says so, and joins ' +
    'as another with a new auth key; or it says on console and card that the data are damaged. The ' +
    'whole copy, made after it, is the same node with its flows',
  async run(stage) {
    const before = await stage.node()
    assert.equal((await stage.deploy(answers('copied', 'with all its flows'))).status, 204)
    await stage.machine.powerOff({ timeout: 200 })
    const { disk } = stage.machine
    const whole = `${disk}.whole`
    await rename(disk, whole)
    const { begins, size } = await partitionOf(
      whole,
      'data partition',
      ({ name }) => name === 'gatehouse-var',
    )
    const larger = (await stat(whole)).size + 512 * mebi
    const seen: string[] = []
    // Within the file system's own tables, within what the device is, and behind nearly all of it.
    for (const bytes of [24 * mebi, 72 * mebi, size / 2]) {
      await copyFile(whole, disk, constants.COPYFILE_FICLONE)
      await truncate(disk, begins + Math.floor(bytes / block) * block)
      await truncate(disk, larger)
      const known = Math.max(...(await stage.lab.nodes()).map(({ id }) => id))
      const { length } = await stage.machine.console()
      let over = false
      const said = async (what: RegExp): Promise<unknown> =>
        await eventually(
          `the console says ${what}`,
          500,
          async () => over || what.test((await stage.machine.console()).slice(length)) || undefined,
        )
      await stage.machine.start()
      const first = await Promise.race([
        said(/Gatehouse cannot start: the data partition is damaged/).then(() => 'data'),
        said(/! tailnet: the device's identity in the tailnet is damaged/).then(() => 'identity'),
        stage.served(500).then(() => 'serves'),
      ])
      over = true
      let what = 'said to be damaged'
      if (first === 'identity') what = await another(stage, known)
      else if (first === 'serves') what = await whatIsServed(stage, before)
      seen.push(`${Math.round(bytes / mebi)} MiB of the data: ${what}`)
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
