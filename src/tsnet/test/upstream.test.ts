/**
 * Tests of tailscale.com/tsnet by their names (tsnet_test.go), written anew against this API; those
 * that are not here are in UPSTREAM.md, with where they are or why not.
 */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { Lab } from '../../../test/lab/lab.ts'
import { eventually, WasmNode } from './support.ts'

const ROUTE = '192.0.2.0/24'
let lab: Lab
let s1: WasmNode
let s2: WasmNode

before(async () => {
  lab = await Lab.start({ name: 'tups' })
  s1 = await WasmNode.up(lab, { hostname: 's1', advertiseRoutes: [ROUTE] })
  await lab.approveRoutes('s1', ROUTE)
  s2 = await WasmNode.up(lab, { hostname: 's2', acceptRoutes: true })
  await eventually('s1 in the tailnet of s2', () =>
    s2.run(async (k) => (await k.server.status()).peers.some((p) => p.hostName === 's1')),
  )
})
after(async () => await lab?.stop())

test('TestDialBlocks: a dial before the node is up waits for that', async () => {
  await s1.run(async (k) => {
    k.kept.blocks = await k.server.listen(8080)
    k.kept.blocks.on('connection', (c: InstanceType<typeof k.Conn>) =>
      c.on('error', () => {}).end('hi'),
    )
  })
  const got = await s2.run(
    async (k, options, ip) => {
      const server = new k.Server({ ...options, memory: true, hostname: 's3' })
      const text = (await k.buffer(await server.dial(ip, 8080))).toString()
      await server.close()
      return text
    },
    { ...s2.options, dir: `${s2.options.dir}-blocks` },
    s1.addresses[0],
  )
  assert.equal(got, 'hi')
  await s1.run((k) => k.kept.blocks.close())
})

test('TestConn: bytes arrive, a port of nobody is an error, a listener takes no route', async () => {
  await s1.run(async (k) => {
    k.kept.conn = await k.server.listen(8081)
    k.kept.conn.on('connection', (c: InstanceType<typeof k.Conn>) =>
      c.on('error', () => {}).pipe(c),
    )
    k.kept.rest = await k.server.listenFallback()
    k.kept.saw = []
    k.kept.rest.on('connection', (c: InstanceType<typeof k.Conn>) => {
      k.kept.saw.push(`${c.localAddress}:${c.localPort}`)
      c.destroy()
    })
  })
  const echo = await s2.run(async (k, ip) => {
    const c = await k.server.dial(ip, 8081)
    c.end('hello')
    return (await k.buffer(c)).toString()
  }, s1.addresses[0])
  assert.equal(echo, 'hello')
  for (const [ip, port] of [
    [s1.addresses[0], 8082],
    ['192.0.2.1', 8081],
  ] as const) {
    const code = await s2.run(
      async (k, ip, port) => {
        const signal = AbortSignal.timeout(10_000)
        const c = await k.server.dial(ip, port, { signal })
        return await k.buffer(c).then(
          (b) => `${b.length} bytes`,
          (err) => err.code,
        )
      },
      ip,
      port,
    )
    assert.equal(code, 'ECONNRESET')
  }
  assert.deepEqual(await s1.run((k) => k.kept.saw), [`${s1.addresses[0]}:8082`, '192.0.2.1:8081'])
  await s1.run((k) => Promise.all([k.kept.conn.close(), k.kept.rest.close()]).then(() => {}))
})

test('TestTailscaleIPs: both are those of the status, and of this node', async () => {
  const [ips, again] = await s1.run(async (k) => [
    (await k.server.status()).tailscaleIPs,
    (await k.server.status()).self!.tailscaleIPs,
  ])
  assert.deepEqual(ips, again)
  assert.match(ips![0]!, /^100\./)
  assert.match(ips![1]!, /^fd7a:115c:a1e0:/)
})

test('TestListenerCleanup: the end of the server is the end of its listeners', async () => {
  const closed = await s1.run(
    async (k, options) => {
      const server = new k.Server({ ...options, memory: true, hostname: 's4' })
      const listener = await server.listen(8081)
      const closed = k.once(listener, 'close')
      await server.close()
      await closed
      return listener.listening
    },
    { ...s1.options, dir: `${s1.options.dir}-cleanup` },
  )
  assert.equal(closed, false)
})

test('TestStartStopStartGetsSameIP', async () => {
  const [first, second] = await s1.run(
    async (k, options) => {
      const ips = []
      for (let i = 0; i < 2; i++) {
        const server = new k.Server({ ...options, hostname: 's5' })
        ips.push((await server.up()).tailscaleIPs)
        await server.close()
      }
      return ips
    },
    { ...s1.options, dir: `${s1.options.dir}-again`, advertiseRoutes: [] },
  )
  assert.deepEqual(first, second)
})

test('TestListenerClose: whoever waits for a connection is told', async () => {
  const got = await s1.run(async (k) => {
    const listener = await k.server.listen(8080)
    const loop = (async () => {
      for await (const conn of listener) conn.destroy()
      return 'ended'
    })()
    await listener.close()
    return await loop
  })
  assert.equal(got, 'ended')
})

test('TestSelfDial: the node reaches its own listener', async () => {
  const got = await s1.run(async (k, ip) => {
    const listener = await k.server.listen(8081)
    listener.on('connection', (c) => c.on('error', () => {}).pipe(c))
    const c = await k.server.dial(ip, 8081)
    c.end('hello')
    const text = (await k.buffer(c)).toString()
    await listener.close()
    return text
  }, s1.addresses[0])
  assert.equal(got, 'hello')
})

for (const host of ['0.0.0.0', '::'])
  test(`TestListenUnspecifiedAddr: ${host} is all addresses of the node`, async () => {
    await s1.run(async (k, host) => {
      k.kept.any = await k.server.listen(8083, { host })
      k.kept.any.on('connection', (c: InstanceType<typeof k.Conn>) =>
        c.on('error', () => {}).end(c.localAddress),
      )
    }, host)
    for (const ip of s1.addresses) {
      const got = await s2.run(
        async (k, ip) => (await k.buffer(await k.server.dial(ip, 8083))).toString(),
        ip,
      )
      assert.equal(got, ip)
    }
    await s1.run((k) => k.kept.any.close())
  })

test('TestListenMultipleEphemeralPorts: port 0 gives each one of its own', async () => {
  const ports = await s1.run(async (k) => {
    k.kept.several = await Promise.all([0, 0, 0].map((port) => k.server.listen(port)))
    for (const [i, listener] of k.kept.several.entries())
      listener.on('connection', (c: InstanceType<typeof k.Conn>) =>
        c.on('error', () => {}).end(String(i)),
      )
    return k.kept.several.map((l: { port: number }) => l.port) as number[]
  })
  assert.equal(new Set(ports).size, 3)
  for (const [i, port] of ports.entries()) {
    const got = await s2.run(
      async (k, ip, port) => (await k.buffer(await k.server.dial(ip, port))).toString(),
      s1.addresses[0],
      port,
    )
    assert.equal(got, String(i))
  }
  await s1.run(async (k) => {
    for (const listener of k.kept.several) await listener.close()
  })
})

test('TestPingSelfReturnsIsLocalIP', async () => {
  const pong = await s1.run(
    async (k, ip) =>
      (await k.server.localAPI('POST', `/localapi/v0/ping?ip=${ip}&type=disco`)).json<{
        IsLocalIP: boolean
        Err: string
      }>(),
    s1.addresses[0],
  )
  assert.equal(pong.IsLocalIP, true)
  assert.match(pong.Err, /local Tailscale IP/)
})

for (const type of ['disco', 'TSMP', 'ICMP'])
  test(`TestPingPeerLearnedViaDelta: a node that joins later answers ${type}`, async () => {
    const pong = await s1.run(
      async (k, ip, type) =>
        (await k.server.localAPI('POST', `/localapi/v0/ping?ip=${ip}&type=${type}`)).json<{
          NodeName: string
          Err: string
        }>(),
      s2.addresses[0],
      type,
    )
    assert.deepEqual([pong.NodeName, pong.Err], ['s2', ''])
  })

test('TestStatusReportsPeerInEngine', async () => {
  const peers = await s1.run(async (k) =>
    (await k.server.localAPI('GET', '/localapi/v0/status')).json<{
      Peer: Record<string, { HostName: string; InEngine: boolean }>
    }>(),
  )
  const peer = Object.values(peers.Peer).find((p) => p.HostName === 's2')
  assert.equal(peer?.InEngine, true)
})

test('nothing was said on stderr, nothing left the lab', async () => {
  assert.equal(s1.stderr + s2.stderr, '')
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
