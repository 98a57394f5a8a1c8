/** Extensions in the settings and in the firewall's rules; in the kernel: test/lab. */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { ConfigError, parseConfig, serialize } from '../../../src/config/config.ts'
import { parseEgress } from '../../../src/config/egress.ts'
import { extensionUsers } from '../../../src/config/extensions.ts'
import { targets } from '../../../src/firewall/apply.ts'
import { extensionScript, extensionsOf } from '../../../src/firewall/extensions.ts'
import { nodeRedDropIn } from '../../../src/provision/node-red-unit.ts'

const overlays = join(import.meta.dirname, '../../../overlays')
const networks = [{ network: '192.168.1.0/24', family: 4 as const }]

test('[[extension]]: what can be written, and what is told of the rest', () => {
  const toml =
    '[[extension]]\nname = "mosquitto"\nlisten = ["1883/tcp from lan"]\nfiles = ["a.conf"]\nmemory_mib = 32\n'
  const config = parseConfig(toml, 'gatehouse.toml')
  assert.deepEqual(config.extension, [
    { name: 'mosquitto', listen: ['1883/tcp from lan'], files: ['a.conf'], memoryMib: 32 },
  ])
  assert.deepEqual(parseConfig(serialize(config), 'it').extension, config.extension)
  for (const [wrong, told] of [
    ['', /an \[\[extension\]\] has no name/],
    ['name = "../x"', /is not the name of an extension/],
    ['name = "a"\nlisten = ["22/tcp from lan"]', /below 1024/],
    ['name = "a"\nlisten = ["1883/tcp from 8.8.8.8"]', /not within a local network/],
    ['name = "a"\nfiles = ["../gatehouse.toml"]', /is not a plain file name/],
    ['name = "a"\nfiles = ["gatehouse.toml"]', /is not a plain file name/],
    ['name = "a"\n[[extension]]\nname = "a"', /two \[\[extension\]\] have the name "a"/],
    [
      `name = "a"${[2, 3, 4, 5].map((n) => `\n[[extension]]\nname = "a${n}"`).join('')}`,
      /more than 4/,
    ],
  ] as const)
    assert.throws(
      () => parseConfig(`[[extension]]\n${wrong}\n`, 'it'),
      (err) => err instanceof ConfigError && told.test(err.message),
      wrong,
    )
})

test("an extension on Node-RED's list: by name alone", () => {
  assert.deepEqual(parseEgress('extension:mosquitto'), { extension: 'mosquitto' })
  for (const text of ['extension:mosquitto:1883', 'extension:', 'extension:A', 'extension:*:1883'])
    assert.ok('wrong' in parseEgress(text), text)
  const list = ['extension:mosquitto', '192.168.1.10:1883', 'extension:mosquitto']
  assert.deepEqual(extensionsOf(list), ['mosquitto'])
  assert.deepEqual(
    targets(list).map(({ text }) => text),
    ['192.168.1.10:1883'],
  )
  const nodeRed = (allow: string[]): string =>
    nodeRedDropIn(parseConfig(`[node_red]\nallow = ${JSON.stringify(allow)}\n`, 'it').node_red, '/')
  assert.match(nodeRed(list), /^IPAddressAllow=127\.0\.0\.1$/m)
  assert.doesNotMatch(nodeRed(['192.168.1.10:1883']), /^IPAddressAllow=127\.0\.0\.1$/m)
})

test('rules: the ports of those that are attached, for whom they are given', () => {
  const one = {
    ...{ name: 'mosquitto', title: '', version: '', user: 'gatehouse-extension-a' },
    ...{ ports: ['1883/tcp', '5683/udp'], listen: ['1883/tcp from lan', '5683/udp from fc00::/7'] },
  }
  const lines = extensionScript([one], ['mosquitto', 'other'], { networks }).split('\n')
  assert.deepEqual(
    lines.filter((line) => line.includes('node-red-names')),
    [
      'add rule inet gatehouse node-red-names ip daddr 127.0.0.1 tcp dport 1883 accept comment "node-red: extension:mosquitto, 1883/tcp"',
      'add rule inet gatehouse node-red-names ip daddr 127.0.0.1 udp dport 5683 accept comment "node-red: extension:mosquitto, 5683/udp"',
    ],
  )
  const into = lines.filter((line) => line.includes('in-extensions') && line.includes('accept'))
  assert.equal(into.length, 2)
  assert.match(
    into[0]!,
    /ip saddr \{ 192\.168\.1\.0\/24 \} tcp dport 1883 ct mark set 0x[45][0-9a-f]{7} accept/,
  )
  assert.match(into[1]!, /ip6 saddr \{ fc00:0:0:0:0:0:0:0\/7 \} udp dport 5683 ct mark set 0x[45]/)
  const none = extensionScript([{ ...one, listen: [] }], [], { networks })
  assert.doesNotMatch(none, /accept/)
})

test('each of the users is in the image, in the firewall, and a group of the gateway', () => {
  const sysusers = readFileSync(join(overlays, 'usr/lib/sysusers.d/gatehouse.conf'), 'utf8')
  const rules = readFileSync(join(overlays, 'etc/nftables.conf'), 'utf8')
  const gateway = readFileSync(join(overlays, 'usr/lib/systemd/system/gatehouse.service'), 'utf8')
  const kept = /meta skuid \{ ([^}]*) \} goto out-extensions/.exec(rules)?.[1]
  assert.equal(kept, extensionUsers.map(({ name }) => name).join(', '))
  for (const { name, id } of extensionUsers) {
    assert.match(sysusers, new RegExp(`^u +${name} +${id} `, 'm'))
    assert.match(gateway, new RegExp(`^SupplementaryGroups=.*\\b${name}\\b`, 'm'))
  }
})
