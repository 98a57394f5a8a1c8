/** UDP sockets whose way out is full: what is sent waits within bounds, or is lost as on the way. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { errno } from '../host/errno.ts'
import { DgramSocket, putSockName } from '../host/files.ts'
import { Memory } from '../host/memory.ts'
import type { Native } from '../host/native.ts'
import { NativeSocket } from '../host/udp.ts'

const MiB = 1 << 20

/** The module's memory, with an address at 0. */
function memoryWith(address: string): Memory {
  const memory = new Memory()
  memory.attach(
    new (
      WebAssembly as unknown as { Memory: new (o: { initial: number }) => WebAssembly.Memory }
    ).Memory({ initial: 8 }),
  )
  putSockName(memory.bytes.subarray(0, 18), address, 0)
  return memory
}

if (process.argv[2] === 'inside') {
  // A line of 20 Mbit/s: the socket's buffer (of up to 7 MiB) fills up, then that of libuv.
  const memory = memoryWith('192.0.2.2')
  let woken = 0
  const socket = new DgramSocket(memory, '192.0.2.1', 4, 0, () => woken++)
  let sent = 0
  let asked = 0
  const send = (): number => {
    asked++
    return socket.send(1024, 60_000, 0, 9, 1200)
  }
  let answer = 0
  while (asked < 1000 && (answer = send()) > 0) sent += answer
  assert.equal(answer, -errno.EAGAIN, `after ${sent} bytes`)
  assert.equal(socket.writable, false)
  assert.ok(sent > MiB && sent < 24 * MiB, `${sent} bytes have been taken`)
  assert.equal(woken, 0)
  for (let i = 0; i < 100 && woken === 0; i++) await sleep(50)
  assert.ok(woken > 0, 'Go is told when there is room again')
  assert.equal(socket.writable, true)
  assert.equal(send(), 60_000)
  socket.close()
  assert.equal(socket.writable, true, 'a closed one is never waited for')
  console.log(`all is well: ${sent} bytes`)
  process.exit(0)
}

test('node:dgram: what waits in libuv has a bound, and room is told of', (t) => {
  const inside = [process.execPath, '--disable-warning=ExperimentalWarning', import.meta.filename]
  const { status, stdout, stderr } = spawnSync(
    'unshare',
    [
      '-n',
      'sh',
      '-c',
      `ip link add d0 type veth peer d1 && ip link set d1 up && ip addr add 192.0.2.1/24 dev d0 && ip link set d0 up &&
       ip neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev d0 || exit 70
       tc qdisc add dev d0 root tbf rate 20mbit burst 10kb limit 100mb || exit 69
       exec "$@" inside`,
      'sh',
      ...inside,
    ],
    { encoding: 'utf8' },
  )
  if (status === 69) return t.skip('this kernel has no tbf, so no line that fills up')
  assert.equal(status, 0, stdout + stderr)
  assert.match(stdout, /all is well/)
  t.diagnostic(stdout.trim())
})

/** The system call faked: `answers` in order, then success. */
function nativeSocket(...answers: number[]): NativeSocket {
  const native = {
    send: (_fd: number, _family: number, _ptr: number, length: number) => answers.shift() ?? length,
  } as unknown as Native
  return new NativeSocket(native, memoryWith('192.0.2.2'), 3, 4, () => {})
}

test('node:ffi: ENOBUFS is a lost packet, of which poll(2) would tell nothing', () => {
  for (const segment of [0, 1200]) {
    const socket = nativeSocket(-errno.ENOBUFS)
    assert.equal(socket.send(1024, 6000, 0, 9, segment), 6000)
    assert.equal(socket.writable, true, 'nobody waits for what never comes')
  }
})

test('node:ffi: EAGAIN is waited for', () => {
  for (const segment of [0, 1200]) {
    const socket = nativeSocket(-errno.EAGAIN)
    assert.equal(socket.send(1024, 6000, 0, 9, segment), -errno.EAGAIN)
    assert.equal(socket.writable, false)
  }
})
