/** What image/check-kernel does to a tree's kernels, and which of them it lets through. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { after, test } from 'node:test'
import { gzipSync } from 'node:zlib'

const script = resolve(import.meta.dirname, '../../../image/check-kernel')
const folder = mkdtempSync(join(tmpdir(), 'gh-kernel-'))
after(() => {
  rmSync(folder, { recursive: true, force: true })
})

const options = /for option in ((?:[A-Z0-9_ \\\t\n]+?));/
  .exec(readFileSync(script, 'utf8'))![1]!
  .split(/[\s\\]+/)
/** A kernel's configuration with all that is wanted, as modules and built in by turns. */
const whole = options.map((name, i) => `CONFIG_${name}=${i % 2 === 0 ? 'y' : 'm'}\n`).join('')
const image = Buffer.from('MZ\0\0 an arm64 kernel')

/** Runs the script over a tree with this kernel. */
function check(name: string, kernel: Buffer, config: string) {
  const root = join(folder, name)
  const modules = join(root, 'usr/lib/modules/6.12.118+rpt-rpi-v8')
  mkdirSync(modules, { recursive: true })
  mkdirSync(join(root, 'boot'))
  writeFileSync(join(modules, 'vmlinuz'), kernel)
  writeFileSync(join(root, 'boot/config-6.12.118+rpt-rpi-v8'), config)
  const { status, stderr } = spawnSync('sh', [script, root], { encoding: 'utf8' })
  return { status, stderr, kernel: readFileSync(join(modules, 'vmlinuz')) }
}

test('a kernel packed with gzip is unpacked, one that is not stays as it is', () => {
  for (const [name, kernel] of [
    ['packed', gzipSync(image)],
    ['plain', image],
  ] as const) {
    const { status, stderr, kernel: left } = check(name, kernel, whole)
    assert.equal(status, 0, stderr)
    assert.deepEqual(left, image, name)
  }
})

test('a kernel that EFI does not start, packed or not, is an error that names it', () => {
  for (const [name, kernel] of [
    ['no-efi', gzipSync(Buffer.from('\0\0\xa0\xe1 no EFI program', 'latin1'))],
    ['zstd', Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0, 0])],
    ['empty', Buffer.alloc(0)],
  ] as const) {
    const { status, stderr } = check(name, kernel, whole)
    assert.equal(status, 1, name)
    assert.match(stderr, /^\/usr\/lib\/modules\/6\.12\.118\+rpt-rpi-v8\/vmlinuz is no EFI program/)
  }
})

test('what a kernel lacks by its configuration is named, all of it', () => {
  assert.ok(options.length > 20 && options.includes('DM_VERITY'))
  const { status, stderr } = check(
    'lacking',
    image,
    whole
      .replace(/CONFIG_DM_VERITY=.\n/, '# CONFIG_DM_VERITY is not set\n')
      .replace(/CONFIG_NFT_NAT=.\n/, '') + 'CONFIG_DM_VERITY_VERIFY_ROOTHASH_SIG=y\n',
  )
  assert.equal(status, 1)
  assert.match(stderr, /^the kernel of 6\.12\.118\+rpt-rpi-v8 lacks.*: DM_VERITY NFT_NAT$/m)
})
