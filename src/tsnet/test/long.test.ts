/**
 * What takes minutes: 1 GiB each way, 10,000 connections. Only with GATEHOUSE_LONG=1; smaller ones
 * are in streams and growth.
 */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import type { Socket } from 'node:net'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Lab, type LabClient } from '../../../test/lab/lab.ts'
import { eventually, pattern, unixServer, WasmNode } from './support.ts'

const options = {
  skip: process.env.GATEHOUSE_LONG === '1' ? false : 'takes minutes: GATEHOUSE_LONG=1',
}
const MiB = 1 << 20
const GiB = 1 << 30
let lab: Lab
let peer: LabClient
let peerIP: string
let node: WasmNode
let peerSocket: (socket: Socket) => void

before(async () => {
  if (options.skip) return
  lab = await Lab.start({ name: 'tlong' })
  peer = await lab.client('peer')
  peerIP = (await peer.status()).ips[0]!
  node = await WasmNode.up(lab, { flags: ['--expose-gc'] })
  const socket = path.join(lab.dir, 'peer.sock')
  await unixServer(socket, (s) => peerSocket(s))
  await peer.serve(7, socket)
  await node.run(async (k) => {
    ;(await k.server.listen(9)).on('connection', (c) => {
      const hash = k.crypto.createHash('sha256')
      c.on('data', (part) => hash.update(part)).on('end', () => c.end(hash.digest('hex')))
    })
    ;(await k.server.listen(7)).on('connection', (c) => c.on('error', () => {}).pipe(c))
  })
  await peer.pingDirect(node.addresses[0])
})
after(async () => await lab?.stop())

/** Writes 1 GiB of blocks that all differ, and gives its checksum. */
async function send(stream: NodeJS.WritableStream): Promise<string> {
  const hash = createHash('sha256')
  const block = pattern(MiB)
  for (let i = 0; i < GiB / MiB; i++) {
    const b = Buffer.from(block)
    b.writeUInt32LE(i)
    hash.update(b)
    if (!stream.write(b)) await new Promise((r) => stream.once('drain', r))
  }
  stream.end()
  return hash.digest('hex')
}

test('1 GiB to the node arrives as it was', options, async (t) => {
  const stream = (await peer.dial(node.addresses[0], 9)) as Socket
  stream.allowHalfOpen = true
  const begun = performance.now()
  let answer = ''
  stream.on('data', (b) => (answer += b))
  const sum = await send(stream)
  await new Promise((r) => stream.once('end', r))
  assert.equal(answer, sum)
  t.diagnostic(`${Math.round((GiB * 8) / 1e6 / ((performance.now() - begun) / 1000))} Mbit/s`)
})

test('1 GiB from the node arrives as it was', options, async (t) => {
  const hash = createHash('sha256')
  let bytes = 0
  const done = new Promise<void>((resolve, reject) => {
    peerSocket = (s) =>
      s
        .on('data', (b: Buffer) => {
          hash.update(b)
          bytes += b.length
        })
        .on('end', () => resolve(void s.end()))
        .on('error', reject)
  })
  const begun = performance.now()
  const sum = await node.run(
    async (k, ip, blocks) => {
      const c = await k.server.dial(ip, 7)
      c.resume()
      const hash = k.crypto.createHash('sha256')
      const block = k.pattern(1 << 20)
      for (let i = 0; i < blocks; i++) {
        const b = Buffer.from(block)
        b.writeUInt32LE(i)
        hash.update(b)
        if (!c.write(b)) await k.once(c, 'drain')
      }
      c.end()
      return hash.digest('hex')
    },
    peerIP,
    GiB / MiB,
  )
  await done
  assert.equal(bytes, GiB)
  assert.equal(hash.digest('hex'), sum)
  t.diagnostic(`${Math.round((GiB * 8) / 1e6 / ((performance.now() - begun) / 1000))} Mbit/s`)
})

const measure = async (): Promise<{
  fds: number
  sockets: number
  memory: number
  heap: number
  rss: number
}> => {
  await eventually(
    'all streams closed',
    async () => (await node.run((k) => k.server.stats())).streams === 0,
    60_000,
  )
  return await node.run(async (k) => {
    globalThis.gc!()
    const { sockets, memory } = await k.server.stats()
    return {
      fds: k.fs.readdirSync('/proc/self/fd').length,
      sockets,
      memory,
      heap: process.memoryUsage().heapUsed,
      rss: process.memoryUsage.rss(),
    }
  })
}

test(
  '10,000 connections opened and closed, half each way, after as many, leave descriptors and memory as they were',
  options,
  async (t) => {
    peerSocket = (s) => s.pipe(s)
    const cycles = async (n: number): Promise<void> => {
      const inward = async (): Promise<void> => {
        for (let i = 0; i < n / 20; i++) {
          const stream = (await peer.dial(node.addresses[0], 7)) as Socket
          stream.allowHalfOpen = true
          stream.end('ping')
          let got = ''
          stream.on('data', (b) => (got += b))
          await new Promise((resolve, reject) => stream.once('end', resolve).once('error', reject))
          assert.equal(got, 'ping')
        }
      }
      await Promise.all(Array.from({ length: 10 }, inward))
      await node.run(
        async (k, ip, n) => {
          const outward = async (): Promise<void> => {
            for (let i = 0; i < n / 20; i++) {
              const c = await k.server.dial(ip, 7)
              c.end('ping')
              if ((await k.buffer(c)).toString() !== 'ping') throw new Error('no echo')
            }
          }
          await Promise.all(Array.from({ length: 10 }, outward))
        },
        peerIP,
        n,
      )
    }
    // Ends wait for a minute (TIME_WAIT): 10,000 of them at a time are the memory that is needed,
    // and never more.
    await cycles(10_000)
    await sleep(70_000)
    const before = await measure()
    await cycles(10_000)
    const after = await measure()
    t.diagnostic(`before ${JSON.stringify(before)}`)
    t.diagnostic(`after  ${JSON.stringify(after)}`)
    assert.ok(after.fds <= before.fds + 2, 'descriptors')
    assert.ok(after.sockets <= before.sockets + 2, 'sockets of the host')
    assert.ok(after.heap < before.heap + (4 << 20), 'heap of the thread')
    assert.ok(after.memory <= before.memory + (16 << 20), 'memory of the module')
  },
)

test('nothing was said on stderr, nothing left the lab', options, async () => {
  assert.equal(node.stderr, '')
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
