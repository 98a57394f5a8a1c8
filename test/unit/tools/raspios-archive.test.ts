/**
 * The stand-in for Raspberry Pi's archive (test/raspios/archive.ts), made of small packages: apt
 * takes it as it takes the real one, by signature, and its packages have the names, versions and
 * files that PROFILE=raspios wants.
 */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { after, before, test } from 'node:test'
import { gunzipSync } from 'node:zlib'
import { raspberryPis } from '../../../tools/sbom.ts'
import { makeArchive, renamed } from '../../raspios/archive.ts'
import type { Made } from '../../raspios/archive.ts'

const folder = mkdtempSync(join(tmpdir(), 'gh-raspios-'))
after(() => {
  rmSync(folder, { recursive: true, force: true })
})

const profile = resolve(import.meta.dirname, '../../../image/mkosi.profiles/raspios')
const release = '6.12.118+deb13-arm64'
/** A kernel that says of itself what it is, in a text and in a field of 65 bytes. */
const kernel = Buffer.concat([
  Buffer.from(`MZ\0Linux version ${release} (debian) \0`),
  Buffer.from(release.padEnd(65, '\0')),
])

/** Debian's packages as far as the stand-in reads them. */
function debian(
  name: string,
  version: string,
  arch: string,
  files: Record<string, string | Buffer>,
) {
  const tree = join(folder, 'tree', name)
  for (const [file, content] of Object.entries({
    'DEBIAN/control': `Package: ${name}\nVersion: ${version}\nArchitecture: ${arch}\nMaintainer: nobody <n@invalid>\nDescription: none\n`,
    ...files,
  })) {
    mkdirSync(dirname(join(tree, file)), { recursive: true })
    if (typeof content === 'string' && content.startsWith('-> '))
      symlinkSync(content.slice(3), join(tree, file))
    else writeFileSync(join(tree, file), content)
  }
  mkdirSync(join(folder, 'debs'), { recursive: true })
  execFileSync('dpkg-deb', ['--root-owner-group', '-b', tree, join(folder, 'debs')])
}

let made: Made
/** The fields of each package, as apt's index has them. */
let index: Map<string, Map<string, string>>
/** apt in a folder of its own, with the stand-in for its only source, and the profile's preferences. */
const options = (): string[] => {
  const at = join(folder, 'apt')
  for (const each of ['state/lists/partial', 'cache/archives/partial', 'etc'])
    mkdirSync(join(at, each), { recursive: true })
  return Object.entries({
    'Dir::Etc::sourcelist': join(at, 'etc/raspi.sources'),
    'Dir::Etc::sourceparts': '-',
    'Dir::Etc::preferences': join(profile, 'apt-preferences'),
    'Dir::Etc::preferencesparts': '-',
    'Dir::State': join(at, 'state'),
    'Dir::State::status': '/dev/null',
    'Dir::Cache': join(at, 'cache'),
    'APT::Architecture': 'arm64',
    'APT::Architectures': 'arm64',
    'APT::Sandbox::User': 'root',
    'Acquire::Languages': 'none',
    'Acquire::GzipIndexes': 'false',
  }).flatMap(([name, value]) => ['-o', `${name}=${value}`])
}
const apt = (...args: string[]): { status: number | null; stdout: string; stderr: string } =>
  spawnSync('apt-get', [...options(), ...args], { encoding: 'utf8', cwd: folder })
/** The line of `apt-cache policy` with the version that would be installed, and its priority. */
const policy = (name: string): string =>
  spawnSync('apt-cache', [...options(), 'policy', name], { encoding: 'utf8' })
    .stdout.split('\n')
    .slice(4)
    .join('\n')
const sources = (keyring: string): void => {
  mkdirSync(join(folder, 'apt/etc'), { recursive: true })
  writeFileSync(
    join(folder, 'apt/etc/raspi.sources'),
    `Types: deb\nURIs: file:${made.archive}\nSuites: trixie\nComponents: main\nSigned-By: ${keyring}\n`,
  )
}

before(async () => {
  const lib = `usr/lib/linux-image-${release}/broadcom`
  debian(`linux-image-${release}`, '6.12.118-1', 'arm64', {
    [`boot/vmlinuz-${release}`]: kernel,
    [`boot/System.map-${release}`]: 'a map',
    [`boot/config-${release}`]: 'CONFIG_X=y',
    [`usr/lib/modules/${release}/kernel/fs/erofs/erofs.ko.xz`]: 'a module',
    ...Object.fromEntries(
      [
        ...['2837-rpi-3-a-plus', '2837-rpi-3-b', '2837-rpi-3-b-plus', '2837-rpi-cm3-io3'],
        ...['2837-rpi-zero-2-w', '2711-rpi-4-b', '2711-rpi-400', '2711-rpi-cm4-io'],
        '2712-rpi-5-b',
      ].map((name) => [`${lib}/bcm${name}.dtb`, name]),
    ),
  })
  debian('raspi-firmware', '1.20240424+ds-6', 'all', {
    ...Object.fromEntries(
      ['bootcode.bin', 'start.elf', 'start4.elf', 'fixup.dat', 'fixup4.dat'].map((name) => [
        `usr/lib/raspi-firmware/${name}`,
        name,
      ]),
    ),
    'usr/lib/raspi-firmware/overlays/hifiberry-dac.dtbo': 'an overlay',
    'usr/lib/firmware/brcm/brcmfmac43455-sdio.txt': 'settings that are in the other package there',
  })
  debian('firmware-brcm80211', '20250410-2', 'all', {
    'usr/lib/firmware/cypress/cyfmac43430-sdio.bin': 'blob of a 3B',
    'usr/lib/firmware/cypress/cyfmac43455-sdio.bin': 'blob',
    'usr/lib/firmware/cypress/cyfmac43455-sdio.clm_blob': 'table',
    'usr/lib/firmware/brcm/brcmfmac43455-sdio.bin': '-> ../cypress/cyfmac43455-sdio.bin',
    'usr/lib/firmware/brcm/brcmfmac43455-sdio.raspberrypi,4-model-b.txt': 'settings',
  })
  debian('wireless-regdb', '2026.09.03-1~deb13u1', 'all', { 'usr/lib/firmware/regulatory.db': 'x' })
  made = await makeArchive(join(folder, 'debs'), join(folder, 'made'))
  index = new Map(
    readFileSync(join(made.archive, 'dists/trixie/main/binary-arm64/Packages'), 'utf8')
      .split('\n\n')
      .map((stanza) => new Map([...stanza.matchAll(/^(\S+): (.*)$/gm)].map((m) => [m[1]!, m[2]!])))
      .map((fields) => [fields.get('Package')!, fields]),
  )
})

test('apt takes the archive by its signature, for trixie and arm64, and refuses it with another key or another index', async (t) => {
  sources(made.keyring)
  const update = apt('update')
  assert.equal(update.status, 0, update.stderr)
  const wanted = apt(
    'install',
    '--print-uris',
    '--yes',
    '--no-install-recommends',
    'linux-image-rpi-v8',
  )
  // Its dependencies are Debian's, which is no source here: it is found, and says what it lacks.
  assert.match(wanted.stdout + wanted.stderr, /linux-image-6\.12\.118\+rpt-rpi-v8 : Depends: kmod/)
  const got = apt('download', 'raspi-firmware', 'firmware-brcm80211', 'linux-image-rpi-2712')
  assert.equal(got.status, 0, got.stderr)

  // By the profile's preferences kernel and firmware are taken from here, other packages from Debian.
  for (const name of ['linux-image-rpi-v8', 'raspi-firmware', 'firmware-brcm80211'])
    assert.match(policy(name), / 990$/m, name)
  for (const name of ['wireless-regdb', 'raspberrypi-archive-keyring'])
    assert.match(policy(name), /^ +\S+ 1\n/m, name)
  // Which are its own is told by what apt has kept: the SBOM names them otherwise than Debian's.
  const own = await raspberryPis(join(folder, 'apt/state/lists'))
  assert.ok(own.has('raspi-firmware 1:1.20240424-1'))
  assert.equal(own.size, index.size)

  rmSync(join(folder, 'apt/state'), { recursive: true })
  sources('/usr/share/keyrings/debian-archive-keyring.gpg')
  assert.match(apt('update').stderr, /NO_PUBKEY|not signed/)

  sources(made.keyring)
  rmSync(join(folder, 'apt/state'), { recursive: true })
  for (const name of ['Packages', 'Packages.gz']) {
    const file = join(made.archive, 'dists/trixie/main/binary-arm64', name)
    const whole = readFileSync(file)
    t.after(() => {
      writeFileSync(file, whole)
    })
    writeFileSync(file, Buffer.alloc(whole.length, 'X'))
  }
  assert.match(apt('update').stderr, /Hash Sum mismatch|Hashes of expected file/)
})

test("names, versions and dependencies have the form of Raspberry Pi's; an epoch puts firmware before Debian's", () => {
  const rows = [...index.values()].map((fields) =>
    ['Package', 'Version', 'Architecture'].map((name) => fields.get(name)).join(' '),
  )
  assert.deepEqual(rows.toSorted(), [
    'firmware-brcm80211 1:20250410-2+rpt1 all',
    'linux-image-6.12.118+rpt-rpi-2712 1:6.12.118-1+rpt1 arm64',
    'linux-image-6.12.118+rpt-rpi-v8 1:6.12.118-1+rpt1 arm64',
    'linux-image-rpi-2712 1:6.12.118-1+rpt1 arm64',
    'linux-image-rpi-v8 1:6.12.118-1+rpt1 arm64',
    'raspberrypi-archive-keyring 2025.1+rpt1 all',
    'raspi-firmware 1:1.20240424-1 all',
    'wireless-regdb 2026.09.03-1~deb13u1+rpt1 all',
  ])
  assert.equal(
    index.get('linux-image-rpi-v8')!.get('Depends'),
    'linux-image-6.12.118+rpt-rpi-v8 (= 1:6.12.118-1+rpt1)',
  )
  assert.match(index.get('raspi-firmware')!.get('Depends')!, /\brsync\b/)
  assert.match(
    index.get('linux-image-6.12.118+rpt-rpi-v8')!.get('Filename')!,
    /^pool\/main\/l\/linux\/linux-image-6\.12\.118\+rpt-rpi-v8_6\.12\.118-1\+rpt1_arm64\.deb$/,
  )
  const policy = readFileSync(join(made.archive, 'dists/trixie/Release'), 'utf8')
  assert.match(policy, /^Origin: Raspberry Pi Foundation$/m)
})

test("files lie where Raspberry Pi's packages have them", () => {
  const listed = (name: string): string[] =>
    execFileSync('dpkg-deb', ['-c', join(made.archive, index.get(name)!.get('Filename')!)], {
      encoding: 'utf8',
    })
      .split('\n')
      .filter((line) => line !== '' && !line.endsWith('/'))
      .map((line) => line.replace(/^.* \.\//, ''))
  const lib = 'usr/lib/linux-image-6.12.118+rpt-rpi-v8'
  const kernelFiles = listed('linux-image-6.12.118+rpt-rpi-v8')
  for (const file of [
    'boot/vmlinuz-6.12.118+rpt-rpi-v8',
    'usr/lib/modules/6.12.118+rpt-rpi-v8/kernel/fs/erofs/erofs.ko.xz',
    ...['bcm2710-rpi-3-b', 'bcm2711-rpi-cm4', 'bcm2712-rpi-5-b', 'bcm2712d0-rpi-5-b'].map(
      (tree) => `${lib}/broadcom/${tree}.dtb`,
    ),
    ...['overlay_map.dtb', 'bcm2712d0.dtbo', 'README'].map((name) => `${lib}/overlays/${name}`),
  ])
    assert.ok(kernelFiles.includes(file), file)
  const firmware = listed('raspi-firmware')
  assert.ok(firmware.includes('usr/lib/raspi-firmware/start4.elf'))
  assert.ok(firmware.includes('etc/kernel/postinst.d/z50-raspi-firmware'))
  // Two packages with one file would not be installed beside each other.
  assert.deepEqual(
    firmware.filter((file) => file.startsWith('usr/lib/firmware/')),
    [],
  )
  const wifi = listed('firmware-brcm80211')
  const link = 'usr/lib/firmware/brcm/brcmfmac43455-sdio.raspberrypi,5-model-b'
  assert.ok(wifi.includes(`${link}.bin -> ../cypress/cyfmac43455-sdio.bin`))
  assert.ok(wifi.includes(`${link}.txt -> brcmfmac43455-sdio.txt`))
  assert.ok(wifi.includes('usr/lib/firmware/cypress/cyfmac43455-sdio-standard.bin'))
  assert.ok(!wifi.includes('usr/lib/firmware/cypress/cyfmac43455-sdio.bin'))
  assert.ok(
    listed('raspberrypi-archive-keyring').includes(
      'usr/share/keyrings/raspberrypi-archive-keyring.pgp',
    ),
  )
})

test('the kernel is packed with gzip, and says of itself the name by which its modules lie', () => {
  const deb = join(made.archive, index.get('linux-image-6.12.118+rpt-rpi-v8')!.get('Filename')!)
  const tar = execFileSync('dpkg-deb', ['--fsys-tarfile', deb])
  const packed = execFileSync('tar', ['-xO', './boot/vmlinuz-6.12.118+rpt-rpi-v8'], { input: tar })
  assert.deepEqual([...packed.subarray(0, 2)], [0x1f, 0x8b])
  const image = gunzipSync(packed)
  assert.equal(image.length, kernel.length)
  assert.equal(image.indexOf(release), -1)
  assert.ok(image.includes('Linux version 6.12.118+rpt-rpi-v8  (debian)'))
  assert.ok(image.includes('\x006.12.118+rpt-rpi-v8\0\0'))
  // A longer name has room in the field alone.
  const longer = renamed(kernel, release, '6.12.118+rpt-rpi-2712')
  assert.equal(longer.length, kernel.length)
  assert.ok(longer.includes('\x006.12.118+rpt-rpi-2712\0'))
})

test('a folder without one of the packages is told, with what gets it', async () => {
  mkdirSync(join(folder, 'empty'))
  await assert.rejects(
    makeArchive(join(folder, 'empty'), join(folder, 'none')),
    /has no linux-image: test\/raspios\/fetch gets it/,
  )
})
