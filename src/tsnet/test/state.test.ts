/**
 * The state file is whole and on the disk, whatever happens: the order of the system calls that
 * make it so.
 */
import assert from 'node:assert/strict'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { StateFile } from '../host/state.ts'

test('a write is: temporary file, its fsync, rename, fsync of the directory', (t) => {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'tsnet-state-'))
  t.after(() => fs.rmSync(dir, { recursive: true }))
  const state = new StateFile(path.join(dir, 'a/b'))
  const names = new Map<number, string>()
  const calls: string[] = []
  const real = { ...fs }
  const spy = (
    name: 'openSync' | 'writeFileSync' | 'fsyncSync' | 'renameSync' | 'closeSync',
    note: (args: unknown[], result: unknown) => string,
  ): void => {
    t.mock.method(fs, name, (...args: unknown[]) => {
      const result = (real[name] as (...a: unknown[]) => unknown)(...args)
      calls.push(note(args, result))
      return result
    })
  }
  const short = (p: unknown): string => path.relative(dir, String(p))
  spy(
    'openSync',
    ([p, flags, mode], fd) => (
      names.set(fd as number, short(p)),
      `open ${short(p)} ${flags}${mode ? ` ${(mode as number).toString(8)}` : ''}`
    ),
  )
  spy('writeFileSync', ([fd]) => `write ${names.get(fd as number)}`)
  spy('fsyncSync', ([fd]) => `fsync ${names.get(fd as number)}`)
  spy('closeSync', ([fd]) => `close ${names.get(fd as number)}`)
  spy('renameSync', ([a, b]) => `rename ${short(a)} ${short(b)}`)
  state.write(Buffer.from('identity'))
  assert.deepEqual(calls, [
    'open a/b/tailscaled.state.new w 600',
    'write a/b/tailscaled.state.new',
    'fsync a/b/tailscaled.state.new',
    'close a/b/tailscaled.state.new',
    'rename a/b/tailscaled.state.new a/b/tailscaled.state',
    'open a/b r',
    'fsync a/b',
    'close a/b',
  ])
  assert.equal(Buffer.from(state.read()).toString(), 'identity')
})

for (const failing of ['writeFileSync', 'fsyncSync', 'renameSync'] as const) {
  test(`a failing ${failing} leaves the old file whole, and no descriptor open`, (t) => {
    const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'tsnet-state-'))
    t.after(() => fs.rmSync(dir, { recursive: true }))
    const state = new StateFile(dir)
    state.write(Buffer.from('old'))
    const open = fs.readdirSync('/proc/self/fd').length
    const mock = t.mock.method(fs, failing, () => {
      throw Object.assign(new Error('no space left on device'), { code: 'ENOSPC' })
    })
    assert.throws(() => state.write(Buffer.from('new')), { code: 'ENOSPC' })
    mock.mock.restore()
    assert.equal(Buffer.from(state.read()).toString(), 'old')
    assert.equal(fs.readdirSync('/proc/self/fd').length, open)
    state.write(Buffer.from('new'))
    assert.equal(Buffer.from(state.read()).toString(), 'new')
  })
}

test('a temporary file that a power cut left is of no account', (t) => {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'tsnet-state-'))
  t.after(() => fs.rmSync(dir, { recursive: true }))
  new StateFile(dir).write(Buffer.from('whole'))
  fs.writeFileSync(path.join(dir, 'tailscaled.state.new'), 'ha')
  const state = new StateFile(dir)
  assert.equal(Buffer.from(state.read()).toString(), 'whole')
  state.write(Buffer.from('next'))
  assert.equal(Buffer.from(state.read()).toString(), 'next')
})
