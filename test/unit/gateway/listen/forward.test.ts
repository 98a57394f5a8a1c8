import assert from 'node:assert/strict'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { createServer } from 'node:net'
import type { AddressInfo, Server, Socket } from 'node:net'
import { join } from 'node:path'
import { buffer, text } from 'node:stream/consumers'
import { test } from 'node:test'
import { connect as tlsConnect, createServer as createTLSServer } from 'node:tls'
import { defaults, parseConfig } from '../../../../src/config/config.ts'
import type { Config } from '../../../../src/config/config.ts'
import { capability } from '../../../../src/gateway/access/access.ts'
import { ClientHello } from '../../../../src/gateway/listen/client-hello.ts'
import { proxyHeader } from '../../../../src/gateway/listen/proxy-protocol.ts'
import { Bench, name } from '../../support/bench.ts'
import { alice } from '../../support/tailnet.ts'

type Forward = Config['forward'][number]

/** A gateway with these forwards, whose ports are open. */
async function forwarding(...forwards: Array<Partial<Forward>>): Promise<Bench> {
  const bench = await Bench.start()
  bench.gateway.configure({
    ...defaults(),
    forward: forwards.map((forward) => ({
      port: 443,
      sni: [],
      target: '',
      protocol: 'tcp',
      terminateTLS: false,
      proxyProtocol: 'off',
      right: 'edit',
      ...forward,
    })),
  })
  for (const { port } of forwards)
    if (port !== undefined) await bench.until(() => existsSync(bench.tailnet.path(port)))
  return bench
}

async function listening(server: Server, where: string | number = 0): Promise<string> {
  if (typeof where === 'number') server.listen(where, '127.0.0.1')
  else server.listen(where)
  await once(server, 'listening')
  server.unref()
  return typeof where === 'number'
    ? `127.0.0.1:${(server.address() as AddressInfo).port}`
    : `unix:${where}`
}

test('a TCP forward passes bytes both ways, and each end by itself, over TCP and a unix socket', async () => {
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    const pieces: Buffer[] = []
    socket
      .on('data', (piece: Buffer) => pieces.push(piece))
      .on('end', () => socket.end(Buffer.concat(pieces).reverse()))
  })
  const other = createServer({ allowHalfOpen: true }, (socket) => {
    socket.pipe(socket)
  })
  const target = await listening(server)
  await using bench = await forwarding({ port: 22, target })
  const socket = bench.tailnet.connect(22)
  const data = Buffer.from(Array.from({ length: 2_000_000 }, (_, i) => i & 0xff))
  socket.end(data)
  const answer = await buffer(socket)
  assert.deepEqual(
    [answer.length, answer.equals(Buffer.from(data).reverse())],
    [data.length, true],
    'the answer came after the end of the request',
  )
  bench.gateway.configure({
    ...defaults(),
    forward: [
      {
        port: 23,
        sni: [],
        target: await listening(other, join(bench.directory, 'target.sock')),
        protocol: 'tcp',
        terminateTLS: false,
        proxyProtocol: 'off',
        right: 'edit',
      },
    ],
  })
  await bench.until(
    async () =>
      await new Promise((resolve) => {
        const echo = bench.tailnet.connect(23)
        echo.once('error', () => resolve(false))
        echo.end('hello')
        void text(echo).then(
          (answer) => resolve(answer === 'hello'),
          () => resolve(false),
        )
      }),
  )
  await assert.rejects(
    once(bench.tailnet.connect(22), 'connect'),
    'a forward that is gone has no port',
  )
  server.close()
  other.close()
})

test('who lacks the right is cut off, and the target not touched', async () => {
  let touched = 0
  const server = createServer((socket) => {
    touched++
    socket.end('secret')
  })
  await using bench = await forwarding({ port: 22, target: await listening(server) })
  bench.tailnet.peer = { ...alice, capMap: {} }
  assert.equal(await text(bench.tailnet.connect(22)).catch(() => ''), '')
  await bench.until(() => bench.log('it needs the right edit').length === 1)
  assert.equal(touched, 0)
  server.close()
})

test(
  'who loses the right while a forward is open is cut off, and the target told; who keeps it stays',
  { timeout: 30_000 },
  async () => {
    let ended = 0
    const server = createServer((socket) => {
      socket
        .on('error', () => {})
        .on('close', () => {
          ended++
        })
        .write('hello')
    })
    const target = await listening(server)
    await using bench = await forwarding({ port: 22, target }, { port: 23, target, right: 'view' })
    const [edit, view] = [bench.tailnet.connect(22), bench.tailnet.connect(23)]
    for (const socket of [edit, view])
      await once(
        socket.on('error', () => {}),
        'data',
      )
    bench.tailnet.peer = { ...alice, capMap: { [capability]: [{ may: ['view'] }] } }
    await once(edit, 'close')
    await bench.until(() => ended === 1)
    assert.equal(bench.log('has lost the right edit').length, 1)
    assert.ok(!view.destroyed)
    bench.tailnet.peer = { ...alice, capMap: {} }
    bench.gateway.guard.settings = { view: [], edit: [], use: [] }
    await once(view, 'close')
    server.close()
  },
)

test('a target that is not there ends the connection, and the log says which', async () => {
  await using bench = await forwarding({ port: 22, target: '127.0.0.1:1' })
  assert.equal(await text(bench.tailnet.connect(22)).catch(() => ''), '')
  await bench.until(() => bench.log('127.0.0.1:1 cannot be reached').length === 1)
})

test('back-pressure: what the target does not read is not taken from the peer', async () => {
  const held: Socket[] = []
  const server = createServer((socket) => {
    held.push(socket.pause())
  })
  await using bench = await forwarding({ port: 22, target: await listening(server) })
  const socket = bench.tailnet.connect(22)
  const piece = Buffer.alloc(1024 * 1024)
  let sent = 0
  while (
    sent < 64 &&
    (await new Promise((resolve) => {
      const timer = setTimeout(() => resolve(false), 500)
      socket.write(piece, () => {
        clearTimeout(timer)
        resolve(true)
      })
    }))
  )
    sent++
  assert.ok(sent < 64, `${sent} MiB were taken`)
  socket.destroy()
  await Promise.all(held.map(async (one) => await once(one.resume(), 'close')))
  server.close()
})

test('PROXY protocol: the target learns the peer before the first byte', async () => {
  for (const [proxyProtocol, header] of [
    ['v1', Buffer.from('PROXY TCP4 100.64.0.7 100.64.0.1 PORT 22\r\n')],
    ['v2', Buffer.from('0d0a0d0a000d0a515549540a2111000c6440000764400001', 'hex')],
  ] as const) {
    const { promise: seen, resolve } = Promise.withResolvers<Buffer>()
    const server = createServer((socket) => {
      void buffer(socket).then(resolve)
    })
    await using bench = await forwarding({
      port: 22,
      target: await listening(server),
      proxyProtocol,
    })
    bench.tailnet.connect(22).end('hello')
    const got = await seen
    assert.ok(got.toString('latin1').endsWith('hello'))
    if (proxyProtocol === 'v1')
      assert.match(
        got.toString('latin1'),
        /^PROXY TCP4 100\.64\.0\.7 100\.64\.0\.1 \d+ 22\r\nhello$/,
      )
    else {
      assert.deepEqual(got.subarray(0, header.length), header)
      assert.deepEqual([got.readUInt16BE(26), got.length], [22, 28 + 5])
    }
    server.close()
  }
})

test("PROXY protocol of IPv6 (the specification's own layout)", () => {
  const ends = {
    source: 'fd7a:115c:a1e0::7',
    sourcePort: 40_000,
    destination: 'fd7a:115c:a1e0:0:0:0:0:1',
    destinationPort: 22,
  }
  assert.equal(
    proxyHeader('v1', ends).toString(),
    'PROXY TCP6 fd7a:115c:a1e0::7 fd7a:115c:a1e0:0:0:0:0:1 40000 22\r\n',
  )
  assert.equal(
    proxyHeader('v2', ends).toString('hex'),
    '0d0a0d0a000d0a515549540a21210024fd7a115ca1e000000000000000000007fd7a115ca1e0000000000000000000019c400016',
  )
})

test('TLS passthrough by name: the target ends it with its own certificate; other names end here', async () => {
  await using bench = await forwarding()
  const pem = bench.authority.issue('git.example.org')
  const server = createTLSServer({ cert: pem, key: pem }, (socket) => {
    socket.end('the target')
  })
  bench.gateway.configure({
    ...defaults(),
    forward: [
      {
        port: 443,
        sni: ['git.example.org'],
        target: await listening(server),
        protocol: 'tcp',
        terminateTLS: false,
        proxyProtocol: 'off',
        right: 'edit',
      },
    ],
  })
  const through = tlsConnect({
    socket: bench.tailnet.connect(443),
    servername: 'git.example.org',
    ca: bench.authority.certificate,
  })
  assert.equal(await text(through), 'the target')
  assert.equal((await bench.fetch()).status, 200)
  // Slowly, byte by byte: the ClientHello is put together.
  const slow = bench.tailnet.connect(443)
  slow.write(Buffer.from([22]))
  await new Promise((resolve) => setTimeout(resolve, 50))
  slow.destroy()
  assert.equal(
    await text(bench.tailnet.connect(443).end('GET / HTTP/1.1\r\n\r\n')).catch(() => ''),
    '',
    'what is no TLS ends as before',
  )
  assert.equal((await bench.fetch({ headers: { host: name } })).status, 200)
  server.close()
})

/** The name in these bytes, given one piece after another. */
function serverName(...pieces: Buffer[]): ReturnType<ClientHello['push']> {
  const hello = new ClientHello()
  return pieces.map((piece) => hello.push(piece)).at(-1)
}

function record(data: Buffer): Buffer {
  return Buffer.concat([Buffer.from([22, 3, 1, data.length >> 8, data.length & 0xff]), data])
}

/** As OpenSSL sends it. */
async function realHello(): Promise<Buffer> {
  return await new Promise<Buffer>((resolve) => {
    const server = createServer((socket) => {
      socket.once('data', (data: Buffer) => {
        resolve(data)
        socket.destroy()
        server.close()
      })
    }).listen(0, '127.0.0.1', () => {
      tlsConnect({
        port: (server.address() as AddressInfo).port,
        host: '127.0.0.1',
        servername: 'Git.Example.org',
      }).on('error', () => {})
    })
  })
}

test('the name in a ClientHello, whole, in pieces, over records, and in rubbish', async () => {
  const hello = await realHello()
  assert.equal(serverName(hello), 'git.example.org')
  for (let i = 1; i < hello.length; i++) {
    assert.equal(serverName(hello.subarray(0, i)), 'more', String(i))
    assert.equal(serverName(hello.subarray(0, i), hello.subarray(i)), 'git.example.org')
  }
  assert.equal(serverName(...[...hello].map((byte) => Buffer.from([byte]))), 'git.example.org')
  const body = hello.subarray(5)
  const records = [
    record(body.subarray(0, 3)),
    record(body.subarray(3, 60)),
    record(body.subarray(60)),
  ]
  assert.equal(serverName(Buffer.concat(records)), 'git.example.org')
  assert.equal(serverName(...records), 'git.example.org')
  assert.equal(serverName(Buffer.from('GET / HTTP/1.1\r\n\r\n')), undefined)
  // Every byte wrong in turn: an answer, never an error.
  for (let i = 0; i < hello.length; i++) {
    const wrong = Buffer.from(hello)
    wrong[i] = wrong[i]! ^ 0xff
    serverName(wrong)
  }
  const all = new ClientHello()
  for (const part of records) all.push(part)
  assert.deepEqual(all.bytes, Buffer.concat(records), 'for whoever takes the connection on')
})

test('a ClientHello is bounded in records and in bytes', async () => {
  const body = (await realHello()).subarray(5)
  const inRecordsOf = (size: number): Buffer[] =>
    Array.from({ length: Math.ceil(body.length / size) }, (_, i) =>
      record(body.subarray(i * size, (i + 1) * size)),
    )
  assert.equal(serverName(...inRecordsOf(Math.ceil(body.length / 32))), 'git.example.org')
  assert.equal(serverName(...inRecordsOf(1)), 'refused')
  assert.equal(serverName(Buffer.concat(inRecordsOf(1))), 'refused')
  assert.equal(serverName(record(Buffer.alloc(0))), 'refused', 'a record that carries nothing')
  const large = Buffer.alloc(16_000)
  large.set([1, 0xff, 0xff, 0xff])
  assert.equal(serverName(record(large)), 'refused', 'said to be larger than any is')
  const slow = new ClientHello()
  large.set([1, 0, 0xff, 0])
  let given = 0
  let result: ReturnType<ClientHello['push']> = 'more'
  for (const part of [
    large,
    Buffer.alloc(16_000),
    Buffer.alloc(16_000),
    Buffer.alloc(16_384),
    large,
  ])
    for (const byte of record(part)) {
      if (result !== 'more') break
      result = slow.push(Buffer.from([byte]))
      given++
    }
  assert.ok(result !== 'more' && given === 65_537, `${String(result)} after ${given} bytes`)
})

test('whoever sends a ClientHello in thousands of records is cut off, and holds nobody else up', async () => {
  await using bench = await forwarding()
  bench.gateway.configure({
    ...defaults(),
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
  const bytes = Buffer.concat([
    record(Buffer.from([1])),
    record(Buffer.from([0])),
    record(Buffer.from([62])),
    ...Array.from({ length: 10_000 }, () => record(Buffer.from([0]))),
  ])
  const socket = bench.tailnet.connect(443).on('error', () => {})
  for (let at = 0; at < bytes.length && !socket.destroyed; at += 200) {
    socket.write(bytes.subarray(at, at + 200))
    await new Promise((resolve) => setImmediate(resolve))
  }
  await bench.until(() => socket.destroyed)
  assert.equal(await bench.hits('client_hello'), 1)
  assert.equal((await bench.fetch()).status, 200)
})

test('a [[forward]] that cannot work is refused with what to write', () => {
  for (const [lines, says] of [
    ['port = 22', /line 1: a \[\[forward\]\] has no target/],
    ['target = "127.0.0.1:22"', /neither a port of its own nor names/],
    ['target = "127.0.0.1:22"\nport = 443', /neither a port/],
    ['target = "somewhere"\nport = 22', /neither host:port nor unix/],
    ['target = "127.0.0.1:70000"\nport = 22', /neither host:port/],
    ['sni = ["a.b"]\nport = 22\ntarget = "a:1"', /by name is on port 22/],
    ['sni = ["A.b"]\ntarget = "a:1"', /full name in lower case/],
    [
      'port = 22\ntarget = "a:1"\n[[forward]]\nport = 22\ntarget = "b:1"',
      /line 4: two \[\[forward\]\] have port 22/,
    ],
  ] as const)
    assert.throws(
      () => parseConfig(`[[forward]]\n${lines}`, 'f'),
      (err: Error) => says.test(err.message),
      lines,
    )
  assert.deepEqual(parseConfig('[[forward]]\nport = 22\ntarget = "[::1]:22"', 'f').forward, [
    {
      port: 22,
      sni: [],
      target: '[::1]:22',
      protocol: 'tcp',
      terminateTLS: false,
      proxyProtocol: 'off',
      right: 'edit',
    },
  ])
})

test('TLS that ends at the gateway: plain behind, with the certificate of the device or of the name', async () => {
  const lines: string[] = []
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    socket.setEncoding('utf8').on('data', (line: string) => {
      lines.push(line)
      socket.write(`plain ${line}`)
    })
    socket.on('end', () => socket.end())
  })
  const target = await listening(server)
  const own = 'mqtt.example.org'
  await using bench = await Bench.start({
    before: (made) => {
      made.putCertificate(made.authority.issue(own), `${own}.pem`)
    },
  })
  bench.gateway.configure(
    parseConfig(
      `[certificates]\nmode = "self"\nname = "${own}"\n[[forward]]\nport = 8883\ntarget = ` +
        `"${target}"\nterminate_tls = true\nproxy_protocol = "v1"\n[[forward]]\nsni = ` +
        `["${own}"]\ntarget = "${target}"\nterminate_tls = true\n[[forward]]\nsni = ` +
        `["none.example.org"]\ntarget = "${target}"\nterminate_tls = true\n`,
      'f',
    ),
  )
  await bench.until(() => existsSync(bench.tailnet.path(8883)))
  await bench.until(() => bench.gateway.certificates.get(own) !== undefined)
  for (const [port, servername] of [
    [8883, name],
    [443, own],
  ] as const) {
    const tls = tlsConnect({
      socket: bench.tailnet.connect(port),
      servername,
      ca: bench.authority.certificate,
    })
    await once(tls, 'secureConnect')
    tls.write('hello')
    const [answer] = (await once(tls, 'data')) as [Buffer]
    assert.match(String(answer), /^plain (?:PROXY TCP4 [^\r]+\r\n)?hello|^plain PROXY/)
    tls.end()
    await once(tls, 'close')
  }
  assert.match(lines.join(''), /^PROXY TCP4 [^]*hello[^]*hello$/)
  // What is not TLS never gets to the target, nor does a name without a certificate.
  const before = lines.length
  assert.equal(await text(bench.tailnet.connect(8883).end('hello')).catch(() => ''), '')
  const without = tlsConnect({
    socket: bench.tailnet.connect(443),
    servername: 'none.example.org',
    ca: bench.authority.certificate,
  })
  await once(without, 'close').catch(() => {})
  await bench.until(() => bench.lines.some(({ code }) => code === 'GH_FORWARD_CERTIFICATE'))
  assert.equal(lines.length, before)
})
