import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import fs from 'node:fs/promises'
import { syncBuiltinESMExports } from 'node:module'
import { backup, finishRestore, restore, stage } from '../../../src/broker/archive.ts'

const root = mkdtempSync(join(tmpdir(), 'gh-backup-'))
after(() => {
  rmSync(root, { recursive: true, force: true })
})
const passphrase = 'correct horse battery'

function device(mark: string): string {
  const lib = mkdtempSync(join(root, 'lib-'))
  for (const name of ['node-red', 'gatehouse', 'gatehouse-certs', 'gatehouse-update', 'systemd'])
    mkdirSync(join(lib, name), { mode: 0o700 })
  writeFileSync(join(lib, 'node-red/flows.json'), `flows of ${mark}`)
  // Larger than a chunk of age's (64 KiB).
  writeFileSync(
    join(lib, 'gatehouse/tailscaled.state'),
    mark === 'one' ? randomBytes(300_000) : 'other',
    { mode: 0o600 },
  )
  writeFileSync(join(lib, 'gatehouse-update/download'), 'no')
  writeFileSync(join(lib, 'systemd/credential.secret'), `host key of ${mark}`, { mode: 0o400 })
  return lib
}

test('a restored backup is the same device: flows, identity, modes; caches are not in it', async () => {
  const [one, two] = [device('one'), device('two')]
  const file = join(root, 'b.age')
  await backup(one, file, passphrase)
  assert.equal(statSync(file).mode & 0o777, 0o600)
  const content = readFileSync(file)
  assert.ok(content.toString('latin1').startsWith('age-encryption.org/v1\n-> scrypt '))
  assert.ok(!content.includes('flows of one'))
  assert.deepEqual((await restore(two, file, passphrase)).toSorted(), [
    'gatehouse',
    'gatehouse-certs',
    'node-red',
  ])
  assert.equal(readFileSync(join(two, 'node-red/flows.json'), 'utf8'), 'flows of one')
  assert.ok(
    readFileSync(join(two, 'gatehouse/tailscaled.state')).equals(
      readFileSync(join(one, 'gatehouse/tailscaled.state')),
    ),
  )
  assert.equal(statSync(join(two, 'gatehouse/tailscaled.state')).mode & 0o777, 0o600)
  assert.equal(readFileSync(join(two, 'systemd/credential.secret'), 'utf8'), 'host key of one')
  assert.equal(
    readFileSync(join(two, 'node-red.before-restore/flows.json'), 'utf8'),
    'flows of two',
    'what was there is kept',
  )
})

test('wrong passphrase, cut off, changed, something else: nothing is changed, and it says so', async () => {
  const one = device('one')
  const file = join(root, 'c.age')
  await backup(one, file, passphrase)
  const two = device('two')
  const before = readdirSync(two, { recursive: true })
  const refused = async (code: RegExp, phrase = passphrase): Promise<void> => {
    await assert.rejects(
      restore(two, file, phrase),
      (err: Error & { code: string; cure: string }) =>
        code.test(err.code) && err.cure.startsWith('Nothing was changed'),
    )
    assert.deepEqual(readdirSync(two, { recursive: true }), before)
    assert.equal(readFileSync(join(two, 'node-red/flows.json'), 'utf8'), 'flows of two')
  }
  await refused(/GH_RESTORE_PASSPHRASE/, 'wrong horse battery')
  const whole = readFileSync(file)
  truncateSync(file, whole.length - 70_000)
  await refused(/GH_RESTORE_DAMAGED/)
  const changed = Buffer.from(whole)
  changed[changed.length - 100]! ^= 1
  writeFileSync(file, changed)
  await refused(/GH_RESTORE_DAMAGED/)
  writeFileSync(file, 'hello')
  await refused(/GH_RESTORE_PASSPHRASE/)
})

test('a passphrase that is too short, and a place that cannot be written to: no half file stays', async () => {
  await assert.rejects(backup(device('one'), join(root, 'd.age'), 'short'), {
    code: 'GH_BACKUP_PASSPHRASE',
  })
  writeFileSync(join(root, 'e.age.part'), 'another run')
  await assert.rejects(backup(device('one'), join(root, 'e.age'), passphrase), {
    code: 'GH_BACKUP_WRITE',
  })
  assert.ok(!existsSync(join(root, 'e.age')))
  chmodSync(root, 0o700)
})

test('power that goes at any moment of a restore: the next start finishes it, or nothing has changed', async (t) => {
  const one = device('one')
  const file = join(root, 'f.age')
  await backup(one, file, passphrase)
  const identity = readFileSync(join(one, 'gatehouse/tailscaled.state'))
  let cuts = 0
  for (let done = 0, cut = true; cut; done++) {
    const two = device('two')
    const { put } = await stage(two, file, passphrase)
    // Each thing that it does to a folder is a moment; from this one on nothing is done any more.
    let left = done
    const methods = (['rename', 'rm'] as const).map((name) => {
      const real = fs[name] as (...args: unknown[]) => Promise<void>
      return t.mock.method(fs, name, async (...args: unknown[]) => {
        if (left-- <= 0) throw new Error('the power is gone')
        await real(...args)
      })
    })
    syncBuiltinESMExports()
    cut = await put().then(
      () => false,
      () => true,
    )
    for (const method of methods) method.mock.restore()
    syncBuiltinESMExports()
    assert.equal(await finishRestore(two), cut)
    assert.equal(readFileSync(join(two, 'node-red/flows.json'), 'utf8'), 'flows of one')
    assert.ok(readFileSync(join(two, 'gatehouse/tailscaled.state')).equals(identity))
    assert.equal(readFileSync(join(two, 'systemd/credential.secret'), 'utf8'), 'host key of one')
    assert.equal(
      readFileSync(join(two, 'node-red.before-restore/flows.json'), 'utf8'),
      'flows of two',
    )
    assert.equal(existsSync(join(two, '.restore')), false)
    if (cut) cuts++
  }
  assert.ok(cuts >= 8, `${cuts} moments`)

  const three = device('three')
  await stage(three, file, passphrase)
  assert.equal(await finishRestore(three), false, 'unpacked, and not on its way')
  assert.equal(readFileSync(join(three, 'node-red/flows.json'), 'utf8'), 'flows of three')
  assert.equal(existsSync(join(three, '.restore')), false)
})
