/**
 * The overlays for a Raspberry Pi's header (image/rpi) at the device trees that the arm64 image has
 * for each board, by the device tree compiler's own tools; and whether the image's kernel has drivers
 * for what they add. What only a board can show is whether the firmware does the same.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { after, before, test } from 'node:test'
import { mcopy } from './disk.ts'

const repository = resolve(import.meta.dirname, '../..')
const disk = join(repository, 'out/gatehouse-arm64.img')
const system = join(repository, 'out/mkosi/gatehouse-arm64.root.raw')
const kernel = join(repository, 'out/mkosi/gatehouse-arm64.efi')
const skip =
  process.getuid?.() === 0 && existsSync(disk)
    ? false
    : 'needs root and the arm64 image: make image-arm64'
const sources = readdirSync(join(repository, 'image/rpi')).filter((name) => name.endsWith('.dts'))
let directory: string
let trees: string[]

const run = (command: string, ...argv: string[]): string =>
  execFileSync(command, argv, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] }).trim()
const at = (name: string): string => join(directory, name)

/** Words of a property: numbers in decimal, or texts. */
function property(tree: string, node: string, name: string, type: 'u' | 's'): string[] {
  return run('fdtget', '-t', type, tree, node, name).split(' ')
}

/** The node that has a phandle, of a few. */
function byPhandle(tree: string, phandle: string, candidates: string[]): string | undefined {
  return candidates.find((node) => property(tree, node, 'phandle', 'u')[0] === phandle)
}

const gpio = '/soc/gpio@7e200000'
const spi = '/soc/spi@7e204000'
const pins = ['gatehouse-spi-pins', 'gatehouse-spi-selects', 'gatehouse-1-wire-pin'].map(
  (name) => `${gpio}/${name}`,
)

before(async () => {
  if (skip !== false) return
  directory = mkdtempSync(join(tmpdir(), 'gh-buses-'))
  await mcopy(disk, ['::bcm2837-*.dtb', '::bcm2711-*.dtb', directory])
  trees = readdirSync(directory)
  for (const source of sources) {
    const name = source.replace(/s$/, 'bo')
    const from = join(repository, 'image/rpi', source)
    // As image/build does it, and without a word of warning.
    const argv = ['-@', '-I', 'dts', '-O', 'dtb', '-o', at(name), from]
    const said = execFileSync('sh', ['-c', 'dtc "$@" 2>&1', 'sh', ...argv], { encoding: 'utf8' })
    assert.equal(said, '', source)
  }
})

after(() => {
  if (directory !== undefined) rmSync(directory, { recursive: true, force: true })
})

test('they apply to the tree of each board, alone and together', { skip }, () => {
  assert.ok(trees.length >= 6, trees.join())
  for (const tree of trees) {
    for (const source of sources) {
      const overlay = at(source.replace(/s$/, 'bo'))
      run('fdtoverlay', '-i', at(tree), '-o', at(`${source}-${tree}`), overlay)
    }
    const overlays = sources.map((source) => at(source.replace(/s$/, 'bo')))
    run('fdtoverlay', '-i', at(tree), '-o', at(`both-${tree}`), ...overlays)
  }
})

test('SPI: on, with two devices for flows, on the pins of the header', { skip }, () => {
  for (const tree of trees) {
    const [before, both] = [at(tree), at(`both-${tree}`)]
    assert.deepEqual(property(before, spi, 'status', 's'), ['disabled'], tree)
    assert.deepEqual(property(both, spi, 'status', 's'), ['okay'], tree)
    assert.deepEqual(
      property(both, spi, 'pinctrl-0', 'u').map((phandle) => byPhandle(both, phandle, pins)),
      pins.slice(0, 2),
    )
    assert.deepEqual(property(both, pins[0]!, 'brcm,pins', 'u'), ['9', '10', '11'])
    assert.deepEqual(property(both, pins[1]!, 'brcm,pins', 'u'), ['8', '7'])
    const [controller] = property(both, gpio, 'phandle', 'u')
    assert.deepEqual(property(both, spi, 'cs-gpios', 'u'), [
      ...[controller, '8', '1'],
      ...[controller, '7', '1'],
    ])
    for (const chip of ['0', '1'])
      assert.deepEqual(property(both, `${spi}/spidev@${chip}`, 'reg', 'u'), [chip])
    // No other SPI controller is on before it: the first is /dev/spidev0.
    assert.match(run('fdtget', '-l', both, '/soc'), /spi@7e204000/)
  }
})

test('1-wire: on GPIO 4, open drain; I2C is on without any of them', { skip }, () => {
  for (const tree of trees) {
    const both = at(`both-${tree}`)
    const [controller] = property(both, gpio, 'phandle', 'u')
    assert.deepEqual(property(both, '/gatehouse-1-wire', 'gpios', 'u'), [controller, '4', '6'])
    assert.deepEqual(
      byPhandle(both, property(both, '/gatehouse-1-wire', 'pinctrl-0', 'u')[0]!, pins),
      pins[2],
    )
    assert.deepEqual(property(both, pins[2]!, 'brcm,pins', 'u'), ['4'])
    assert.deepEqual(property(at(tree), '/soc/i2c@7e804000', 'status', 's'), ['okay'], tree)
  }
})

test("the image's kernel has drivers for them", { skip }, () => {
  const mount = mkdtempSync(join(tmpdir(), 'gh-buses-root-'))
  try {
    run('mount', '-t', 'erofs', '-o', 'ro,loop', system, mount)
    const modules = join(mount, 'usr/lib/modules')
    const [version] = readdirSync(modules)
    const read = (name: string): string => readFileSync(join(modules, version!, name), 'latin1')
    const known = read('modules.alias')
    for (const compatible of ['brcm,bcm2835-spi', 'w1-gpio', 'brcm,bcm2835-i2c'])
      assert.ok(known.includes(`of:N*T*C${compatible}`), compatible)
    // spidev is in the kernel itself, whose drivers have no list.
    assert.match(read('modules.builtin'), /\/spidev\.ko$/m)
    assert.ok(readFileSync(kernel).includes('rohm,dh2228fv'))
  } finally {
    execFileSync('umount', [mount])
    rmSync(mount, { recursive: true })
  }
})
