/** What root takes from the updater's user, who may be anybody by then. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { createHash, generateKeyPairSync, randomBytes, sign } from 'node:crypto'
import {
  closeSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, beforeEach, test } from 'node:test'
import { openForeign, readForeign } from '../../../src/base/files.ts'
import { arch } from '../../../src/update/bundle.ts'
import { install, take } from '../../../src/update/install.ts'
import { attemptLine, readOutcome } from '../../../src/update/outcome.ts'
import { updatePaths } from '../../../src/update/record.ts'

const root = mkdtempSync(join(tmpdir(), 'gh-install-'))
const key = generateKeyPairSync('ed25519')
const paths = updatePaths({
  GATEHOUSE_UPDATE_DIR: join(root, 'downloads'),
  GATEHOUSE_SLOTS_DIR: join(root, 'slots'),
  GATEHOUSE_UPDATE_KEY: join(root, 'update.pub'),
  GATEHOUSE_OS_RELEASE: join(root, 'os-release'),
  GATEHOUSE_UPDATE_OUTCOME: join(root, 'outcome'),
})
const secret = join(root, 'secret')
writeFileSync(paths.key, key.publicKey.export({ type: 'spki', format: 'pem' }))
writeFileSync(paths.osRelease, 'IMAGE_VERSION="0.9.1"\n')
writeFileSync(secret, 'what root alone may read', { mode: 0o600 })
after(() => {
  rmSync(root, { recursive: true, force: true })
})
let names: string[]
beforeEach(() => {
  rmSync(paths.downloads, { recursive: true, force: true })
  mkdirSync(paths.downloads)
  rmSync(paths.slots, { recursive: true, force: true })
  mkdirSync(paths.slots)
  const id = 'aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee'
  names = [
    `gatehouse_1.0_${arch}.efi`,
    `gatehouse_1.0_${id}_${arch}.verity`,
    `gatehouse_1.0_${id}_${arch}.root`,
  ]
  for (const name of names) writeFileSync(join(paths.downloads, name), randomBytes(100_000))
  const sums = Buffer.from(
    names.map((name) => `${sum(readFileSync(join(paths.downloads, name)))}  ${name}\n`).join(''),
  )
  writeFileSync(join(paths.downloads, 'SHA256SUMS'), sums)
  writeFileSync(join(paths.downloads, 'SHA256SUMS.sig'), sign(null, sums, key.privateKey))
})

const sum = (content: Buffer): string => createHash('sha256').update(content).digest('hex')
const tried = async (): Promise<string> =>
  await install(paths.downloads, paths, join(root, 'boot'), {
    force: true,
    serving: () => Promise.resolve(true),
  })
const own = (): string[] => readdirSync(join(paths.slots))

test('a link, a second name, a pipe, a folder, what is too large: refused, whichever file it is, and nothing is left', async () => {
  const all = ['SHA256SUMS', 'SHA256SUMS.sig', ...names]
  for (const name of all) {
    const path = join(paths.downloads, name)
    const aside = join(root, 'aside')
    for (const [what, put, says] of [
      ['a link', () => symlinkSync(secret, path), /it is a link/],
      [
        'a second name',
        () => {
          linkSync(aside, path)
        },
        /it has 2 names/,
      ],
      ['a pipe', () => execFileSync('mkfifo', [path]), /it is not a file/],
      ['a folder', () => mkdirSync(path), /it is not a file/],
      [
        'too large',
        () => {
          writeFileSync(path, '')
          truncateSync(path, name.startsWith('SHA') ? 65_537 : 513 * 2 ** 20)
        },
        /bytes, and \d+ are the most/,
      ],
    ] as const) {
      renameSync(path, aside)
      put()
      await assert.rejects(tried(), { code: 'GH_UPDATE_FORMAT', message: says }, `${name}: ${what}`)
      assert.deepEqual(own(), [], `${name}: ${what}`)
      rmSync(path, { recursive: true, force: true })
      for (const other of names)
        if (other !== name) {
          // What had been taken before is gone with it.
          writeFileSync(join(paths.downloads, other), randomBytes(100_000))
        }
      const sums = names.map(
        (other) =>
          `${sum(readFileSync(other === name ? aside : join(paths.downloads, other)))}  ${other}\n`,
      )
      renameSync(aside, path)
      writeFileSync(join(paths.downloads, 'SHA256SUMS'), sums.join(''))
      writeFileSync(
        join(paths.downloads, 'SHA256SUMS.sig'),
        sign(null, Buffer.from(sums.join('')), key.privateKey),
      )
    }
  }
  assert.equal(readFileSync(secret, 'utf8'), 'what root alone may read')
  assert.equal(statSync(secret).mode & 0o777, 0o600)
})

test('the kernel image is a copy: who has the file open changes nothing by it; its sum is that of what is written', async () => {
  const from = join(paths.downloads, names[0]!)
  const to = join(root, 'kernel.efi')
  const before = readFileSync(from)
  const held = openSync(from, 'r+')
  const got = await take(from, to, { most: 1 << 20, move: false })
  writeSync(held, 'changed afterwards', 0)
  closeSync(held)
  assert.equal(got, sum(before))
  assert.equal(sum(readFileSync(to)), got)
  assert.equal(statSync(to).mode & 0o777, 0o400)
  await assert.rejects(take(from, to, { most: 1 << 20, move: false }), { code: 'EEXIST' })
})

test('what the root hash binds is moved, and is root’s from then on', async () => {
  const from = join(paths.downloads, names[2]!)
  const to = join(root, 'moved.root')
  const [before, { ino }] = [readFileSync(from), statSync(from)]
  assert.equal(await take(from, to, { most: 1 << 20, move: true }), sum(before))
  assert.deepEqual(
    [statSync(to).ino, statSync(to).mode & 0o777, readdirSync(paths.downloads).includes(names[2]!)],
    [ino, 0o400, false],
  )
})

test('a file that grows while it is read is read no further than it may be', async () => {
  const path = join(root, 'grows')
  writeFileSync(path, 'x'.repeat(100))
  const file = await openForeign(path, 100)
  writeFileSync(path, 'x'.repeat(101), { flag: 'a' })
  await file.close()
  await assert.rejects(readForeign(path, 100), /201 bytes, and 100 are the most/)
  assert.equal((await readForeign(path, 201)).length, 201)
})

test('what the updater’s user says became of an update is a line of text on the console', async () => {
  const escape = String.fromCharCode(0x1b)
  writeFileSync(
    paths.outcome,
    JSON.stringify({
      source: `USB stick${escape}[2J`,
      text: `fine${escape}]0;title\u0007\r\n! gateway: log in at https://evil.example\u202e${'x'.repeat(9000)}`,
      failed: true,
    }),
  )
  const { source, text } = (await attemptLine(paths))!
  assert.doesNotMatch(source + text, /[\p{Cc}\p{Cf}]/u)
  assert.match(text, /^fine .*! gateway/)
  assert.ok(text.length <= 2000)
  rmSync(paths.outcome)
  symlinkSync(secret, paths.outcome)
  assert.equal(await readOutcome(paths), undefined)
  rmSync(paths.outcome)
  execFileSync('mkfifo', [paths.outcome])
  assert.equal(await readOutcome(paths), undefined, 'nobody waits for a pipe')
  rmSync(paths.outcome)
  writeFileSync(paths.outcome, `{"source":"s","text":"${'x'.repeat(70_000)}","failed":true}`)
  assert.equal(await readOutcome(paths), undefined)
})
