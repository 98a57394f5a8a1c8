/** The way back to the version before, and what an update says it changes. */
import assert from 'node:assert/strict'
import { generateKeyPairSync, sign } from 'node:crypto'
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, beforeEach, test } from 'node:test'
import { goBack, versionBefore } from '../../../src/update/back.ts'
import { arch, readBundle } from '../../../src/update/bundle.ts'
import { heldBack, readOffered } from '../../../src/update/fetch.ts'
import {
  readUpdateRecord,
  updateLine,
  updatePaths,
  writeUpdateRecord,
} from '../../../src/update/record.ts'
import type { UpdateRecord } from '../../../src/update/record.ts'

const root = mkdtempSync(join(tmpdir(), 'gh-back-'))
after(() => {
  rmSync(root, { recursive: true, force: true })
})
const boot = join(root, 'efi')
const entries = join(boot, 'EFI/Linux')
const paths = updatePaths({
  GATEHOUSE_SLOTS_DIR: join(root, 'slots'),
  GATEHOUSE_OS_RELEASE: join(root, 'os-release'),
  GATEHOUSE_UPDATE_OFFERED: join(root, 'offered.json'),
})
const good: UpdateRecord = {
  from: '1.0',
  to: '1.1',
  good: true,
  installedAt: new Date().toISOString(),
}
beforeEach(async () => {
  rmSync(boot, { recursive: true, force: true })
  mkdirSync(entries, { recursive: true })
  mkdirSync(join(root, 'slots'), { recursive: true })
  writeFileSync(join(root, 'os-release'), 'IMAGE_VERSION=1.1\n')
  for (const name of ['gatehouse_1.0.efi', 'gatehouse_1.1.efi', 'gatehouse_1.10.efi'])
    writeFileSync(join(entries, name), '')
  await writeUpdateRecord(paths, good)
})

test('the kernel image of the version that runs gets no tries, and what became of it is told', async () => {
  assert.equal(await versionBefore(paths, boot), '1.0')
  assert.equal(await goBack(paths, boot, 'alice@example.com'), '1.0')
  assert.deepEqual(readdirSync(entries).toSorted(), [
    ...['gatehouse_1.0.efi', 'gatehouse_1.1+0.efi', 'gatehouse_1.10.efi'],
  ])
  // Before the restart, and after it.
  assert.equal(await versionBefore(paths, boot), undefined)
  await assert.rejects(goBack(paths, boot, 'mallory@example.com'), { code: 'GH_UPDATE_BACK' })
  writeFileSync(join(root, 'os-release'), 'IMAGE_VERSION=1.0\n')
  assert.match((await updateLine(paths))!.text, /1\.0 is back: alice@example\.com went back to it/)
  assert.equal((await readUpdateRecord(paths))!.good, false)
})

test('there is no way back on trial, after a month, without its kernel image, or where it was given up', async () => {
  const none = async (what: string): Promise<void> => {
    await assert.rejects(goBack(paths, boot, 'a@b'), { code: 'GH_UPDATE_BACK' }, what)
    assert.deepEqual(
      readdirSync(entries).filter((name) => name.includes('1.1+0')),
      [],
      what,
    )
  }
  const { good: _, ...trial } = good
  await writeUpdateRecord(paths, trial)
  await none('on trial')
  await writeUpdateRecord(paths, {
    ...{ ...good, installedAt: new Date(Date.now() - 31 * 86_400_000).toISOString() },
  })
  await none('after a month')
  await writeUpdateRecord(paths, good)
  rmSync(join(entries, 'gatehouse_1.0.efi'))
  await none('no kernel image')
  writeFileSync(join(entries, 'gatehouse_1.0+0-3.efi'), '')
  await none('given up')
  rmSync(join(root, 'slots/record.json'))
  await none('never updated')
})

test('what an update changes is in its signed list, as text and bounded', async () => {
  const { publicKey, privateKey } = generateKeyPairSync('ed25519')
  const pem = publicKey.export({ type: 'spki', format: 'pem' })
  const files = ['.efi', '_x.root', '_x.verity'].map((end, i) => {
    const id = i === 0 ? '' : '_aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee'
    return `${'0'.repeat(64)}  gatehouse_2.0${id}_${arch}${end.replace('_x', '')}\n`
  })
  const lines = ['# changes openssl 1 → 2  closes CVE-2026-1\u001b[2J\n', '# percentage 10\n']
  const many = `# changes ${'x'.repeat(400)}\n`.repeat(3)
  const sums = Buffer.from([...lines, many, ...files].join(''))
  const { changes, percentage, version } = readBundle(sums, sign(null, sums, privateKey), pem)
  assert.deepEqual([version, percentage, changes.length], ['2.0', 10, 4])
  assert.match(changes[0]!, /^openssl 1 → 2 {2}closes CVE-2026-1/)
  // oxlint-disable-next-line no-control-regex
  assert.doesNotMatch(changes[0]!, /\u001b/)
  assert.equal(changes[1]!.length, 300)
  // What the updater's user has left is text, whatever it is.
  assert.equal(await readOffered(paths), undefined)
  writeFileSync(
    paths.offered,
    JSON.stringify({ version: '2\u001b[31m.0', changes: [1, 'y\u0007'] }),
  )
  const offered = (await readOffered(paths))!
  // oxlint-disable-next-line no-control-regex
  assert.doesNotMatch(JSON.stringify(offered), /\\u00/)
  assert.equal(offered.changes.length, 2)
  writeFileSync(paths.offered, '{"version":1}')
  assert.equal(await readOffered(paths), undefined)
  // Somebody looks at what the web offers while a stick is plugged in: no reason to take that.
  assert.notEqual(heldBack({ hold: true, automatic: true }, 'look'), undefined)
  assert.notEqual(heldBack({ hold: false, automatic: false }, 'look'), undefined)
})
