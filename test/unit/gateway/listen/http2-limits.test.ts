import assert from 'node:assert/strict'
import { once } from 'node:events'
import type { ServerResponse } from 'node:http'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { WebSocket } from 'ws'
import { defaults } from '../../../../src/config/config.ts'
import { Bench, name } from '../../support/bench.ts'
import { RawPeer, ask, block, ended, flag, frame, open, request } from '../../support/h2.ts'

/** Nothing but the gateway's memory is to be seen, and that it still serves. */
async function unharmed(bench: Bench, before: number): Promise<void> {
  const session = await bench.session()
  assert.equal((await ask(session)).status, 200, 'the gateway goes on')
  session.destroy()
  const grown = process.memoryUsage.rss() - before
  assert.ok(grown < 100 * 1024 * 1024, `memory grew by ${Math.round(grown / 1024 / 1024)} MiB`)
}

const number = (value: number): Buffer => {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value)
  return bytes
}
const setting = (id: number, value: number): Buffer =>
  Buffer.concat([Buffer.from([0, id]), number(value)])
const get = (peer: RawPeer, stream: number): boolean =>
  peer.send(frame.headers, flag.endHeaders | flag.endStream, stream, block(request()))

test('requests at a time on one connection: what is beyond is refused, whatever the peer makes of the setting', async () => {
  await using bench = await Bench.limited({ streamsPerConnection: 10 })
  bench.origin.handler = () => {}
  const session = await bench.session()
  if (session.remoteSettings.maxConcurrentStreams !== 10) await once(session, 'remoteSettings')
  assert.equal(session.remoteSettings.maxConcurrentStreams, 10)
  session.destroy()
  const peer = await RawPeer.connect(bench)
  for (let i = 0; i < 30; i++) get(peer, 2 * i + 1)
  await bench.until(() => peer.seen.filter((entry) => entry.endsWith('RST 7')).length === 20)
  await bench.until(() => bench.origin.requests.length === 10)
  peer.socket.destroy()
  await bench.until(() => bench.gateway.connections === 0)
})

test('requests at a time of one peer, over all its connections: 429, and well again when others have ended', async () => {
  await using bench = await Bench.limited({ openRequestsPerPeer: 3 })
  const answers: ServerResponse[] = []
  bench.origin.handler = (_request, response) => {
    answers.push(response)
  }
  const sockets = await Promise.all(
    Array.from({ length: 4 }, async () => {
      const socket = await bench.connect()
      const ws = new WebSocket(`wss://${name}/comms`, { createConnection: () => socket })
      await once(ws, 'message')
      return ws
    }),
  )
  const sessions = [await bench.session(), await bench.session()]
  const held = [ask(sessions[0]!), ask(sessions[0]!), ask(sessions[1]!)]
  await bench.until(() => answers.length === 3)
  for (const refused of [await ask(sessions[0]!), await ask(sessions[1]!)])
    assert.deepEqual([refused.status, refused.headers['retry-after']], [429, '1'])
  assert.equal((await bench.fetch()).status, 429, 'those over HTTP/1.1 count with them')
  assert.equal(await bench.hits('open_requests_per_peer'), 3)
  for (const answer of answers) answer.end('held')
  assert.deepEqual(
    (await Promise.all(held)).map(({ text }) => text),
    ['held', 'held', 'held'],
  )
  bench.origin.handler = (_request, response) => {
    response.end()
  }
  assert.equal((await ask(sessions[0]!)).status, 200)
  for (const session of sessions) session.destroy()
  // WebSockets are connections, and do not count here.
  assert.ok(sockets.every((ws) => ws.readyState === WebSocket.OPEN))
  for (const ws of sockets) ws.terminate()
})

test('requests a second: each stream is one', async () => {
  await using bench = await Bench.limited({ requestsPerPeer: 2 })
  const session = await bench.session()
  const statuses = (
    await Promise.all(Array.from({ length: 40 }, async () => await ask(session)))
  ).map(({ status }) => status)
  const served = statuses.filter((status) => status === 200).length
  assert.ok(
    served >= 10 && served < 40 && statuses.every((status) => status === 200 || status === 429),
    statuses.join(),
  )
  assert.equal(bench.origin.requests.length, served)
  session.destroy()
})

test('rapid reset (CVE-2023-44487): requests taken back at once end the connection', async () => {
  await using bench = await Bench.limited({ requestsPerPeer: 100_000, requests: 100_000 })
  const before = process.memoryUsage.rss()
  const peer = await RawPeer.connect(bench)
  for (let i = 0; i < 5_000 && !peer.socket.destroyed; i++) {
    get(peer, 2 * i + 1)
    peer.send(frame.reset, 0, 2 * i + 1, number(8))
    if (i % 50 === 0) await sleep(1)
  }
  assert.match((await peer.see('GOAWAY', 'closed')) ?? '', /^(?:GOAWAY [1-9]\d*|closed)$/)
  assert.ok(
    bench.origin.requests.length < 500,
    `${bench.origin.requests.length} requests reached the app`,
  )
  await bench.until(() => bench.gateway.connections === 0)
  await unharmed(bench, before)
})

test('CONTINUATION without end (CVE-2024-28182) ends the connection', async () => {
  await using bench = await Bench.limited({})
  const before = process.memoryUsage.rss()
  const peer = await RawPeer.connect(bench)
  peer.send(frame.headers, flag.endStream, 1, block(request()))
  for (
    let i = 0;
    i < 2_000 && peer.send(frame.continuation, 0, 1, block([[`x-${i}`, 'y'.repeat(1_000)]]));
    i++
  )
    if (i % 20 === 0) await sleep(1)
  assert.match((await peer.see('GOAWAY', 'closed')) ?? '', /^(?:GOAWAY [1-9]\d*|closed)$/)
  assert.equal(bench.origin.requests.length, 0)
  await bench.until(() => bench.gateway.connections === 0)
  await unharmed(bench, before)
})

test('empty CONTINUATION frames without end do so too', async () => {
  await using bench = await Bench.limited({})
  const peer = await RawPeer.connect(bench)
  peer.send(frame.headers, flag.endStream, 1, block(request()))
  for (let i = 0; i < 2_000 && peer.send(frame.continuation, 0, 1); i++)
    if (i % 20 === 0) await sleep(1)
  assert.match((await peer.see('GOAWAY', 'closed')) ?? '', /^(?:GOAWAY [1-9]\d*|closed)$/)
  await bench.until(() => bench.gateway.connections === 0)
})

for (const [what, type, payload] of [
  ['PING', frame.ping, Buffer.alloc(8)],
  ['SETTINGS', frame.settings, setting(4, 65_535)],
  ['empty SETTINGS', frame.settings, Buffer.alloc(0)],
] as const) {
  test(`${what} frames without end (CVE-2019-9512, CVE-2019-9515) end the connection`, async () => {
    await using bench = await Bench.limited({})
    const before = process.memoryUsage.rss()
    const peer = await RawPeer.connect(bench)
    for (let i = 0; i < 20_000 && peer.send(type, 0, 0, payload); i++)
      if (i % 50 === 0) await sleep(1)
    assert.match((await peer.see('GOAWAY', 'closed')) ?? '', /^(?:GOAWAY 11|closed)$/)
    assert.equal(await bench.hits('control_frames'), 1)
    assert.ok(peer.pings < 500, `${peer.pings} answered`)
    await bench.until(() => bench.gateway.connections === 0)
    await unharmed(bench, before)
  })
}

test('a ping now and then is answered', async () => {
  await using bench = await Bench.limited({})
  const session = await bench.session()
  for (let i = 0; i < 20; i++)
    await new Promise<void>((resolve, reject) => {
      session.ping((err) => {
        if (err === null) resolve()
        else reject(err)
      })
    })
  assert.equal((await ask(session)).status, 200)
  session.destroy()
})

test('empty DATA frames without end (CVE-2019-9518) end the connection', async () => {
  await using bench = await Bench.limited({})
  bench.origin.handler = (asked) => {
    asked.resume()
  }
  const peer = await RawPeer.connect(bench)
  peer.send(frame.headers, flag.endHeaders, 1, block(request({}, 'POST')))
  for (let i = 0; i < 20_000 && peer.send(frame.data, 0, 1); i++) if (i % 50 === 0) await sleep(1)
  assert.match((await peer.see('GOAWAY', 'closed')) ?? '', /^(?:GOAWAY [1-9]\d*|closed)$/)
  await bench.until(() => bench.gateway.connections === 0)
})

test('headers that are too large are refused, and reach no app', async () => {
  await using bench = await Bench.limited({ headerKib: 8 })
  const peer = await RawPeer.connect(bench)
  peer.send(
    frame.headers,
    flag.endHeaders | flag.endStream,
    1,
    block(request({ x: 'y'.repeat(7_000) })),
  )
  assert.equal(await peer.see('1: '), '1: 200')
  peer.send(
    frame.headers,
    flag.endHeaders | flag.endStream,
    3,
    block(request({ x: 'y'.repeat(9_000) })),
  )
  assert.match(
    (await peer.see('3: ', 'GOAWAY', 'closed')) ?? '',
    /^(?:3: (?:431|RST \d+)|GOAWAY [1-9]\d*|closed)$/,
  )
  assert.equal(bench.origin.requests.length, 1)
  peer.socket.destroy()
})

test('an HPACK bomb (CVE-2016-1544): few bytes that stand for many headers are not unpacked', async () => {
  await using bench = await Bench.limited({})
  const before = process.memoryUsage.rss()
  const peer = await RawPeer.connect(bench)
  const size = 3_000
  // One entry for the dynamic table (RFC 7541 §6.2.1), then its index, again and again.
  const entry = Buffer.concat([
    Buffer.from([0x40, 1]),
    Buffer.from('x'),
    Buffer.from([127, ((size - 127) % 128) | 128, Math.floor((size - 127) / 128)]),
    Buffer.alloc(size, 'y'),
  ])
  for (let i = 0; i < 20; i++)
    peer.send(
      frame.headers,
      flag.endHeaders | flag.endStream,
      2 * i + 1,
      Buffer.concat([
        block(request()),
        i === 0 ? entry : Buffer.alloc(0),
        Buffer.alloc(12_000, 0xbe),
      ]),
    )
  assert.match(
    (await peer.see('1: ', 'GOAWAY', 'closed')) ?? '',
    /^(?:1: (?:431|RST \d+)|GOAWAY [1-9]\d*|closed)$/,
  )
  assert.equal(bench.origin.requests.length, 0)
  peer.socket.destroy()
  await unharmed(bench, before)
})

for (const trickle of [0, 1]) {
  test(`a window that stays ${trickle === 0 ? 'shut' : 'all but shut'} (CVE-2019-9517) ends its stream, and the app's answer; others of the connection go on`, async () => {
    await using bench = await Bench.limited({ stallTimeout: 1_000 })
    let taken = 0
    let gone = false
    bench.origin.handler = (asked, response) => {
      if (asked.url !== '/big') {
        response.end('well')
        return
      }
      response.once('close', () => {
        gone = true
      })
      const more = (): void => {
        while (!gone && response.write(Buffer.alloc(65_536))) taken += 65_536
      }
      response.on('drain', more)
      more()
    }
    const peer = await RawPeer.connect(bench, setting(4, 1))
    peer.send(
      frame.headers,
      flag.endHeaders | flag.endStream,
      1,
      block(request({ ':path': '/big' })),
    )
    const timer = setInterval(() => {
      if (trickle > 0) peer.send(frame.window, 0, 1, number(trickle))
    }, 100)
    await bench.until(() => peer.seen.includes('1: RST 11') && gone)
    clearInterval(timer)
    assert.equal(await bench.hits('stalled'), 1)
    assert.ok(taken < 16 * 1024 * 1024, `${taken} bytes were taken for a peer that reads none`)
    peer.send(
      frame.headers,
      flag.endHeaders | flag.endStream,
      3,
      block(request({ ':path': '/other' })),
    )
    assert.equal(await peer.see('3: '), '3: 200')
    peer.socket.destroy()
  })
}

test('a body that stops coming ends its stream; others of the connection go on', async () => {
  await using bench = await Bench.limited({ stallTimeout: 1_000 })
  bench.origin.handler = (asked, response) => {
    if (asked.method === 'GET') response.end()
    else asked.resume()
  }
  const session = await bench.session()
  const upload = open(session, { ':method': 'POST', 'content-length': 100_000 }, false)
  upload.on('error', () => {})
  upload.write('some')
  await new Promise((resolve) => upload.once('close', resolve))
  assert.equal(upload.rstCode, 11)
  await bench.until(() => bench.origin.requests[0]!.destroyed)
  assert.equal((await ask(session)).status, 200)
  session.destroy()
})

test('waiting for nothing is no offence: an idle event stream stays, and an app that is slow with a body', async () => {
  await using bench = await Bench.limited({ stallTimeout: 2_000 })
  bench.origin.handler = (asked, response) => {
    if (asked.url === '/slow') setTimeout(() => asked.pipe(response), 5_000)
    else response.writeHead(200, { 'content-type': 'text/event-stream' }).write('data: 1\n\n')
  }
  const session = await bench.session()
  const events = open(session, { ':path': '/events' })
  events.resume()
  const slow = await ask(session, { ':method': 'POST', ':path': '/slow' }, Buffer.alloc(2_000_000))
  assert.deepEqual([slow.status, slow.text.length, slow.error], [200, 2_000_000, undefined])
  assert.ok(!events.destroyed)
  assert.equal(await bench.hits('stalled'), 0)
  session.destroy()
})

test('a connection that asks nothing, or not to the end, is closed after header_timeout', async () => {
  await using bench = await Bench.limited({ headerTimeout: 1_000 })
  const silent = await bench.connect(443, name, ['h2'])
  const session = await bench.session()
  const half = await RawPeer.connect(bench)
  half.send(frame.headers, flag.endStream, 1, block(request().slice(0, 2)))
  silent.resume()
  await Promise.all([once(silent, 'close'), ended(session), half.see('closed')])
  await bench.until(() => bench.gateway.connections === 0)
})

test('what is no HTTP/2 ends the connection', async () => {
  await using bench = await Bench.limited({})
  for (const bytes of [
    'GET / HTTP/1.1\r\nHost: x\r\n\r\n',
    '\0'.repeat(100),
    'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x01\x05\0\0\0\x01',
  ]) {
    const socket = await bench.connect(443, name, ['h2'])
    socket.resume().on('error', () => {})
    socket.write(Buffer.from(bytes, 'latin1'))
    await once(socket, 'close')
  }
  assert.equal(bench.origin.requests.length, 0)
})

test('short of memory: requests of connections that are open are answered 503', async () => {
  await using bench = await Bench.limited({})
  const session = await bench.session()
  assert.equal((await ask(session)).status, 200)
  bench.gateway.configure({ ...defaults(), limits: { ...defaults().limits, memoryMib: 1 } })
  await bench.until(() => bench.gateway.limits.short)
  assert.equal((await ask(session)).status, 503)
  session.destroy()
})
