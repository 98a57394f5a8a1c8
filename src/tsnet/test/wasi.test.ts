/** WASI preview 1 as the module uses it: by its layouts, on real files. */
import assert from 'node:assert/strict'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { test, type TestContext } from 'node:test'
import { errno } from '../host/errno.ts'
import { Memory } from '../host/memory.ts'
import { Wasi } from '../host/wasi.ts'

const CREAT = 1
const DIRECTORY = 2
const EXCL = 4
const TRUNC = 8
const APPEND = 1
const FOLLOW = 1
const READ = 2n
const WRITE = 64n

type Functions = Record<string, (...args: (number | bigint)[]) => number>

/** A module's view of WASI: a memory, and a directory by the name /state (descriptor 3). */
function setUp(t: TestContext) {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'tsnet-wasi-'))
  t.after(() => fs.rmSync(dir, { recursive: true }))
  const memory = new Memory()
  memory.attach(
    new (
      WebAssembly as unknown as { Memory: new (o: { initial: number }) => WebAssembly.Memory }
    ).Memory({ initial: 1 }),
  )
  const wasi = new Wasi(memory, {
    args: ['tsnet', 'ä'],
    env: { A: '1', LONGER: 'two' },
    preopens: { '/state': dir },
  })
  const f = wasi.functions as unknown as Functions
  const u32 = (at: number): number => memory.data.getUint32(at, true)
  const put = (text: string, at = 1024): [number, number] => {
    const bytes = Buffer.from(text)
    memory.bytes.set(bytes, at)
    return [at, bytes.length]
  }
  const text = (at: number, n: number): string =>
    Buffer.from(memory.bytes.subarray(at, at + n)).toString()
  /** One buffer of n bytes at 4096. */
  const iovec = (n: number): [number, number] => {
    memory.data.setUint32(512, 4096, true)
    memory.data.setUint32(516, n, true)
    return [512, 1]
  }
  const open = (name: string, oflags = 0, rights = READ, fdflags = 0, lookup = FOLLOW): number => {
    const code = f.path_open!(3, lookup, ...put(name), oflags, rights, 0n, fdflags, 8)
    return code === 0 ? u32(8) : -code
  }
  const write = (fd: number, bytes: string): number => {
    put(bytes, 4096)
    assert.equal(f.fd_write!(fd, ...iovec(Buffer.byteLength(bytes)), 8), 0)
    return u32(8)
  }
  const read = (fd: number, n: number): string => {
    assert.equal(f.fd_read!(fd, ...iovec(n), 8), 0)
    return text(4096, u32(8))
  }
  return { dir, memory, f, u32, put, text, open, write, read }
}

test('it has what the module imports, and nothing else', (t) => {
  const file = path.resolve(import.meta.dirname, '../build/tsnet.wasm')
  const { Module } = WebAssembly as unknown as {
    Module: { new (b: Uint8Array): object; imports(m: object): { module: string; name: string }[] }
  }
  const imports = Module.imports(new Module(fs.readFileSync(file)))
  const wanted = imports.filter((i) => i.module === 'wasi_snapshot_preview1').map((i) => i.name)
  // These two are imports.ts's.
  const own = ['poll_oneoff', 'proc_exit']
  assert.deepEqual([...Object.keys(setUp(t).f), ...own].sort(), [...new Set(wanted)].sort())
})

test('arguments, environment, clocks, random bytes', (t) => {
  const { f, u32, text, memory } = setUp(t)
  assert.equal(f.args_sizes_get!(0, 4), 0)
  assert.deepEqual([u32(0), u32(4)], [2, 'tsnet\0ä\0'.length + 1])
  assert.equal(f.args_get!(0, 64), 0)
  assert.deepEqual([u32(0), u32(4), text(64, 9)], [64, 70, 'tsnet\0ä\0'])
  assert.equal(f.environ_sizes_get!(0, 4), 0)
  assert.deepEqual([u32(0), u32(4)], [2, 'A=1\0LONGER=two\0'.length])
  assert.equal(f.environ_get!(0, 64), 0)
  assert.equal(text(64, u32(4) - 64), 'A=1\0')
  const time = (id: number): bigint => {
    assert.equal(f.clock_time_get!(id, 1n, 0), 0)
    return memory.data.getBigUint64(0, true)
  }
  assert.ok(Math.abs(Number(time(0) / 1_000_000n) - Date.now()) < 1000)
  const before = time(1)
  assert.ok(time(1) > before)
  assert.equal(f.clock_time_get!(7, 1n, 0), errno.EINVAL)
  memory.bytes.fill(0, 200, 240)
  assert.equal(f.random_get!(200, 32), 0)
  assert.ok(memory.bytes.subarray(200, 232).some(Boolean))
  assert.ok(!memory.bytes.subarray(232, 240).some(Boolean))
})

test('a file: made, written, sought, read, appended to, cut off, renamed, gone', (t) => {
  const { dir, f, u32, put, memory, open, write, read } = setUp(t)
  const file = open('a', CREAT | EXCL, READ | WRITE)
  assert.equal(write(file, 'hello'), 5)
  assert.equal(f.fd_seek!(file, 1n, 0, 8), 0)
  assert.equal(read(file, 100), 'ello')
  assert.equal(read(file, 100), '')
  assert.equal(f.fd_seek!(file, -2n, 2, 8), 0)
  assert.equal(u32(8), 3)
  assert.equal(f.fd_seek!(file, -9n, 1, 8), errno.EINVAL)
  assert.equal(f.fd_sync!(file), 0)
  assert.equal(f.fd_filestat_get!(file, 128), 0)
  assert.equal(memory.data.getUint8(128 + 16), 4)
  assert.equal(memory.data.getBigUint64(128 + 32, true), 5n)
  assert.equal(
    memory.data.getBigUint64(128 + 48, true),
    fs.statSync(`${dir}/a`, { bigint: true }).mtimeNs,
  )
  assert.equal(f.fd_close!(file), 0)
  assert.equal(f.fd_close!(file), errno.EBADF)
  assert.equal(fs.statSync(`${dir}/a`).mode & 0o777, 0o600)
  const more = open('a', 0, WRITE, APPEND)
  write(more, ' there')
  f.fd_close!(more)
  assert.equal(fs.readFileSync(`${dir}/a`, 'utf8'), 'hello there')
  f.fd_close!(open('a', TRUNC, WRITE))
  assert.equal(fs.readFileSync(`${dir}/a`, 'utf8'), '')
  assert.equal(open('a', CREAT | EXCL, WRITE), -errno.EEXIST)
  assert.equal(open('none'), -errno.ENOENT)
  assert.equal(f.path_rename!(3, ...put('a'), 3, ...put('b', 2048)), 0)
  assert.equal(f.path_filestat_get!(3, FOLLOW, ...put('a'), 128), errno.ENOENT)
  assert.equal(f.path_filestat_get!(3, FOLLOW, ...put('b'), 128), 0)
  assert.equal(f.path_unlink_file!(3, ...put('b')), 0)
  assert.deepEqual(fs.readdirSync(dir), [])
})

test('directories: named, made, read in parts, removed', (t) => {
  const { dir, f, u32, put, text, open, memory } = setUp(t)
  assert.equal(f.fd_prestat_get!(3, 0), 0)
  assert.deepEqual([u32(0), u32(4)], [0, 6])
  assert.equal(f.fd_prestat_dir_name!(3, 64, 6), 0)
  assert.equal(text(64, 6), '/state')
  assert.equal(f.fd_prestat_get!(4, 0), errno.EBADF)
  assert.equal(f.path_create_directory!(3, ...put('sub')), 0)
  assert.equal(f.path_create_directory!(3, ...put('sub')), errno.EEXIST)
  for (const name of ['one', 'two', 'three']) fs.writeFileSync(`${dir}/sub/${name}`, '')
  const sub = open('sub', DIRECTORY)
  assert.equal(f.fd_fdstat_get!(sub, 128), 0)
  assert.equal(memory.data.getUint8(128), 3)
  // A buffer that takes one entry and a part of the next.
  const names: string[] = []
  for (let cookie = 0n; ;) {
    assert.equal(f.fd_readdir!(sub, 4096, 40, cookie, 8), 0)
    const used = u32(8)
    let at = 4096
    while (at + 24 <= 4096 + used && at + 24 + u32(at + 16) <= 4096 + used) {
      cookie = memory.data.getBigUint64(at, true)
      names.push(text(at + 24, u32(at + 16)))
      assert.equal(memory.data.getUint8(at + 20), 4)
      at += 24 + u32(at + 16)
    }
    if (used < 40) break
  }
  assert.deepEqual(names.sort(), ['one', 'three', 'two'])
  assert.equal(open('sub', 0, WRITE), -errno.EISDIR)
  assert.equal(open('sub/one', DIRECTORY), -errno.ENOTDIR)
  assert.equal(f.fd_read!(sub, 512, 0, 8), errno.EISDIR)
  assert.equal(f.path_unlink_file!(3, ...put('sub')), errno.EISDIR)
  assert.equal(f.path_remove_directory!(3, ...put('sub')), errno.ENOTEMPTY)
  for (const name of ['one', 'two', 'three']) fs.rmSync(`${dir}/sub/${name}`)
  assert.equal(f.path_remove_directory!(3, ...put('sub')), 0)
  assert.equal(f.fd_close!(sub), 0)
})

test('nothing outside the directory is reached: neither by .. nor by a link', (t) => {
  const { dir, f, put, text, open, u32 } = setUp(t)
  const outside = fs.mkdtempSync(path.join(os.tmpdir(), 'tsnet-outside-'))
  t.after(() => fs.rmSync(outside, { recursive: true }))
  fs.writeFileSync(`${outside}/secret`, 'secret')
  fs.symlinkSync(`${outside}/secret`, `${dir}/link`)
  fs.symlinkSync(outside, `${dir}/way`)
  fs.writeFileSync(`${dir}/real`, 'in here')
  fs.symlinkSync('real', `${dir}/good`)
  const far = path.relative(dir, `${outside}/secret`)
  for (const name of [far, `sub/../${far}`, `${outside}/secret`, 'link', 'way/secret', 'a\0b'])
    assert.equal(open(name), -errno.ENOTCAPABLE, name)
  assert.equal(open('way/new', CREAT, WRITE), -errno.ENOTCAPABLE)
  assert.equal(f.path_unlink_file!(3, ...put('way/secret')), errno.ENOTCAPABLE)
  assert.equal(f.path_rename!(3, ...put('real'), 3, ...put('way/x', 2048)), errno.ENOTCAPABLE)
  assert.ok(open('good') > 0)
  assert.equal(open('good', 0, READ, 0, 0), -errno.ELOOP)
  assert.equal(f.path_readlink!(3, ...put('good'), 4096, 100, 8), 0)
  assert.equal(text(4096, u32(8)), 'real')
  assert.deepEqual(fs.readdirSync(outside), ['secret'])
})

test('descriptors 0 to 2 are a terminal at its end; others are EBADF', (t) => {
  const { f, memory, read } = setUp(t)
  assert.equal(read(0, 10), '')
  assert.equal(f.fd_filestat_get!(1, 128), 0)
  assert.equal(memory.data.getUint8(128 + 16), 2)
  assert.equal(f.fd_fdstat_get!(2, 128), 0)
  assert.equal(f.fd_fdstat_set_flags!(2, 4), 0)
  for (const name of ['fd_sync', 'fd_close', 'fd_fdstat_set_flags'])
    assert.equal(f[name]!(99, 0), errno.EBADF, name)
  assert.equal(f.fd_filestat_get!(99, 128), errno.EBADF)
})
