/** How a drop-in comes into force (src/provision/drop-in.ts), with a systemctl that notes what it is told. */
import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { applyDropIn } from '../../../src/provision/drop-in.ts'

const root = mkdtempSync(join(tmpdir(), 'gh-drop-in-'))
const said = join(root, 'said')
await mkdir(join(root, 'bin'))
writeFileSync(join(root, 'bin/systemctl'), `#!/bin/sh\necho "$*" >>${said}\n`, { mode: 0o755 })
const before = process.env.PATH
process.env.PATH = `${join(root, 'bin')}:${before}`
after(() => {
  process.env.PATH = before
  rmSync(root, { recursive: true, force: true })
})
const calls = (): string[] => {
  const lines = readFileSync(said, 'utf8').trim().split('\n')
  rmSync(said)
  return lines
}
const text =
  '[Unit]\nWants=modprobe@a.service modprobe@b.service\nAfter=modprobe@a.service\n[Service]\n'

test('at boot what a drop-in wants is started: the start that waits was queued without it', async () => {
  await applyDropIn('x.service', text, root)
  assert.equal(readFileSync(join(root, 'x.service.d/50-gatehouse.conf'), 'utf8'), text)
  assert.deepEqual(calls().slice(0, 2), [
    'daemon-reload',
    '--no-block start modprobe@a.service modprobe@b.service',
  ])
})

test('a unit that runs is started again; one that wants nothing starts nothing else', async () => {
  await applyDropIn('x.service', '[Service]\nNice=1\n', root)
  assert.deepEqual(calls(), ['daemon-reload', '--no-block try-restart x.service'])
  await applyDropIn('x.service', '[Service]\nNice=1\n', root)
  assert.throws(calls, /ENOENT/, 'it is in force')
})
