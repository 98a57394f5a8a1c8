import assert from 'node:assert/strict'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { defaults, parseConfig } from '../../../src/config/config.ts'
import { applyDropIn } from '../../../src/provision/drop-in.ts'
import { consoleLines, nodeRedDropIn } from '../../../src/provision/node-red-unit.ts'
import { provision } from '../../../src/provision/provision.ts'

const root = mkdtempSync(join(tmpdir(), 'gh-node-red-unit-'))
after(() => rmSync(root, { recursive: true, force: true }))

const dropIn = (toml: string): string =>
  nodeRedDropIn(parseConfig(`[node_red]\n${toml}\n`, 'gatehouse.toml').node_red, '/config')

test('nothing configured: no drop-in, and systemd is not bothered', async () => {
  assert.equal(nodeRedDropIn(defaults().node_red, '/config'), '')
  await applyDropIn('node-red.service', '', join(root, 'units'))
  assert.ok(!existsSync(join(root, 'units')))
})

test('a list lifts the private network and no more; another list is the same drop-in', () => {
  const text = dropIn('allow = ["10.0.0.1:80"]')
  assert.match(text, /^PrivateNetwork=no$/m)
  assert.match(text, /^IPAddressDeny=localhost .*100\.64\.0\.0\/10/m)
  assert.match(
    text,
    /^BindReadOnlyPaths=.*node-red-resolv\.conf:\/run\/systemd\/resolve\/stub-resolv\.conf$/m,
  )
  assert.match(text, /^IPAddressAllow=127\.0\.0\.55$/m)
  // ping calls them, and stops where it may not: with nothing to gain, for it has nothing to lose.
  assert.match(text, /^SystemCallFilter=capset setuid$/m)
  assert.doesNotMatch(text, /PALETTE|Device|10\.0\.0\.1/)
  assert.equal(dropIn('allow = ["b.example:443", "10.0.0.2:81"]'), text)
})

test('ports of flows: the unit lets them be bound, and no others', () => {
  const text = dropIn('listen = ["1883/tcp from 192.168.1.0/24", "5683-5690/udp from lan"]')
  assert.match(text, /^PrivateNetwork=no$/m)
  assert.match(text, /^SocketBindAllow=tcp:1883\nSocketBindAllow=udp:5683-5690$/m)
  assert.doesNotMatch(dropIn('allow = ["10.0.0.1:80"]'), /SocketBind/)
})

test('discovery: a group and its port, and the other preset is another', () => {
  const text = dropIn('allow = ["mdns"]')
  assert.match(text, /^IPAddressAllow=224\.0\.0\.251\nSocketBindAllow=udp:5353$/m)
  assert.doesNotMatch(text, /239\.255|1900/)
  assert.match(
    dropIn('allow = ["ssdp"]'),
    /^IPAddressAllow=239\.255\.255\.250\nSocketBindAllow=udp:1900$/m,
  )
})

test("each device gives its own class and group, and none another's", () => {
  const serial = dropIn('devices = ["serial"]')
  assert.match(serial, /^PrivateDevices=no\nDevicePolicy=closed$/m)
  assert.match(serial, /^DeviceAllow=char-ttyUSB rw$/m)
  assert.match(serial, /^SupplementaryGroups=dialout$/m)
  assert.doesNotMatch(serial, /i2c|gpio|video|PrivateNetwork/)
  assert.doesNotMatch(dropIn('devices = ["i2c"]'), /tty|dialout/)
})

test('gpio has a program in PATH, beside npm where that is; 1-wire loads drivers and opens nothing', () => {
  const path = (toml: string): string | undefined =>
    /^Environment=PATH=(.*)$/m.exec(dropIn(toml))?.[1]
  assert.equal(path('devices = ["gpio"]'), '/usr/lib/gatehouse/gpio:/usr/bin:/bin')
  assert.equal(
    path('devices = ["gpio"]\nallow = ["palette"]'),
    '/usr/lib/gatehouse/gpio:/usr/lib/node-red/node_modules/.bin:/usr/bin:/bin',
  )
  assert.equal(path('devices = ["serial"]'), undefined)
  const wire = dropIn('devices = ["1-wire"]')
  assert.match(wire, /^Wants=modprobe@w1_gpio\.service modprobe@w1_therm\.service$/m)
  assert.doesNotMatch(wire, /Device/)
})

test("with [console] login, the console's own line is no serial port of Node-RED's", () => {
  const { node_red } = parseConfig('[node_red]\ndevices = ["serial", "gpio"]\n', 'gatehouse.toml')
  const masked = (active: string): string | undefined =>
    /^InaccessiblePaths=(.*)$/m.exec(nodeRedDropIn(node_red, '/config', consoleLines(active)))?.[1]
  assert.equal(masked('ttyS0\n'), '-/dev/ttyS0')
  assert.equal(masked('tty0 ttyAMA10\n'), '-/dev/ttyAMA10')
  assert.equal(masked('ttyAMA0 ttyS1'), '-/dev/ttyAMA0 -/dev/ttyS1')
  // A screen and a keyboard are no serial port, and nobody's to give.
  assert.equal(masked('tty0 tty1\n'), undefined)
  assert.equal(masked(''), undefined)
  assert.match(nodeRedDropIn(node_red, '/config', ['ttyS0']), /^DeviceAllow=char-ttyS rw$/m)
  // Not known which it is: what is plugged in, and nothing on the board.
  const unknown = nodeRedDropIn(node_red, '/config', 'unknown')
  assert.match(unknown, /^DeviceAllow=char-ttyUSB rw$/m)
  assert.match(unknown, /^DeviceAllow=char-gpiochip rw$/m)
  assert.doesNotMatch(unknown, /ttyAMA|ttyS\b/)
  const gpio = parseConfig('[node_red]\ndevices = ["gpio"]\n', 'gatehouse.toml').node_red
  assert.doesNotMatch(nodeRedDropIn(gpio, '/config', ['ttyS0']), /Inaccessible/)
})

test('what the list has of prebuilt add-ons is passed on, for what npm is told', () => {
  assert.match(dropIn('allow = ["palette", "prebuilt"]'), /^Environment=GATEHOUSE_PREBUILT=yes$/m)
  assert.doesNotMatch(dropIn('allow = ["palette"]'), /PREBUILT/)
})

test('projects are switched on by the environment', () => {
  assert.match(dropIn('projects = true'), /^Environment=GATEHOUSE_PROJECTS=yes$/m)
  assert.equal(dropIn('projects = false'), '')
})

test('a registry cannot smuggle in another setting', () => {
  const text = dropIn('allow = ["palette"]\nregistry = "https://npm.example.org/%22/\\\\\\"x"')
  assert.equal(text.split('\n').filter((line) => line.includes('npm_config_registry')).length, 1)
  assert.doesNotMatch(text, /[^%]%2/, 'no specifier')
  assert.throws(
    () => dropIn('allow = ["palette"]\nregistry = "https://npm.example.org/\\nPrivateNetwork=no"'),
    { code: 'GH_CONFIG_VALUE' },
  )
  const config = { ...defaults().node_red, allow: ['palette'] }
  assert.throws(
    () => nodeRedDropIn({ ...config, registry: 'https://a/\nPrivateNetwork=no' }, '/config'),
    /control character/,
  )
})

test('settings_file is taken over for systemd alone to read; what is no JavaScript is named with its line', async () => {
  const boot = mkdtempSync(join(root, 'boot-'))
  const paths = { boot, config: join(boot, 'config'), problem: join(boot, 'problem') }
  writeFileSync(join(boot, 'gatehouse.toml'), '[node_red]\nsettings_file = "mine.js"\n')
  writeFileSync(join(boot, 'mine.js'), '\uFEFFmodule.exports = {\n  flowFilePretty: false }\n')
  assert.deepEqual(await provision(paths, async (_name, secret) => secret), { outcome: 'new' })
  assert.match(
    dropIn('settings_file = "mine.js"'),
    /^LoadCredential=settings\.js:\/config\/mine\.js$/m,
  )
  writeFileSync(join(boot, 'mine.js'), 'module.exports = {\n  flowFilePretty = false }\n')
  const { outcome, problem } = await provision(paths, async (_name, secret) => secret)
  assert.equal(outcome, 'kept')
  assert.match(problem!, /mine\.js is not JavaScript: line 2: .*GH_CONFIG_SETTINGS_FILE/)
  writeFileSync(join(boot, 'gatehouse.toml'), '')
  await provision(paths, async (_name, secret) => secret)
  assert.ok(!existsSync(join(paths.config, 'mine.js')), 'a file no longer named goes')
})
