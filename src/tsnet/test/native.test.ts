/**
 * The system calls behind network "ffi", against the kernel: a namespace whose only interface is
 * lo, with the MTU of Ethernet. Nothing leaves it.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { errno } from '../host/errno.ts'
import { ipText, putSockName } from '../host/files.ts'
import { Memory } from '../host/memory.ts'
import { Native } from '../host/native.ts'
import { NativeSleeper, type NativeSocket } from '../host/udp.ts'

if (process.argv[2] !== 'inside') {
  test(
    'segments, joined and single datagrams, errors; also without any capability',
    { skip: process.platform !== 'linux' && 'Linux alone' },
    () => {
      for (const cut of [
        [],
        ['setpriv', '--bounding-set=-all', '--inh-caps=-all', '--no-new-privs', '--'],
      ]) {
        const node = [
          process.execPath,
          '--disable-warning=ExperimentalWarning',
          import.meta.filename,
          'inside',
        ]
        const { status, stdout, stderr } = spawnSync(
          'unshare',
          ['-n', 'sh', '-c', 'ip link set lo mtu 1500 up && exec "$@"', 'sh', ...cut, ...node],
          { encoding: 'utf8' },
        )
        assert.equal(status, 0, stdout + stderr)
        assert.match(stdout, /all is well/)
      }
    },
  )
} else {
  const memory = new Memory()
  const wasmMemory = new (
    WebAssembly as unknown as { Memory: new (o: { initial: number }) => WebAssembly.Memory }
  ).Memory({ initial: 8 })
  memory.attach(wasmMemory)
  const native = await Native.open(memory)
  assert.ok(native)
  const sleeper = new NativeSleeper(
    native,
    memory,
    new Map(),
    () => {},
    () => {},
  )
  // In the module's memory: an address at 0, where a sender is written at 32, what is sent at 64
  // KiB, what is received at 192 KiB.
  const [SEND, RECEIVE, SPACE] = [64 << 10, 192 << 10, 65_507]
  let { bytes } = memory
  for (let i = 0; i < SPACE; i++) bytes[SEND + i] = (i * 7 + (i >> 8)) & 0xff
  const open = (family: 4 | 6, address: string): NativeSocket => {
    putSockName(bytes.subarray(0, 18), address, 0)
    const socket = sleeper.open(family, 0, 0)
    assert.ok(typeof socket !== 'number', `open: ${socket}`)
    return socket
  }
  const portOf = (socket: NativeSocket): number => {
    const name = new Uint8Array(18)
    assert.equal(socket.name(name), 0)
    return name[16]! | (name[17]! << 8)
  }
  /** All that arrives within 100 ms: length, size of each, sender. */
  const drain = async (
    socket: NativeSocket,
  ): Promise<{ n: number; segment: number; from: string; ok: boolean }[]> => {
    await sleep(100)
    const list = []
    for (;;) {
      const n = socket.receive(RECEIVE, SPACE, 32)
      if (n === -errno.EAGAIN) return list
      assert.ok(n >= 0, `receive: ${n}`)
      list.push({
        n,
        segment: bytes[50]! | (bytes[51]! << 8),
        from: ipText(bytes.subarray(32, 48)),
        ok:
          Buffer.compare(bytes.subarray(RECEIVE, RECEIVE + n), bytes.subarray(SEND, SEND + n)) ===
          0,
      })
    }
  }
  for (const [family, address, other] of [
    [4, '127.0.0.1', '::1'],
    [6, '::1', '127.0.0.1'],
  ] as const) {
    const [a, b] = [open(family, address), open(family, address)]
    const port = portOf(b)
    putSockName(bytes.subarray(0, 18), address, 0)
    // Cut by one call and joined by another.
    assert.equal(a.send(SEND, 10_000, 0, port, 1300), 10_000)
    assert.deepEqual(await drain(b), [
      { n: 10_000, segment: 1300, from: family === 4 ? address : '0:0:0:0:0:0:0:1', ok: true },
    ])
    // One, and an empty one.
    assert.equal(a.send(SEND, 1200, 0, port, 0), 1200)
    assert.equal(a.send(SEND, 0, 0, port, 0), 0)
    assert.deepEqual(
      (await drain(b)).map(({ n, segment }) => [n, segment]),
      [
        [1200, 0],
        [0, 0],
      ],
    )
    // The kernel cuts to no more than the MTU; larger ones go one by one, as fragments.
    assert.equal(a.send(SEND, 6000, 0, port, 2000), 6000)
    assert.deepEqual(
      (await drain(b)).map(({ n }) => n),
      [2000, 2000, 2000],
    )
    assert.equal(a.send(SEND, 10_000, 0, port, 1300), 10_000, 'and after that still by one call')
    assert.equal((await drain(b)).length, 1)
    // What cannot be sent is an error, not an exception.
    assert.equal(a.send(SEND, 10, 0, 0, 0), -errno.EINVAL)
    assert.equal(a.send(memory.data.byteLength - 5, 10, 0, port, 0), -errno.EINVAL)
    assert.equal(b.receive(-1, 10, 32), -errno.EINVAL)
    assert.equal(a.send(SEND, 65_600, 0, port, 0), -errno.EMSGSIZE)
    putSockName(bytes.subarray(0, 18), other, 0)
    assert.equal(a.send(SEND, 10, 0, port, 0), -errno.EAFNOSUPPORT)
    putSockName(bytes.subarray(0, 18), family === 4 ? '192.0.2.1' : '2001:db8::1', 0)
    assert.equal(a.send(SEND, 10, 0, port, 0), -errno.ENETUNREACH)
    assert.equal(sleeper.open(family, 0, 0), -errno.EADDRNOTAVAIL)
    putSockName(bytes.subarray(0, 18), address, 0)
    assert.equal(sleeper.open(family, 0, port), -errno.EADDRINUSE)
    a.close()
    b.close()
    assert.equal(a.send(SEND, 10, 0, port, 0), -errno.EBADF)
  }
  // The module's memory moves or grows: addresses follow.
  ;(wasmMemory as unknown as { grow(n: number): number }).grow(64)
  bytes = memory.bytes
  const c = open(4, '127.0.0.1')
  putSockName(bytes.subarray(0, 18), '127.0.0.1', 0)
  assert.equal(c.send(SEND, 100, 0, portOf(c), 0), 100)
  await sleep(50)
  assert.equal(c.receive(RECEIVE, SPACE, 32), 100)
  console.log('all is well')
}
