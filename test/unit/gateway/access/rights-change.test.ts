import assert from 'node:assert/strict'
import { once } from 'node:events'
import { text } from 'node:stream/consumers'
import { test } from 'node:test'
import { WebSocket } from 'ws'
import { capability } from '../../../../src/gateway/access/access.ts'
import { FrameGate } from '../../../../src/gateway/apps/frames.ts'
import { Bench, name } from '../../support/bench.ts'
import { answerTo, open as openStream } from '../../support/h2.ts'
import { alice } from '../../support/tailnet.ts'

async function open(bench: Bench, path = '/comms'): Promise<WebSocket> {
  const socket = await bench.connect()
  const ws = new WebSocket(`wss://${name}${path}`, { createConnection: () => socket })
  await once(ws, 'open')
  return ws
}

const may = (...may: string[]): typeof alice => ({ ...alice, capMap: { [capability]: [{ may }] } })

test(
  'a WebSocket whose peer loses its right is closed with 1008, and cannot be opened again (Pomerium #1327)',
  { timeout: 30_000 },
  async () => {
    await using bench = await Bench.start()
    const ws = await open(bench)
    bench.tailnet.peer = may('use')
    const [code, reason] = (await once(ws, 'close')) as [number, Buffer]
    assert.deepEqual([code, reason.toString()], [1008, 'your rights have changed'])
    const socket = await bench.connect()
    const again = new WebSocket(`wss://${name}/comms`, { createConnection: () => socket })
    const [error] = (await once(again, 'error')) as [Error]
    assert.match(error.message, /403/)
    await bench.until(() => bench.origin.sockets.clients.size === 0)
  },
)

test(
  'an editor who becomes a viewer is reconnected as one; who keeps all, or gains, stays connected',
  { timeout: 30_000 },
  async () => {
    await using bench = await Bench.start()
    bench.tailnet.peer = may('view')
    const gains = await open(bench)
    bench.tailnet.peer = may('edit')
    const loses = await open(bench)
    bench.tailnet.peer = may('view', 'use')
    const [code] = (await once(loses, 'close')) as [number]
    assert.equal(code, 1008)
    assert.equal(gains.readyState, WebSocket.OPEN)
    const reply = once(gains, 'message')
    gains.send('still here')
    assert.equal(String((await reply)[0]), 'still here')
    gains.terminate()
  },
)

test(
  'an event stream whose peer loses its right is broken off, over HTTP/1.1 and HTTP/2; one whose peer keeps it goes on',
  { timeout: 30_000 },
  async () => {
    await using bench = await Bench.start()
    let ended = 0
    bench.origin.handler = (_request, response) => {
      response
        .on('close', () => {
          ended++
        })
        .writeHead(200, { 'content-type': 'text/event-stream' })
        .write('data: 1\n\n')
    }
    bench.tailnet.peer = may('view', 'use')
    const streams = await Promise.all(
      ['/app/events', '/events'].map(async (path) => await bench.send({ path })),
    )
    const session = await bench.session()
    const second = answerTo(openStream(session, { ':path': '/app/events' }))
    await bench.until(() => bench.origin.requests.length === 3)
    const over = streams.map(
      async (stream) =>
        await text(stream).then(
          () => 'whole',
          () => 'broken off',
        ),
    )
    bench.tailnet.peer = may('view')
    assert.equal(await over[0], 'broken off')
    assert.deepEqual(
      [(await second).text, (await second).error],
      ['data: 1\n\n', 'NGHTTP2_INTERNAL_ERROR'],
    )
    await bench.until(() => ended === 2)
    assert.equal(streams[1]!.destroyed, false)
    bench.tailnet.peer = may('use')
    assert.equal(await over[1], 'broken off')
    session.destroy()
  },
)

test('settings that take a right away close at once', { timeout: 30_000 }, async () => {
  await using bench = await Bench.start()
  bench.tailnet.peer = { ...alice, capMap: {} }
  bench.gateway.guard.settings = { view: ['alice@example.com'], edit: [], use: [] }
  const ws = await open(bench)
  const start = Date.now()
  bench.gateway.guard.settings = { view: [], edit: [], use: [] }
  const [code] = (await once(ws, 'close')) as [number]
  assert.equal(code, 1008)
  assert.ok(Date.now() - start < 4_000, 'not by the interval')
})

test('closing the gateway says so to every WebSocket', { timeout: 30_000 }, async () => {
  await using bench = await Bench.start()
  const ws = await open(bench)
  const closed = once(ws, 'close') as Promise<[number]>
  await bench.gateway.close(1_000)
  assert.equal((await closed)[0], 1001)
})

/** A frame as a server sends it. */
function frame(length: number, opcode = 2): Buffer {
  let header = [
    127,
    0,
    0,
    0,
    0,
    length >>> 24,
    (length >> 16) & 255,
    (length >> 8) & 255,
    length & 255,
  ]
  if (length < 126) header = [length]
  else if (length < 65_536) header = [126, length >> 8, length & 255]
  return Buffer.concat([Buffer.from([0x80 | opcode, ...header]), Buffer.alloc(length, 0x81)])
}

test('the Close frame comes between two frames, wherever the pieces are cut', async () => {
  const close = Buffer.concat([Buffer.from([0x88, 4, 1008 >> 8, 1008 & 255]), Buffer.from('no')])
  for (const length of [0, 1, 125, 126, 127, 65_535, 65_536]) {
    const whole = Buffer.concat([frame(length), frame(3)])
    for (const size of [1, 2, 3, 7, 126, whole.length]) {
      if (whole.length / size > 10_000) continue
      const gate = new FrameGate()
      const out: Buffer[] = []
      // Asked within the first frame, or right away where there is nothing within.
      for (let at = 0; at < whole.length; at += size) {
        out.push(gate.pass(whole.subarray(at, at + size)) ?? Buffer.alloc(0))
        if (at === 0) out.push(gate.close(1008, 'no') ?? Buffer.alloc(0))
      }
      assert.ok(gate.over)
      const got = Buffer.concat(out)
      const frames = [frame(length), Buffer.concat([frame(length), frame(3)])].map((before) =>
        Buffer.concat([before, close]).toString('hex'),
      )
      assert.ok(frames.includes(got.toString('hex')), `length ${length} in pieces of ${size}`)
    }
  }
})

test('what passes is what came, byte for byte', async () => {
  const all = Buffer.concat([frame(5, 1), frame(70_000), frame(0, 9), frame(300)])
  const gate = new FrameGate()
  const out: Buffer[] = []
  for (let at = 0; at < all.length; at += 1000) out.push(gate.pass(all.subarray(at, at + 1000))!)
  assert.deepEqual(Buffer.concat(out), all)
})
