/** Files of the card's FAT partition; what a power cut makes of them: test/vm/card-cuts.test.ts. */
import assert from 'node:assert/strict'
import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { putOnCard, removeFromCard, renameOnCard } from '../../../src/base/card.ts'

const root = mkdtempSync(join(tmpdir(), 'gh-card-'))
after(() => {
  rmSync(root, { recursive: true, force: true })
})

test('a file is made, replaced by a longer and a shorter one, renamed and removed; nothing is left beside it', async () => {
  const file = join(root, 'gatehouse.toml')
  // What a power cut has left.
  writeFileSync(join(root, '.gatehouse.toml.tmp'), 'half of a file, longer than those to come')
  for (const content of [
    '[tailnet]\n',
    `# ${'x'.repeat(5_000)}\n`,
    Buffer.from([0xff, 0x0a]),
    '',
  ]) {
    await putOnCard(file, content)
    assert.deepEqual(readFileSync(file), Buffer.from(content))
    assert.deepEqual(readdirSync(root), ['gatehouse.toml'])
    assert.equal(statSync(file).mode & 0o777, 0o700)
  }
  await renameOnCard(file, join(root, 'other.toml'))
  assert.deepEqual(readdirSync(root), ['other.toml'])
  await removeFromCard(join(root, 'other.toml'))
  await removeFromCard(join(root, 'other.toml'))
  assert.deepEqual(readdirSync(root), [])
})

test('what cannot be replaced stays as it is', async () => {
  const folder = join(root, 'in-the-way')
  mkdirSync(join(folder, 'kept'), { recursive: true })
  await assert.rejects(putOnCard(folder, 'text'), /EISDIR|ENOTEMPTY|EEXIST/)
  assert.deepEqual(readdirSync(root), ['in-the-way'])
  assert.deepEqual(readdirSync(folder), ['kept'])
})
