/** The firewall does not load: no firewall, no network, and the console says why. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Lab } from '../lab/lab.ts'
import { bootAppliance, eventually, tried } from '../vm/appliance.ts'

test('a ruleset that does not load: the network stays down, nothing is asked of it, and the console says what to do', async (t) => {
  await using lab = await Lab.start({ name: 'nofw' })
  const machine = await bootAppliance(lab, tried, {
    // nft is given a file that is no ruleset.
    credentials: {
      'systemd.unit-dropin.nftables.service':
        '[Service]\nExecStart=\nExecStart=/usr/sbin/nft -f /etc/os-release\n',
    },
  })
  try {
    await machine.waitFor(
      /gatehouse: the firewall did not load, so the network stays off\. Write the image to the card again/,
      { timeout: 240 },
    )
    await eventually('the units have been tried', 300, async () => {
      const { stdout } = await machine.run(
        'systemctl is-active systemd-networkd gatehouse; systemctl is-failed nftables',
      )
      return stdout === 'inactive\ninactive\nfailed\n' ? true : undefined
    })
    // A slow machine finds its network card after that. Whoever could still bring it up has had time
    // to.
    await machine.run('udevadm settle -t 150', { timeout: 160 })
    await sleep(10_000)
    const { stdout } = await machine.run(
      'for i in /sys/class/net/*; do [ "${i##*/}" = lo ] || echo "$((0x$(cut -c3- $i/flags) ' +
        '& 1))"; done; grep -v " lo$" /proc/net/if_inet6',
    )
    assert.equal(stdout, '0\n', `no interface is up and none has an address: ${stdout}`)
    assert.deepEqual(await lab.leases(), [])
    assert.equal(await lab.leaked(), 0)
    t.diagnostic(
      'console: the firewall did not load, so the network stays off; no interface up, no DHCP',
    )
  } finally {
    await machine.destroy()
  }
})
