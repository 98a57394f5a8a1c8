import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:net'
import type { AddressInfo, Server, Socket } from 'node:net'
import { test } from 'node:test'
import { defaults, parseConfig } from '../../../../src/config/config.ts'
import { Bench, name } from '../../support/bench.ts'

const ok = 'HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok'

/**
 * An app of bytes: `answer` is told of each request on a connection, the first of which is 1, and
 * of all requests before it.
 */
async function app(
  bench: Bench,
  answer: (socket: Socket, request: number, seen: string[]) => void,
): Promise<{ server: Server; seen: string[]; sockets: Socket[] }> {
  const seen: string[] = []
  const sockets: Socket[] = []
  const server = createServer((socket) => {
    sockets.push(socket)
    let requests = 0
    let text = ''
    socket.on('error', () => {})
    socket.setEncoding('latin1').on('data', (piece: string) => {
      text += piece
      const head = /^(\S+ \S+)[^]*?\r\n\r\n/.exec(text)
      if (head === null) return
      text = ''
      seen.push(head[1]!)
      answer(socket, ++requests, seen)
    })
  })
  server.listen(bench.origin.socket)
  await once(server, 'listening')
  return { server, seen, sockets }
}

function close({ server, sockets }: { server: Server; sockets: Socket[] }): void {
  for (const socket of sockets) socket.destroy()
  server.close()
}

test('a connection that is closed under a request: GET and HEAD go once more, on a new one', async () => {
  await using bench = await Bench.start({ origin: false })
  const there = await app(bench, (socket, request) => {
    if (request === 1) socket.write(ok)
    else socket.destroy()
  })
  for (const method of ['GET', 'HEAD', 'GET']) {
    assert.equal((await bench.fetch({ path: '/first' })).text, 'ok')
    const { status } = await bench.fetch({ method, path: `/${method}` })
    assert.equal(status, 200, method)
  }
  assert.deepEqual(there.seen.slice(0, 3), ['GET /first', 'GET /GET', 'GET /GET'])
  assert.equal((await bench.gateway.status()).upstream.state, 'up')
  close(there)
})

test('a connection closed at the first byte of the next request, without an answer, over both protocols', async () => {
  await using bench = await Bench.start({ origin: false })
  const there = await app(bench, (socket, request) => {
    if (request > 1) return
    socket.write(ok)
    socket.once('data', () => socket.destroy())
  })
  assert.equal((await bench.fetch()).text, 'ok')
  assert.equal((await bench.fetch({ path: '/b' })).text, 'ok')
  close(there)
})

test('an app over TCP that resets the connection under a request', async () => {
  await using bench = await Bench.start()
  const seen: string[] = []
  const server = createServer((socket) => {
    let requests = 0
    socket.on('error', () => {})
    socket.on('data', (piece) => {
      seen.push(piece.toString('latin1').split(' ', 2).join(' '))
      if (++requests === 1) socket.write(ok)
      else socket.resetAndDestroy()
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  bench.gateway.configure(
    parseConfig(`[[app]]\npath = "/cam/"\nupstreams = ["http://127.0.0.1:${port}"]\n`, 'f'),
  )
  for (const path of ['/cam/a', '/cam/b', '/cam/c'])
    assert.equal((await bench.fetch({ path })).text, 'ok', path)
  assert.deepEqual(seen, ['GET /cam/a', 'GET /cam/b', 'GET /cam/b', 'GET /cam/c'])
  server.close()
})

test('nothing else goes twice: no POST, no DELETE, no GET with a body', async () => {
  await using bench = await Bench.start({ origin: false })
  const there = await app(bench, (socket, request) => {
    if (request === 1) socket.write(ok)
    else socket.destroy()
  })
  for (const options of [
    { method: 'POST', body: 'x' },
    { method: 'POST' },
    { method: 'DELETE' },
    { method: 'PUT', body: 'x' },
    { method: 'OPTIONS' },
    { method: 'GET', body: 'x', headers: { 'content-length': '1' } },
  ]) {
    assert.equal((await bench.fetch({ path: '/first' })).text, 'ok')
    const before = there.seen.length
    const answer = await bench.fetch({ ...options, path: '/second' })
    assert.equal(answer.status, 502, JSON.stringify(options))
    assert.match(answer.text, /broke off the connection before it answered/)
    assert.equal(there.seen.length, before + 1, JSON.stringify(options))
  }
  close(there)
})

test('not when something of an answer came, nor on a connection that was new, and never a third time', async () => {
  await using bench = await Bench.start({ origin: false })
  let how: (socket: Socket, request: number) => void = (socket) => socket.destroy()
  const there = await app(bench, (socket, request) => {
    how(socket, request)
  })
  // New.
  assert.equal((await bench.fetch({ path: '/new' })).status, 502)
  assert.deepEqual(there.seen, ['GET /new'])
  // Something came.
  for (const part of ['H', 'HTTP/1.1 200 OK\r\n', 'HTTP/1.1 103 Early Hints\r\n\r\n']) {
    how = (socket, request) => {
      if (request === 1) socket.write(ok)
      else socket.end(part)
    }
    assert.equal((await bench.fetch({ path: '/first' })).text, 'ok')
    const before = there.seen.length
    assert.equal((await bench.fetch({ path: '/begun' })).status, 502, part)
    assert.equal(there.seen.length, before + 1, part)
  }
  // The new one fails as well.
  how = (socket, request) => {
    if (request === 1 && there.seen.at(-1) === 'GET /kept') socket.write(ok)
    else socket.destroy()
  }
  assert.equal((await bench.fetch({ path: '/kept' })).text, 'ok')
  const before = there.seen.length
  assert.equal((await bench.fetch({ path: '/twice' })).status, 502)
  assert.equal(there.seen.length, before + 2)
  close(there)
})

test('a flow that blocks Node-RED past its keep-alive: requests that wait are answered', async () => {
  await using bench = await Bench.start()
  bench.origin.server.keepAliveTimeout = 300
  bench.origin.handler = (request, response) => {
    if (request.url === '/block') {
      response.end('ok')
      // As a function node would; what is asked for meanwhile meets a connection that is closed
      // before it is read.
      setTimeout(() => {
        bench.emit('blocking')
        const end = Date.now() + 2_000
        while (Date.now() < end);
      }, 20)
    } else {
      response.end(request.url)
    }
  }
  const clients = await Promise.all([bench.connect(), bench.connect()])
  await Promise.all(clients.map(async (socket) => (await bench.fetch({ socket })).text))
  const blocking = once(bench, 'blocking')
  const asked = bench.fetch({ path: '/block' })
  await blocking
  const answers = await Promise.all([
    asked,
    ...clients.map(async (socket, i) => await bench.fetch({ socket, path: `/${i}` })),
  ])
  assert.deepEqual(
    answers.map(({ status, text }) => [status, text]),
    [
      [200, 'ok'],
      [200, '/0'],
      [200, '/1'],
    ],
  )
  for (const socket of clients) socket.destroy()
})

test('an app that answers an upload, takes no more of it and closes: its answer arrives', async () => {
  await using bench = await Bench.start({ origin: false })
  const there = await app(bench, (socket) => {
    socket.pause()
    socket.write('HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 4\r\n\r\nover')
    setTimeout(() => socket.destroy(), 5)
  })
  for (let i = 0; i < 10; i++) {
    const socket = await bench.connect()
    socket.on('error', () => {})
    let answer = ''
    socket.setEncoding('latin1').on('data', (text: string) => {
      answer += text
    })
    socket.write(`POST /x HTTP/1.1\r\nHost: ${name}\r\nContent-Length: 50000000\r\n\r\n`)
    for (let sent = 0; sent < 30; sent++) socket.write(Buffer.alloc(100_000))
    await once(socket, 'close')
    assert.match(answer, /^HTTP\/1\.1 413 [^]*over$/, String(i))
  }
  close(there)
})

test('how long flows may take is said in [node_red]; what changes the editor takes as long as it takes', async () => {
  await using bench = await Bench.start()
  const config = defaults()
  bench.gateway.configure({ ...config, node_red: { ...config.node_red, responseTimeout: 1_000 } })
  bench.origin.handler = (_request, response) => {
    setTimeout(() => response.end('at last'), 2_500)
  }
  const [flow, flowPost, read, install, remove] = await Promise.all([
    bench.fetch({ path: '/app/slow' }),
    bench.fetch({ method: 'POST', path: '/app/slow', body: 'x' }),
    bench.fetch({ path: '/nodes' }),
    bench.fetch({
      method: 'POST',
      path: '/nodes',
      body: '{}',
      headers: { 'content-type': 'application/json', 'sec-fetch-site': 'same-origin' },
    }),
    bench.fetch({
      method: 'DELETE',
      path: '/nodes/x',
      headers: { 'sec-fetch-site': 'same-origin' },
    }),
  ])
  assert.deepEqual(
    [flow.status, flowPost.status, read.status, install.status, remove.status],
    [504, 504, 504, 200, 200],
  )
  assert.match(flow.text, /raise response_timeout in \[node_red\]/)
  bench.gateway.configure({ ...config, node_red: { ...config.node_red, responseTimeout: 9_000 } })
  assert.equal((await bench.fetch({ path: '/app/slow' })).text, 'at last')
})
