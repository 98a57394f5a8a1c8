/** What Raspberry Pi Imager's settings dialog writes, and what becomes of it. */
import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { loadConfig } from '../../src/config/load.ts'
import { provision } from '../../src/provision/provision.ts'

const root = mkdtempSync(join(tmpdir(), 'gh-imager-'))
after(() => { rmSync(root, { recursive: true, force: true }) })
const seal = async (_name: string, secret: string): Promise<string> => secret

function card (files: Record<string, string>): { boot: string, config: string, problem: string } {
  const directory = mkdtempSync(join(root, 'c-'))
  mkdirSync(join(directory, 'efi'))
  for (const [name, text] of Object.entries(files)) writeFileSync(join(directory, 'efi', name), text)
  return { boot: join(directory, 'efi'), config: join(directory, 'config'), problem: join(directory, 'problem') }
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
  assert.deepEqual(ignored?.map((text) => text.split(':')[0]), ['user and SSH', 'WiFi'])
})

test('a name in gatehouse.toml goes before Imager\'s; a name that is none is refused', async () => {
  const paths = card({ 'user-data': userData, 'gatehouse.toml': '[tailnet]\nhostname = "door"\n' })
  await provision(paths, seal)
  assert.equal((await loadConfig(paths.config)).tailnet.hostname, 'door')
  const { problem } = await provision(card({ 'user-data': '#cloud-config\nhostname: "My Pi!"\n' }), seal)
  assert.match(problem!, /hostname "My Pi!" is not a DNS label.*Write hostname = "my-pi"/)
})

test('Imager\'s empty files are none; a damaged one is named', async () => {
  assert.equal((await provision(card({ 'user-data': '#cloud-config\n', 'network-config': '' }), seal)).outcome, 'defaults')
  assert.match((await provision(card({ 'user-data': 'hostname: [\n' }), seal)).problem!, /user-data, written by Raspberry Pi Imager, cannot be read.*Delete user-data/)
})
