import assert from 'node:assert/strict'
import type { Scenario } from '../stage.ts'
import { cardFiles } from '../../vm/appliance.ts'

const data = '/dev/disk/by-partlabel/gatehouse-var'

/** Runs last: what it leaves is another node. */
export const scenario: Scenario = {
  fault: 'the data partition is damaged: first its superblock, then all of it',
  holds:
    'what can be repaired is, by itself, and it is the same node; what cannot is said on ' +
    'console and card with what to do, and that does it',
  async run(stage) {
    const before = await stage.node()
    await stage.run(
      `sync; dd if=/dev/zero of=${data} bs=4096 count=1 conv=notrunc,fsync status=none`,
    )
    await stage.machine.kill()
    await stage.machine.start()
    const seconds = await stage.served(500)
    assert.deepEqual(await stage.node(), before)
    const repaired = await stage.run(
      'journalctl -b --no-pager -o cat -t systemd-fsck | tr "\\n" " "',
    )

    await stage.run(`dd if=/dev/zero of=${data} bs=4M conv=notrunc,fsync status=none || true`, 300)
    await stage.machine.kill()
    await stage.machine.start()
    await stage.machine.waitFor(
      /Gatehouse cannot start: the data partition is damaged, and could not be repaired/,
      { timeout: 300 },
    )
    await stage.onCard(/gatehouse-reset/)
    await stage.machine.kill()
    // What the message says.
    await stage.machine.writeFiles({ 'gatehouse-reset.txt': '', ...(await cardFiles(stage.lab)) })
    await stage.machine.start()
    await stage.joinedAnew(before.id)
    const anew = await stage.served(500)
    return (
      `superblock: serves after ${seconds.toFixed(0)} s (${repaired.slice(0, 200)}); all of ` +
      `it: said so, and with gatehouse-reset a new node that serves ${anew.toFixed(0)} s after ` +
      'joining'
    )
  },
}
