import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { open } from 'node:fs/promises'
import path from 'node:path'
import { examine, write } from '../../../tools/flash.ts'
import { block, readTables } from '../../../tools/gpt.ts'
import { imageOf, tried } from '../../vm/appliance.ts'
import { makeStick } from '../../vm/disk.ts'
import { type Scenario, answers } from '../stage.ts'

export const scenario: Scenario = {
  fault: 'something else is written over the system, then a wrong image over the card',
  holds:
    'the first is said on the console; after both, writing the right one with KEEP=1 gives ' +
    'the same node, with its flows and settings',
  async run(stage) {
    assert.equal((await stage.deploy(answers('kept', 'still here'))).status, 204)
    const [before, certificate] = [await stage.node(), await stage.certificate()]
    await stage.run('sync')
    const { machine } = stage
    await machine.kill()

    const disk = await open(machine.disk, 'r+')
    const { size } = await disk.stat()
    const slots = (await readTables(disk, size))[0]!.partitions.filter(({ name }) =>
      name.startsWith('gatehouse_'),
    )
    assert.ok(slots.length >= 2)
    for (const { first } of slots)
      await disk.write(randomBytes(8 << 20), 0, undefined, first * block)
    await disk.close()
    const begun = performance.now()
    await machine.start()
    await machine.waitFor(
      /the system on the card cannot be read or was changed.*write the image to the card again/,
      { timeout: 400 },
    )
    const seconds = ((performance.now() - begun) / 1000).toFixed(0)
    await machine.kill()

    // As large as our own, with a table of its own, and no system that could say anything.
    const wrong = path.join(stage.lab.dir, 'wrong.img')
    await makeStick(wrong, { 'README.md': path.resolve(import.meta.dirname, '../../../README.md') })
    execFileSync('dd', [
      `if=${wrong}`,
      `of=${machine.disk}`,
      'bs=4M',
      'conv=notrunc',
      'status=none',
    ])
    const device = execFileSync('losetup', ['--find', '--show', machine.disk], {
      encoding: 'utf8',
    }).trim()
    try {
      const image = imageOf(tried)
      await write(
        { path: device, name: path.basename(device), model: "the machine's card", size },
        image,
        await examine(image),
        () => {},
        { keep: true },
      )
    } finally {
      execFileSync('losetup', ['--detach', device])
    }
    await machine.start()
    const serves = await stage.served(500)
    assert.equal((await stage.fetch('/app/kept')).body.toString(), 'still here')
    assert.deepEqual(await stage.node(), before)
    assert.equal(await stage.certificate(), certificate, 'none is asked for anew')
    assert.equal(await stage.run('systemctl --failed --no-legend --plain'), '')
    return (
      `said so after ${seconds} s; written with KEEP=1, the same node serves ` +
      `${serves.toFixed(0)} s after its start`
    )
  },
}
