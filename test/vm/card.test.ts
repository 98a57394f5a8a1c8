/**
 * What Raspberry Pi Imager and a person's editor leave on a card, on the booted image: what unit
 * tests cannot see is that systemd, systemd-networkd and Node-RED take it as it is written.
 */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { Lab } from '../lab/lab.ts'
import { cardFiles, eventually, imageOf, joined, tried } from './appliance.ts'
import { Machine } from './machine.ts'

let lab: Lab
let machine: Machine

const run = async (command: string): Promise<string> => {
  const { code, stdout, stderr } = await machine.run(command, { timeout: 120 })
  assert.equal(code, 0, `${command}: ${stderr}`)
  return stdout.trim()
}

// On two cores it takes ten minutes and more, which make test does not have.
const skip = process.env['GATEHOUSE_LONG'] === '1' ? false : 'takes ten minutes: make test-long'

before(async () => {
  if (skip !== false) return
  lab = await Lab.start({ name: 'card' })
  machine = await Machine.boot({
    image: imageOf(tried),
    arch: tried,
    namespace: lab.ns,
    bridge: 'br0',
    files: {
      // Each in another way than the example has it.
      ...(await cardFiles(
        lab,
        `# mine\r\ntailnet = { control_url = '${lab.ready.controlURL}', "auth_key" = ` +
          `'''${lab.ready.authKey}''', ca_file = "authority.pem" } # the net\r\n` +
          `certificates.directory = "${lab.ready.acmeDirectory}"\r\ncertificates.ca_file = ` +
          '"authority.pem"\r\n',
      )),
      'user-data':
        '\uFEFF#cloud-config\r\nhostname: Attic_Pi\r\ntimezone: Europe/Berlin\r\nssh_pwauth: true\r\n',
      'network-config': `network:
  version: 2
  ethernets:
    eth0:
      dhcp4: false
      addresses: [10.77.0.77/24]
      routes: [{to: default, via: 10.77.0.1}]
      nameservers: {addresses: [10.77.0.1]}
  wifis:
    wlan0:
      access-points:
        "caf\\xc3\\xa9": {password: "short"}
        "lab": {password: "0123456789abcdef"}
`,
    },
  })
  await machine.ready({ timeout: 1200 })
})

after(async () => {
  if (skip !== false) return
  await machine?.destroy()
  await lab?.stop()
})

test(
  'the name is one that DNS takes, the address is the static one and no other',
  { skip },
  async () => {
    await joined(lab, 'attic-pi')
    const [ethernet] = (await run("ls /sys/class/net | grep -v -e lo -e '^gate' | head -1")).split(
      '\n',
    )
    const addresses = await run(`ip -4 -o address show dev ${ethernet} | awk '{print $4}'`)
    assert.equal(addresses, '10.77.0.77/24')
    assert.match(await run(`resolvectl dns ${ethernet}`), /: 10\.77\.0\.1$/)
    assert.match(await run('ip -4 route show default'), /^default via 10\.77\.0\.1 /)
  },
)

test(
  'flows and the update window have the time zone, of the flows and of systemd',
  { skip },
  async () => {
    assert.match(await run('systemctl show -P Environment node-red.service'), /TZ=Europe\/Berlin/)
    assert.match(
      await run('systemctl show -P TimersCalendar gatehouse-update.timer'),
      /OnCalendar=\*-\*-\* 02:00:00 Europe\/Berlin/,
    )
    // Zones that Node.js knows by names of before.
    await run('systemd-analyze calendar "02:00 US/Pacific"')
  },
)

test(
  'the key is off the card and in no file; what was left out is named on the card',
  { skip },
  async () => {
    const toml = await eventually('the key is off the card', 200, async () => {
      const text = await run('cat /efi/gatehouse.toml')
      return text.includes(lab.ready.authKey) ? undefined : text
    })
    assert.match(
      toml,
      /^# mine\r\n# auth_key: used to join the tailnet.*\r\ntailnet = \{ control_url/,
    )
    assert.match(toml, /, ca_file = "authority\.pem" \} # the net\r\n/)
    assert.equal(await run('stat -c "%a %U %s" /run/gatehouse-provision/authkey'), '600 root 0')
    const kept = (await run('ls /var/lib/gatehouse-config')).split('\n')
    assert.deepEqual(
      ['authkey', 'eab-hmac-key', 'wpa_supplicant.conf'].map((file) => kept.includes(file)),
      [false, false, true],
    )
    const text = await eventually('the card says what was left out', 200, async () => {
      const found = await run('cat /efi/gatehouse-status.txt')
      return found.includes('café') ? found : undefined
    })
    assert.match(text, /network-config line 12: the WiFi network "café" is left out: its password/)
    assert.match(text, /- settings: the name "Attic_Pi" \(user-data line 2\) became attic-pi/)
    assert.match(text, /- settings: no country is named for the WiFi network/)
    assert.match(text, /user and SSH: nobody logs in/)
    assert.match(await run('cat /var/lib/gatehouse-config/wpa_supplicant.conf'), /ssid=6c6162/)
    assert.equal(await run('systemctl --failed --no-legend'), '')
  },
)
