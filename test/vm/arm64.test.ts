/**
 * The image that is flashed: its partition table, the Pi's firmware files on it, and the same file
 * booted in QEMU (`-M virt`, EFI) up to the page that a native client fetches. The Pi's own
 * firmware stage needs a board and is not tested here.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { generateKeyPairSync } from 'node:crypto'
import { mkdir, open, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { signature, signingKey } from '../../tools/signing.ts'
import { Lab, type LabClient } from '../lab/lab.ts'
import { bootAppliance, editor, eventually, imageOf, joined } from './appliance.ts'
import { makeStick } from './disk.ts'
import type { Machine } from './machine.ts'

const image = imageOf('arm64')
let lab: Lab
let client: LabClient
let machine: Machine

before(async () => {
  lab = await Lab.start({ name: 'arm' })
  client = await lab.client('laptop')
  // As much memory as the smallest of the boards has, the Zero 2 W.
  machine = await bootAppliance(lab, 'arm64', { sticks: true, memory: 512 })
})
after(async () => {
  await machine?.destroy()
  await lab?.stop()
})

test('the boot ROMs of Pi 3 and Zero 2 W find the firmware: MBR entry 1 is the EFI system partition, as FAT32', async () => {
  const file = await open(image)
  const mbr = Buffer.alloc(512)
  const gpt = Buffer.alloc(128)
  const fat = Buffer.alloc(512)
  try {
    await file.read(mbr, 0, 512, 0)
    await file.read(gpt, 0, 128, 2 * 512)
    assert.equal(mbr.readUInt16LE(510), 0xaa55)
    assert.equal(mbr[446 + 4], 0x0c, 'type: FAT32, LBA')
    assert.equal(mbr[446 + 16 + 4], 0xee, 'a GPT follows')
    // ESP's type GUID, C12A7328-F81F-11D2-BA4B-00A0C93EC93B, as it stands on the disk.
    assert.equal(gpt.subarray(0, 16).toString('hex'), '28732ac11ff8d211ba4b00a0c93ec93b')
    const first = mbr.readUInt32LE(446 + 8)
    assert.equal(BigInt(first), gpt.readBigUInt64LE(32))
    await file.read(fat, 0, 512, first * 512)
    assert.equal(fat.subarray(82, 90).toString(), 'FAT32   ')
  } finally {
    await file.close()
  }
})

test('the same file boots, joins, and serves the editor over a direct path with a verified certificate', async (t) => {
  const begun = performance.now()
  const node = await joined(lab, 'gatehouse', 600)
  const joinedAfter = performance.now() - begun
  const page = await editor(client, node.name, 400)
  t.diagnostic(
    `joined after ${(joinedAfter / 1000).toFixed(0)} s, first page after ` +
      `${((performance.now() - begun) / 1000).toFixed(0)} s`,
  )
  assert.equal(page.tls?.verified, true)
  assert.equal((await client.pingDirect(node.addresses[0]!)).direct, true)
  const { stdout } = await machine.run(
    'uname -m; systemctl --failed --no-legend --plain; cat /proc/device-tree/compatible 2>/dev/null | tr "\\0" " "',
    { timeout: 120 },
  )
  assert.match(stdout, /^aarch64\n/)
  assert.doesNotMatch(stdout, /failed/)
})

test("a USB stick is looked at when it is plugged in, by a process without rights: another key's update is refused, and an older one of ours", async (t) => {
  const { privateKey } = signingKey(
    process.env['GATEHOUSE_KEYS'] ?? path.resolve(import.meta.dirname, '../../keys'),
  )
  const other = path.join(lab.dir, 'other.key')
  await writeFile(
    other,
    generateKeyPairSync('ed25519').privateKey.export({ type: 'pkcs8', format: 'pem' }),
  )
  // As sticks are sold, FAT32 behind a partition table; and ext4 without one.
  for (const [key, fileSystem, expected] of [
    [other, 'vfat', /! USB stick .*not signed with the key that this device trusts/],
    [privateKey, 'ext4', /\nUSB stick +0\.0\.1 is on it, which is not newer than .*, which runs/],
  ] as const) {
    const files = [
      `gatehouse_0.0.1_arm64.efi`,
      ...['root', 'verity'].map(
        (end) => `gatehouse_0.0.1_aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee_arm64.${end}`,
      ),
    ]
    const sums = Buffer.from(files.map((file) => `${'0'.repeat(64)}  ${file}\n`).join(''))
    const content = path.join(lab.dir, fileSystem)
    await mkdir(path.join(content, 'gatehouse'), { recursive: true })
    await writeFile(path.join(content, 'gatehouse/SHA256SUMS'), sums)
    await writeFile(path.join(content, 'gatehouse/SHA256SUMS.sig'), signature(key, sums))
    const stick = path.join(lab.dir, 'stick.img')
    if (fileSystem === 'vfat')
      await makeStick(
        stick,
        Object.fromEntries(
          ['SHA256SUMS', 'SHA256SUMS.sig'].map((file) => [
            file,
            path.join(content, 'gatehouse', file),
          ]),
        ),
        { megabytes: 64 },
      )
    else {
      await rm(stick)
      execFileSync('mkfs.ext4', ['-q', '-F', '-d', content, stick, '64M'], {
        env: { PATH: '/usr/sbin:/sbin' },
      })
    }
    const begun = performance.now()
    const pull = await machine.plug(stick)
    const status = await eventually(
      'status says so',
      240,
      async () =>
        expected.exec((await machine.run('gatehouse status', { timeout: 120 })).stdout)?.[0],
    )
    t.diagnostic(`after ${((performance.now() - begun) / 1000).toFixed(0)} s: ${status.trim()}`)
    await pull()
  }
  assert.equal(
    (
      await machine.run('systemctl --failed --no-legend --plain; ls -A /var/lib/gatehouse-update', {
        timeout: 120,
      })
    ).stdout,
    '',
  )
})

test('firmware, U-Boot and device trees for the boards named lie on the FAT partition', async () => {
  const { stdout } = await machine.run('cd /efi && find . -type f | sed "s,^./,," | sort', {
    timeout: 120,
  })
  const files = new Set(stdout.trim().split('\n'))
  const wanted = [
    'config.txt',
    'gatehouse-buses.txt',
    'overlays/gatehouse-spi.dtbo',
    'overlays/gatehouse-1-wire.dtbo',
    'bootcode.bin',
    'start.elf',
    'fixup.dat',
    'start4.elf',
    'fixup4.dat',
    'u-boot.bin',
    'EFI/BOOT/BOOTAA64.EFI',
    'gatehouse.toml.example',
  ]
  for (const file of wanted)
    assert.ok(
      [...files].some((f) => f.toLowerCase() === file.toLowerCase()),
      `${file} is missing; there are ${stdout}`,
    )
  for (const board of [
    'bcm2837-rpi-3-b.dtb',
    'bcm2837-rpi-3-b-plus.dtb',
    'bcm2837-rpi-zero-2-w.dtb',
    'bcm2711-rpi-4-b.dtb',
    'bcm2711-rpi-400.dtb',
    'bcm2711-rpi-cm4-io.dtb',
  ]) {
    assert.ok(
      [...files].some((f) => f.endsWith(board)),
      `${board} is missing`,
    )
  }
})

test(
  "WiFi: joins the network of [wifi] on a card that appears, in the country's channels, and its password is root's alone",
  { skip: process.env['GATEHOUSE_WIFI'] === undefined && 'GATEHOUSE_WIFI=1 runs it' },
  async (t) => {
    // Three cards that are software (mac80211_hwsim): one joins, the second is the access point,
    // the third tells what is in force for all.
    const script = `set -e
    echo '[wifi]' >>/run/wifi.toml; printf 'ssid = "caf\\u00e9"\\ncountry = "DE"\\npassword = "open sesame"\\n' >>/run/wifi.toml
    until (set -C; echo $$ >/run/gatehouse-card.lock) 2>/dev/null; do sleep 0.2; done # as src/base/card.ts has it
    mount -o remount,rw /efi; cat /run/wifi.toml >>/efi/gatehouse.toml; mount -o remount,ro /efi; rm /run/gatehouse-card.lock
    systemctl restart gatehouse-provision
    systemctl mask --runtime gatehouse-wifi@wlan1 gatehouse-wifi@wlan2 # the test's
    modprobe mac80211_hwsim radios=3
    until [ -e /sys/class/net/wlan2 ]; do sleep 0.2; done
    printf 'network={\nmode=2\nssid=%s\nfrequency=2437\nkey_mgmt=WPA-PSK\nproto=RSN\npairwise=CCMP\npsk="open sesame"\n}\n' 636166c3a9 >/run/ap.conf
    wpa_supplicant -B -D nl80211 -i wlan1 -c /run/ap.conf`
    const { code, stderr } = await machine.run(script, { timeout: 200 })
    assert.equal(code, 0, stderr)
    const said = await eventually('it has joined', 200, async () => {
      const { stdout } = await machine.run(
        'journalctl -b --no-pager -o cat -u gatehouse-wifi@wlan0',
      )
      return stdout.includes('CTRL-EVENT-CONNECTED') ? stdout : undefined
    })
    const inForce = await machine.run(
      'echo >/run/third.conf; timeout 20 wpa_supplicant -d -D nl80211 -i wlan2 -c ' +
        '/run/third.conf | grep -m1 -o "Regulatory information - country=.*"',
      { timeout: 120 },
    )
    assert.match(inForce.stdout, /country=DE/)
    t.diagnostic(said.split('\n').find((line) => line.includes('CTRL-EVENT-CONNECTED'))!)
    assert.doesNotMatch(
      (
        await machine.run('journalctl -b --no-pager; cat /proc/[0-9]*/cmdline | tr "\\0" " "', {
          timeout: 200,
        })
      ).stdout,
      /open sesame|6f70656e20736573616d65/,
    )
    const owners = await machine.run(
      'stat -c "%U %a" /var/lib/gatehouse-config/wpa_supplicant.conf; stat -c %u ' +
        '/proc/$(systemctl show -P MainPID gatehouse-wifi@wlan0)',
    )
    // systemd's range for dynamic users.
    assert.match(owners.stdout, /^root 600\n6[1-5]\d{3}\n$/)
  },
)

test('nothing left the lab', async () => {
  assert.equal(await lab.leaked(), 0)
})
