/**
 * An update from a USB stick, as far as that goes without one: a folder with what may be on it.
 * Real signatures.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { createHash, generateKeyPairSync, randomBytes, sign } from 'node:crypto'
import type { KeyObject } from 'node:crypto'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, beforeEach, test } from 'node:test'
import { parseConfig } from '../../../src/config/config.ts'
import { arch } from '../../../src/update/bundle.ts'
import { heldBack } from '../../../src/update/fetch.ts'
import { attemptLine, readOutcome, writeOutcome } from '../../../src/update/outcome.ts'
import { updatePaths, writeUpdateRecord } from '../../../src/update/record.ts'
import { takeFromStick } from '../../../src/update/stick.ts'

const root = mkdtempSync(join(tmpdir(), 'gh-stick-'))
const stick = join(root, 'stick')
const key = generateKeyPairSync('ed25519')
const paths = updatePaths({
  GATEHOUSE_UPDATE_DIR: join(root, 'downloads'),
  GATEHOUSE_SLOTS_DIR: join(root, 'slots'),
  GATEHOUSE_UPDATE_KEY: join(root, 'update.pub'),
  GATEHOUSE_OS_RELEASE: join(root, 'os-release'),
  GATEHOUSE_UPDATE_OUTCOME: join(root, 'outcome'),
})
before(() => {
  mkdirSync(join(root, 'slots'))
  writeFileSync(paths.key, key.publicKey.export({ type: 'spki', format: 'pem' }))
  writeFileSync(paths.osRelease, 'IMAGE_VERSION="0.9.1"\n')
})
after(() => {
  rmSync(root, { recursive: true, force: true })
})
beforeEach(() => {
  for (const what of [stick, paths.downloads, join(paths.slots, 'record.json'), paths.outcome])
    rmSync(what, { recursive: true, force: true })
  mkdirSync(stick)
})

/** Writes an update to `folder`; returns its files, the largest last. */
function put(version: string, folder = stick, privateKey: KeyObject = key.privateKey): string[] {
  mkdirSync(folder, { recursive: true })
  const id = 'aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee'
  const names = [
    `gatehouse_${version}_${arch}.efi`,
    `gatehouse_${version}_${id}_${arch}.verity`,
    `gatehouse_${version}_${id}_${arch}.root`,
  ]
  for (const name of names) writeFileSync(join(folder, name), randomBytes(100_000))
  const sums = Buffer.from(
    names
      .map(
        (name) =>
          `${createHash('sha256')
            .update(readFileSync(join(folder, name)))
            .digest('hex')}  ${name}\n`,
      )
      .join(''),
  )
  writeFileSync(join(folder, 'SHA256SUMS'), sums)
  writeFileSync(join(folder, 'SHA256SUMS.sig'), sign(null, sums, privateKey))
  return names
}
const take = async (
  type = 'vfat',
  { held, force = false }: { held?: string; force?: boolean } = {},
) => await takeFromStick(stick, type, paths, { held, force })
const downloaded = (): string[] =>
  existsSync(paths.downloads) ? readdirSync(paths.downloads).toSorted() : []

test('an update in the top folder, or in a folder gatehouse, is copied whole and ready to be installed', async () => {
  for (const folder of ['.', 'gatehouse']) {
    rmSync(stick, { recursive: true })
    const names = put(folder === '.' ? '1.0' : '1.1', join(stick, folder))
    const { text, failed } = await take()
    assert.deepEqual(
      [text, failed],
      [`${folder === '.' ? '1.0' : '1.1'} is copied; the stick may be pulled out`, false],
    )
    assert.deepEqual(downloaded(), ['SHA256SUMS', 'SHA256SUMS.sig', ...names].toSorted())
    for (const name of names)
      assert.ok(
        readFileSync(join(paths.downloads, name)).equals(readFileSync(join(stick, folder, name))),
      )
  }
})

test('what is refused says why, and leaves nothing to install: another key, older, given up, truncated, incomplete, other file systems', async () => {
  const refused = async (expected: RegExp, failed: boolean, type?: string): Promise<void> => {
    const said = await take(type)
    assert.match(said.text, expected)
    assert.equal(said.failed, failed, said.text)
    assert.ok(!downloaded().includes('SHA256SUMS.sig'), 'nothing to install')
  }
  await refused(/^no update on it/, false)
  put('1.0', stick, generateKeyPairSync('ed25519').privateKey)
  await refused(/not signed with the key that this device trusts.*GH_UPDATE_SIGNATURE/, true)
  assert.deepEqual(downloaded(), [])
  put('0.9.0')
  await refused(/^0\.9\.0 is on it, which is not newer than 0\.9\.1, which runs$/, false)
  let names = put('1.0')
  await writeUpdateRecord(paths, {
    from: '0.9.1',
    to: '1.0',
    installedAt: new Date().toISOString(),
    failure: 'x',
  })
  await refused(/^1\.0 is on it, which was given up before/, false)
  assert.match((await take('vfat', { force: true })).text, /^1\.0 is copied/)
  rmSync(join(paths.slots, 'record.json'))
  names = put('1.1')
  truncateSync(join(stick, names[2]!), 5000)
  await refused(
    /\.root of the USB stick is not what SHA256SUMS says: truncated or damaged.*GH_UPDATE_DAMAGED/,
    true,
  )
  rmSync(join(stick, names[2]!))
  await refused(/\.root on the USB stick is missing/, true)
  rmSync(join(stick, 'SHA256SUMS.sig'))
  await refused(/SHA256SUMS\.sig on the USB stick is missing/, true)
  for (const type of ['exfat', 'ntfs', ''])
    await refused(
      /file system \((?:exfat|ntfs|unknown)\) is not read here\. Format it as FAT32/,
      true,
      type,
    )
})

test('a hostile stick: links and pipes are not followed, what is too large is not copied, long lists are not read', async () => {
  const elsewhere = join(root, 'elsewhere')
  const names = put('1.0', elsewhere)
  symlinkSync(elsewhere, join(stick, 'gatehouse'))
  assert.match((await take()).text, /^no update on it/, 'a link to a folder')
  rmSync(join(stick, 'gatehouse'))
  for (const name of readdirSync(elsewhere)) symlinkSync(join(elsewhere, name), join(stick, name))
  assert.match((await take()).text, /SHA256SUMS on the USB stick is a link/)
  for (const name of ['SHA256SUMS', 'SHA256SUMS.sig'])
    renameSync(join(elsewhere, name), join(stick, name))
  assert.match((await take()).text, /\.efi on the USB stick is a link/)
  rmSync(join(stick, names[0]!))
  execFileSync('mkfifo', [join(stick, names[0]!)])
  assert.match((await take()).text, /\.efi on the USB stick is not a file/)
  rmSync(join(stick, names[0]!))
  writeFileSync(join(stick, names[0]!), '')
  // Sparse: 101 MiB that take no space.
  truncateSync(join(stick, names[0]!), 101 * 2 ** 20)
  assert.match(
    (await take()).text,
    /\.efi of the USB stick does not fit: it has 106 MB or more, and there is room for 105 MB.*GH_UPDATE_SIZE/,
  )
  assert.deepEqual(downloaded(), [])
  truncateSync(join(stick, 'SHA256SUMS'), 70_000)
  assert.match((await take()).text, /SHA256SUMS on the USB stick is 70000 bytes long/)
  writeFileSync(join(stick, 'SHA256SUMS'), `${'0'.repeat(64)}  ../../etc/passwd\n`)
  assert.match((await take()).text, /GH_UPDATE_SIGNATURE/)
})

test('[updates] holds a stick back as it does the web: hold but for --force, automatic but for who asks, usb', async () => {
  const updates = (toml: string) => parseConfig(`[updates]\n${toml}\n`, 'gatehouse.toml').updates
  assert.equal(updates('').usb, true)
  assert.equal(updates('usb = false').usb, false)
  assert.equal(heldBack(updates(''), undefined), undefined)
  assert.match(heldBack(updates('hold = true'), undefined)!, /updates\.hold/)
  assert.match(heldBack(updates('hold = true'), 'asked')!, /updates\.hold/)
  assert.equal(heldBack(updates('hold = true'), 'force'), undefined)
  assert.match(heldBack(updates('automatic = false'), undefined)!, /updates\.automatic/)
  assert.equal(heldBack(updates('automatic = false'), 'asked'), undefined)
  put('1.0')
  assert.deepEqual(await take('vfat', { held: 'held back' }), {
    source: 'USB stick',
    text: 'held back',
    failed: false,
  })
  assert.deepEqual(downloaded(), [])
})

test('status tells what became of a stick in any case, of the nightly look only what failed', async () => {
  assert.equal(await attemptLine(paths), undefined)
  await writeOutcome(paths, {
    source: 'updates.url',
    text: 'nothing newer is offered',
    failed: false,
  })
  assert.equal(await attemptLine(paths), undefined)
  await writeOutcome(paths, { source: 'updates.url', text: 'no\nanswer', failed: true })
  assert.deepEqual(await attemptLine(paths), {
    source: 'updates.url',
    text: 'no answer',
    failed: true,
  })
  await writeOutcome(paths, { source: 'USB stick', text: 'x', failed: false })
  assert.equal((await attemptLine(paths))?.text, 'x')
  writeFileSync(paths.outcome, '{')
  assert.equal(await readOutcome(paths), undefined)
})
