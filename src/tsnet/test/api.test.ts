/** The rest of the API: UDP, Services, HTTP clients, watching, stores, listeners. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { cp, readdir, readFile } from 'node:fs/promises'
import http from 'node:http'
import https from 'node:https'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { Lab, type LabClient } from '../../../test/lab/lab.ts'
import { Authority } from '../../../test/unit/support/authority.ts'
import { drain, eventually, unixServer, WasmNode } from './support.ts'

let lab: Lab
let peer: LabClient
let peerIPs: string[]
let node: WasmNode
/** A process whose Server is made anew by each test. */
let other: WasmNode

before(async () => {
  lab = await Lab.start({ name: 'tapi' })
  peer = await lab.client('peer')
  peerIPs = (await peer.status()).ips
  ;[node, other] = [
    await WasmNode.up(lab, { advertiseTags: ['tag:lab'] }),
    await WasmNode.process(lab, { hostname: 'other' }),
  ]
  await peer.pingDirect(node.addresses[0])
})
after(async () => await lab?.stop())

test('debugConnections: sequence numbers, windows and timers of each connection', async (t) => {
  await node.run(async (k) => {
    const listener = await k.server.listen(81)
    listener.on('connection', (c) => {
      c.on('error', () => {}).on('end', () => c.end())
      c.resume().write('hello')
    })
  })
  const stream = await peer.dial(node.addresses[0], 81)
  const got = once(stream, 'data')
  stream.write('greeting')
  assert.equal(String((await got)[0]), 'hello')
  const mine = await eventually('all that was sent is acknowledged', async () => {
    const list = await node.run((k) => k.server.debugConnections())
    return list.find(
      (c) => c.local === `${node.addresses[0]}:81` && c.send && c.send.una === c.send.nxt,
    )
  })
  const { send, receive, timers } = mine
  assert.ok(mine.remote.startsWith(`${peerIPs[0]}:`), mine.remote)
  assert.deepEqual([mine.state, mine.locked, mine.queued], ['ESTABLISHED', undefined, false])
  assert.deepEqual([send!.buffered, send!.outstanding, send!.congestion], [0, 0, 'open'])
  assert.ok(send!.wnd > 1000 && send!.scale > 0 && send!.rto >= 200, JSON.stringify(send))
  assert.ok(receive!.wnd > 1000 && receive!.acked === receive!.nxt, JSON.stringify(receive))
  assert.deepEqual([timers!.resend, timers!.windowProbes], [undefined, undefined])

  // The harness prints it when something does not come in time.
  const said = t.mock.method(console, 'error', () => {})
  await assert.rejects(
    eventually('what never comes', () => false, 1),
    /not within 1 ms: what never comes/,
  )
  const printed = said.mock.calls.map((c) => String(c.arguments[0])).join('\n')
  assert.match(printed, /what never comes: wasm: [0-9]+ connections/)
  assert.ok(printed.includes(`"local":"${mine.local}","remote":"${mine.remote}"`), printed)
  stream.destroy()
})

test('UDP: a native peer is answered, on both addresses, and seen by its address', async () => {
  await node.run(async (k) => {
    const socket = (k.kept.udp = await k.server.listenPacket(53))
    socket.on('message', (m, from) => {
      k.kept.from = from
      socket.send(Buffer.concat([Buffer.from('got '), m]), from.port, from.address)
    })
  })
  for (const [i, ip] of node.addresses.entries()) {
    const answer = await peer.askPacket(
      ip.includes(':') ? `[${ip}]:53` : `${ip}:53`,
      Buffer.from('hello'),
    )
    assert.equal(answer.toString(), 'got hello')
    const from = await node.run((k) => k.kept.from)
    assert.deepEqual([from.address, from.family, from.size], [peerIPs[i], i ? 'IPv6' : 'IPv4', 5])
  }
  assert.deepEqual(
    await node.run((k) => k.kept.udp.addresses().map((a: { address: string }) => a.address)),
    node.addresses,
  )
})

test('UDP: datagrams of every size come back from a native peer as they were', async () => {
  await peer.echoPackets(7)
  for (const ip of peerIPs) {
    const lost = await node.run(
      async (k, ip, sizes) => {
        const socket = await k.server.dialPacket(ip, 7)
        const lost: number[] = []
        for (const n of sizes) {
          const bytes = k.pattern(n)
          const back = new Promise<Buffer>((resolve) => {
            const take = (m: Buffer): void => {
              if (m.length !== n) return // an answer to one sent before
              socket.off('message', take)
              resolve(m)
            }
            socket.on('message', take)
          })
          let got: Buffer | undefined
          for (let tries = 0; !got && tries < 20; tries++) {
            await new Promise<void>((resolve, reject) =>
              socket.send(bytes, (err) => (err ? reject(err) : resolve())),
            )
            got = await Promise.race([back, k.sleep(500).then(() => undefined)])
          }
          if (!got?.equals(bytes)) lost.push(n)
        }
        const closed = k.once(socket, 'close')
        socket.close()
        await closed
        return lost
      },
      ip,
      ip.includes(':') ? [0, 1, 1200, 1232] : [0, 1, 1200, 1280, 1500, 9000],
    )
    assert.deepEqual(lost, [], ip)
  }
})

test('UDP: bad input is one clear error, and a closed port is free again', async () => {
  const errors = await node.run(async (k) => {
    const s = k.kept.udp
    const sent = (...args: unknown[]): Promise<string> =>
      new Promise((resolve) =>
        s.send(...args, (e: Error & { code: string }) =>
          resolve(e ? `${e.code} ${e.message}` : 'sent'),
        ),
      )
    const taken = await k.server.listenPacket(53).catch((e) => e.code)
    const results = [
      taken,
      await sent('x', 0, '100.64.0.1'),
      await sent('x', 1, 'peer'),
      await sent(Buffer.alloc(1233), 1, 'fd7a:115c:a1e0::1'),
      await sent(Buffer.alloc(65_528), 1, '100.64.0.1'),
    ]
    await new Promise<void>((resolve) => s.close(resolve))
    results.push(await sent('x', 1, '100.64.0.1'))
    for (let i = 0; ; i++) {
      const again = await k.server.listenPacket(53).catch((e) => e)
      if (again instanceof Error && i < 50) await k.sleep(50)
      else if (again instanceof Error) throw again
      else {
        again.close()
        break
      }
    }
    return results
  })
  assert.equal(errors[0], 'TSNET_LISTEN')
  for (const [i, words] of [
    /^TSNET_OPTIONS port 0/,
    /^TSNET_OPTIONS "peer" is not an IP/,
    /^EMSGSIZE/,
    /^TSNET_OPTIONS a datagram of 65528 bytes/,
    /^TSNET_CLOSED/,
  ].entries())
    assert.match(errors[i + 1]!, words)
  assert.equal(
    (await node.fails((k) => k.server.dialPacket('192.0.2.1', 53))).code,
    'TSNET_NO_PEER',
  )
})

test('a Tailscale Service: its connections come with the address of the peer, half-closes included', async () => {
  const vip = '100.100.77.1'
  await lab.hostService('wasm', 'svc:web', vip)
  const fqdn = await node.run(async (k) => {
    const listener = (k.kept.service = await k.server.listenService('svc:web', 80))
    listener.on('connection', (c) => {
      let asked = ''
      c.on('error', () => {})
        .on('data', (b) => (asked += b))
        .on('end', () => c.end(`${c.remoteAddress} asked ${c.localAddress}: ${asked}`))
    })
    return listener.fqdn
  })
  assert.equal(fqdn, `web.${lab.ready.suffix}`)
  assert.deepEqual(await node.run(async (k) => (await k.server.status()).services), {
    'svc:web': [vip],
  })
  // The lab's native client dials nodes alone: another node with the bindings is the client.
  const client = await WasmNode.up(lab, { hostname: 'client' })
  const ask = (): Promise<string> =>
    client.run(async (k, ip) => {
      const c = await k.server
        .dial(ip, 80, { signal: AbortSignal.timeout(3000) })
        .catch(() => undefined)
      return c ? (await k.buffer(c.end('hello')).catch(() => '')).toString() : ''
    }, vip)
  assert.equal(
    await eventually('an answer from the Service', ask, 30_000),
    `${client.addresses[0]} asked ${vip}: hello`,
  )
  assert.equal(
    (await node.fails((k) => k.server.listenService('svc:web', 80))).code,
    'TSNET_LISTEN',
  )
  assert.equal((await node.fails((k) => k.server.listenService('web', 80))).code, 'TSNET_OPTIONS')
  await node.run(async (k) => void (await k.kept.service.close()))
  assert.equal(await ask(), '', 'a Service that is closed')
  const err = await client.fails((k) => k.server.listenService('svc:web', 80))
  assert.equal(err.code, 'TSNET_SERVICE')
  assert.match(err.message, /tagged.*advertiseTags/)
  await client.run((k) => k.server.close())
})

test('node:http and undici reach a native peer: keep-alive, bodies, errors', async () => {
  const socket = path.join(lab.dir, 'web.sock')
  const server = http.createServer((req, res) => {
    const parts: Buffer[] = []
    req
      .on('data', (b) => parts.push(b))
      .on('end', () => res.end(`${req.method} ${req.headers.host} ${Buffer.concat(parts).length}`))
  })
  await unixServer(socket, (s) => server.emit('connection', s))
  await peer.serve(80, socket)
  const got = await node.run(async (k, ip) => {
    const agent = k.server.httpAgent({ keepAlive: true, maxSockets: 1 })
    const get = (url: string, body?: Buffer): Promise<string> =>
      new Promise((resolve, reject) => {
        const req = k.http.request(
          url,
          { agent, method: body ? 'POST' : 'GET' },
          (res) =>
            void k
              .buffer(res)
              .then((b) => resolve(`${b}${req.reusedSocket ? ' again' : ''}`), reject),
        )
        req.on('error', reject).end(body)
      })
    const out = [await get('http://peer/'), await get('http://peer/', Buffer.alloc(1_000_000))]
    out.push(
      await get('http://nobody/').catch((e) => e.code),
      await get('http://192.0.2.1/').catch((e) => e.code),
    )
    agent.destroy()
    out.push(await (await k.server.fetch('http://peer/')).text())
    out.push(
      await (
        await k.server.fetch(`http://${ip}/`, { method: 'POST', body: 'x'.repeat(70_000) })
      ).text(),
    )
    out.push(await k.server.fetch('http://nobody/').catch((e) => e.cause.code))
    // Node's own fetch takes it too.
    const dispatcher = await k.server.dispatcher()
    out.push(await (await fetch('http://peer/', { dispatcher } as RequestInit)).text())
    await dispatcher.close()
    return out
  }, peerIPs[0]!)
  assert.deepEqual(got, [
    'GET peer 0',
    'POST peer 1000000 again',
    'TSNET_DIAL',
    'TSNET_NO_PEER',
    'GET peer 0',
    `POST ${peerIPs[0]} 70000`,
    'TSNET_DIAL',
    'GET peer 0',
  ])
})

test('https over the tailnet verifies the certificate', async (t) => {
  const authority = new Authority()
  t.after(() => authority.close())
  const pem = authority.issue('peer')
  const socket = path.join(lab.dir, 'secure.sock')
  const server = https.createServer({ cert: pem, key: pem }, (_req, res) => res.end('safe'))
  await unixServer(socket, (s) => server.emit('connection', s))
  await peer.serve(443, socket)
  const got = await node.run(async (k, ca) => {
    const get = (agent: import('node:https').Agent): Promise<string> =>
      new Promise((resolve, reject) =>
        k.https
          .get(
            'https://peer/',
            { agent },
            (res) => void k.buffer(res).then((b) => resolve(b.toString()), reject),
          )
          .on('error', reject),
      )
    const trusting = k.server.httpsAgent({ ca })
    const out = [await get(trusting), await get(k.server.httpsAgent()).catch((e) => e.code)]
    trusting.destroy()
    const dispatcher = await k.server.dispatcher({ ca })
    out.push(
      await (await k.server.fetch('https://peer/', { dispatcher } as RequestInit)).text(),
      await k.server.fetch('https://peer/').catch((e) => e.cause.code),
    )
    await dispatcher.close()
    return out
  }, authority.certificate)
  assert.deepEqual(got, ['safe', 'SELF_SIGNED_CERT_IN_CHAIN', 'safe', 'SELF_SIGNED_CERT_IN_CHAIN'])
})

test('watch() begins with what holds, and ends with its signal and with the server', async () => {
  await other.make()
  const got = await other.run(async (k) => {
    const abort = new AbortController()
    const types: string[] = []
    const watching = (async () => {
      for await (const n of k.server.watch({ signal: abort.signal }))
        types.push(n.type === 'state' ? n.state : n.type)
    })()
    await k.server.up()
    for await (const n of k.server.watch()) if (n.type === 'state' && n.state === 'Running') break
    abort.abort()
    await watching
    const last = (async () => {
      const first = []
      for await (const n of k.server.watch()) first.push(n.type)
      return first
    })()
    await k.sleep(20)
    await k.server.close()
    return { types, first: await last }
  })
  assert.ok(
    got.types.includes('Running') &&
      got.types.includes('keyExpiry') &&
      got.types.includes('health'),
    got.types.join(),
  )
  assert.ok(
    got.first.includes('state') && got.first.includes('health') && !got.first.includes('loginURL'),
    got.first.join(),
  )
})

test("the caller's own store: the node comes back from it, nothing lies in a directory, its errors are TSNET_STATE", async () => {
  const got = await other.run(
    async (k, options) => {
      let kept: string | undefined
      let writes = 0
      const store = {
        read: async () => kept,
        write: async (s: string) => {
          await k.sleep(5)
          kept = s
          writes++
        },
      }
      const before = k.fs.readdirSync(k.os.tmpdir()).filter((f) => f.startsWith('tsnet-')).length
      const first = new k.Server({ ...options, dir: undefined, store } as never)
      const { id } = (await first.up()).self!
      await first.close()
      const second = new k.Server({ ...options, dir: undefined, store, authKey: '' } as never)
      const again = (await second.up()).self!.id
      await second.close()
      const left =
        k.fs.readdirSync(k.os.tmpdir()).filter((f) => f.startsWith('tsnet-')).length - before
      const code = async (store: object): Promise<string> => {
        await using s = new k.Server({ ...options, dir: undefined, store } as never)
        return await s.up().then(
          () => 'up',
          (e) => `${e.code} ${e.message}`,
        )
      }
      const failures = [
        await code({ read: () => Promise.reject(new Error('vault sealed')), write: () => {} }),
        await code({ read: () => '{"half', write: () => {} }),
        await code({ read: () => '', write: () => Promise.reject(new Error('disk full')) }),
      ]
      return {
        same: id === again,
        writes,
        machine: '_machinekey' in JSON.parse(kept!),
        left,
        failures,
      }
    },
    { ...other.options, dir: '' },
  )
  assert.deepEqual([got.same, got.machine, got.left], [true, true, 0])
  assert.ok(got.writes > 1)
  for (const [i, words] of [
    /^TSNET_STATE .*vault sealed/,
    /^TSNET_STATE the state store is damaged/,
    /^TSNET_STATE .*disk full/,
  ].entries())
    assert.match(got.failures[i]!, words)
})

test('one Server for one directory: a second is refused, by name, in the same process and in another; copies are not locked', async () => {
  const dir = path.join(lab.dir, 'locked')
  await other.up({ dir })
  const third = await WasmNode.process(lab, { hostname: 'third', dir })
  await third.make()
  const err = await third.fails((k) => k.server.start())
  assert.equal(err.code, 'TSNET_STATE')
  assert.ok(err.message.includes(`${dir} is in use by another Server`), err.message)
  const same = await other.fails((k, o) => new k.Server(o).start(), { ...other.options, dir })
  assert.equal(same.code, 'TSNET_STATE')
  // The first has not noticed; when it is killed, the directory is free.
  assert.equal((await other.run((k) => k.server.status())).backendState, 'Running')
  other.child.kill('SIGKILL')
  await other.exited
  assert.equal((await third.up({ authKey: '' })).backendState, 'Running')
  await third.run((k) => k.server.close())
  assert.equal(await third.end(), 0)
  other = await WasmNode.process(lab, { hostname: 'other' })
})

test('a state directory copied again and again while it is written: every copy is a whole identity', async () => {
  const dir = path.join(lab.dir, 'copied')
  await other.make({ dir })
  const up = other.run((k) => k.server.up())
  const copies: string[] = []
  let done = false
  void up.finally(() => (done = true))
  for (let i = 0; !done || i < 20; i++) {
    const copy = path.join(lab.dir, `copy-${i}`)
    const copied = await cp(dir, copy, { recursive: true }).then(
      () => true,
      () => false,
    ) // it may not be there yet
    if (copied) copies.push(copy)
    await new Promise((r) => setTimeout(r, 10))
  }
  const { self } = await up
  let whole = 0
  for (const copy of copies) {
    if (!(await readdir(copy)).includes('tailscaled.state')) continue
    assert.ok(
      '_machinekey' in JSON.parse(await readFile(path.join(copy, 'tailscaled.state'), 'utf8')),
      copy,
    )
    whole++
  }
  assert.ok(whole > 0)
  await other.run((k) => k.server.close())
  assert.equal((await other.up({ dir: copies.at(-1)!, authKey: '' })).self?.id, self?.id)
  await other.run((k) => k.server.close())
})

test('a listener is as net.Server: address, connections counted and limited, port 0, one address, iteration', async () => {
  const got = await node.run(async (k, v4) => {
    const listener = (k.kept.limited = await k.server.listen(0))
    listener.maxConnections = 1
    listener.on('connection', (c) =>
      c
        .on('error', () => {})
        .on('end', () => c.end())
        .resume(),
    )
    const one = await k.server.listen(8100, { host: v4 })
    k.kept.iterated = (async () => {
      const seen: string[] = []
      for await (const c of one) {
        c.on('error', () => {}).end('x')
        if (seen.push(c.remoteAddress) === 2) break
      }
      await one.close()
      return seen.length
    })()
    return {
      port: listener.port,
      address: listener.address(),
      one: one.address(),
      listening: listener.listening,
    }
  }, node.addresses[0])
  assert.ok(got.port >= 1024)
  assert.deepEqual(
    [got.address, got.one, got.listening],
    [
      { address: '::', port: got.port, family: 'IPv6' },
      { address: node.addresses[0], port: 8100, family: 'IPv4' },
      true,
    ],
  )
  const first = await peer.dial(node.addresses[0], got.port)
  await eventually(
    'the first',
    async () =>
      (await node.run(
        (k) =>
          new Promise<number>((r) => k.kept.limited.getConnections((_: null, n: number) => r(n))),
      )) === 1,
  )
  const second = await peer.dial(node.addresses[0], got.port)
  assert.equal((await drain(second).catch(() => Buffer.from('reset'))).length <= 5, true)
  await eventually('the second to be reset', () => second.destroyed || second.readableEnded)
  first.destroy()
  await assert.rejects(peer.dial(node.addresses[1], 8100), /refused/)
  for (let i = 0; i < 2; i++)
    assert.equal((await drain(await peer.dial(node.addresses[0], 8100))).toString(), 'x')
  assert.equal(await node.run((k) => k.kept.iterated), 2)
})

test('every call that waits gives up with its signal, and leaves nothing behind', async () => {
  await other.make({ authKey: '', dir: path.join(lab.dir, 'waiting') })
  const codes = await other.run(async (k) => {
    await k.server.start()
    const s = k.server
    const gone = { signal: AbortSignal.abort() }
    const soon = () => ({ signal: AbortSignal.timeout(100) })
    const calls = [
      s.up(gone),
      s.listen(80, gone),
      s.status(gone),
      s.stats(gone),
      s.certDomains(gone),
      s.setDNS('a', 'b', gone),
      s.logout(gone),
      s.whoIs('100.64.0.1', gone),
      s.up(soon()),
      s.listenService('svc:web', 80, soon()),
      s.listenPacket(0, soon()),
      s.dialPacket('peer', 7, soon()),
      s.dial('peer', 7, soon()),
    ]
    return await Promise.all(
      calls.map((c: Promise<unknown>) =>
        c.then(
          () => 'done',
          (e) => e.code,
        ),
      ),
    )
  })
  assert.deepEqual(
    codes,
    codes.map(() => 'TSNET_ABORTED'),
  )
  await other.run(async (k) => void (await (await k.server.listen(80)).close()))
  await other.run((k) => k.server.close())
})

test('options that cannot work are TSNET_OPTIONS at once', async () => {
  for (const [options, words] of [
    [{}, /dir is required/],
    [{ dir: 'x', port: 70000 }, /port 70000/],
    [{ dir: 'x', advertiseTags: ['lab'] }, /"lab"/],
    [{ dir: 'x', controlURL: 'control' }, /controlURL "control"/],
    [{ store: {} }, /store needs/],
  ] as const) {
    const err = await other.fails((k, o) => void new k.Server(o as never), options)
    assert.equal(err.code, 'TSNET_OPTIONS')
    assert.match(err.message, words)
  }
})

test('nothing of all this stays open, and nothing left the lab', async () => {
  await eventually(
    'all streams closed',
    async () => (await node.run((k) => k.server.stats())).streams === 0,
  )
  await node.run((k) => k.server.close())
  assert.equal(await node.end(), 0)
  assert.equal(await other.end(), 0)
  assert.equal(node.stderr + other.stderr, '')
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
