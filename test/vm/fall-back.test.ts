/**
 * The way back through a Pi's own boot chain: the U-Boot of the image's FAT partition, from the SD
 * card of QEMU's Raspberry Pi 3B. What installs an update is not run there (test/update does, with
 * `GATEHOUSE_FIRMWARE=u-boot` through the same U-Boot on a faster machine); the card is as it leaves
 * it. Only with GATEHOUSE_LONG=1.
 */
import assert from 'node:assert/strict'
import { mkdtemp, readFile, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { Lab } from '../lab/lab.ts'
import { withOneShot } from '../../src/update/one-shot.ts'
import { imageOf } from './appliance.ts'
import { mcopy } from './disk.ts'
import { withoutSystem } from './kernel-image.ts'
import { Machine } from './machine.ts'

const long = process.env['GATEHOUSE_LONG'] === '1'

test(
  "through the Pi's U-Boot an update whose kernel panics at once is started once; then the version before is",
  { skip: long ? false : 'takes four minutes: GATEHOUSE_LONG=1' },
  async (t) => {
    const folder = await mkdtemp(path.join(tmpdir(), 'gh-fall-back-'))
    t.after(async () => {
      await rm(folder, { recursive: true, force: true })
    })
    const bundle = path.resolve(import.meta.dirname, '../../out/update-arm64')
    const kernel = (await readdir(bundle)).find((name) => name.endsWith('_arm64.efi'))!
    const version = `9${/^gatehouse_[0-9]+(.*)_arm64\.efi$/.exec(kernel)![1]!}`

    const lab = await Lab.start({ name: 'fallback' })
    t.after(async () => {
      await lab.stop()
    })
    const begun = performance.now()
    const seconds = (): string => ((performance.now() - begun) / 1000).toFixed(0)
    const machine = await Machine.boot({
      image: imageOf('arm64'),
      arch: 'arm64',
      namespace: lab.ns,
      bridge: 'br0',
      board: 'raspi3b',
      files: {
        [`EFI/Linux/gatehouse_${version}+0-0.efi`]: withoutSystem(
          await readFile(path.join(bundle, kernel)),
          version,
        ),
        'ubootefi.var': withOneShot(undefined, version),
      },
    })
    t.after(async () => {
      await machine.destroy()
    })
    await machine.waitFor(/Kernel panic - not syncing: VFS: Unable to mount root/, { timeout: 300 })
    t.diagnostic(`${version} panics ${seconds()} s after the start`)
    await machine.waitFor(/Kernel panic[^]*Kernel command line: roothash=[^]*systemd\[1\]: /, {
      timeout: 400,
    })
    t.diagnostic(`the version before starts its system after ${seconds()} s`)
    const text = await machine.console()
    assert.equal(text.split('Kernel panic').length, 2, 'one try')
    // What this is all for. Should it no longer be so, the boot loader can count by itself.
    assert.match(text, /Failed to rename '.*\+0-0\.efi'/)
    await machine.kill()
    const store = path.join(folder, 'ubootefi.var')
    await mcopy(machine.disk, ['::ubootefi.var', store])
    assert.ok(
      !(await readFile(store)).includes(Buffer.from('LoaderEntryOneShot', 'utf16le')),
      'it is forgotten on the card, too',
    )
  },
)
