import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { RequestListener } from 'node:http'
import { createServer as createTCPServer } from 'node:net'
import type { AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'
import { test } from 'node:test'
import { WebSocket } from 'ws'
import { parseConfig } from '../../../../src/config/config.ts'
import { Bench, name } from '../../support/bench.ts'

async function origin(handler: RequestListener): Promise<string> {
  const server = createServer(handler)
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  server.unref()
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}

const configure = (bench: Bench, url: string, more: string): void => {
  bench.gateway.configure(
    parseConfig(`[[app]]\npath = "/a/"\nupstreams = ["${url}"]\n${more}`, 'f'),
  )
}

/** A 504 for a program, and the same for a person. */
async function late(
  bench: Bench,
  key: string,
  message: RegExp,
  options: Parameters<Bench['fetch']>[0] = {},
): Promise<void> {
  const program = await bench.fetch({
    path: '/a/',
    ...options,
    headers: { accept: 'application/json' },
  })
  const { error } = JSON.parse(program.text) as {
    error: { code: string; message: string; cure: string }
  }
  assert.deepEqual([program.status, error.code], [504, 'GH_UPSTREAM_TIMEOUT'])
  assert.match(error.message, message)
  assert.ok(error.cure.endsWith(`raise ${key} in [[app]]`), error.cure)
  const person = await bench.fetch({ path: '/a/', ...options, headers: { accept: 'text/html' } })
  assert.deepEqual(
    [person.status, person.headers['content-type']],
    [504, 'text/html; charset=utf-8'],
  )
  assert.match(person.text, new RegExp(`raise ${key}`))
}

/** A server that takes connections and says nothing. */
async function silent(): Promise<number> {
  const server = createTCPServer((socket) => {
    socket.on('error', () => {}).resume()
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  server.unref()
  return (server.address() as AddressInfo).port
}

test('a connection that is late, its TLS included: connect_timeout', async () => {
  await using bench = await Bench.start()
  configure(bench, `https://127.0.0.1:${await silent()}`, 'connect_timeout = "300 ms"')
  await late(bench, 'connect_timeout', /took no connection in time/)
})

test('headers that are late: response_timeout', async () => {
  await using bench = await Bench.start()
  configure(bench, await origin(() => {}), 'response_timeout = "300 ms"')
  await late(bench, 'response_timeout', /took the request but did not answer/)
})

test('all of it that is late, before an answer has begun: total_timeout, also for what is still being sent', async () => {
  await using bench = await Bench.start()
  configure(bench, await origin(() => {}), 'total_timeout = "300 ms"')
  await late(bench, 'total_timeout', /was not done with it in time/)
  await late(bench, 'total_timeout', /was not done with it in time/, {
    method: 'POST',
    body: 'x'.repeat(100_000),
  })
})

test('an answer that has begun and is late is broken off, never ended as if it were whole; the log says by which limit', async () => {
  await using bench = await Bench.start()
  for (const [key, handler] of [
    [
      'idle_timeout',
      (_request, response) => {
        response.write('begun')
      },
    ],
    [
      'total_timeout',
      (_request, response) => {
        const timer = setInterval(() => {
          response.write('more')
        }, 50)
        response.once('close', () => clearInterval(timer))
      },
    ],
  ] as Array<[string, RequestListener]>) {
    configure(bench, await origin(handler), `${key} = "400 ms"`)
    const response = await bench.send({ path: '/a/' })
    assert.equal(response.statusCode, 200)
    await assert.rejects(text(response), /aborted|ECONNRESET/, key)
    await bench.until(() => bench.log(`an answer was broken off, ${key} is over`).length === 1)
  }
})

test('what goes on is left alone: idle_timeout counts from the last piece, and without limits pauses are free', async () => {
  await using bench = await Bench.start()
  const slow: RequestListener = (_request, response) => {
    let left = 4
    const timer = setInterval(() => {
      response.write('.')
      if (--left === 0) {
        clearInterval(timer)
        response.end()
      }
    }, 500)
  }
  configure(bench, await origin(slow), 'idle_timeout = "5 s"\ntotal_timeout = "1 min"')
  assert.equal((await bench.fetch({ path: '/a/' })).text, '....')
  configure(bench, await origin(slow), '')
  assert.equal((await bench.fetch({ path: '/a/' })).text, '....')
  assert.equal(bench.log('broken off').length, 0)
})

test('a WebSocket handshake has the same limits for connection and answer', async () => {
  await using bench = await Bench.start()
  const port = await silent()
  for (const [url, more] of [
    [`http://127.0.0.1:${port}`, 'response_timeout = "300 ms"'],
    [`https://127.0.0.1:${port}`, 'connect_timeout = "300 ms"'],
  ] as const) {
    configure(bench, url, more)
    const socket = await bench.connect()
    const ws = new WebSocket(`wss://${name}/a/ws`, { createConnection: () => socket })
    const [, answer] = (await once(ws, 'unexpected-response')) as [
      unknown,
      { statusCode: number; resume: () => void },
    ]
    answer.resume()
    assert.equal(answer.statusCode, 504, more)
  }
})

test('limits are read with their units, and what is out of bounds is refused', () => {
  const read = (more: string) =>
    parseConfig(`[[app]]\npath = "/a/"\nupstreams = ["http://a"]\n${more}`, 'f').app[0]!
  assert.deepEqual(
    [
      read('').idleTimeout,
      read('').totalTimeout,
      read('idle_timeout = "1 min"').idleTimeout,
      read('total_timeout = "0 s"').totalTimeout,
    ],
    [0, 0, 60_000, 0],
  )
  assert.throws(
    () => read('total_timeout = "2 d"'),
    /line 4: total_timeout is "2 d", outside 0 ms to 1 d/,
  )
  assert.throws(() => read('idle_timeout = 30'), /must be a length of time/)
})
