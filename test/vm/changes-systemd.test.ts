/**
 * What is started when something has changed, under the image's own systemd in namespaces: settings
 * that change while the firewall's lists are being put in force, or while that waits to be tried
 * again, or while systemd-networkd starts, count at once; so does a change of the names to have
 * certificates for.
 */
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { before, test } from 'node:test'
import { kernelPath } from '../../src/config/data-path.ts'
import { imageSystemdSkip, runImageSystemd } from './image-systemd.ts'

const skip = imageSystemdSkip()
const units = path.resolve(import.meta.dirname, '../../overlays/usr/lib/systemd/system')
/** What the probe printed, by the word that each part begins with. */
let seen: Map<string, string>

/** Seconds in which new settings must be in force; without a cure it is minutes. */
const soon = 15

const probe = `
set_to() { printf "$1" >/efi/gatehouse.toml; systemctl restart gatehouse-provision; cat /run/gatehouse-provision/problem 2>/dev/null; }
state() { systemctl show -P SubState gatehouse-firewall; }
reaches() { for i in $(seq ${soon * 10}); do [ "$(state)" = $1 ] && break; sleep 0.1; done; state; }
# Prints after how many seconds the local network is led to the gateway: yes, or no longer: no.
redirected() {
  local begin=$SECONDS
  while [ $((SECONDS - begin)) -lt 30 ]; do
    nft list chain inet gatehouse redirect-local-network >/dev/null 2>&1 && is=yes || is=no
    [ $is = $1 ] && break; sleep 0.2
  done
  echo $is $((SECONDS - begin))
}
listen='[local_network]\\nlisten = true\\nrights = ["use"]\\n'
unknown='[[forward]]\\nport = 2022\\ntarget = "nowhere.invalid:22"\\n'
mount -t tmpfs -o mode=755 tmpfs /var/lib
systemctl stop gatehouse-firewall.timer; systemctl restart gatehouse-provision
part up; set_to "$listen"; redirected yes; reaches dead
part often; for i in 1 2 3 4; do set_to ''; redirected no; set_to "$listen"; redirected yes; done

# It has read the lists, and is held before it looks at them once more.
mkdir -p /run/gate /run/systemd/system/gatehouse-firewall.service.d
printf '[Service]\\nEnvironment=PATH=/run/gate:/usr/bin:/usr/sbin\\n' >/run/systemd/system/gatehouse-firewall.service.d/slow.conf
printf '#!/bin/sh\\n[ -e /run/gatehouse-firewall/held ] || { : >/run/gatehouse-firewall/held; sleep 6; }\\nexec /usr/sbin/nft "$@"\\n' >/run/gate/nft
chmod 0755 /run/gate /run/gate/nft; systemctl daemon-reload
part changed; set_to ''
for i in $(seq 100); do [ -e /run/gatehouse-firewall/held ] && break; sleep 0.1; done; state
set_to "$listen"; sleep 7; redirected yes; reaches dead

# A name that is not found, and the next try is a quarter of an hour away.
printf '[Service]\\nRestartSec=15min\\nRestartMaxDelaySec=infinity\\nRestartSteps=0\\n' >/run/systemd/system/gatehouse-firewall.service.d/slow.conf
systemctl daemon-reload
part waits; set_to "$unknown"; redirected no; reaches auto-restart
part woken; set_to "$listen"; redirected yes; reaches dead

# Provisioning comes while systemd-networkd has read its files, and has not started yet.
mkdir -p /run/systemd/system/systemd-networkd.service.d
printf '[Service]\\nExecStartPost=/bin/sleep 8\\n' >/run/systemd/system/systemd-networkd.service.d/slow.conf
systemctl daemon-reload; systemctl stop systemd-networkd 2>/dev/null; systemctl --no-block start systemd-networkd
for i in $(seq 200); do [ "$(systemctl show -P SubState systemd-networkd)" = start-post ] && break; sleep 0.1; done
part network; systemctl show -P SubState systemd-networkd; set_to '[tailnet]\\ndata_path = "kernel"\\n'
for i in $(seq 300); do [ -e /sys/class/net/${kernelPath.interface} ] && break; sleep 0.1; done
ls -d /sys/class/net/${kernelPath.interface}

# The same for certificates, with a program that fails at once.
rm -f /etc/systemd/system/gatehouse-certs.service
printf '[Service]\\nType=oneshot\\nExecStart=/bin/sh -c "echo run >>/probe/certs; exit 1"\\nRestart=on-failure\\nRestartSec=1h\\n' >/etc/systemd/system/gatehouse-certs.service
systemctl daemon-reload; systemctl start gatehouse-certs.path; mkdir -p /run/gatehouse
: >/probe/certs
for i in 1 2 3; do
  echo name-$i >/run/gatehouse/names
  for n in $(seq 100); do [ "$(grep -c run /probe/certs)" -ge $i ] && break; sleep 0.1; done
done; sleep 1
part certs; grep -c run /probe/certs; systemctl show -P SubState gatehouse-certs
part said; journalctl -q -o cat -u gatehouse-firewall -u 'gatehouse-again@*'
`

before(async () => {
  if (skip !== false) return
  const unit = await readFile(path.join(units, 'gatehouse-firewall.service'), 'utf8')
  seen = await runImageSystemd({
    masked: ['gatehouse.service', 'gatehouse-broker.socket'],
    tun: true,
    laid: {
      'efi/gatehouse.toml': '[tailnet]\nhostname = "shed"\n',
      // /var is no mount here.
      'etc/systemd/system/gatehouse-firewall.service': unit.replace(/^RequiresMountsFor=.*\n/m, ''),
    },
    probe,
  })
})

/** What a part says: whether the redirection is there, after how many seconds; then other lines. */
function part(name: string): { is: string; seconds: number; rest: string[] } {
  const lines = seen.get(name)!.split('\n')
  const at = lines.findIndex((line) => /^(?:yes|no) \d+$/.test(line))
  assert.notEqual(at, -1, JSON.stringify([...seen]))
  const [is, seconds] = lines[at]!.split(' ')
  return { is: is!, seconds: Number(seconds), rest: lines.toSpliced(at, 1) }
}

test('settings that change are in force soon', { skip }, () => {
  const { is, seconds, rest } = part('up')
  assert.deepEqual([is, rest], ['yes', ['dead']], seen.get('said')!)
  assert.ok(seconds <= soon, `after ${seconds} s`)
})

test('each time they change', { skip }, () => {
  const all = seen
    .get('often')!
    .split('\n')
    .map((line) => line.split(' '))
  assert.deepEqual(
    all.map(([is]) => is),
    [1, 2, 3, 4].flatMap(() => ['no', 'yes']),
  )
  assert.ok(Math.max(...all.map(([, seconds]) => Number(seconds))) <= soon, seen.get('often')!)
})

test('settings that change while others are being put in force are not lost', { skip }, () => {
  const { is, seconds, rest } = part('changed')
  assert.deepEqual(rest, ['start', 'dead'], seen.get('said')!)
  assert.equal(is, 'yes', seen.get('said')!)
  assert.ok(seconds <= soon, `after ${seconds} s`)
})

test('nor while a name is waited for that was not found', { skip }, () => {
  assert.deepEqual([part('waits').is, part('waits').rest], ['no', ['auto-restart']])
  const { is, seconds, rest } = part('woken')
  assert.deepEqual([is, rest], ['yes', ['dead']], seen.get('said')!)
  assert.ok(seconds <= soon, `after ${seconds} s`)
})

test('files of the network that change while systemd-networkd starts are read', { skip }, () => {
  assert.deepEqual(seen.get('network')!.split('\n'), [
    'start-post',
    `/sys/class/net/${kernelPath.interface}`,
  ])
})

test(
  'certificates are looked after when names change, also while a try is waited for',
  { skip },
  () => {
    assert.deepEqual(seen.get('certs')!.split('\n'), ['3', 'auto-restart'])
  },
)
