import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { test } from 'node:test'
import { defaults } from '../../../../src/config/config.ts'
import { Bench, name } from '../../support/bench.ts'
import { ask } from '../../support/h2.ts'

const size = 4 * 1024 * 1024
const large = Buffer.alloc(size)
for (let i = 0; i < size; i += 4) large.writeUInt32BE(i, i)

/** A gateway that has a body of 4 MiB in its cache. */
async function stored(): Promise<Bench> {
  const bench = await Bench.start()
  bench.gateway.configure({
    ...defaults(),
    limits: {
      ...defaults().limits,
      newConnectionsPerPeer: 0,
      newConnections: 0,
      memoryMib: 100_000,
    },
  })
  bench.origin.handler = (_request, response) => {
    response
      .writeHead(200, {
        'content-type': 'image/png',
        'cache-control': 'public, max-age=600',
        'content-length': size,
      })
      .end(large)
  }
  const answer = await bench.send({ path: '/large' })
  answer.resume()
  await once(answer, 'end')
  return bench
}

function mib(): number {
  return process.memoryUsage.rss() / 1024 / 1024
}

test('a stored body goes out as it is taken: peers that do not read hold no copies, over HTTP/1.1', async () => {
  await using bench = await stored()
  const before = mib()
  const sockets = []
  for (let i = 0; i < 50; i++) {
    const socket = await bench.connect()
    socket.on('error', () => {})
    socket.pause()
    socket.write(`GET /large HTTP/1.1\r\nHost: ${name}\r\n\r\n`)
    sockets.push(socket)
  }
  await new Promise((resolve) => setTimeout(resolve, 1_500))
  const more = mib() - before
  assert.ok(
    more < 60,
    `${more.toFixed(0)} MiB for 50 readers that stall, of ${(50 * size) / 2 ** 20}`,
  )
  for (const socket of sockets) socket.destroy()
})

/** Asks for the body on 50 streams with windows as far open as that goes, and says when. */
const asker = `
const [path, name, ca] = process.argv.slice(1)
const socket = require('node:tls').connect({
  socket: require('node:net').connect(path), servername: name, ca, ALPNProtocols: ['h2'] })
const session = require('node:http2').connect('https://' + name, {
  createConnection: () => socket, settings: { initialWindowSize: 2 ** 31 - 1 } })
session.once('remoteSettings', () => {
  session.setLocalWindowSize(2 ** 31 - 1)
  for (let i = 0; i < 50; i++)
    session.request({ ':path': '/large', ':authority': name }).on('error', () => {}).pause()
  setImmediate(() => console.log('asked'))
})`

test('likewise over HTTP/2, where a peer has opened its window as far as that goes', async () => {
  await using bench = await stored()
  const before = mib()
  // A process of its own: what it takes in before it is stopped is not the gateway's.
  const peer = spawn(
    process.execPath,
    ['-e', asker, bench.tailnet.path(443), name, bench.authority.certificate],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  )
  await once(peer.stdout!, 'data')
  peer.kill('SIGSTOP')
  await new Promise((resolve) => setTimeout(resolve, 1_500))
  const more = mib() - before
  peer.kill('SIGKILL')
  assert.ok(
    more < 60,
    `${more.toFixed(0)} MiB for 50 streams that stall, of ${(50 * size) / 2 ** 20}`,
  )
})

test('whoever reads, slowly or not, gets all of it, and the next answer behind it', async () => {
  await using bench = await stored()
  const hash = createHash('sha256').update(large).digest('hex')
  const socket = await bench.connect()
  for (let i = 0; i < 3; i++) {
    const answer = await bench.send({ socket, path: '/large' })
    const read = createHash('sha256')
    let at = 0
    for await (const piece of answer as AsyncIterable<Buffer>) {
      read.update(piece)
      at += piece.length
      if (at < 500_000) await new Promise((resolve) => setTimeout(resolve, 20))
    }
    assert.deepEqual([at, read.digest('hex')], [size, hash])
    assert.match(String(answer.headers['cache-status']), /hit/)
  }
  const session = await bench.session()
  const answers = await Promise.all([
    ask(session, { ':path': '/large' }),
    ask(session, { ':path': '/large', ':method': 'HEAD' }),
  ])
  assert.deepEqual(
    answers.map(({ status, text }) => [status, text.length > 0]),
    [
      [200, true],
      [200, false],
    ],
  )
  session.destroy()
  socket.destroy()
})

test('what is taken in at a time is bounded by what may be stored: the rest is passed on, and not stored', async () => {
  await using bench = await Bench.start()
  const config = defaults()
  bench.gateway.configure({ ...config, cache: { ...config.cache, memoryMib: 16 } })
  const waiting: Array<() => void> = []
  bench.origin.handler = (_request, response) => {
    response.writeHead(200, {
      'content-type': 'image/png',
      'cache-control': 'public, max-age=600',
      'content-length': size,
    })
    response.write(large.subarray(0, size / 2))
    waiting.push(() => response.end(large.subarray(size / 2)))
  }
  const answers = Array.from({ length: 10 }, async (_, i) => await bench.fetch({ path: `/${i}` }))
  await bench.until(() => waiting.length === 10)
  for (const go of waiting) go()
  const stored = (await Promise.all(answers)).filter((answer) => {
    assert.deepEqual([answer.status, Number(answer.headers['content-length'])], [200, size])
    return String(answer.headers['cache-status'] ?? '').includes('stored')
  })
  assert.equal(stored.length, 4)
  // What was taken in is counted no more.
  const again = bench.fetch({ path: '/again' })
  await bench.until(() => waiting.length === 11)
  waiting.at(-1)!()
  assert.match(String((await again).headers['cache-status']), /stored/)
})
