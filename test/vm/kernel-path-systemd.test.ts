/**
 * `[tailnet] data_path = "kernel"` under the image's own systemd, in namespaces instead of a
 * machine: provisioning, systemd-networkd, firewall and the gateway's unit as they are shipped, what
 * the gateway's user may do there, and the way back when the interface goes. Peers are
 * test/lab/kernel-path.test.ts's.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { kernelPath } from '../../src/config/data-path.ts'
import { Attempts } from '../scenarios/attempts.ts'
import { inUnit, noteAll } from '../scenarios/shell.ts'
import { attack, attackSettings } from './kernel-path-attack.ts'

const image = path.resolve(import.meta.dirname, '../../out/mkosi/gatehouse-amd64.root.raw')
let skip: string | false = false
if (process.getuid?.() !== 0) skip = 'namespaces and mounts need root'
else if (process.arch !== 'x64') skip = 'runs programs of the amd64 image'
else if (!existsSync(image)) skip = 'there is no image: make image-amd64'

const TUN = kernelPath.interface
const attempts = new Attempts()
let directory: string
/** What the probe printed, by the word that each part begins with. */
const seen = new Map<string, string>()

/** What needs a machine, or has nothing to do with it. */
const masked = [
  ...['efi.mount', 'var.mount', 'run-node\\x2dred.mount', 'systemd-repart.service'],
  ...['gatehouse-certs.service', 'node-red.service', 'gatehouse-quota.service'],
  ...['gatehouse-reset.service', 'gatehouse-no-data.service', 'gatehouse-recover.service'],
  ...['systemd-udevd.service', 'systemd-udev-trigger.service', 'systemd-timesyncd.service'],
  'gatehouse-console.service',
]

const probe = `exec 2>&1
part() { echo "=== $1"; }
for i in $(seq 100); do [ "$(cat /sys/class/net/${TUN}/carrier 2>/dev/null)" = 1 ] && break; sleep 0.3; done
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
part end
systemctl --no-block exit
`

// /sys to read alone: systemd-networkd then waits for no udev. /dev/net/tun as udev has it.
const start = `set -e
mount --make-rprivate /
mount -o loop,ro -t erofs "$IMAGE" "$DIR/image"
mount -t tmpfs tmpfs "$DIR/over"; mkdir "$DIR/over/upper" "$DIR/over/work" "$DIR/over/dev"
mount -t overlay overlay -o "lowerdir=$DIR/laid:$DIR/image,upperdir=$DIR/over/upper,workdir=$DIR/over/work" "$DIR/root"
cd "$DIR/root"
mount -t proc proc proc; mount -t sysfs -o ro sysfs sys; mount -t cgroup2 cgroup2 sys/fs/cgroup; mount --rbind /dev dev
mount -o remount,dev "$DIR/over" 2>/dev/null || true
mknod -m 666 "$DIR/over/dev/tun" c 10 200; mount --bind "$DIR/over/dev/tun" dev/net/tun
mount -t tmpfs tmpfs run; mount -t tmpfs tmpfs tmp
ip link set lo up
mkdir -p mnt/old; pivot_root . mnt/old
mkdir -p /probe; mount --bind "/mnt/old$DIR/out" /probe; umount -l /mnt/old; mount --make-rshared /
exec env -i container=gatehouse-test PATH=/usr/sbin:/usr/bin /usr/lib/systemd/systemd systemd.unit=multi-user.target systemd.default_device_timeout_sec=5
`

before(async () => {
  if (skip !== false) return
  directory = await mkdtemp(path.join(tmpdir(), 'gh-kpath-'))
  const at = (...parts: string[]): string => path.join(directory, ...parts)
  const units = at('laid/etc/systemd/system')
  await mkdir(path.join(units, 'multi-user.target.wants'), { recursive: true })
  for (const folder of ['image', 'over', 'root', 'laid/efi', 'out'])
    await mkdir(at(folder), { recursive: true })
  for (const name of masked) await symlink('/dev/null', path.join(units, name))
  await writeFile(
    path.join(units, 'probe.service'),
    '[Unit]\nAfter=multi-user.target\n[Service]\nType=oneshot\nTimeoutStartSec=250\n' +
      'StandardOutput=file:/probe/said\nExecStart=/bin/bash /probe/probe\n',
  )
  await symlink('../probe.service', path.join(units, 'multi-user.target.wants/probe.service'))
  // Nobody answers there: the gateway waits for a tailnet, with the interface open.
  await writeFile(
    at('laid/efi/gatehouse.toml'),
    '[tailnet]\ndata_path = "kernel"\ncontrol_url = "http://127.0.0.1:9"\n',
  )
  await writeFile(at('out/probe'), probe)
  await writeFile(at('out/attack'), inUnit('gatehouse.service', attack(false), attackSettings))
  const flags = [
    '--mount',
    '--pid',
    '--fork',
    '--kill-child',
    '--net',
    '--uts',
    '--ipc',
    '--cgroup',
  ]
  const child = spawn('unshare', [...flags, 'sh', '-c', start], {
    env: { ...process.env, DIR: directory, IMAGE: image },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let said = ''
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (text: Buffer) => (said += text.toString()))
  const late = setTimeout(() => child.kill('SIGKILL'), 300_000)
  await new Promise((done) => child.once('close', done))
  clearTimeout(late)
  const all = await readFile(at('out/said'), 'utf8').catch(() => '')
  for (const part of all.split('=== ').slice(1)) {
    const end = part.indexOf('\n')
    seen.set(part.slice(0, end), part.slice(end + 1).trim())
  }
  if (!seen.has('end')) throw new Error(`the system did not come to its end: ${said}\n${all}`)
})

after(async () => {
  if (skip !== false) return
  if (attempts.count > 0) console.log(attempts.toString())
  await rm(directory, { recursive: true, force: true })
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
