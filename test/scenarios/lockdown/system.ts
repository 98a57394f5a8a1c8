/** What the system itself says of how strict it is. */
import assert from 'node:assert/strict'
import { attempts, held, lab, machine } from './support.ts'

/** systemd-analyze security, users, kernel modules. */
export async function exposure(): Promise<void> {
  // What is not named here is held to 2.0: a new unit is strict, or it is added with the reason why
  // it cannot be.
  const most: Record<string, number> = {
    gatehouse: 1.5,
    'gatehouse-certs': 1.5,
    'gatehouse-firewall': 1.5,
    'gatehouse-names': 1.5,
    'gatehouse-learn': 1.5,
    'gatehouse-provision': 1.5,
    'gatehouse-report': 4, // writes to the consoles and, with the system's own mounts, to the card
    'gatehouse-recover': 4, // likewise, to the card
    'gatehouse-broker': 4.5, // likewise, and reads and writes what a backup holds
    'gatehouse-firewall-failed': 5, // one echo
    'gatehouse-no-data': 5, // one question to systemd
    'gatehouse-console': 10, // a root shell, for whoever has the card and a keyboard at the device
    'gatehouse-reset': 9.5,
    'gatehouse-trial': 8.5,
    'gatehouse-update-install': 8, // make file systems, choose what boots, write partitions; without a network
  }
  const { stdout } = await machine.run(
    'cd /usr/lib/systemd/system; systemd-analyze security --no-pager $(ls gatehouse*.service ' +
      'node-red.service | grep -v @) | grep Overall',
    { timeout: 180 },
  )
  const levels = [...stdout.matchAll(/for (\S+)\.service: ([\d.]+)/g)].map(
    ([, unit, level]) => [unit!, Number(level)] as const,
  )
  assert.ok(levels.length >= 12, stdout)
  for (const [unit, level] of levels)
    attempts.note(
      'systemd-analyze',
      `exposure of ${unit}.service, at most ${(most[unit] ?? 2).toFixed(1)}`,
      String(level),
      level <= (most[unit] ?? 2),
    )
  held('systemd-analyze')
  const { stdout: state } = await machine.run(
    'systemctl is-active gatehouse-console; cut -d: -f1,2 /etc/passwd /etc/shadow; find ' +
      '/lib/modules -name "dccp*.ko*" -o -name "sctp*.ko*" -o -name "rds*.ko*" -o -name ' +
      '"tipc*.ko*" -o -name "squashfs*.ko*"',
  )
  const [console, ...lines] = state.trim().split('\n')
  assert.equal(console, 'inactive', 'no console login unless it is asked for')
  assert.ok(lines.some((line) => line.startsWith('root:')))
  assert.deepEqual(
    lines.filter((line) => !/^[\w-]+:(x|[!*].*)$/.test(line)),
    [],
    'no password, and no kernel module for protocols and file systems that nobody uses',
  )
}

/** Secrets on the disk. */
export async function storedSecrets(): Promise<void> {
  // Handed to grep in another form, or it would find this very command. What systemd has handed to
  // the gateway stays until that starts anew.
  const used = await machine.run(
    `grep -rlF -f <(echo ${Buffer.from(lab.ready.authKey).toString('base64')} | base64 -d) ` +
      '/efi /var/lib /var/log /run /etc 2>/dev/null | grep -v ' +
      '^/run/credentials/gatehouse.service/',
    { timeout: 120 },
  )
  assert.equal(used.stdout, '', 'the auth key can be found nowhere')
  const { stdout } = await machine.run(
    'stat -c "%U %a" /var/lib/gatehouse-config/credential-secret ' +
      '/run/gatehouse-provision/authkey /run/gatehouse-provision/eab-hmac-key; ls ' +
      '/var/lib/gatehouse-config | grep -c -e authkey -e eab-hmac-key',
  )
  assert.deepEqual(
    stdout.trim().split('\n'),
    ['root 600', 'root 600', 'root 600', '0'],
    'what is good for one boot is in /run alone',
  )
}
