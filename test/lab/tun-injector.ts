/**
 * Whoever has broken into the gateway: opens the tun interface, writes what packets it is told to,
 * and prints those that the kernel gives it. Lines of hexadecimal digits, both ways, without the
 * virtio_net_hdr before each. Says `open` first.
 *
 * Usage: node tun-injector.ts INTERFACE
 */
import { readSync, writeSync } from 'node:fs'
import readline from 'node:readline'
import { Memory } from '../../src/tsnet/host/memory.ts'
import { Native } from '../../src/tsnet/host/native.ts'

const native = (await Native.open(new Memory()))!
const fd = native.openTUN(Buffer.from(process.argv[2]!))
console.log(fd < 0 ? `refused: ${fd}` : 'open')
if (fd < 0) process.exit(1)
const header = 10
readline.createInterface({ input: process.stdin }).on('line', (line) => {
  writeSync(fd, Buffer.concat([Buffer.alloc(header), Buffer.from(line, 'hex')]))
})
const buffer = Buffer.alloc(65_536)
setInterval(() => {
  for (;;) {
    let length: number
    try {
      length = readSync(fd, buffer)
    } catch {
      return // nothing there
    }
    console.log(buffer.toString('hex', header, length))
  }
}, 5)
