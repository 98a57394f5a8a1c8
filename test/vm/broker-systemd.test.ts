/**
 * The broker as it is shipped, under the image's own systemd in namespaces instead of a machine: the
 * bundled program, its socket, its unit's sandbox. What its verbs do is test/unit/broker's; that
 * they can do it in there is tried here, in seconds.
 */
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { before, test } from 'node:test'
import { imageSystemdSkip, runImageSystemd } from './image-systemd.ts'

const skip = imageSystemdSkip()
const units = path.resolve(import.meta.dirname, '../../overlays/usr/lib/systemd/system')
/** What the probe printed, by the word that each part begins with. */
let seen: Map<string, string>

/** Asks the broker: METHOD PATH [BODY|@FILE] [HEADER…]; prints status and answer, or saves it. */
const ask = `const { request } = require('node:http'), fs = require('node:fs')
const [method, path, body = '', ...more] = process.argv.slice(2)
const headers = Object.fromEntries(more.map((one) => one.split('=', 2)))
const out = request({ socketPath: '/run/gatehouse-broker.sock', method, path, headers: { host: 'b',
  'content-type': body.startsWith('@') ? 'application/octet-stream' : 'application/json', ...headers } })
out.on('response', (answer) => {
  const pieces = []
  answer.on('data', (piece) => pieces.push(piece)).on('end', () => {
    const all = Buffer.concat(pieces)
    if (all.subarray(0, 3).toString() === 'age') fs.writeFileSync('/probe/backup.age', all)
    console.log(answer.statusCode, all.toString('latin1').slice(0, 4000))
  })
})
out.on('error', (err) => console.log('failed', err.message))
out.end(body.startsWith('@') ? fs.readFileSync(body.slice(1)) : body)
`

const probe = `
broker() { timeout 60 node /probe/ask.js "$@"; }
code() { grep -aoh 'settings is [0-9]*' /probe/console-* | tail -1 | tail -c 7; }
for name in $(cat /sys/class/tty/console/active) tty1; do
  [ -e /dev/$name ] || continue
  : >/probe/console-$name; mount --bind /probe/console-$name /dev/$name
done
# Folders of a file system that can be renamed, and stand-ins for what is stopped meanwhile.
mount -t tmpfs tmpfs /var/lib
for name in node-red gatehouse; do
  rm -f /etc/systemd/system/$name.service
  printf '[Service]\\nExecStart=/bin/sleep infinity\\n' >/etc/systemd/system/$name.service
done
systemctl daemon-reload
install -d -m 2750 -o gatehouse-certs -g gatehouse /var/lib/gatehouse-tls
install -d -m 0700 -o node-red -g node-red /var/lib/node-red
echo '[1]' >/var/lib/node-red/flows.json; chown node-red:node-red /var/lib/node-red/flows.json
part settings; broker GET /v1/settings
part doctor; broker GET /v1/doctor
part journal; broker GET '/v1/journal?unit=gatehouse-provision&lines=5'
part devices; broker GET /v1/devices
part refused; broker GET /v1/refused
part nobody; setpriv --reuid=node-red --regid=node-red --clear-groups node /probe/ask.js GET /v1/settings
body='"by":"a@b","passphrase":"correct horse battery"'
part asked; broker POST /v1/backup "{$body}"; code
part backup; broker POST /v1/backup "{$body,\\"code\\":\\"$(code)\\"}" | head -c 30
echo '[2]' >/var/lib/node-red/flows.json
who="x-gatehouse-by=a@b x-gatehouse-passphrase=$(printf 'correct horse battery' | base64)"
broker POST /v1/restore @/probe/backup.age $who >/dev/null
part wrong; broker POST /v1/restore @/probe/backup.age x-gatehouse-by=a@b x-gatehouse-passphrase=d3Jvbmc= x-gatehouse-code=$(code); cat /var/lib/node-red/flows.json
broker POST /v1/restore @/probe/backup.age $who >/dev/null
part restore; broker POST /v1/restore @/probe/backup.age $who x-gatehouse-code=$(code)
for i in $(seq 60); do grep -q 1 /var/lib/node-red/flows.json && break; sleep 0.5; done
part restored; cat /var/lib/node-red/flows.json; stat -c '%a %U:%G' /var/lib/gatehouse-tls /var/lib/node-red
part unit; systemctl show -P NRestarts -P ActiveState gatehouse-broker
# As power leaves it that went in the middle: one folder in place, of another not even the old one.
systemctl stop gatehouse-broker.socket gatehouse-broker node-red gatehouse 2>/dev/null
rm -rf /var/lib/.restore /var/lib/*.before-restore
install -d -m 0700 /var/lib/.restore; touch /var/lib/.restore/whole
install -d -m 0700 -o node-red -g node-red /var/lib/.restore/node-red
echo '[3]' >/var/lib/.restore/node-red/flows.json
mv /var/lib/node-red /var/lib/node-red.before-restore
systemctl start recover
part recovered; cat /var/lib/node-red/flows.json /var/lib/node-red.before-restore/flows.json; ls -A /var/lib | grep -c '^.restore$'; stat -c '%a %U:%G' /var/lib/node-red; journalctl -q -o cat -u recover
part said; journalctl -q -o cat -u gatehouse-broker
`

before(async () => {
  if (skip !== false) return
  // Neither /var nor the card is a mount here.
  const text = async (name: string): Promise<string> =>
    (await readFile(path.join(units, name), 'utf8')).replaceAll(
      /^(?:RequiresMountsFor=.*|(?:Requires|After)=efi\.mount)\n/gm,
      '',
    )
  seen = await runImageSystemd({
    masked: ['gatehouse.service', 'systemd-networkd.service', 'reboot.target'],
    laid: {
      'efi/gatehouse.toml': '[tailnet]\nhostname = "shed"\n',
      'etc/systemd/system/gatehouse-broker.service': await text('gatehouse-broker.service'),
      'etc/systemd/system/recover.service': await text('gatehouse-recover.service'),
    },
    files: { 'ask.js': ask },
    probe,
  })
})

test('it starts when it is asked, and answers the gateway alone', { skip }, () => {
  assert.match(seen.get('settings')!, /^200 .*shed/)
  assert.match(seen.get('nobody')!, /failed .*EACCES/)
  assert.deepEqual(seen.get('unit')!.split('\n').toSorted(), ['0', 'active'], seen.get('said')!)
})

test('what it reads of the system it can read in its sandbox', { skip }, () => {
  for (const part of ['doctor', 'journal', 'devices', 'refused'])
    assert.match(seen.get(part)!, /^200 /, part)
  const { checks } = JSON.parse(seen.get('doctor')!.slice(4)) as {
    checks: Array<{ name: string; result: string; found: string }>
  }
  const of = (name: string): string => JSON.stringify(checks.find((check) => check.name === name))
  assert.match(of('configuration'), /"ok"/)
  assert.doesNotMatch(of('resolver'), /"skip"/)
  assert.doesNotMatch(of('services'), /"skip"/)
  assert.match(seen.get('journal')!, /"text":"Finished gatehouse-provision/)
})

test('a code is on the console, and with it a backup is made and put in place', { skip }, () => {
  assert.match(seen.get('asked')!, /^422 .*GH_SETTINGS_CODE[\s\S]*\n\d{6}$/)
  assert.match(seen.get('backup')!, /^200 age-encryption\.org/)
  assert.match(seen.get('wrong')!, /^422 .*GH_RESTORE_PASSPHRASE[\s\S]*\[2\]$/)
  assert.match(seen.get('restore')!, /^200 /, seen.get('said')!)
  assert.deepEqual(
    seen.get('restored')!.split('\n'),
    ['[1]', '2750 gatehouse-certs:gatehouse', '700 node-red:node-red'],
    seen.get('said')!,
  )
})

test('a restore that lost its power in the middle is finished before all else', { skip }, () => {
  const [flows, before, left, owner, ...said] = seen.get('recovered')!.split('\n')
  assert.deepEqual([flows, before, left, owner], ['[3]', '[1]', '0', '700 node-red:node-red'])
  assert.match(said.join(' '), /a backup was being put in place when the device stopped/)
})
