/**
 * The image on QEMU's Raspberry Pi 3B: what a board does once its firmware has started U-Boot, with
 * the kernel's own drivers for its SD card, its serial port, and Ethernet over USB, which on a 3B
 * it is too. Only with GATEHOUSE_LONG=1: on two processors four are emulated.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Lab } from '../lab/lab.ts'
import { bootAppliance, editor, joined } from './appliance.ts'

test(
  "on QEMU's Raspberry Pi 3B U-Boot starts the image from the SD card, and it serves the editor",
  { skip: process.env['GATEHOUSE_LONG'] === '1' ? false : 'takes ten minutes: GATEHOUSE_LONG=1' },
  async (t) => {
    const lab = await Lab.start({ name: 'raspi' })
    t.after(async () => {
      await lab.stop()
    })
    const client = await lab.client('laptop')
    const begun = performance.now()
    const seconds = (): string => ((performance.now() - begun) / 1000).toFixed(0)
    const machine = await bootAppliance(lab, 'arm64', { board: 'raspi3b' })
    t.after(async () => {
      await machine.destroy()
    })
    await machine.waitFor(/Machine model: Raspberry Pi 3 Model B/, { timeout: 300 })
    t.diagnostic(`kernel after ${seconds()} s`)
    const node = await joined(lab, 'gatehouse', 840).catch(async (err: Error) => {
      throw new Error(
        `${err.message}; the console ends with\n${(await machine.console()).slice(-4000)}`,
      )
    })
    t.diagnostic(`joined after ${seconds()} s`)
    const page = await editor(client, node.name, 600)
    t.diagnostic(`editor after ${seconds()} s`)
    assert.equal(page.tls?.verified, true)
    // U-Boot names the board on the other serial port; on this one it says what it starts, and the
    // kernel what started it.
    assert.match(await machine.console(), /Booting: mmc 0[^]*by Das U-Boot/)
    assert.doesNotMatch(await machine.console(), /\[FAILED\]/)
  },
)
