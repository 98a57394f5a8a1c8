/**
 * What Windows and macOS do otherwise, faked at the calls that differ: neither is to be had here, and
 * nothing of this has run on them. (That no directory is synced on Windows: state.test.ts.)
 */
import assert from 'node:assert/strict'
import dgram from 'node:dgram'
import dns from 'node:dns'
import { once } from 'node:events'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { test, type TestContext } from 'node:test'
import { DgramSocket, putSockName } from '../host/files.ts'
import { lockDirectory } from '../host/lock.ts'
import { machine } from '../host/machine.ts'
import { Memory } from '../host/memory.ts'
import { NameFiles } from '../host/names.ts'
import { Native } from '../host/native.ts'
import { StateFile } from '../host/state.ts'
import { interfaces, nameservers } from '../host/system.ts'
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

/** A directory of its own. */
function directory(t: TestContext): string {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'tsnet-portable-'))
  t.after(() => fs.rmSync(dir, { recursive: true }))
  return dir
}

const failure = (code: string): Error => Object.assign(new Error(code), { code })

test('win32: a state file that a virus scanner has open is replaced when it has let go', async (t) => {
  const state = new StateFile(directory(t))
  await state.write(Buffer.from('first'))
  on(t, 'win32')
  const real = fs.promises.rename
  const tries = ['EPERM', 'EACCES', 'EBUSY']
  const renamed = t.mock.method(fs.promises, 'rename', async (from: string, to: string) => {
    const code = tries.shift()
    if (code) throw failure(code)
    await real(from, to)
  })
  await state.write(Buffer.from('second'))
  assert.equal(renamed.mock.callCount(), 4)
  assert.equal(Buffer.from(state.read()).toString(), 'second')
  // What does not pass is said at once.
  renamed.mock.mockImplementation(async () => {
    throw failure('ENOSPC')
  })
  await assert.rejects(state.write(Buffer.from('third')), { code: 'ENOSPC' })
  assert.equal(Buffer.from(state.read()).toString(), 'second')
})

test('elsewhere a state file that cannot be replaced is an error at once', async (t) => {
  const state = new StateFile(directory(t))
  const renamed = t.mock.method(fs.promises, 'rename', async () => {
    throw failure('EPERM')
  })
  await assert.rejects(state.write(Buffer.from('x')), { code: 'EPERM' })
  assert.equal(renamed.mock.callCount(), 1)
})

test('win32: the directory is not locked, and not opened for that', (t) => {
  on(t, 'win32')
  const dir = directory(t)
  t.mock.method(fs, 'openSync', () => assert.fail('a directory cannot be opened'))
  lockDirectory(dir)()
})

test('darwin: flock says by __error and 35 that the directory is in use', async (t) => {
  on(t, 'darwin')
  const dir = directory(t)
  const asked: string[] = []
  let code = 35
  const ffi = {
    dlopen: (_library: null, functions: object) => {
      asked.push(...Object.keys(functions))
      return { functions: { flock: () => (code ? -1 : 0), __error: () => 0n } }
    },
    getInt32: () => code,
  }
  t.mock.method(process, 'getBuiltinModule', () => ffi as never)
  assert.throws(() => lockDirectory(dir), /is in use by another Server/)
  assert.deepEqual(asked, ['flock', '__error'])
  code = 0
  lockDirectory(dir)()
})

/** A socket by node:dgram, and the memory of the module that it is for. */
function socket(t: TestContext): { under: DgramSocket; memory: Memory; woken: Promise<void> } {
  const memory = new Memory()
  memory.attach({ buffer: new ArrayBuffer(65536) } as unknown as WebAssembly.Memory)
  const { promise: woken, resolve } = Promise.withResolvers<void>()
  const under = new DgramSocket(memory, '127.0.0.1', 4, 0, resolve)
  t.after(() => under.close())
  return { under, memory, woken }
}

test('darwin: socket buffers that are refused are left as they are', (t) => {
  const refused = ['setRecvBufferSize', 'setSendBufferSize'] as const
  const mocks = refused.map((set) =>
    t.mock.method(dgram.Socket.prototype, set, () => {
      throw failure('ENOBUFS')
    }),
  )
  assert.equal(socket(t).under.name(new Uint8Array(18)), 0)
  for (const mock of mocks) assert.equal(mock.mock.callCount(), 1)
})

test('win32: an ICMP error that comes as one of receiving does not end the socket', async (t) => {
  const made: dgram.Socket[] = []
  const real = dgram.createSocket
  t.mock.method(dgram, 'createSocket', ((options: dgram.SocketOptions) => {
    made.push(real(options))
    return made[0]!
  }) as typeof dgram.createSocket)
  const { under, memory, woken } = socket(t)
  made[0]!.emit('error', failure('ECONNRESET'))
  const peer = real('udp4')
  t.after(() => peer.close())
  peer.bind(0, '127.0.0.1')
  await once(peer, 'listening')
  const got = once(peer, 'message')
  memory.bytes.set(Buffer.from('out'), 0)
  putSockName(memory.bytes.subarray(100, 118), '127.0.0.1', 0)
  assert.equal(under.send(0, 3, 100, peer.address().port, 0), 3)
  const [text, from] = (await got) as [Buffer, dgram.RemoteInfo]
  assert.equal(text.toString(), 'out')
  peer.send('back', from.port, '127.0.0.1')
  await woken
  assert.equal(under.receive(200, 100, 300), 4)
  assert.equal(Buffer.from(memory.bytes.subarray(200, 204)).toString(), 'back')
})

test('win32: interfaces by the names that people read, those without an address too', (t) => {
  const some = { netmask: '255.255.255.0', mac: '00:00:00:00:00:00', internal: false } as const
  t.mock.method(os, 'networkInterfaces', () => ({
    'vEthernet (WSL)': [{ ...some, address: '172.20.0.1', family: 'IPv4' as const, cidr: null }],
    Ethernet: [
      { ...some, address: '192.0.2.7', family: 'IPv4' as const, cidr: '192.0.2.7/24' },
      {
        ...some,
        ...{ address: 'fe80::1', family: 'IPv6' as const, scopeid: 12, cidr: 'fe80::1%12/64' },
      },
    ],
  }))
  assert.deepEqual(interfaces(), [
    { name: 'Ethernet', index: 1, mtu: 1500, addrs: ['192.0.2.7/24', 'fe80::1/64'], loop: false },
    { name: 'vEthernet (WSL)', index: 2, mtu: 1500, addrs: [], loop: false },
  ])
})

test('the worker has what says where temporary files go, and nothing else', () => {
  assert.deepEqual(workerEnv({ TEMP: 'T', SystemRoot: 'S', TS_AUTHKEY: 'secret', PATH: 'p' }), {
    TEMP: 'T',
    SystemRoot: 'S',
  })
})
