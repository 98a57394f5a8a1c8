import assert from 'node:assert/strict'
import type { Scenario } from '../stage.ts'
import { eventually, statusOf } from '../../vm/appliance.ts'

export const scenario: Scenario = {
  fault: 'the kernel finds an error on the data partition and makes it read-only',
  holds:
    'it goes on serving, status and card say so and what to do; a restart repairs it, and all is as before',
  async run(stage) {
    const before = await stage.unit('gatehouse')
    await stage.run(
      'echo 1 >/sys/fs/ext4/$(basename $(readlink -f /dev/disk/by-partlabel/gatehouse-var))/trigger_fs_error',
    )
    // The first that comes upon it may be told of an error instead.
    assert.match(
      (await stage.machine.run('touch /var/lib/new')).stderr,
      /Read-only file system|Input\/output error/,
    )
    const { message, cure } = await stage.problem(/^GH_DATA_READ_ONLY$/, 150)
    await stage.served(60)
    await stage.onCard(/! storage: the data partition is damaged and therefore read-only/)
    assert.match(cure, /Restart the device/)
    assert.deepEqual(await stage.unit('gatehouse'), before)
    await stage.machine.reboot()
    const seconds = await stage.served()
    await stage.run('touch /var/lib/new && rm /var/lib/new')
    await eventually(
      'nothing is wrong any more',
      300,
      async () => (await statusOf(stage.machine))['problems'].length === 0 || undefined,
    )
    const fsck = await stage.run(
      'journalctl -b --no-pager -o cat -t systemd-fsck | head -3 | tr "\\n" " "',
    )
    return `"${message}"; serves ${seconds.toFixed(0)} s after the restart; ${fsck}`
  },
}
