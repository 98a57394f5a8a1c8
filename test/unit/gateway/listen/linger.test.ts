import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { connect } from 'node:net'
import { text } from 'node:stream/consumers'
import { test } from 'node:test'
import { connect as tlsConnect } from 'node:tls'
import type { TLSSocket } from 'node:tls'
import { Bench, name } from '../../support/bench.ts'
import { alice } from '../../support/tailnet.ts'

/** Sends all of its body before it looks for an answer, as most programs do. */
const python = `
import http.client, json, socket, ssl, sys
path, name, certificate, size, chunked = sys.argv[1:]
context = ssl.create_default_context(cadata=certificate)
class Unix(http.client.HTTPConnection):
    def connect(self):
        raw = socket.socket(socket.AF_UNIX)
        raw.connect(path)
        self.sock = context.wrap_socket(raw, server_hostname=name)
seen = []
for _ in range(6):
    connection = Unix(name, timeout=20)
    try:
        size = int(size)
        if chunked == 'true':
            connection.request('POST', '/', (b'x' * 65536 for _ in range(size // 65536)),
                {'Transfer-Encoding': 'chunked', 'Accept': 'application/json'}, encode_chunked=True)
        else:
            connection.request('POST', '/', b'x' * size, {'Accept': 'application/json'})
        answer = connection.getresponse()
        seen.append([answer.status, json.loads(answer.read())['error']['code']])
    except Exception as error:
        seen.append([0, type(error).__name__])
    connection.close()
print(json.dumps(seen))
`

async function byPython(
  bench: Bench,
  size: number,
  chunked: boolean,
): Promise<Array<[number, string]>> {
  const child = spawn(
    'python3',
    [
      '-c',
      python,
      bench.tailnet.path(443),
      name,
      bench.authority.certificate,
      String(size),
      String(chunked),
    ],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  )
  return JSON.parse(await text(child.stdout)) as Array<[number, string]>
}

/** A peer that shuts no side down because the other one is. */
async function halfOpen(bench: Bench): Promise<TLSSocket> {
  const raw = connect({ path: bench.tailnet.path(443), allowHalfOpen: true })
  raw.on('error', () => {})
  const socket = tlsConnect({
    socket: raw,
    servername: name,
    ca: bench.authority.certificate,
    allowHalfOpen: true,
  } as never)
  socket.on('error', () => {})
  await once(socket, 'secureConnect')
  return socket
}

test(
  'Python can read why its upload was refused: 413, 403, 429',
  { timeout: 120_000 },
  async () => {
    const size = 5 * 1024 * 1024
    {
      await using bench = await Bench.limited({ bodyMib: 1 })
      bench.origin.handler = (request, response) => {
        request.resume().on('end', () => response.end('taken'))
      }
      for (const chunked of [false, true])
        assert.deepEqual(
          await byPython(bench, size, chunked),
          Array(6).fill([413, 'GH_BODY_SIZE']),
          chunked ? 'chunked' : 'sized',
        )
    }
    {
      await using bench = await Bench.start({
        before: ({ tailnet }) => {
          tailnet.peer = { ...alice, capMap: {} }
        },
      })
      assert.deepEqual(await byPython(bench, size, false), Array(6).fill([403, 'GH_FORBIDDEN']))
      assert.equal(bench.origin.requests.length, 0)
    }
    {
      await using bench = await Bench.limited({ openRequestsPerPeer: 1 })
      bench.origin.handler = () => {}
      const waiting = bench.send({}).catch(() => {})
      await bench.until(() => bench.origin.requests.length === 1)
      assert.deepEqual(await byPython(bench, size, true), Array(6).fill([429, 'GH_RATE']))
      await bench.gateway.close(100)
      await waiting
    }
  },
)

test('an early answer of an app can be read too', { timeout: 300_000 }, async () => {
  for (const connection of ['close', 'keep-alive']) {
    await using bench = await Bench.start()
    bench.origin.handler = (_request, response) => {
      response
        .writeHead(507, { connection, 'content-type': 'application/json' })
        .end('{"error":{"code":"FULL"}}')
    }
    const seen = await byPython(bench, 4 * 1024 * 1024, connection === 'close')
    assert.deepEqual(seen, Array(6).fill([507, 'FULL']), connection)
  }
})

test('over HTTP/2 the answer comes whole, and behind it NO_ERROR', async () => {
  await using bench = await Bench.limited({ bodyMib: 1 })
  bench.origin.handler = (request, response) => {
    request.resume().on('end', () => response.end('taken'))
  }
  const session = await bench.session()
  for (const sized of [true, false]) {
    const stream = session.request({
      ':method': 'POST',
      ':path': '/',
      accept: 'application/json',
      ...(sized ? { 'content-length': 5 * 1024 * 1024 } : {}),
    })
    stream.on('error', () => {})
    const piece = Buffer.alloc(256 * 1024)
    let sent = 0
    const more = (): void => {
      while (!stream.destroyed && sent < 5 * 1024 * 1024) {
        sent += piece.length
        if (!stream.write(piece)) break
      }
    }
    stream.on('drain', more)
    more()
    const [headers] = (await once(stream, 'response')) as [{ ':status': number }]
    let body = ''
    stream.setEncoding('utf8').on('data', (part: string) => {
      body += part
    })
    if (!stream.closed) await once(stream, 'close')
    assert.deepEqual(
      [headers[':status'], (JSON.parse(body) as { error: { code: string } }).error.code],
      [413, 'GH_BODY_SIZE'],
    )
    assert.equal(stream.rstCode, 0)
  }
  session.destroy()
})

test('what is sent behind a refused request is no request any more', async () => {
  await using bench = await Bench.limited({ bodyMib: 1 })
  const socket = await halfOpen(bench)
  let got = ''
  socket.setEncoding('latin1').on('data', (piece: string) => {
    got += piece
  })
  const length = 1024 * 1024 + 1
  socket.write(`POST / HTTP/1.1\r\nHost: ${name}\r\nContent-Length: ${length}\r\n\r\n`)
  socket.write(Buffer.alloc(length, 'x'))
  socket.write(`GET /behind HTTP/1.1\r\nHost: ${name}\r\n\r\n`)
  await bench.until(() => got.includes('413'))
  await new Promise((resolve) => setTimeout(resolve, 500))
  assert.equal(got.match(/HTTP\/1\.1 /g)!.length, 1)
  assert.equal(bench.origin.requests.length, 0)
  socket.end()
  await bench.until(() => bench.gateway.connections === 0)
})

test('the reading is bounded: by what comes, and by silence', async () => {
  await using bench = await Bench.limited({ bodyMib: 1 })
  const head = `POST / HTTP/1.1\r\nHost: ${name}\r\nContent-Length: 10000000000\r\n\r\n`
  const [silent, endless] = [await halfOpen(bench), await halfOpen(bench)]
  for (const socket of [silent, endless]) socket.resume().write(head)
  const piece = Buffer.alloc(256 * 1024)
  let sent = 0
  const more = (): void => {
    while (!endless.destroyed && sent < 2 ** 30) {
      sent += piece.length
      if (!endless.write(piece)) break
    }
  }
  endless.on('drain', more)
  more()
  await bench.until(() => bench.gateway.connections === 0)
  assert.ok(sent > 60 * 2 ** 20 && sent < 100 * 2 ** 20, `${sent} bytes`)
  for (const socket of [silent, endless]) socket.destroy()
})
