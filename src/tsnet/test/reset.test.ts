/** Resets and ends that are none: each is seen for what it is. */
import assert from 'node:assert/strict'
import type { Socket } from 'node:net'
import path from 'node:path'
import { after, before, beforeEach, test } from 'node:test'
import { Lab, type LabClient } from '../../../test/lab/lab.ts'
import { drain, eventually, unixServer, WasmNode } from './support.ts'

let lab: Lab
let peer: LabClient
let peerIP: string
let a: WasmNode
let b: WasmNode
let peerSocket: (socket: Socket) => void

before(async () => {
  lab = await Lab.start({ name: process.env.TSNET_NETWORK === 'node' ? 'trstn' : 'trst' })
  peer = await lab.client('peer')
  peerIP = (await peer.status()).ips[0]!
  ;[a, b] = [await WasmNode.up(lab, { hostname: 'a' }), await WasmNode.up(lab, { hostname: 'b' })]
  const socket = path.join(lab.dir, 'peer.sock')
  await unixServer(socket, (s) => peerSocket(s))
  await peer.serve(7, socket)
  // b keeps what happens to each connection.
  await b.run(async (k) => {
    k.kept.seen = []
    ;(await k.server.listen(7)).on('connection', (c) => {
      const seen = { events: [] as string[], bytes: 0 }
      k.kept.seen.push(seen)
      k.kept.last = c
      c.on('data', (d) => (seen.bytes += d.length))
      c.on('end', () => seen.events.push('end'))
      c.on('error', (e) => seen.events.push((e as NodeJS.ErrnoException).code!))
      c.on('close', () => seen.events.push('close'))
    })
  })
  await peer.pingDirect(b.addresses[0])
})
after(async () => await lab?.stop())
// Each test sees its own connections alone, however late b hears of one.
beforeEach(async () => await b.run((k) => void (k.kept.seen.length = 0)))

const lastSeen = async (event: string): Promise<{ events: string[]; bytes: number }> =>
  await eventually(`the event ${event}`, async () => {
    const seen = (await b.run((k) => k.kept.seen.at(-1))) as
      { events: string[]; bytes: number } | undefined
    return seen?.events.includes(event) && seen
  })

test('destroy() is a reset at the other end: ECONNRESET, no end', async () => {
  await a.run(async (k, ip) => {
    const c = await k.server.dial(ip, 7)
    await new Promise((done) => c.write('hello', done))
    await k.sleep(200)
    c.destroy()
  }, b.addresses[0])
  const seen = await lastSeen('close')
  assert.deepEqual(seen, { events: ['ECONNRESET', 'close'], bytes: 5 })
})

test('the accepting side may reset too', async () => {
  const got = await a.run(async (k, ip) => {
    const c = await k.server.dial(ip, 7)
    const events: string[] = []
    c.on('end', () => events.push('end')).on('error', (e) =>
      events.push((e as NodeJS.ErrnoException).code!),
    )
    c.resume().write('x')
    k.kept.c = c
    k.kept.closed = k.once(c, 'close').then(
      () => events,
      () => events,
    )
    return true
  }, b.addresses[0])
  assert.ok(got)
  await eventually('it arrived', async () => (await b.run((k) => k.kept.seen.at(-1)?.bytes)) === 1)
  await b.run((k) => void k.kept.last.destroy())
  assert.deepEqual(await a.run(async (k) => await k.kept.closed), ['ECONNRESET'])
})

test('destroy() after end() takes nothing back: all arrives, and then the end', async () => {
  await a.run(async (k, ip) => {
    const c = await k.server.dial(ip, 7)
    await new Promise<void>((done) => c.end(k.pattern(300_000), done))
    c.destroy()
  }, b.addresses[0])
  assert.deepEqual(await lastSeen('end'), { events: ['end'], bytes: 300_000 })
  // What the other side still sends goes nowhere, and hurts nobody; its end is the end.
  assert.deepEqual(
    await b.run(async (k) => {
      const closed = k.once(k.kept.last, 'close')
      k.kept.last.end(k.pattern(700_000))
      await closed
      return k.kept.seen.at(-1).events as string[]
    }),
    ['end', 'close'],
  )
  await eventually(
    'it is gone from this side too',
    async () =>
      (await a.run((k) => k.server.stats().then((s: { streams: number }) => s.streams))) === 0,
  )
})

test('a stream that failed with an error resets, whatever was written', async () => {
  await a.run(async (k, ip) => {
    const c = await k.server.dial(ip, 7)
    c.on('error', () => {})
    c.write(k.pattern(300_000))
    // A reset that comes before the other end has taken the connection is no connection there.
    await k.sleep(200)
    c.destroy(new Error('of the program'))
  }, b.addresses[0])
  assert.deepEqual((await lastSeen('close')).events, ['ECONNRESET', 'close'])
})

test('ends of both sides close without an error', async () => {
  await a.run(async (k, ip) => {
    const c = await k.server.dial(ip, 7)
    c.end('bye')
    c.resume()
    k.kept.closed = k.once(c, 'close')
  }, b.addresses[0])
  await lastSeen('end')
  await b.run((k) => void k.kept.last.end())
  assert.deepEqual(await lastSeen('close'), { events: ['end', 'close'], bytes: 3 })
  await a.run(async (k) => void (await k.kept.closed))
})

test('a native peer that vanishes with unread bytes is a reset', async () => {
  let socket!: Socket
  peerSocket = (s) => (socket = s.pause())
  await a.run(async (k, ip) => {
    const c = (k.kept.c = await k.server.dial(ip, 7))
    k.kept.failed = new Promise((resolve) =>
      c.on('error', (e) => resolve((e as NodeJS.ErrnoException).code)),
    )
    c.resume().write(k.pattern(12 << 20))
  }, peerIP)
  await eventually('bytes waiting there', () => socket?.readableLength > 0)
  socket.destroy()
  assert.equal(await a.run(async (k) => await k.kept.failed), 'ECONNRESET')
})

test('a native peer cannot write to a connection that the node has reset', async () => {
  const stream = (await peer.dial(b.addresses[0], 7)) as Socket
  stream.allowHalfOpen = true
  stream.write('hello')
  await eventually('it arrived', async () => (await b.run((k) => k.kept.seen.at(-1)?.bytes)) === 5)
  await b.run((k) => void k.kept.last.destroy())
  await drain(stream).catch(() => {})
  stream.on('error', () => {})
  await eventually('a write fails', () => stream.errored ?? void stream.write('x'))
  assert.match((stream.errored as NodeJS.ErrnoException).code!, /^(EPIPE|ECONNRESET)$/)
})

test('write callbacks of a destroyed connection report it', async () => {
  let socket!: Socket
  peerSocket = (s) => (socket = s.pause())
  const results = await a.run(async (k, ip) => {
    const c = await k.server.dial(ip, 7)
    const results: string[] = []
    c.on('error', () => {})
    for (let i = 0; i < 3; i++)
      c.write(k.pattern(20 << 20), (e) => results.push(e ? 'error' : 'written'))
    await k.sleep(300)
    c.destroy()
    await k.sleep(50)
    return results
  }, peerIP)
  assert.deepEqual(results, ['error', 'error', 'error'])
  socket.destroy()
})

test('connections that nobody listens for are reset, not kept', async () => {
  await b.run(async (k) => void (await k.server.listen(8)))
  const code = await a.run(async (k, ip) => {
    const c = await k.server.dial(ip, 8)
    return await new Promise((resolve) =>
      c.resume().on('error', (e) => resolve((e as NodeJS.ErrnoException).code)),
    )
  }, b.addresses[0])
  assert.equal(code, 'ECONNRESET')
})

test('a listener closed takes no more; what is open stays', async () => {
  const got = await b.run(async (k) => {
    k.kept.listener = await k.server.listen(10)
    k.kept.listener.on('connection', (c: NodeJS.ReadWriteStream) => c.pipe(c))
    return k.kept.listener.port
  })
  assert.equal(got, 10)
  const stream = await peer.dial(b.addresses[0], 10)
  ;(stream as Socket).allowHalfOpen = true
  stream.write('before')
  await eventually('echo', () => stream.readableLength === 6)
  await b.run(async (k) => {
    const closed = k.once(k.kept.listener, 'close')
    await k.kept.listener.close()
    await closed
    await k.kept.listener.close()
  })
  await assert.rejects(peer.dial(b.addresses[0], 10), /refused/)
  stream.end(' after')
  assert.equal((await drain(stream)).toString(), 'before after')
  await b.run(async (k) => void (await (await k.server.listen(10)).close())) // the port is free again
})

test('resets at random leave nothing open', async () => {
  await a.run(async (k, ip) => {
    await Promise.all(
      Array.from({ length: 200 }, async (_, i) => {
        const c = await k.server.dial(ip, 7)
        c.on('error', () => {})
        c.write(k.pattern(1 + i * 1000))
        await k.sleep(Math.random() * 20)
        c.destroy()
      }),
    )
  }, b.addresses[0])
  for (const node of [a, b]) {
    await eventually(
      'all streams closed',
      async () => (await node.run((k) => k.server.stats())).streams === 0,
    )
    assert.equal(node.stderr, '')
  }
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
