import assert from 'node:assert/strict'
import { once } from 'node:events'
import type { Socket } from 'node:net'
import { Duplex, Readable } from 'node:stream'
import { test } from 'node:test'
import { connect } from 'node:tls'
import { defaults } from '../../../../src/config/config.ts'
import { WebSocket } from 'ws'
import { Bench, name } from '../../support/bench.ts'

test('connections of one peer, and of all', async () => {
  for (const limit of ['connections_per_peer', 'connections'] as const) {
    await using bench = await Bench.limited(
      limit === 'connections' ? { connections: 3 } : { connectionsPerPeer: 3 },
    )
    const open = [await bench.connect(), await bench.connect(), await bench.connect()]
    await assert.rejects(
      bench.connect(),
      /ECONNRESET|before secure|disconnected|socket hang up|EPIPE/,
    )
    assert.equal(await bench.hits(limit), 1)
    open[0]!.destroy()
    await bench.until(() => bench.gateway.connections === 2)
    assert.equal((await bench.fetch()).status, 200, 'room again')
    for (const socket of open) socket.destroy()
  }
})

test('who goes away in the middle of the TLS handshake, or with its last bytes, is no connection any more', async () => {
  await using bench = await Bench.start()
  /** What a client sends to make its handshake, whose last part comes together with the end. */
  const flights = async (whole: boolean): Promise<Socket> => {
    const raw = bench.tailnet.connect(443).on('error', () => {})
    await once(raw, 'connect')
    let parts = 0
    const held = new Duplex({
      read: () => {},
      write: (piece: Buffer, _encoding, done) => {
        parts++
        if (parts === 1 && whole) raw.write(piece, () => done())
        else {
          // Its first half, for a hello; all of it, with which the handshake would be over.
          raw.end(whole ? piece : piece.subarray(0, piece.length / 2))
          done()
        }
      },
    })
    raw.on('data', (piece: Buffer) => held.push(piece))
    connect({ socket: held, servername: name, ca: bench.authority.certificate }).on(
      'error',
      () => {},
    )
    return raw
  }
  for (const whole of [false, true]) {
    const gone = await Promise.all(Array.from({ length: 5 }, async () => await flights(whole)))
    await bench.until(() => gone.every((socket) => socket.writableFinished))
    // The time for a handshake is longer than this waits.
    await bench.until(() => bench.gateway.connections === 0)
    for (const socket of gone) socket.destroy()
  }
  const silent = bench.tailnet.connect(443).end()
  await once(silent, 'close')
  await bench.until(() => bench.gateway.connections === 0)
  assert.equal((await bench.fetch()).status, 200)
})

test('port 80 and names that are passed through have these limits too, and a connection counts once', async () => {
  await using bench = await Bench.start()
  const limits = { ...defaults().limits, connectionsPerPeer: 2 }
  bench.gateway.configure({
    ...defaults(),
    limits,
    forward: [
      {
        port: 443,
        sni: ['git.example.org'],
        target: '127.0.0.1:1',
        protocol: 'tcp',
        terminateTLS: false,
        proxyProtocol: 'off',
        right: 'edit',
      },
    ],
  })
  for (const port of [80, 443]) {
    const before = await bench.hits('connections_per_peer')
    // Nothing is asked for yet: neither a path nor a name.
    const open = Array.from({ length: 5 }, () => bench.tailnet.connect(port).on('error', () => {}))
    await bench.until(async () => (await bench.hits('connections_per_peer')) === before + 3)
    assert.equal(open.filter((socket) => !socket.destroyed).length >= 2, true)
    for (const socket of open) socket.destroy()
    await bench.until(
      async () =>
        await bench.fetch().then(
          ({ status }) => status === 200,
          () => false,
        ),
    )
    await bench.until(() => bench.gateway.connections === 0)
    const after = await bench.hits('connections_per_peer')
    assert.deepEqual(
      (await Promise.all([bench.fetch(), bench.fetch()])).map(({ status }) => status),
      [200, 200],
    )
    await bench.until(() => bench.gateway.connections === 0)
    assert.equal(await bench.hits('connections_per_peer'), after, 'two are two')
  }
})

test('on port 80 nobody stays: whoever sends nothing, half a request or an endless body is cut off', async () => {
  await using bench = await Bench.limited({ headerTimeout: 1_000 })
  const open = [
    '',
    'GET / HTTP/1.1\r\nHos',
    `POST / HTTP/1.1\r\nHost: ${name}\r\nContent-Length: 1000000\r\n\r\nsome`,
  ].map((bytes) => {
    const socket = bench.tailnet.connect(80).on('error', () => {})
    socket.resume().write(bytes)
    return socket
  })
  await bench.until(() => open.every((socket) => socket.destroyed || socket.readableEnded))
})

test("new connections a second: five seconds' worth at once, then no more than the rate", async () => {
  await using bench = await Bench.limited({ newConnectionsPerPeer: 1 })
  const results = await Promise.allSettled(
    Array.from({ length: 12 }, async () => (await bench.connect()).destroy()),
  )
  const accepted = results.filter((result) => result.status === 'fulfilled').length
  // The bucket was filled for the default rate; what counts is that it is bounded by the new one.
  assert.ok(accepted >= 5 && accepted < 12, `${accepted} of 12`)
  assert.equal(await bench.hits('new_connections_per_peer'), 12 - accepted)
  await bench.until(
    async () =>
      await bench.fetch().then(
        (answer) => answer.status === 200,
        () => false,
      ),
  )
})

test('requests a second: 429 with Retry-After, and well again after it', async () => {
  for (const limit of ['requests_per_peer', 'requests'] as const) {
    await using bench = await Bench.limited(
      limit === 'requests' ? { requests: 2 } : { requestsPerPeer: 2 },
    )
    const socket = await bench.connect()
    const statuses: number[] = []
    for (let i = 0; i < 30; i++) {
      const response = await bench.send({ socket, headers: { accept: 'application/json' } })
      statuses.push(response.statusCode!)
      if (response.statusCode === 429) assert.equal(response.headers['retry-after'], '1')
      response.resume()
      await once(response, 'end')
    }
    socket.destroy()
    const served = statuses.filter((status) => status === 200).length
    assert.ok(
      served >= 10 && served < 30 && statuses.every((status) => status === 200 || status === 429),
      statuses.join(),
    )
    assert.equal(bench.origin.requests.length, served)
    assert.equal(bench.log('limit reached').length, 1, 'one line however many refusals')
    await bench.until(async () => (await bench.fetch()).status === 200)
  }
})

test('headers that are too large are 431', async () => {
  await using bench = await Bench.limited({ headerKib: 8 })
  const request = (size: number): string =>
    `GET / HTTP/1.1\r\nHost: ${name}\r\nConnection: close\r\nX: ${'y'.repeat(size)}\r\n\r\n`
  assert.match(await bench.raw(request(7_000)), /^HTTP\/1\.1 200 /)
  assert.match(await bench.raw(request(9_000)), /^HTTP\/1\.1 431 /)
})

test('a body that is too large is 413: at once when its length says so, else when it has come so far', async () => {
  await using bench = await Bench.limited({ bodyMib: 1 })
  bench.origin.handler = (request, response) => {
    request.on('end', () => response.end('taken')).resume()
  }
  assert.equal(
    (await bench.fetch({ method: 'POST', body: Buffer.alloc(1024 * 1024) })).text,
    'taken',
  )
  const told = await bench.raw(
    `POST / HTTP/1.1\r\nHost: ${name}\r\nContent-Length: 1048577\r\n\r\n`,
  )
  assert.match(told, /^HTTP\/1\.1 413 [^]*Connection: close/i)
  assert.equal(bench.origin.requests.length, 1)
  const piece = Buffer.alloc(64 * 1024)
  const found = await bench
    .fetch({
      method: 'POST',
      body: Readable.from(
        (function* () {
          for (let i = 0; i < 40; i++) yield piece
        })(),
      ),
      headers: { accept: 'application/json' },
    })
    .catch((err: NodeJS.ErrnoException) => err)
  // The answer may be lost when the peer is still sending; what must not be is an origin that took
  // it for whole.
  assert.ok(
    found instanceof Error
      ? /ECONNRESET|EPIPE|socket hang up/.test(`${found.code} ${found.message}`)
      : found.status === 413,
    JSON.stringify(found),
  )
  assert.equal(bench.origin.requests.filter((request) => request.complete).length, 1)
  assert.equal(await bench.hits('body'), 2)
})

test('slow headers (slowloris) end in 408, before the first byte and after it', async () => {
  await using bench = await Bench.limited({ headerTimeout: 1_000 })
  const [nothing, some] = await Promise.all([
    bench.raw('', 4_000),
    bench.raw(`GET / HTTP/1.1\r\nHost: ${name}\r\nX-`, 4_000),
  ])
  for (const answer of [nothing, some]) assert.match(answer, /^(?:HTTP\/1\.1 408 [^]*|)$/)
  assert.match(some, /^HTTP\/1\.1 408 /)
  await bench.until(() => bench.gateway.connections === 0)
})

test('a body that stops coming ends the connection', async () => {
  await using bench = await Bench.limited({ stallTimeout: 1_000 })
  bench.origin.handler = (request) => {
    request.resume()
  }
  const socket = await bench.connect()
  socket.write(`POST / HTTP/1.1\r\nHost: ${name}\r\nContent-Length: 100000\r\n\r\nsome`)
  await once(socket, 'close')
  assert.equal(await bench.hits('stalled'), 1)
  await bench.until(() => bench.origin.requests[0]!.destroyed)
})

test('a peer that does not read its answer is ended, and the origin told', async () => {
  await using bench = await Bench.limited({ stallTimeout: 1_000 })
  const piece = Buffer.alloc(64 * 1024)
  let sent = 0
  const { promise: gone, resolve } = Promise.withResolvers<void>()
  bench.origin.handler = (_request, response) => {
    Readable.from(
      (function* () {
        for (;;) {
          sent += piece.length
          yield piece
        }
      })(),
    ).pipe(response)
    response.once('close', resolve)
  }
  const socket = await bench.connect()
  socket.write(`GET / HTTP/1.1\r\nHost: ${name}\r\n\r\n`)
  socket.pause()
  await gone
  assert.equal(await bench.hits('stalled'), 1)
  assert.ok(sent < 32 * 1024 * 1024, `${sent} bytes were taken for a peer that reads none`)
  socket.destroy()
})

test('a WebSocket whose peer does not read is ended; until then the app is held back', async () => {
  await using bench = await Bench.limited({ stallTimeout: 3_000 })
  const socket = await bench.connect()
  const ws = new WebSocket(`wss://${name}/comms`, { createConnection: () => socket })
  await once(ws, 'message')
  ws.on('error', () => {})
  const [atOrigin] = bench.origin.sockets.clients
  let gone = false
  atOrigin!.once('close', () => {
    gone = true
  })
  socket.pause()
  const piece = Buffer.alloc(64 * 1024)
  let sent = 0
  // Sends as long as what it sent before is taken.
  const send = (): void =>
    atOrigin!.send(piece, (err) => {
      if ((err === null || err === undefined) && sent < 256 * 1024 * 1024) {
        sent += piece.length
        send()
      }
    })
  send()
  await bench.until(() => gone)
  assert.ok(sent < 32 * 1024 * 1024, `${sent} bytes were taken for a peer that reads none`)
  assert.equal(await bench.hits('stalled'), 1)
  socket.destroy()
})

test('waiting for nothing is no offence: idle event streams and WebSockets stay, and an origin that is slow', async () => {
  await using bench = await Bench.limited({ stallTimeout: 1_000 })
  bench.origin.handler = (request, response) => {
    if (request.url === '/slow') setTimeout(() => request.pipe(response), 3_000)
    else response.writeHead(200, { 'content-type': 'text/event-stream' }).write('data: 1\n\n')
  }
  const events = await bench.send({ path: '/events' })
  events.resume()
  const socket = await bench.connect()
  const ws = new WebSocket(`wss://${name}/comms`, { createConnection: () => socket })
  await once(ws, 'message')
  const slow = await bench.fetch({ method: 'POST', path: '/slow', body: Buffer.alloc(4_000_000) })
  assert.deepEqual([slow.status, slow.text.length], [200, 4_000_000])
  assert.ok(!events.destroyed && ws.readyState === WebSocket.OPEN)
  assert.equal(await bench.hits('stalled'), 0)
  ws.terminate()
  events.destroy()
})

test('short of memory: new connections are refused, requests answered 503, and all is well when there is enough', async () => {
  await using bench = await Bench.limited({})
  const socket = await bench.connect()
  bench.gateway.configure({ ...defaults(), limits: { ...defaults().limits, memoryMib: 1 } })
  await bench.until(() => bench.log('memory is short').length === 1)
  const response = await bench.send({ socket })
  assert.deepEqual([response.statusCode, response.headers['retry-after']], [503, '10'])
  response.resume()
  await assert.rejects(bench.connect())
  bench.gateway.configure({ ...defaults(), limits: defaults().limits })
  await bench.until(() => bench.log('no longer short').length === 1)
  assert.equal((await bench.fetch()).status, 200)
})
