/**
 * `[tailnet] data_path = "kernel"` under the image's own systemd, in namespaces instead of a
 * machine: provisioning, systemd-networkd, firewall and the gateway's unit as they are shipped, what
 * the gateway's user may do there, and the way back when the interface goes. Peers are
 * test/lab/kernel-path.test.ts's.
 */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { kernelPath } from '../../src/config/data-path.ts'
import { Attempts } from '../scenarios/attempts.ts'
import { inUnit, noteAll } from '../scenarios/shell.ts'
import { imageSystemdSkip, runImageSystemd } from './image-systemd.ts'
import { attack, attackSettings } from './kernel-path-attack.ts'

const skip = imageSystemdSkip()
const TUN = kernelPath.interface
const attempts = new Attempts()
/** What the probe printed, by the word that each part begins with. */
let seen: Map<string, string>

const probe = `for i in $(seq 100); do [ "$(cat /sys/class/net/${TUN}/carrier 2>/dev/null)" = 1 ] && break; sleep 0.3; done
part interface; cat /sys/class/net/${TUN}/owner /sys/class/net/${TUN}/mtu; id -u gatehouse
part units; systemctl is-active gatehouse gatehouse-provision systemd-networkd
pid=$(systemctl show -P MainPID gatehouse)
part process; ls -l /proc/$pid/fd | grep -c /dev/net/tun; grep -E '^Cap(Eff|Bnd|Prm)' /proc/$pid/status
for i in $(seq 50); do nft list chain inet gatehouse redirect-tailnet >/dev/null 2>&1 && break; sleep 0.2; done
part rules; nft list chain inet gatehouse redirect-tailnet
part attack; bash /probe/attack
part gone; networkctl delete ${TUN}
for i in $(seq 100); do journalctl -b --no-pager -u gatehouse -o cat | grep -q GH_DATA_PATH && break; sleep 0.3; done
journalctl -b --no-pager -u gatehouse -u systemd-networkd -o cat
`

before(async () => {
  if (skip !== false) return
  seen = await runImageSystemd({
    laid: {
      // Nobody answers there: the gateway waits for a tailnet, with the interface open.
      'efi/gatehouse.toml': '[tailnet]\ndata_path = "kernel"\ncontrol_url = "http://127.0.0.1:9"\n',
    },
    files: { attack: inUnit('gatehouse.service', attack(false), attackSettings) },
    probe,
    tun: true,
  })
})

after(() => {
  if (attempts.count > 0) console.log(attempts.toString())
})

test("the interface is the gateway's, which has it open and no capability", { skip }, () => {
  const [owner, mtu, uid] = seen.get('interface')!.split('\n')
  assert.deepEqual([owner, mtu], [uid, '1280'])
  assert.equal(seen.get('units'), 'active\nactive\nactive')
  assert.match(seen.get('process')!, /^1\n/)
  assert.doesNotMatch(seen.get('process')!, /^Cap\w+:\s+0*[1-9a-f]/m)
  assert.equal(seen.get('rules')!.match(/ dnat ip6? to /g)?.length, 6, seen.get('rules')!)
})

test('its user gains that device and those ports, and no more', { skip }, () => {
  assert.ok(noteAll(attempts, 'gateway', seen.get('attack')!) > 15, seen.get('attack')!)
  assert.deepEqual(attempts.through('gateway'), [])
})

test('the interface goes: it starts anew with its own stack, and says so', { skip }, () => {
  assert.match(seen.get('gone')!, /GH_TAILNET_DIED.*the device gatehouse0 is gone/)
  assert.match(seen.get('gone')!, /GH_DATA_PATH.*there is no interface gatehouse0/)
  assert.doesNotMatch(seen.get('gone')!, /will be ignored/)
})
