/**
 * The state file is whole and on the disk, whatever happens: the order of the system calls that
 * make it so.
 */
import assert from 'node:assert/strict'
import fs from 'node:fs'
import type { FileHandle } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { mock, test, type TestContext } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { StateFile } from '../host/state.ts'

type Step = 'open' | 'writeFile' | 'sync' | 'close' | 'rename'
type Call = (step: Step, what: string) => void | Promise<void>

function temporary(t: TestContext): string {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'tsnet-state-'))
  t.after(() => fs.rmSync(dir, { recursive: true }))
  return dir
}

/** Has `call` come before each call of the system's; what it throws, that call throws. */
function intercept(t: TestContext, dir: string, call: Call): () => void {
  const short = (p: unknown): string => path.relative(dir, String(p))
  const { open, rename } = fs.promises
  const opened = t.mock.method(
    fs.promises,
    'open',
    async (name: string, flags: string, mode?: number) => {
      await call('open', `${short(name)} ${flags}${mode ? ` ${mode.toString(8)}` : ''}`)
      const handle: FileHandle = await open(name, flags, mode)
      for (const method of ['writeFile', 'sync', 'close'] as const) {
        const real = handle[method].bind(handle) as (...args: unknown[]) => Promise<void>
        mock.method(handle, method, async (...args: unknown[]) => {
          // Whatever happens, it is closed.
          if (method === 'close') await real()
          await call(method, short(name))
          if (method !== 'close') await real(...args)
        })
      }
      return handle
    },
  )
  const renamed = t.mock.method(fs.promises, 'rename', async (from: string, to: string) => {
    await call('rename', `${short(from)} ${short(to)}`)
    await rename(from, to)
  })
  return () => {
    opened.mock.restore()
    renamed.mock.restore()
  }
}

const text = (state: StateFile): string => Buffer.from(state.read()).toString()

const written = [
  'open a/b/tailscaled.state.new w 600',
  'writeFile a/b/tailscaled.state.new',
  'sync a/b/tailscaled.state.new',
  'close a/b/tailscaled.state.new',
  'rename a/b/tailscaled.state.new a/b/tailscaled.state',
]

test('a write is: temporary file, its fsync, rename, fsync of the directory', async (t) => {
  const dir = temporary(t)
  const state = new StateFile(path.join(dir, 'a/b'))
  const calls: string[] = []
  intercept(t, dir, (step, what) => void calls.push(`${step} ${what}`))
  await state.write(Buffer.from('identity'))
  assert.deepEqual(calls, [...written, 'open a/b r', 'sync a/b', 'close a/b'])
  assert.equal(text(state), 'identity')
})

test('on Windows (faked) no directory is opened: open(2) of one is EISDIR there', async (t) => {
  const dir = temporary(t)
  const state = new StateFile(path.join(dir, 'a/b'))
  const calls: string[] = []
  intercept(t, dir, (step, what) => {
    if (what === 'a/b r') throw Object.assign(new Error('EISDIR'), { code: 'EISDIR' })
    calls.push(`${step} ${what}`)
  })
  const real = Object.getOwnPropertyDescriptor(process, 'platform')!
  Object.defineProperty(process, 'platform', { value: 'win32' })
  t.after(() => Object.defineProperty(process, 'platform', real))
  await state.write(Buffer.from('identity'))
  assert.deepEqual(calls, written)
  assert.equal(text(state), 'identity')
})

test('while the disk syncs, the thread does other things; writes keep their order', async (t) => {
  const dir = temporary(t)
  const state = new StateFile(dir)
  const { promise: disk, resolve } = Promise.withResolvers<void>()
  intercept(t, dir, (step) => (step === 'sync' ? disk : undefined))
  const done: string[] = []
  for (const content of ['first', 'second'])
    void state.write(Buffer.from(content)).then(() => done.push(content))
  for (let turn = 0; turn < 5; turn++) await sleep(5)
  assert.deepEqual(done, [], 'nothing is said to be durable before it is')
  resolve()
  await state.idle()
  assert.deepEqual(done, ['first', 'second'])
  assert.equal(text(state), 'second')
})

for (const failing of ['writeFile', 'sync', 'rename'] as const) {
  test(`a failing ${failing} leaves the old file whole, and no descriptor open`, async (t) => {
    const dir = temporary(t)
    const state = new StateFile(dir)
    await state.write(Buffer.from('old'))
    const open = fs.readdirSync('/proc/self/fd').length
    const restore = intercept(t, dir, (step) => {
      if (step === failing)
        throw Object.assign(new Error('no space left on device'), { code: 'ENOSPC' })
    })
    await assert.rejects(state.write(Buffer.from('new')), { code: 'ENOSPC' })
    restore()
    assert.equal(text(state), 'old')
    assert.equal(fs.readdirSync('/proc/self/fd').length, open)
    await state.write(Buffer.from('new'))
    assert.equal(text(state), 'new')
  })
}

test('a temporary file that a power cut left is of no account', async (t) => {
  const dir = temporary(t)
  await new StateFile(dir).write(Buffer.from('whole'))
  fs.writeFileSync(path.join(dir, 'tailscaled.state.new'), 'ha')
  const state = new StateFile(dir)
  assert.equal(text(state), 'whole')
  await state.write(Buffer.from('next'))
  assert.equal(text(state), 'next')
})
