/**
 * The image's ping in Node-RED's sandbox, under the image's own systemd in namespaces instead of a
 * machine: the kernel's setting, system call filter and addresses of the unit as they are shipped,
 * and the drop-in that a list in gatehouse.toml brings. Whom it may reach is the firewall's:
 * test/lab/ping.test.ts.
 */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { run } from '../lab/ruleset.ts'
import { inUnit } from '../scenarios/shell.ts'
import { imageSystemdSkip, runImageSystemd } from './image-systemd.ts'

const skip = imageSystemdSkip()
const far = `gh-ping-${process.pid}`
/** What the probe printed, by the word that each part begins with. */
let seen: Map<string, string>

const hosts = ['192.168.84.2', 'fd84::2', '192.168.84.3', '127.0.0.1']
const script = `id -un; for host in ${hosts.join(' ')}; do ping -n -c 1 -w 1 $host 2>&1 | grep -E 'received|not permitted' | tail -1; done`
/** Of the unit what is a mount or a program of its own is left out. */
const sandbox = (unit: string, settings: readonly string[] = []): string =>
  inUnit(unit, script, { without: ['RequiresMountsFor'], settings })

const dropIn = '/run/systemd/system/node-red.service.d/50-gatehouse.conf'
const probe = `install -d -o node-red -g node-red /var/lib/node-red /run/node-red
for i in $(seq 100); do nft list chain inet gatehouse node-red-allow | grep -q node-red-ping && break; sleep 0.2; done
part drivers; grep -o 'Wants=.*' ${dropIn}; ls /probe/driver
part range; cat /proc/sys/net/ipv4/ping_group_range; id -g node-red
part rules; nft list chain inet gatehouse node-red-allow
part caps; getfattr -m - /usr/bin/ping 2>&1; stat -c %a /usr/bin/ping
part shipped; ${sandbox('node-red.service')}
part listed; mkdir -p /run/systemd/system/attack-2.service.d; cp ${dropIn} /run/systemd/system/attack-2.service.d/
${sandbox('node-red.service')}
part learning; mkdir -p /run/systemd/system/attack-3.service.d; cp /usr/lib/gatehouse/node-red-learn.conf /run/systemd/system/attack-3.service.d/
${sandbox('node-red.service')}
part others; setpriv --reuid=gatehouse --regid=gatehouse --clear-groups ping -n -c 1 -w 1 ${hosts[0]} 2>&1
`

before(async () => {
  if (skip !== false) return
  await run(['ip', 'netns', 'add', far])
  await run(['ip', '-n', far, 'link', 'set', 'lo', 'up'])
  const there = runImageSystemd({
    masked: ['gatehouse.service', 'systemd-networkd.service'],
    laid: {
      'efi/gatehouse.toml':
        '[node_red]\nallow = ["192.168.84.2:ping", "[fd84::2]:ping"]\ndevices = ["1-wire"]\n',
      // A driver that [node_red] devices needs: no namespace may load one.
      'etc/systemd/system/modprobe@w1_gpio.service':
        '[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nExecStart=touch /probe/driver\n',
    },
    probe,
    cable: { to: far, addresses: ['192.168.84.1/24', 'fd84::1/64'] },
  })
  // The cable's other end comes with the system.
  for (let i = 0; i < 100; i++) {
    const up = await run(['ip', '-n', far, 'link', 'set', 'eth0', 'up']).catch(() => undefined)
    if (up !== undefined) break
    await new Promise((done) => setTimeout(done, 50))
  }
  for (const address of ['192.168.84.2/24', '192.168.84.3/24', 'fd84::2/64'])
    await run(['ip', '-n', far, 'addr', 'add', address, 'dev', 'eth0', 'nodad'])
  seen = await there
})

after(async () => {
  await run(['ip', 'netns', 'del', far]).catch(() => {})
})

test("sockets for pings are Node-RED's group's, and ping has no capability", { skip }, () => {
  const [range, group] = seen.get('range')!.split('\n')
  assert.equal(range, `${group}\t${group}`)
  assert.doesNotMatch(seen.get('caps')!, /security\.capability/)
  assert.match(seen.get('caps')!, /755$/)
  assert.match(seen.get('others')!, /not permitted|Permission denied/)
})

test('drivers that a drop-in of this boot wants are loaded at this boot', { skip }, () => {
  assert.equal(
    seen.get('drivers'),
    'Wants=modprobe@w1_gpio.service modprobe@w1_therm.service\n/probe/driver',
  )
})

test('as shipped, without a list, ping does not even start', { skip }, () => {
  const [user, ...got] = seen.get('shipped')!.split('\n')
  assert.equal(user, 'node-red')
  assert.ok(
    got.some((line) => line.includes('not permitted')),
    seen.get('shipped')!,
  )
  assert.doesNotMatch(seen.get('shipped')!, /received/)
})

test('with a list it runs in the sandbox, and who is on it answers', { skip }, () => {
  const answered = seen.get('listed')!.match(/\d received/g)
  assert.deepEqual(answered, ['1 received', '1 received', '0 received', '0 received'])
})

test('while the device learns it runs as well, so that what it wants is seen', { skip }, () => {
  assert.match(seen.get('learning')!, /\d received/)
})
