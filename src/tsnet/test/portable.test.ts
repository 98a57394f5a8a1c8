/**
 * What Windows and macOS do otherwise, faked at the calls that differ: neither is to be had here, and
 * nothing of this has run on them. (That no directory is synced on Windows: state.test.ts.)
 */
import assert from 'node:assert/strict'
import dns from 'node:dns'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { test, type TestContext } from 'node:test'
import { machine } from '../host/machine.ts'
import { Memory } from '../host/memory.ts'
import { NameFiles } from '../host/names.ts'
import { Native } from '../host/native.ts'
import { nameservers } from '../host/system.ts'
import { workerEnv } from '../options.ts'

function on(t: TestContext, platform: NodeJS.Platform): void {
  const real = Object.getOwnPropertyDescriptor(process, 'platform')!
  Object.defineProperty(process, 'platform', { value: platform })
  t.after(() => Object.defineProperty(process, 'platform', real))
}

for (const platform of ['win32', 'darwin'] as const) {
  test(`${platform}: name servers are the system's, whatever resolv.conf says`, (t) => {
    on(t, platform)
    t.mock.method(fs, 'readFileSync', () => assert.fail('no file is read'))
    const servers = ['192.0.2.1', '2001:db8::1', '192.0.2.2:5353', 'fe80::1%12', '[2001:db8::2]:53']
    t.mock.method(dns.Resolver.prototype, 'getServers', () => servers)
    assert.deepEqual(nameservers(), [
      '192.0.2.1:53',
      '[2001:db8::1]:53',
      '192.0.2.2:5353',
      '[2001:db8::2]:53',
    ])
  })

  test(`${platform}: packets go by node:dgram`, async (t) => {
    on(t, platform)
    assert.equal(await Native.open(new Memory()), undefined)
    assert.equal(machine().os, { win32: 'windows', darwin: 'macOS' }[platform])
  })
}

test('win32: the copy of hosts is of that below SystemRoot', (t) => {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'tsnet-names-'))
  t.after(() => fs.rmSync(dir, { recursive: true }))
  on(t, 'win32')
  const { SystemRoot } = process.env
  process.env.SystemRoot = 'D:\\Windows'
  t.after(() => {
    if (SystemRoot === undefined) delete process.env.SystemRoot
    else process.env.SystemRoot = SystemRoot
  })
  const read: string[] = []
  const real = fs.readFileSync
  t.mock.method(fs, 'readFileSync', ((file: string, ...rest: never[]) => {
    read.push(file)
    if (file.startsWith('D:\\Windows\\System32\\drivers\\etc') && file.endsWith('hosts'))
      return '192.0.2.7 box\n'
    return real(file, ...rest)
  }) as typeof fs.readFileSync)
  const names = new NameFiles(dir)
  assert.equal(real(path.join(names.dir, 'hosts'), 'utf8'), '192.0.2.7 box\n')
  assert.ok(!read.some((file) => file.startsWith('/etc')), read.join(', '))
})

test('the worker has what says where temporary files go, and nothing else', () => {
  assert.deepEqual(workerEnv({ TEMP: 'T', SystemRoot: 'S', TS_AUTHKEY: 'secret', PATH: 'p' }), {
    TEMP: 'T',
    SystemRoot: 'S',
  })
})
