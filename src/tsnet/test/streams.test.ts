/** Bytes both ways, against a native peer: sizes, ends, back-pressure, many at once. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import type { Socket } from 'node:net'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Lab, type LabClient } from '../../../test/lab/lab.ts'
import { drain, eventually, pattern, unixServer, WasmNode } from './support.ts'

const MiB = 1 << 20
let lab: Lab
let peer: LabClient
let peerIP: string
let node: WasmNode
let peerSocket: (socket: Socket) => void

const sha256 = (b: Uint8Array): string => createHash('sha256').update(b).digest('hex')

before(async () => {
  lab = await Lab.start({ name: process.env.TSNET_NETWORK === 'node' ? 'tstrn' : 'tstr' })
  peer = await lab.client('peer')
  peerIP = (await peer.status()).ips[0]!
  node = await WasmNode.up(lab)
  const socket = path.join(lab.dir, 'peer.sock')
  await unixServer(socket, (s) => peerSocket(s))
  await peer.serve(7, socket)
  // Port 7 echoes, port 9 swallows and answers with the checksum, port 19 sends as many bytes as it
  // is asked for.
  await node.run(async (k) => {
    ;(await k.server.listen(7)).on('connection', (c) => void k.pipeline(c, c).catch(() => {}))
    ;(await k.server.listen(9)).on('connection', (c) => {
      const hash = k.crypto.createHash('sha256')
      c.on('data', (part) => hash.update(part))
      c.on('end', () => c.end(hash.digest('hex')))
    })
    ;(await k.server.listen(19)).on('connection', async (c) => {
      const [ask] = await k.once(c, 'data')
      c.end(k.pattern(Number(ask)))
    })
  })
  await peer.pingDirect(node.addresses[0])
})
after(async () => await lab?.stop())

for (const size of [0, 1, 1199, 1200, 1240, 1280, 1500, 65_535, 65_536, 3 * MiB + 1]) {
  test(`${size} bytes come back from an echo as they were, both ways`, async () => {
    const bytes = pattern(size)
    const inward = await peer.dial(node.addresses[0], 7)
    ;(inward as Socket).allowHalfOpen = true
    inward.end(bytes)
    assert.equal(sha256(await drain(inward)), sha256(bytes))

    peerSocket = (s) => s.pipe(s)
    const got = await node.run(
      async (k, ip, n) => {
        const c = await k.server.dial(ip, 7)
        c.end(k.pattern(n))
        return k.crypto
          .createHash('sha256')
          .update(await k.buffer(c))
          .digest('hex')
      },
      peerIP,
      size,
    )
    assert.equal(got, sha256(bytes))
  })
}

test('64 MiB to the node, and the end arrives while it still answers', async (t) => {
  const bytes = pattern(64 * MiB)
  const stream = await peer.dial(node.addresses[0], 9)
  ;(stream as Socket).allowHalfOpen = true
  const begun = performance.now()
  stream.end(bytes)
  assert.equal((await drain(stream)).toString(), sha256(bytes))
  t.diagnostic(`${Math.round((64 * 8 * 1.048576) / ((performance.now() - begun) / 1000))} Mbit/s`)
})

test('64 MiB from the node', async (t) => {
  const stream = await peer.dial(node.addresses[0], 19)
  const begun = performance.now()
  stream.write(String(64 * MiB))
  const got = await drain(stream)
  t.diagnostic(`${Math.round((64 * 8 * 1.048576) / ((performance.now() - begun) / 1000))} Mbit/s`)
  assert.equal(got.length, 64 * MiB)
  assert.equal(sha256(got), sha256(pattern(64 * MiB)))
})

test('16 MiB each way at once on one connection', async () => {
  peerSocket = (s) => s.pipe(s)
  const got = await node.run(async (k, ip) => {
    const c = await k.server.dial(ip, 7)
    const bytes = k.pattern(16 << 20)
    c.end(bytes)
    return (await k.buffer(c)).equals(bytes)
  }, peerIP)
  assert.equal(got, true)
})

test('the node may end first and still read', async () => {
  peerSocket = async (s) => {
    const all = await drain(s)
    await sleep(100)
    s.end(`got ${all.length}`)
  }
  const answer = await node.run(async (k, ip) => {
    const c = await k.server.dial(ip, 7)
    c.end('12345')
    return (await k.buffer(c)).toString()
  }, peerIP)
  assert.equal(answer, 'got 5')
})

test('the peer may end first and still read', async () => {
  const stream = await peer.dial(node.addresses[0], 9)
  ;(stream as Socket).allowHalfOpen = true
  stream.end('12345')
  assert.equal((await drain(stream)).toString(), sha256(Buffer.from('12345')))
})

test('addresses of both ends are those of the tailnet', async () => {
  await node.run(async (k) => {
    const listener = (k.kept.listener = await k.server.listen(8001))
    k.kept.arrived = k.once(listener, 'connection')
  })
  const stream = await peer.dial(node.addresses[0], 8001)
  stream.end()
  stream.resume()
  const got = await node.run(async (k) => {
    const [c] = await k.kept.arrived
    c.resume().end()
    await k.kept.listener.close()
    return [
      c.remoteAddress,
      typeof c.remotePort,
      c.localAddress,
      c.localPort,
      c.remote === `${c.remoteAddress}:${c.remotePort}`,
    ]
  })
  assert.deepEqual(got, [peerIP, 'number', node.addresses[0], 8001, true])
})

test('IPv6 inside the tunnel, both ways', async () => {
  const bytes = pattern(100_000)
  const inward = await peer.dial(node.addresses[1], 7)
  ;(inward as Socket).allowHalfOpen = true
  inward.end(bytes)
  assert.equal(sha256(await drain(inward)), sha256(bytes))
  peerSocket = (s) => s.pipe(s)
  const [remote, got] = await node.run(
    async (k, ip) => {
      const c = await k.server.dial(ip, 7)
      c.end(k.pattern(100_000))
      return [c.remote, (await k.buffer(c)).equals(k.pattern(100_000))]
    },
    (await peer.status()).ips[1]!,
  )
  assert.equal(remote, `[${(await peer.status()).ips[1]}]:7`)
  assert.equal(got, true)
})

test('names are dialled by short name and in full', async () => {
  peerSocket = (s) => s.end('hello')
  for (const name of ['peer', `peer.${lab.ready.suffix}`]) {
    assert.equal(
      await node.run(
        async (k, host) => (await k.buffer((await k.server.dial(host, 7)).end())).toString(),
        name,
      ),
      'hello',
    )
  }
})

test('a reader that does not read stops the peer, and memory stays bounded', async (t) => {
  await node.run(async (k) => {
    ;(await k.server.listen(8002)).on('connection', (c) => {
      k.kept.slow = c.pause()
    })
    k.kept.rss = process.memoryUsage.rss()
  })
  const stream = await peer.dial(node.addresses[0], 8002)
  const chunk = pattern(MiB)
  let sent = 0
  // Until nothing has gone out for a while.
  for (let since = Date.now(); Date.now() - since < 700;) {
    if (stream.writableLength === 0) {
      stream.write(chunk)
      sent++
      since = Date.now()
      if (sent > 100) break
    }
    await sleep(1)
  }
  assert.ok(sent < 40, `${sent} MiB went into a connection that nobody reads`)
  const [buffered, grown] = await node.run((k) => [
    k.kept.slow.readableLength as number,
    process.memoryUsage.rss() - k.kept.rss,
  ])
  t.diagnostic(
    `${sent} MiB on the way, ${buffered} bytes in the reader's thread, RSS grew ${(grown / MiB).toFixed(1)} MiB`,
  )
  assert.ok(buffered <= 640 << 10, `${buffered} bytes in the reader's thread`)
  assert.ok(grown < 40 * MiB, `RSS grew by ${grown}`)
  // All of it arrives once it is read.
  stream.end()
  const got = await node.run(async (k) => (await k.buffer(k.kept.slow.end())).length)
  assert.equal(got, sent * MiB)
})

test('a peer that does not read stops the writer, and memory stays bounded', async (t) => {
  let slow!: Socket
  peerSocket = (s) => (slow = s.pause())
  const { sent, drained, grown } = await node.run(async (k, ip) => {
    const c = (k.kept.writer = await k.server.dial(ip, 7))
    const chunk = k.pattern(1 << 20)
    const before = process.memoryUsage.rss()
    let sent = 0
    let drained = true
    while (drained && sent < 100) {
      sent++
      if (!c.write(chunk))
        drained = await Promise.race([
          k.once(c, 'drain').then(() => true),
          k.sleep(700).then(() => false),
        ])
    }
    return { sent, drained, grown: process.memoryUsage.rss() - before }
  }, peerIP)
  t.diagnostic(`${sent} MiB on the way, RSS grew ${(grown / MiB).toFixed(1)} MiB`)
  assert.equal(drained, false, `${sent} MiB went to a peer that does not read`)
  assert.ok(grown < 60 * MiB, `RSS grew by ${grown}`)
  await node.run((k) => void k.kept.writer.end())
  assert.equal((await drain(slow)).length, sent * MiB)
  slow.end()
})

test('one write of 32 MiB goes out in portions', async () => {
  let slow!: Socket
  peerSocket = (s) => (slow = s.pause())
  const external = await node.run(async (k, ip) => {
    const c = (k.kept.writer = await k.server.dial(ip, 7))
    const bytes = k.pattern(32 << 20)
    const before = process.memoryUsage.rss()
    c.end(bytes)
    await k.sleep(700)
    return process.memoryUsage.rss() - before
  }, peerIP)
  assert.ok(external < 20 * MiB, `RSS grew by ${external}: a copy of all of it was made`)
  assert.equal(sha256(await drain(slow)), sha256(pattern(32 * MiB)))
  slow.end()
})

test('200 connections at once, each with its own bytes', async () => {
  await Promise.all(
    Array.from({ length: 200 }, async (_, i) => {
      const bytes = pattern(5000 + i * 37).map((b) => b ^ i)
      const stream = await peer.dial(node.addresses[0], 7)
      ;(stream as Socket).allowHalfOpen = true
      stream.end(bytes)
      assert.equal(sha256(await drain(stream)), sha256(bytes), `connection ${i}`)
    }),
  )
  peerSocket = (s) => s.pipe(s)
  const wrong = await node.run(async (k, ip) => {
    const ok = await Promise.all(
      Array.from({ length: 200 }, async (_, i) => {
        const bytes = k.pattern(5000 + i * 37).map((b) => b ^ i)
        const c = await k.server.dial(ip, 7)
        c.end(bytes)
        return (await k.buffer(c)).equals(bytes)
      }),
    )
    return ok.filter((v) => !v).length
  }, peerIP)
  assert.equal(wrong, 0)
})

test('nothing of all this stays open', async () => {
  await eventually(
    'all streams closed',
    async () => (await node.run((k) => k.server.stats())).streams === 0,
  )
  assert.equal(node.stderr, '')
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
