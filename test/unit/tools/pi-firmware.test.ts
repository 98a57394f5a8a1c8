/**
 * What image/mkosi.finalize leaves on the FAT partition, with Debian's kernel and with Raspberry
 * Pi's own, is what the firmware of each board looks for, by its documentation.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { after, test } from 'node:test'
import { busesFile, busesText } from '../../../src/provision/buses.ts'
import { wifi } from '../../raspios/archive.ts'
import { boards, started } from '../../vm/pi-firmware.ts'

const image = resolve(import.meta.dirname, '../../../image')
const root = mkdtempSync(join(tmpdir(), 'gh-firmware-'))
after(() => {
  rmSync(root, { recursive: true, force: true })
})

/** Packages' files, by name: those of the firmware are in both archives the same. */
const firmware = ['bootcode.bin', 'start.elf', 'start4.elf', 'fixup.dat', 'fixup4.dat']
  .flatMap((name) => [name, name.replace(/(4?)\.(elf|dat)$/, '$1x.$2')])
  .map((name) => `usr/lib/raspi-firmware/${name}`)
/** linux-image-arm64 of Debian 13. */
const debian = [
  ...['2837-rpi-3-a-plus', '2837-rpi-3-b', '2837-rpi-3-b-plus', '2837-rpi-cm3-io3'],
  ...['2837-rpi-zero-2-w', '2711-rpi-4-b', '2711-rpi-400', '2711-rpi-cm4-io', '2712-rpi-5-b'],
].map((name) => `usr/lib/linux-image-6.12.118+deb13-arm64/broadcom/bcm${name}.dtb`)
/** linux-image-rpi-v8 of Raspberry Pi, as far as it matters here (its boot folder has the same). */
const raspios = [
  ...['2710-rpi-2-b', '2710-rpi-3-b', '2710-rpi-3-b-plus', '2710-rpi-cm3', '2710-rpi-zero-2'],
  ...['2710-rpi-zero-2-w', '2711-rpi-4-b', '2711-rpi-400', '2711-rpi-cm4', '2711-rpi-cm4-io'],
  ...['2711-rpi-cm4s', '2712-rpi-5-b', '2712-rpi-500', '2712-rpi-cm5-cm5io', '2712d0-rpi-5-b'],
  ...['2837-rpi-3-b', '2837-rpi-3-b-plus'],
]
  .map((name) => `broadcom/bcm${name}.dtb`)
  .concat('overlays/overlay_map.dtb', 'overlays/bcm2712d0.dtbo', 'overlays/upstream.dtbo')
  .map((name) => `usr/lib/linux-image-6.12.47+rpt-rpi-v8/${name}`)

/** Overlays that image/build has compiled. */
const buses = ['spi', '1-wire']

/** Runs mkosi.finalize over a tree with these files. @returns what is on the FAT partition then */
function finalized(name: string, kernel: string[]): { files: string[]; config: string } {
  finalize(name, [
    ...firmware,
    ...kernel,
    'usr/lib/u-boot/rpi_arm64/u-boot.bin',
    ...buses.map((bus) => `usr/lib/gatehouse/overlays/gatehouse-${bus}.dtbo`),
  ])
  const efi = join(root, name, 'efi')
  const files = readdirSync(efi, { recursive: true, encoding: 'utf8' })
  return { files, config: readFileSync(join(efi, 'config.txt'), 'utf8') }
}

/** mkosi.finalize over a tree of these files, each with its name in it, and these links. */
function finalize(name: string, own: string[], links: Record<string, string> = {}): string {
  const tree = join(root, name)
  for (const folder of [
    'etc/default',
    'usr/bin',
    'usr/sbin',
    'usr/lib/git-core',
    'var/log',
    'boot',
  ])
    mkdirSync(join(tree, folder), { recursive: true })
  for (const file of own) {
    mkdirSync(join(tree, dirname(file)), { recursive: true })
    writeFileSync(join(tree, file), file)
  }
  for (const [file, to] of Object.entries(links)) {
    mkdirSync(join(tree, dirname(file)), { recursive: true })
    symlinkSync(to, join(tree, file))
  }
  execFileSync('sh', [join(image, 'mkosi.finalize')], {
    env: { ...process.env, BUILDROOT: tree, SRCDIR: image, SOURCE_DATE_EPOCH: '1700000000' },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  return tree
}

for (const [name, kernel, names] of [
  ["Debian's kernel", debian, 'upstream'],
  ["Raspberry Pi's own kernel", raspios, 'downstream'],
] as const)
  test(`with ${name} every board finds firmware, U-Boot and its own device tree, and nothing else is applied to that`, () => {
    const { files, config } = finalized(names, kernel)
    for (const board of boards) {
      const {
        kernel: loaded,
        tree,
        problems,
      } = started(board, files, config, {
        [busesFile]: busesText([]),
      })
      assert.deepEqual(problems, [], board.name)
      assert.deepEqual([loaded, tree], ['u-boot.bin', board.tree[names]], board.name)
    }
  })

test("buses of the header: the file that config.txt includes is there from the first day, and its overlays; not with Raspberry Pi's own kernel", () => {
  const { files, config } = finalized('buses', debian)
  const first = readFileSync(join(root, 'buses/efi', busesFile), 'utf8')
  assert.equal(first, busesText([]))
  const [pi] = boards
  const given = (has: string[]): string[] =>
    started(pi!, has, config, { [busesFile]: busesText(['spi', '1-wire']) }).problems
  assert.deepEqual(given(files), [])
  assert.deepEqual(given(files.filter((name) => !name.endsWith('.dtbo'))), [
    'overlays/gatehouse-spi.dtbo is missing',
    'overlays/gatehouse-1-wire.dtbo is missing',
  ])
  assert.deepEqual(given(files.filter((name) => name !== busesFile)), [`${busesFile} is missing`])
  const other = finalized('no-buses', raspios)
  assert.doesNotMatch(other.config, /include|header/)
  assert.deepEqual(
    other.files.filter((name) => name.includes('gatehouse')),
    [],
  )
})

test('a card that lacks something, or says what is for another kernel, is told', () => {
  const { files, config } = finalized('whole', raspios)
  const told = (name: string, has: string[], text: string): string[] =>
    started(
      boards.find((board) => board.name === name)!,
      has,
      text,
    ).problems
  const without = (file: string): string[] => files.filter((other) => other !== file)
  assert.deepEqual(told('4', without('fixup4.dat'), config), ['fixup4.dat is missing'])
  assert.deepEqual(told('3B', without('fixup4.dat'), config), [])
  assert.deepEqual(told('5', without('overlays/bcm2712d0.dtbo'), config), [
    'overlays/bcm2712d0.dtbo is missing',
  ])
  assert.deepEqual(told('3B', files, `${config}upstream_kernel=1\n`), [
    'bcm2710-rpi-3-b.dtb gets the firmware\'s overlay "upstream", which is for another kernel',
  ])
  assert.deepEqual(told('4', files, config.replace('kernel=u-boot.bin', '')), [
    'kernel8.img is missing',
  ])
  assert.deepEqual(told('3B+', files, `arm_freq\n${'#'.padEnd(99, 'x')}\n${config}`).length, 2)
})

/**
 * Raspberry Pi's firmware-brcm80211, configured: of the chip most boards have there is a choice. As
 * mkosi.postinst.chroot has put it aside; in its place is what mkosi has left of it.
 */
const blob = 'cypress/cyfmac43455-sdio'
const aside = 'usr/lib/firmware.whole'
const wifiFiles = Object.keys(wifi)
  .filter((name) => wifi[name] === '')
  .concat('cypress/cyfmac43439-sdio.bin', 'brcm/brcmfmac4356-pcie.bin')
  .map((name) => `${aside}/${name}`)
const left = ['brcm/brcmfmac43436-sdio.bin', `${blob}-standard.bin`].map(
  (name) => `usr/lib/firmware/${name}`,
)
const wifiLinks = {
  ...Object.fromEntries(
    Object.entries(wifi)
      .filter(([, to]) => to !== '')
      .map(([name, to]) => [`${aside}/${name}`, to]),
  ),
  [`${aside}/${blob}.bin`]: '/etc/alternatives/cyfmac43455-sdio.bin',
  'etc/alternatives/cyfmac43455-sdio.bin': `/lib/firmware/${blob}-standard.bin`,
  lib: 'usr/lib',
}

test("with Raspberry Pi's package every board's WiFi firmware is there, through its links, and other chips' is not", () => {
  const tree = finalize('wifi', [...wifiFiles, ...left], wifiLinks)
  assert.ok(!existsSync(join(tree, aside)))
  const brcm = join(tree, 'usr/lib/firmware/brcm')
  /** What a file of the image is in the end, as the running system finds it. */
  const reached = (file: string): string => {
    if (!lstatSync(file).isSymbolicLink()) return readFileSync(file, 'utf8')
    const to = readlinkSync(file)
    return reached(to.startsWith('/') ? join(tree, to) : join(dirname(file), to))
  }
  const names = readdirSync(brcm)
  const boardNames = names.filter((name) => name.includes('-sdio.raspberrypi,'))
  assert.equal(boardNames.length, Object.keys(wifi).filter((name) => name.includes(',')).length)
  for (const name of names) assert.ok(reached(join(brcm, name)).startsWith(`${aside}/`), name)
  for (const board of ['3-model-b-plus', '4-model-b', '5-model-b']) {
    const of = join(brcm, `brcmfmac43455-sdio.raspberrypi,${board}`)
    assert.equal(reached(`${of}.bin`), `${aside}/${blob}-standard.bin`)
    assert.equal(reached(`${of}.txt`), `${aside}/brcm/brcmfmac43455-sdio.txt`)
  }
  for (const name of [`${blob}-minimal.bin`, 'cypress/cyfmac43439-sdio.bin'])
    assert.ok(!existsSync(join(tree, 'usr/lib/firmware', name)), name)
  assert.ok(!existsSync(join(brcm, 'brcmfmac4356-pcie.bin')))
})

test('a link to WiFi firmware that leads nowhere ends the build', () => {
  assert.throws(
    () =>
      finalize(
        'nowhere',
        wifiFiles.filter((name) => !name.endsWith('-standard.bin')),
        wifiLinks,
      ),
    /WiFi: \/usr\/lib\/firmware\/cypress\/cyfmac43455-sdio-standard\.bin, which a link leads to, is not there/,
  )
})
