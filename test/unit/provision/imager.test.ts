/** What Raspberry Pi Imager's settings dialog writes, and what becomes of it. */
import assert from 'node:assert/strict'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { loadConfig } from '../../../src/config/load.ts'
import { provision } from '../../../src/provision/provision.ts'

const root = mkdtempSync(join(tmpdir(), 'gh-imager-'))
after(() => {
  rmSync(root, { recursive: true, force: true })
})
const seal = async (_name: string, secret: string): Promise<string> => secret

function card(files: Record<string, string>): { boot: string; config: string; problem: string } {
  const directory = mkdtempSync(join(root, 'c-'))
  mkdirSync(join(directory, 'efi'))
  for (const [name, text] of Object.entries(files))
    writeFileSync(join(directory, 'efi', name), text)
  return {
    boot: join(directory, 'efi'),
    config: join(directory, 'config'),
    problem: join(directory, 'problem'),
  }
}

const userData = `#cloud-config
hostname: attic
manage_etc_hosts: true
timezone: Europe/Berlin
users:
- name: pi
  groups: users,adm
  lock_passwd: false
  passwd: $5$abc
ssh_pwauth: true
`
const network = `network:
  version: 2
  wifis:
    wlan0:
      dhcp4: true
      regulatory-domain: "DE"
      access-points:
        "my net": {password: "0123456789abcdef"}
`

test('a card that Imager wrote needs no gatehouse.toml; what is not done is said', async () => {
  const paths = card({ 'user-data': userData, 'network-config': network })
  const { outcome, ignored } = await provision(paths, seal)
  assert.equal(outcome, 'new')
  assert.equal((await loadConfig(paths.config)).tailnet.hostname, 'attic')
  assert.deepEqual(
    ignored?.map((text) => text.split(':')[0]),
    ['user and SSH'],
  )
})

const wifi = (paths: { config: string }): string =>
  readFileSync(join(paths.config, 'wpa_supplicant.conf'), 'utf8')

test("Imager's WiFi network becomes wpa_supplicant's, for root alone, and stands in no other file", async () => {
  const paths = card({ 'user-data': userData, 'network-config': network })
  await provision(paths, seal)
  const text = wifi(paths)
  assert.match(text, /^country=DE$/m)
  assert.match(text, new RegExp(`^\\tssid=${Buffer.from('my net').toString('hex')}$`, 'm'))
  assert.match(text, /^\tpsk="0123456789abcdef"$/m)
  assert.equal(statSync(join(paths.config, 'wpa_supplicant.conf')).mode & 0o777, 0o600)
  assert.doesNotMatch(
    readFileSync(join(paths.config, 'gatehouse.toml'), 'utf8'),
    /0123456789abcdef/,
  )
  // A key instead of a passphrase; an SSID with what would mean something elsewhere.
  const hex = 'ab'.repeat(32)
  const other = card({
    'user-data': userData,
    'network-config': network
      .replace('0123456789abcdef', hex)
      .replace('my net', 'caf\u00e9 } #\\"'),
  })
  await provision(other, seal)
  assert.match(
    wifi(other),
    new RegExp(
      `^\\tkey_mgmt=WPA-PSK WPA-PSK-SHA256\\n\\tpsk=${hex}$`.replaceAll('\\\\', '\\'),
      'm',
    ),
  )
  assert.ok(wifi(other).includes(`ssid=${Buffer.from('café } #"').toString('hex')}`))
})

test("[wifi] in gatehouse.toml goes before Imager's, and takes itself back; what is wrong in it is named, never the password", async () => {
  const paths = card({
    'user-data': userData,
    'network-config': network,
    'gatehouse.toml':
      '[wifi]\nssid = "shed"\ncountry = "FR"\npassword = "open sesame"\nhidden = true\n',
  })
  await provision(paths, seal)
  assert.match(wifi(paths), /^country=FR$/m)
  assert.match(
    wifi(paths),
    /^\tscan_ssid=1\n\tkey_mgmt=WPA-PSK WPA-PSK-SHA256 SAE\n\tpsk="open sesame"\n\tsae_password="open sesame"$/m,
  )
  for (const [toml, says] of [
    ['[wifi]\nssid = "shed"\npassword = "open sesame"', /has no country.*Write country = "DE"/],
    ['[wifi]\npassword = "open sesame"\ncountry = "FR"', /has no ssid/],
    ['[wifi]\nssid = "shed"\ncountry = "FR"\npassword = "sesame"', /password is neither 8 to 63/],
    ['[wifi]\nssid = "shed"\ncountry = "fr"', /country "fr" is not/],
  ] as const) {
    writeFileSync(join(paths.boot, 'gatehouse.toml'), `${toml}\n`)
    const { outcome, problem } = await provision(paths, seal)
    assert.equal(outcome, 'kept')
    assert.match(problem!, says)
    assert.doesNotMatch(problem!, /sesame/)
    assert.match(wifi(paths), /^country=FR$/m, 'the network before stays')
  }
  rmSync(join(paths.boot, 'network-config'))
  writeFileSync(join(paths.boot, 'gatehouse.toml'), '')
  await provision(paths, seal)
  assert.ok(!existsSync(join(paths.config, 'wpa_supplicant.conf')))
})

test("a name in gatehouse.toml goes before Imager's", async () => {
  const paths = card({ 'user-data': userData, 'gatehouse.toml': '[tailnet]\nhostname = "door"\n' })
  await provision(paths, seal)
  assert.equal((await loadConfig(paths.config)).tailnet.hostname, 'door')
})

test("Imager's empty files are none; a damaged one is named", async () => {
  assert.equal(
    (await provision(card({ 'user-data': '#cloud-config\n', 'network-config': '' }), seal)).outcome,
    'defaults',
  )
  assert.match(
    (await provision(card({ 'user-data': 'hostname: [\n' }), seal)).problem!,
    /user-data, written by Raspberry Pi Imager, cannot be read.*Delete user-data/,
  )
})
