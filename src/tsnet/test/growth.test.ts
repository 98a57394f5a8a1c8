/** 500 connections opened and closed, each way: descriptors and memory do not grow. */
import assert from 'node:assert/strict'
import type { Socket } from 'node:net'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { Lab, type LabClient } from '../../../test/lab/lab.ts'
import { drain, eventually, unixServer, WasmNode } from './support.ts'

let lab: Lab
let peer: LabClient
let node: WasmNode

before(async () => {
  lab = await Lab.start({ name: 'tgrow' })
  peer = await lab.client('peer')
  node = await WasmNode.up(lab, { flags: ['--expose-gc'] })
  const socket = path.join(lab.dir, 'peer.sock')
  await unixServer(socket, (s) => s.pipe(s))
  await peer.serve(7, socket)
  await node.run(async (k) => void (await k.server.listen(7)).on('connection', (c) => c.pipe(c)))
  await peer.pingDirect(node.addresses[0])
})
after(async () => await lab?.stop())

/** `n` connections each way, ten at a time. */
async function cycles(n: number): Promise<void> {
  const inward = async (): Promise<void> => {
    for (let i = 0; i < n / 10; i++) {
      const stream = (await peer.dial(node.addresses[0], 7)) as Socket
      stream.allowHalfOpen = true
      stream.end('ping')
      assert.equal((await drain(stream)).toString(), 'ping')
    }
  }
  await Promise.all(Array.from({ length: 10 }, inward))
  await node.run(
    async (k, ip, n) => {
      const outward = async (): Promise<void> => {
        for (let i = 0; i < n / 10; i++) {
          const c = await k.server.dial(ip, 7)
          c.end('ping')
          const answer = (await k.buffer(c)).toString()
          if (answer !== 'ping') throw new Error(`echo of ping: ${answer}`)
        }
      }
      await Promise.all(Array.from({ length: 10 }, outward))
    },
    (await peer.status()).ips[0]!,
    n,
  )
}

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

test('500 connections each way leave descriptors and memory as they were', async (t) => {
  await cycles(100) // caches and pools are filled
  const before = await measure()
  await cycles(500)
  const after = await measure()
  t.diagnostic(`before ${JSON.stringify(before)}`)
  t.diagnostic(`after  ${JSON.stringify(after)}`)
  assert.ok(after.fds <= before.fds + 2, 'descriptors')
  assert.ok(after.sockets <= before.sockets + 2, 'sockets of the host')
  assert.ok(after.heap < before.heap + (2 << 20), 'heap of the thread')
  assert.ok(after.memory <= before.memory + (16 << 20), 'memory of the module')
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
