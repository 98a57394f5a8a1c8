/** One start of a new version: the variable that says so, and what becomes of the kernel image's name. */
import assert from 'node:assert/strict'
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, beforeEach, test } from 'node:test'
import { paths } from '../../../src/base/paths.ts'
import { onlyOnce, startOnce, withOneShot } from '../../../src/update/one-shot.ts'
import { readUpdateRecord, updatePaths, writeUpdateRecord } from '../../../src/update/record.ts'
import { runTrial } from '../../../src/update/trial.ts'

const root = mkdtempSync(join(tmpdir(), 'gh-once-'))
const boot = join(root, 'efi')
const entries = join(boot, 'EFI/Linux')
const efivars = join(root, 'efivars')
after(() => {
  rmSync(root, { recursive: true, force: true })
})
beforeEach(() => {
  for (const folder of [boot, efivars, join(root, 'slots')])
    rmSync(folder, { recursive: true, force: true })
  for (const folder of [entries, efivars, join(root, 'slots')])
    mkdirSync(folder, { recursive: true })
})

/**
 * What Debian's U-Boot 2025.01 wrote on QEMU's Raspberry Pi 3B: its boot entry and language, and
 * GhTest, which is systemd-boot's vendor's.
 */
const byUBoot = Buffer.from(
  [
    'AAAAAAAAAABVYkVmaVZhAWgBAAC915TqBAAAAAcAAAAAAAAAAAAAAIKwZ0pMCs9BtsdECym7jE9HAGgAVABlAHMA',
    'dAAAAHgAAAAAAAAAAABoAAAABwAAAAAAAAAAAAAAYd/ki8qT0hGqDQDgmAMrjEIAbwBvAHQAMAAwADAAMAAAAAEA',
    'AABGAG0AbQBjACAAMAAAAAEEHAC5cx3mhKPMSq6rgugo82KLAAAAAAAAAAABBBwAuXMd5oSjzEquq4LoKPNii20A',
    'AAAAAAAAAxoFAAADGgUAAH//BABOrAiBEZ9ZTYUO4hpSLFmyAAAAAAAAAgAAAAcAAAAAAAAAAAAAAGHf5IvKk9IR',
    'qg0A4JgDK4xCAG8AbwB0AE8AcgBkAGUAcgAAAAAAAAAGAAAABwAAAAAAAAAAAAAAYd/ki8qT0hGqDQDgmAMrjFAA',
    'bABhAHQAZgBvAHIAbQBMAGEAbgBnAAAAZW4tVVMA',
  ].join(''),
  'base64',
)
/** Names of variables in such a file, one of ours with what it says. */
const inside = (file: Buffer): string[] =>
  ['GhTest', 'Boot0000', 'BootOrder', 'PlatformLang', 'LoaderEntryOneShot'].filter((name) =>
    file.includes(Buffer.from(`${name}\0`, 'utf16le')),
  )
const says = (file: Buffer, version: string): boolean =>
  file.includes(Buffer.from(`${onlyOnce(version)}\0`, 'utf16le'))

test('a file of U-Boot’s own keeps what is in it; the variable is there once, the last that was asked for', () => {
  const others = ['GhTest', 'Boot0000', 'BootOrder', 'PlatformLang']
  assert.deepEqual(inside(byUBoot), others)
  const once = withOneShot(byUBoot, '9.1')
  assert.deepEqual(inside(once), [...others, 'LoaderEntryOneShot'])
  const again = withOneShot(once, '9.2')
  assert.equal(again.length, once.length)
  assert.deepEqual([says(again, '9.1'), says(again, '9.2')], [false, true])
  // All but header and the new entry is as U-Boot wrote it.
  const end = Math.ceil(byUBoot.length / 8) * 8
  assert.ok(once.subarray(24, byUBoot.length).equals(byUBoot.subarray(24)))
  assert.equal(once.readUInt32LE(16), once.length)
  assert.ok(once.length > end && once.length % 8 === 0)
})

test('a file that is missing, truncated, damaged or something else is one with nothing in it', () => {
  const fresh = withOneShot(undefined, '9.1')
  assert.deepEqual(inside(fresh), ['LoaderEntryOneShot'])
  const damaged = Buffer.from(byUBoot)
  damaged[100]! ^= 1
  for (const before of [
    Buffer.alloc(0),
    byUBoot.subarray(0, 200),
    damaged,
    Buffer.alloc(70_000, 1),
  ])
    assert.ok(withOneShot(before, '9.1').equals(fresh))
  assert.throws(() => withOneShot(undefined, '1'.repeat(9000)), /U-Boot reads 16384/)
})

test('what is named fits the new version’s kernel image alone, with its counter or without', () => {
  const fits = (version: string, name: string): boolean =>
    new RegExp(
      `^${onlyOnce(version).replaceAll('.', '\\.').replace('[+\\.]', '[+.]').replaceAll('?', '.').replace(/\*$/, '.*')}$`,
    ).test(name)
  for (const name of ['gatehouse_9.1.efi', 'gatehouse_9.1+0-0.efi', 'gatehouse_9.1+0.efi'])
    assert.ok(fits('9.1', name), name)
  // Whatever is older.
  for (const name of ['gatehouse_9.1~rc1.efi', 'gatehouse_9.0.efi', 'gatehouse_0.9.1.efi'])
    assert.ok(!fits('9.1', name), name)
  // systemd-boot makes small letters of what it is told, and not of the name.
  assert.equal(onlyOnce('9.1RC'), 'gatehouse_9.1??[+.]*')
})

test('through U-Boot the variable is written to its file on the card, elsewhere bootctl sets it; without either nothing is said to be done', async () => {
  const info = join(efivars, 'LoaderFirmwareInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f')
  const firmware = (name: string): void => {
    writeFileSync(info, Buffer.concat([Buffer.from([6, 0, 0, 0]), Buffer.from(name, 'utf16le')]))
  }
  await assert.rejects(startOnce('9.1', boot, efivars), { code: 'ENOENT' })
  firmware('Das U-Boot 8229.256\0')
  writeFileSync(join(boot, 'ubootefi.var'), byUBoot)
  await startOnce('9.1', boot, efivars)
  assert.ok(readFileSync(join(boot, 'ubootefi.var')).equals(withOneShot(byUBoot, '9.1')))
  rmSync(join(boot, 'ubootefi.var'))

  const bin = join(root, 'bin')
  mkdirSync(bin, { recursive: true })
  const told = join(root, 'told')
  writeFileSync(join(bin, 'bootctl'), `#!/bin/sh\necho "$@" >${told}\n`)
  chmodSync(join(bin, 'bootctl'), 0o755)
  const path = process.env['PATH']
  process.env['PATH'] = `${bin}:${path}`
  try {
    firmware('EDK II 1.00\0')
    await startOnce('9.1', boot, efivars)
    assert.equal(readFileSync(told, 'utf8'), 'set-oneshot gatehouse_9.1[+.]*\n')
    writeFileSync(
      join(bin, 'bootctl'),
      '#!/bin/sh\necho "Failed to update EFI variable" >&2\nexit 1\n',
    )
    await assert.rejects(startOnce('9.1', boot, efivars), /Failed to update EFI variable/)
  } finally {
    process.env['PATH'] = path
  }
  assert.ok(!existsSync(join(boot, 'ubootefi.var')))
})

test('a version on trial that serves loses its counter, and one that does not keeps or gets it, with the reason', async (t) => {
  const env = {
    GATEHOUSE_SLOTS_DIR: join(root, 'slots'),
    GATEHOUSE_OS_RELEASE: join(root, 'os-release'),
    GATEHOUSE_ADMIN_SOCKET: join(root, 'admin.sock'),
    GATEHOUSE_BOOT_DIR: boot,
  }
  const where = updatePaths(env)
  writeFileSync(where.osRelease, 'IMAGE_VERSION=9.1\n')
  let status = 200
  const gateway = createServer((_req, res) => {
    res.writeHead(status, { 'content-type': 'application/json' })
    res.end(JSON.stringify(status === 200 ? {} : { error: { message: 'no network' } }))
  }).listen(env.GATEHOUSE_ADMIN_SOCKET)
  t.after(() => gateway.close())
  const tried = async (name: string, seconds: string): Promise<[number, string[]]> => {
    rmSync(entries, { recursive: true })
    mkdirSync(entries)
    for (const other of ['gatehouse_9.0.efi', name]) writeFileSync(join(entries, other), '')
    await writeUpdateRecord(where, {
      from: '9.0',
      to: '9.1',
      installedAt: new Date().toISOString(),
    })
    const code = await runTrial(paths(env), { ...env, GATEHOUSE_TRIAL_SECONDS: seconds })
    return [code, readdirSync(entries).toSorted()]
  }
  for (const name of ['gatehouse_9.1+0-0.efi', 'gatehouse_9.1+0-1.efi', 'gatehouse_9.1+2-1.efi']) {
    assert.deepEqual(await tried(name, '60'), [0, ['gatehouse_9.0.efi', 'gatehouse_9.1.efi']])
    assert.equal((await readUpdateRecord(where))!.good, true)
  }
  status = 503
  for (const name of ['gatehouse_9.1+0-0.efi', 'gatehouse_9.1+2-1.efi']) {
    assert.deepEqual(await tried(name, '1'), [1, ['gatehouse_9.0.efi', 'gatehouse_9.1+0.efi']])
    const { good, failure } = (await readUpdateRecord(where))!
    assert.deepEqual([good, failure], [undefined, 'it did not serve in time: no network'])
  }
})
