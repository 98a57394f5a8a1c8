/**
 * An extension under the image's own systemd, in namespaces instead of a machine: in seconds, what
 * its unit lets it see and do, who reaches it, and what becomes of its settings. The kernel's part,
 * dm-verity, is left out: test/vm/extension.test.ts has it, on the booted image.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { copyFile, mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { readHead } from '../../src/update/extension.ts'
import { extension } from '../../tools/extension.ts'

const repository = path.resolve(import.meta.dirname, '../..')
const image = path.join(repository, 'out/mkosi/gatehouse-amd64.root.raw')
const file = path.join(repository, 'out/mosquitto-amd64.extension')
let skip: string | false = false
if (process.getuid?.() !== 0) skip = 'namespaces and mounts need root'
else if (process.arch !== 'x64') skip = 'runs programs of the amd64 image'
else if (!existsSync(image)) skip = 'there is no image: make image-amd64'
else if (!existsSync(file)) skip = 'make extension NAME=mosquitto ARCH=amd64'

const unit = 'gatehouse-extension@mosquitto.service'
let directory: string
/** What the probe printed, by the word that each part begins with. */
const seen = new Map<string, string>()

/** `mosquitto_passwd -b passwords alice secret` */
const passwords =
  'alice:$7$101$m058j8Ukec8UqRIQ$UwIG26tk4tXyAMr0mQM/I9mXkpiH5' +
  'gR44yf7JZySa1T/6nYa2/jiVcgIXsuO2S8ekHj8fQE1qtbwzMRQ6a3oKg=='

/** Of the system what an extension has to do with; the rest needs a machine. */
const masked = [
  ...['efi.mount', 'var.mount', 'run-node\\x2dred.mount', 'systemd-repart.service'],
  ...[
    'gatehouse.service',
    'gatehouse-certs.service',
    'node-red.service',
    'gatehouse-quota.service',
  ],
  ...['gatehouse-reset.service', 'gatehouse-no-data.service', 'gatehouse-recover.service'],
  ...['systemd-udevd.service', 'systemd-udev-trigger.service', 'systemd-networkd.service'],
  ...['systemd-timesyncd.service', 'gatehouse-console.service'],
]

/** Says CONNECT to the broker (MQTT 3.1.1, 3.1), with a name and password or without. */
const connect = `const [user, password] = process.argv.slice(2);
const text = (s) => Buffer.concat([Buffer.from([s.length >> 8, s.length & 255]), Buffer.from(s)]);
const rest = Buffer.concat([text('MQTT'), Buffer.from([4, user ? 0xc2 : 2, 0, 60]), text('c'), ...(user ? [text(user), text(password)] : [])]);
const s = require('node:net').connect({ host: '127.0.0.1', port: 1883 });
const end = (what) => { console.log(what); process.exit() };
s.setTimeout(1500, () => end('silence')).on('error', (e) => end(e.code)).on('close', () => end('closed'));
s.on('connect', () => s.write(Buffer.concat([Buffer.from([0x10, rest.length]), rest]))).on('data', (d) => end(d[3] === 0 ? 'welcome' : 'refused ' + d[3]));
`

// As root in the system; each part's output goes by its first line. systemd waits for nothing here.
const probe = `exec 2>&1
part() { echo "=== $1"; }
as() { setpriv --reuid=$1 --regid=$1 --clear-groups node /probe/connect.js $2 $3; }
active() { for i in $(seq 40); do [ "$(systemctl is-active ${unit})" = "\${1:-active}" ] && break; sleep 0.25; done; systemctl is-active ${unit}; }
part attached; active; sleep 1; cat /run/gatehouse-provision/extensions.json
part problem; cat /run/gatehouse-provision/problem
pid=$(systemctl show -P MainPID ${unit})
part process; stat -c '%U' /proc/$pid; grep -E '^(NoNewPrivs|Seccomp|CapBnd):' /proc/$pid/status
part root; head -1 /proc/$pid/mountinfo; ls /proc/$pid/root/var/lib /proc/$pid/root/usr/bin; find /proc/$pid/root/run -type s -o -type p
part exposure; systemd-analyze security --no-pager ${unit} | grep Overall
part reach; for user in 603 601 605 621 622; do as $user; done
part stored; systemctl restart ${unit}; ls -l /var/lib/gatehouse-extension-data/mosquitto | grep -c 'gatehouse-extension-a.*mosquitto.db'
part passwords; cp /probe/passwords.toml /efi/gatehouse.toml; systemctl restart gatehouse-provision; active; sleep 1; as 603; as 603 alice wrong; as 603 alice secret
part secrets; cat /run/systemd/system/gatehouse-extension@mosquitto.service.d/*.conf; stat -c %a /var/lib/gatehouse-extensions/mosquitto.files /var/lib/gatehouse-extensions/mosquitto.files/passwords
part newer; install -D -o gatehouse-update /probe/newer /var/lib/gatehouse-update/mosquitto-amd64.extension; systemctl start gatehouse-update-install; active; cat /run/gatehouse-provision/extensions.json; ls /var/lib/gatehouse-update; ls -A /var/lib/gatehouse-extensions
part gone; : >/efi/gatehouse.toml; systemctl restart gatehouse-provision; active inactive; ls /var/lib/gatehouse-extensions /run/systemd/system; sleep 2; nft list ruleset | grep -c 1883
part end
systemctl --no-block exit
`

const start = `set -e
mount --make-rprivate /
mount -o loop,ro -t erofs "$IMAGE" "$DIR/image"
mount -t tmpfs tmpfs "$DIR/over"; mkdir "$DIR/over/upper" "$DIR/over/work"
mount -t overlay overlay -o "lowerdir=$DIR/laid:$DIR/image,upperdir=$DIR/over/upper,workdir=$DIR/over/work" "$DIR/root"
cd "$DIR/root"
mount -t proc proc proc; mount -t sysfs sysfs sys; mount -t cgroup2 cgroup2 sys/fs/cgroup; mount --rbind /dev dev
mount -t tmpfs tmpfs run; mount -t tmpfs tmpfs tmp
ip link set lo up
mkdir -p mnt/old; pivot_root . mnt/old
mkdir -p /probe; mount --bind "/mnt/old$DIR/out" /probe; umount -l /mnt/old; mount --make-rshared /
exec env -i container=gatehouse-test PATH=/usr/sbin:/usr/bin /usr/lib/systemd/systemd systemd.unit=multi-user.target systemd.default_device_timeout_sec=5
`

before(async () => {
  if (skip !== false) return
  directory = await mkdtemp(path.join(tmpdir(), 'gh-systemd-'))
  const at = (...parts: string[]): string => path.join(directory, ...parts)
  for (const folder of ['image', 'over', 'root', 'laid/efi', 'out'])
    await mkdir(at(folder), { recursive: true })
  const units = at('laid/etc/systemd/system')
  await mkdir(path.join(units, 'multi-user.target.wants'), { recursive: true })
  for (const name of masked) await symlink('/dev/null', path.join(units, name))
  // This kernel may have no dm-verity.
  await mkdir(path.join(units, `${unit}.d`))
  await writeFile(
    path.join(units, `${unit}.d/99-test.conf`),
    '[Service]\nRootHash=\nRootVerity=\nRootImagePolicy=*\n',
  )
  await writeFile(
    path.join(units, 'probe.service'),
    '[Unit]\nAfter=multi-user.target\n[Service]\nType=oneshot\nTimeoutStartSec=200\n' +
      'StandardOutput=file:/probe/said\nExecStart=/bin/bash /probe/probe\n',
  )
  await symlink('../probe.service', path.join(units, 'multi-user.target.wants/probe.service'))
  await writeFile(at('out/probe'), probe)
  await writeFile(at('out/connect.js'), connect)

  const data = await readFile(file)
  const publicKey = await readFile(path.join(repository, 'keys/update.pub'), 'utf8')
  const { manifest, text } = readHead(data, 'it', publicKey)
  const [from, to] = [text.length, text.length + manifest.root.size]
  const parts = { root: data.subarray(from, to), verity: data.subarray(to) }
  const key = path.join(repository, 'keys/update.key')
  await writeFile(at('out/newer'), extension({ ...manifest, version: '2.0.99-1' }, parts, key))
  await copyFile(file, at('laid/efi/mosquitto-amd64.extension'))
  const spoiled = extension({ ...manifest, name: 'spoiled', ports: [] }, parts, key)
  spoiled[spoiled.length - 100_000]! ^= 1
  await writeFile(at('laid/efi/spoiled-amd64.extension'), spoiled)
  const settings =
    '[node_red]\nallow = ["extension:mosquitto"]\n[[forward]]\nport = 1883\n' +
    'target = "127.0.0.1:1883"\n[[extension]]\nname = "spoiled"\n[[extension]]\nname = "mosquitto"\n'
  await writeFile(at('laid/efi/gatehouse.toml'), settings)
  await writeFile(at('out/passwords.toml'), `${settings}files = ["more.conf", "passwords"]\n`)
  await writeFile(
    at('laid/efi/more.conf'),
    'allow_anonymous false\npassword_file /config/passwords\n',
  )
  await writeFile(at('laid/efi/passwords'), `${passwords}\n`)
  const child = spawn(
    'unshare',
    [
      ...['--mount', '--pid', '--fork', '--kill-child', '--net', '--uts', '--ipc', '--cgroup'],
      ...['sh', '-c', start],
    ],
    { env: { ...process.env, DIR: directory, IMAGE: image }, stdio: ['ignore', 'pipe', 'pipe'] },
  )
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
  await rm(directory, { recursive: true, force: true })
})

const lines = (part: string): string[] => seen.get(part)!.split('\n')

test('it is attached; what is damaged is told, and does not keep it off', { skip }, () => {
  const [state, attached] = lines('attached')
  assert.equal(state, 'active')
  assert.match(attached!, /^\[\{"name":"mosquitto","title":"Mosquitto, an MQTT broker"/)
  assert.match(seen.get('problem')!, /spoiled-amd64\.extension on the card is truncated or damaged/)
})

test('its own user, no powers, a root of its own, no socket of the system', { skip }, () => {
  const [user, ...status] = lines('process')
  assert.equal(user, 'gatehouse-extension-a')
  assert.deepEqual(status.map((line) => line.replace(/\s+/, ' ')).toSorted(), [
    'CapBnd: 0000000000000000',
    'NoNewPrivs: 1',
    'Seccomp: 2',
  ])
  const [mount, ...found] = lines('root')
  assert.match(mount!, / \/ \/ ro,nosuid,nodev.* - erofs /)
  assert.deepEqual(
    found.filter((line) => line !== '' && !line.endsWith(':')),
    ['gatehouse-extension-data'],
  )
  assert.match(seen.get('exposure')!, /: (?:0\.\d|1\.[0-5]) /)
})

test('Node-RED and the gateway reach it, other users do not, itself included', { skip }, () => {
  assert.deepEqual(lines('reach'), ['welcome', 'welcome', 'silence', 'silence', 'silence'])
  assert.equal(seen.get('stored'), '1')
})

test("with a password file of the person's it asks, and shows nobody the file", { skip }, () => {
  assert.deepEqual(lines('passwords'), ['active', 'refused 5', 'refused 5', 'welcome'])
  assert.match(seen.get('secrets')!, /LoadCredential=passwords:.*\n(?:.*\n)*700\n600$/)
  assert.doesNotMatch(seen.get('secrets')!, /alice/)
})

test('a newer one is taken over from the downloads', { skip }, () => {
  const [state, attached, ...rest] = lines('newer')
  assert.equal(state, 'active')
  assert.match(attached!, /"version":"2\.0\.99-1"/)
  assert.deepEqual(rest, ['mosquitto', 'mosquitto.files'])
})

test('without its table nothing is left but what it stored', { skip }, () => {
  assert.equal(lines('gone')[0], 'inactive')
  assert.doesNotMatch(seen.get('gone')!, /gatehouse-extension@|^mosquitto/m)
  assert.equal(lines('gone').at(-1), '0')
})
