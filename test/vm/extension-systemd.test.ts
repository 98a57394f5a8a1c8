/**
 * An extension under the image's own systemd, in namespaces instead of a machine: in seconds, what
 * its unit lets it see and do, who reaches it, and what becomes of its settings. The kernel's part,
 * dm-verity, is left out: test/vm/extension.test.ts has it, on the booted image.
 */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { before, test } from 'node:test'
import { readHead } from '../../src/update/extension.ts'
import { extension } from '../../tools/extension.ts'
import { imageSystemdSkip, runImageSystemd } from './image-systemd.ts'

const repository = path.resolve(import.meta.dirname, '../..')
const file = (name: string): string => path.join(repository, `out/${name}-amd64.extension`)
const missing = ['mosquitto', 'influxdb'].find((name) => !existsSync(file(name)))
const skip =
  imageSystemdSkip() ||
  (missing === undefined ? false : `make extension NAME=${missing} ARCH=amd64`)

const unit = 'gatehouse-extension@mosquitto.service'
/** What the probe printed, by the word that each part begins with. */
let seen: Map<string, string>

/** `mosquitto_passwd -b passwords alice secret` */
const passwords =
  'alice:$7$101$m058j8Ukec8UqRIQ$UwIG26tk4tXyAMr0mQM/I9mXkpiH5' +
  'gR44yf7JZySa1T/6nYa2/jiVcgIXsuO2S8ekHj8fQE1qtbwzMRQ6a3oKg=='

/** Says CONNECT to the broker (MQTT 3.1.1, 3.1), with a name and password or without. */
const connect = `const [user, password] = process.argv.slice(2);
const text = (s) => Buffer.concat([Buffer.from([s.length >> 8, s.length & 255]), Buffer.from(s)]);
const rest = Buffer.concat([text('MQTT'), Buffer.from([4, user ? 0xc2 : 2, 0, 60]), text('c'), ...(user ? [text(user), text(password)] : [])]);
const s = require('node:net').connect({ host: '127.0.0.1', port: 1883 });
const end = (what) => { console.log(what); process.exit() };
s.setTimeout(1500, () => end('silence')).on('error', (e) => end(e.code)).on('close', () => end('closed'));
s.on('connect', () => s.write(Buffer.concat([Buffer.from([0x10, rest.length]), rest]))).on('data', (d) => end(d[3] === 0 ? 'welcome' : 'refused ' + d[3]));
`

/** Asks the database: prints what it answers, or why it does not. Waits until it has started. */
const ask = `const ask = (method, path, body) => fetch('http://127.0.0.1:8086' + path, { method, body, signal: AbortSignal.timeout(10000) });
const query = (q) => ask('POST', '/query?db=house&q=' + encodeURIComponent(q)).then((a) => a.text());
(async () => {
  for (let i = 0; i < 40; i++) {
    if (await ask('GET', '/ping').then(() => true, () => false)) break;
    await new Promise((r) => setTimeout(r, 250));
  }
  if (process.argv[2] === 'write') {
    await query('CREATE DATABASE house WITH DURATION 30d');
    console.log((await ask('POST', '/write?db=house', 'temperature,room=hall value=21.5')).status);
  }
  console.log((await query('SELECT value FROM temperature')).trim());
})().catch((e) => console.log(e.cause?.code ?? e.name));
`

// As root in the system; each part's output goes by its first line. systemd waits for nothing here.
const probe = `as() { setpriv --reuid=$1 --regid=$1 --clear-groups node /probe/connect.js $2 $3; }
active() { for i in $(seq 40); do [ "$(systemctl is-active ${unit})" = "\${1:-active}" ] && break; sleep 0.25; done; systemctl is-active ${unit}; }
part attached; active; sleep 1; cat /run/gatehouse-provision/extensions.json
part problem; cat /run/gatehouse-provision/problem
pid=$(systemctl show -P MainPID ${unit})
part process; stat -c '%U' /proc/$pid; grep -E '^(NoNewPrivs|Seccomp|CapBnd):' /proc/$pid/status
part root; head -1 /proc/$pid/mountinfo; ls /proc/$pid/root/var/lib /proc/$pid/root/usr/bin; find /proc/$pid/root/run -type s -o -type p
part exposure; systemd-analyze security --no-pager ${unit} | grep Overall
part reach; for user in 603 601 605 621 622; do as $user; done
part stored; systemctl restart ${unit}; ls -l /var/lib/gatehouse-extension-data/mosquitto | grep -c 'gatehouse-extension-b.*mosquitto.db'
part passwords; cp /probe/passwords.toml /efi/gatehouse.toml; systemctl restart gatehouse-provision; active; sleep 1; as 603; as 603 alice wrong; as 603 alice secret
part database; mem() { sed -n 's/^VmHWM: *//p' /proc/$(systemctl show -P MainPID gatehouse-extension@influxdb)/status; }; db() { setpriv --reuid=603 --regid=603 --clear-groups node /probe/ask.js $1; }
db write; systemctl restart gatehouse-extension@influxdb; db; mem; ls /var/lib/gatehouse-extension-data/influxdb
part secrets; cat /run/systemd/system/gatehouse-extension@mosquitto.service.d/*.conf; stat -c %a /var/lib/gatehouse-extensions/mosquitto.files /var/lib/gatehouse-extensions/mosquitto.files/passwords
part newer; install -D -o gatehouse-update /probe/newer /var/lib/gatehouse-update/mosquitto-amd64.extension; systemctl start gatehouse-update-install; active; cat /run/gatehouse-provision/extensions.json; ls /var/lib/gatehouse-update; ls -A /var/lib/gatehouse-extensions
part gone; : >/efi/gatehouse.toml; systemctl restart gatehouse-provision; active inactive; ls /var/lib/gatehouse-extensions /run/systemd/system; sleep 2; nft list ruleset | grep -c 1883
`

before(async () => {
  if (skip !== false) return
  const data = await readFile(file('mosquitto'))
  const publicKey = await readFile(path.join(repository, 'keys/update.pub'), 'utf8')
  const { manifest, text } = readHead(data, 'it', publicKey)
  const [from, to] = [text.length, text.length + manifest.root.size]
  const parts = { root: data.subarray(from, to), verity: data.subarray(to) }
  const key = path.join(repository, 'keys/update.key')
  const spoiled = extension({ ...manifest, name: 'spoiled', ports: [] }, parts, key)
  spoiled[spoiled.length - 100_000]! ^= 1
  const settings =
    '[node_red]\nallow = ["extension:mosquitto", "extension:influxdb"]\n[[forward]]\nport = 1883\n' +
    'target = "127.0.0.1:1883"\n[[extension]]\nname = "spoiled"\n[[extension]]\n' +
    'name = "influxdb"\nmemory_mib = 128\n[[extension]]\nname = "mosquitto"\n'
  seen = await runImageSystemd({
    masked: ['gatehouse.service', 'systemd-networkd.service'],
    laid: {
      // This kernel may have no dm-verity.
      [`etc/systemd/system/${unit}.d/99-test.conf`]:
        '[Service]\nRootHash=\nRootVerity=\nRootImagePolicy=*\n',
      'efi/gatehouse.toml': settings,
      'efi/mosquitto-amd64.extension': data,
      'etc/systemd/system/gatehouse-extension@influxdb.service.d/99-test.conf':
        '[Service]\nRootHash=\nRootVerity=\nRootImagePolicy=*\n',
      'efi/influxdb-amd64.extension': await readFile(file('influxdb')),
      'efi/spoiled-amd64.extension': spoiled,
      'efi/more.conf': 'allow_anonymous false\npassword_file /config/passwords\n',
      'efi/passwords': `${passwords}\n`,
    },
    files: {
      'connect.js': connect,
      'ask.js': ask,
      newer: extension({ ...manifest, version: '2.0.99-1' }, parts, key),
      'passwords.toml': `${settings}files = ["more.conf", "passwords"]\n`,
    },
    probe,
  })
})

const lines = (part: string): string[] => seen.get(part)!.split('\n')

test('it is attached; what is damaged is told, and does not keep it off', { skip }, () => {
  const [state, attached] = lines('attached')
  assert.equal(state, 'active')
  assert.match(
    attached!,
    /^\[\{"name":"influxdb",.*\},\{"name":"mosquitto","title":"Mosquitto, an MQTT broker"/,
  )
  assert.match(seen.get('problem')!, /spoiled-amd64\.extension on the card is truncated or damaged/)
})

test('its own user, no powers, a root of its own, no socket of the system', { skip }, () => {
  const [user, ...status] = lines('process')
  // Each has one of four.
  assert.equal(user, 'gatehouse-extension-b')
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

test('flows write measurements to a database, which are there after a restart', { skip }, (t) => {
  const [written, before, after, peak, ...stored] = lines('database')
  assert.equal(written, '204')
  const series = /"columns":\["time","value"\],"values":\[\["[^"]+Z",21\.5\]\]/
  assert.match(before!, series)
  assert.match(after!, series)
  t.diagnostic(`resident at most: ${peak}`)
  assert.deepEqual(stored, ['data', 'meta', 'wal'])
})

test('a newer one is taken over from the downloads', { skip }, () => {
  const [state, attached, ...rest] = lines('newer')
  assert.equal(state, 'active')
  assert.match(attached!, /"version":"2\.0\.99-1"/)
  assert.deepEqual(rest, ['influxdb', 'influxdb.files', 'mosquitto', 'mosquitto.files'])
})

test('without its table nothing is left but what it stored', { skip }, () => {
  assert.equal(lines('gone')[0], 'inactive')
  assert.doesNotMatch(seen.get('gone')!, /gatehouse-extension@|^mosquitto/m)
  assert.equal(lines('gone').at(-1), '0')
})
