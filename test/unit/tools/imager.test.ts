/**
 * Raspberry Pi Imager's list, by the facts of its published schema (raspberrypi/rpi-imager,
 * doc/json-schema/os-list-schema.json, as of November 2026): what an entry of an operating system
 * has to have, of which type, and that the whole has nothing else.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdtempSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { createHash } from 'node:crypto'
import { zstdCompressSync } from 'node:zlib'
import { devices, imagerList } from '../../../tools/imager.ts'
import type { ImagerEntry } from '../../../tools/imager.ts'

/** The schema's `required`, with its types. */
const required: Record<string, (value: unknown) => boolean> = {
  name: (value) => typeof value === 'string' && value !== '',
  description: (value) => typeof value === 'string' && value !== '',
  icon: (value) => typeof value === 'string' && URL.canParse(value),
  // What its documentation lists for packed images; .zst since Imager 1.7.
  url: (value) => typeof value === 'string' && /\.(?:zip|gz|xz|zst)$/.test(new URL(value).pathname),
  extract_size: Number.isSafeInteger,
  extract_sha256: (value) => typeof value === 'string' && /^[0-9a-f]{64}$/.test(value),
  image_download_size: Number.isSafeInteger,
  release_date: (value) => typeof value === 'string' && /^\d{4}-\d\d-\d\d$/.test(value),
}
/** Imager's words: `systemd` wants the partition at /boot, `cloudinit` is what provisioning reads. */
const formats = new Set(['systemd', 'cloudinit', 'cloudinit-rpi', 'none', ''])

function check(text: string): ImagerEntry[] {
  const document = JSON.parse(text)
  assert.deepEqual(Object.keys(document), ['os_list'], 'beside os_list only imager may be there')
  for (const entry of document.os_list) {
    for (const [key, right] of Object.entries(required))
      assert.ok(right(entry[key]), `${key}: ${JSON.stringify(entry[key])}`)
    assert.ok(formats.has(entry.init_format), entry.init_format)
    assert.ok(Array.isArray(entry.devices))
  }
  return document.os_list
}

const entry: ImagerEntry = {
  name: 'Gatehouse 1.0',
  description: 'Node-RED',
  icon: 'https://updates.example.org/gatehouse/gatehouse-icon.svg',
  url: 'https://updates.example.org/gatehouse/gatehouse-arm64.img.zst',
  extract_size: 5,
  extract_sha256: 'a'.repeat(64),
  image_download_size: 14,
  image_download_sha256: 'b'.repeat(64),
  release_date: '2026-11-27',
  init_format: 'cloudinit',
  devices: devices.arm64,
}

test('the list has what Imager’s schema requires, and boards as Imager names them', () => {
  assert.equal(check(imagerList([entry])).length, 1)
  assert.deepEqual(devices.arm64, ['pi4-64bit', 'pi3-64bit'])
  assert.deepEqual(devices.raspios, ['pi5-64bit', ...devices.arm64])
  // A measure of the check itself.
  for (const key of Object.keys(required))
    assert.throws(() => check(imagerList([{ ...entry, [key]: undefined } as never])), key)
})

for (const variant of ['arm64', 'raspios-arm64'])
  test(`a channel’s list has its own addresses, and the image packed by xz where asked for: ${variant}`, () => {
    const root = mkdtempSync(path.join(tmpdir(), 'gh-channel-'))
    try {
      const [update, channel] = [path.join(root, `update-${variant}`), path.join(root, 'channel')]
      mkdirSync(update)
      for (const name of ['1.0_arm64.efi', '1.0_arm64.root', '1.0_arm64.verity'])
        writeFileSync(path.join(update, `gatehouse_${name}`), name)
      writeFileSync(
        path.join(root, `gatehouse-${variant}.img.zst`),
        zstdCompressSync(Buffer.from('image')),
      )
      writeFileSync(
        path.join(root, `gatehouse-${variant}.imager.json`),
        imagerList([{ ...entry, url: entry.url.replace('arm64', variant) }]),
      )
      const { status, stderr } = spawnSync(
        process.execPath,
        [
          '--disable-warning=ExperimentalWarning',
          path.resolve(import.meta.dirname, '../../../tools/channel.ts'),
          channel,
          '--xz',
          update,
        ],
        {
          encoding: 'utf8',
          env: {
            ...process.env,
            GATEHOUSE_KEYS: path.join(root, 'keys'),
            GATEHOUSE_DOWNLOAD_URL: 'https://cards.example.org/g/',
          },
        },
      )
      assert.equal(status, 0, stderr)
      const [listed] = check(readFileSync(path.join(channel, 'gatehouse.json'), 'utf8'))
      assert.equal(listed!.url, `https://cards.example.org/g/gatehouse-${variant}.img.xz`)
      assert.equal(listed!.icon, 'https://cards.example.org/g/gatehouse-icon.svg')
      const packed = readFileSync(path.join(channel, `gatehouse-${variant}.img.xz`))
      assert.equal(listed!.image_download_size, packed.length)
      assert.equal(listed!.image_download_sha256, createHash('sha256').update(packed).digest('hex'))
      const { stdout } = spawnSync('xz', ['-dc', path.join(channel, `gatehouse-${variant}.img.xz`)])
      assert.equal(String(stdout), 'image')
      assert.match(readFileSync(path.join(channel, 'gatehouse-icon.svg'), 'utf8'), /^<svg/)
    } finally {
      rmSync(root, { recursive: true, force: true })
    }
  })
