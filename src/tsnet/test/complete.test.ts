/** The rest of tsnet's API, each part against a native peer: LocalAPI, TLS, Funnel, routes, proxy … */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import type { Socket } from 'node:net'
import path from 'node:path'
import { after, before, test } from 'node:test'
import tls from 'node:tls'
import { Lab, type LabClient } from '../../../test/lab/lab.ts'
import { drain, eventually, unixServer, WasmNode } from './support.ts'

let lab: Lab
let peer: LabClient
let peerIP: string
let node: WasmNode
/** A machine without Tailscale, behind the native peer or behind the node. */
let behind: string
const BEHIND = '10.77.0.200'
/** Of the same machine, on no network of the lab's. */
const OUTSIDE = '2001:db8:64::9'

before(async () => {
  lab = await Lab.start({ name: 'tall' })
  peer = await lab.client('peer')
  peerIP = (await peer.status()).ips[0]!
  node = await WasmNode.up(lab, {
    hostname: 'all',
    acceptRoutes: true,
    advertiseRoutes: ['10.77.0.200/32'],
    env: { TS_DEBUG_ACME_DIRECTORY_URL: lab.ready.acmeDirectory },
  })
  const socket = path.join(lab.dir, 'peer.sock')
  await unixServer(socket, (s) => s.pipe(s))
  await peer.serve(7, socket)
  behind = await lab.host('behind', BEHIND)
  const server = lab.exec(behind, [
    process.execPath,
    '-e',
    `require('net').createServer((s) => s.on('error', () => {}).end('from ' + s.remoteAddress.replace('::ffff:', '')))
      .listen(9, () => console.log('ready'))`,
  ])
  await once(server.stdout!, 'data')
  await peer.pingDirect(node.addresses[0])
})
after(async () => await lab?.stop())

test('localAPI: JSON, a body, an error in its own words, a bad path', async () => {
  const got = await node.run(async (k, ip) => {
    const prefs = await k.server.localAPI('GET', '/localapi/v0/prefs')
    const edited = await k.server.localAPI('PATCH', '/localapi/v0/prefs', {
      ShieldsUp: true,
      ShieldsUpSet: true,
    })
    await k.server.localAPI('PATCH', '/localapi/v0/prefs', {
      ShieldsUp: false,
      ShieldsUpSet: true,
    })
    const ping = await k.server.localAPI('POST', `/localapi/v0/ping?ip=${ip}&type=disco`)
    return {
      hostname: prefs.json<{ Hostname: string }>().Hostname,
      type: prefs.contentType,
      shields: edited.json<{ ShieldsUp: boolean }>().ShieldsUp,
      ping: ping.json<{ NodeName: string; Err: string }>(),
    }
  }, peerIP)
  assert.equal(got.hostname, 'all')
  assert.match(got.type, /^application\/json/)
  assert.equal(got.shields, true)
  assert.equal(got.ping.NodeName, 'peer')
  assert.partialDeepStrictEqual(
    await node.fails((k) => k.server.localAPI('GET', '/localapi/v0/nothing')),
    { code: 'TSNET_BACKEND' },
  )
  const { code, message } = await node.fails((k) => k.server.localAPI('GET', 'http://127.0.0.1/'))
  assert.equal(code, 'TSNET_OPTIONS')
  assert.match(message, /must begin with \/localapi\//)
})

test('resolve: a name in the tailnet, with and without its suffix; all else is refused', async () => {
  const ips = (await peer.status()).ips
  for (const name of ['peer', `peer.${lab.ready.suffix}`])
    assert.deepEqual(await node.run((k, n) => k.server.resolve(n), name), ips)
  for (const name of ['control.lab.test', 'nobody'])
    assert.equal((await node.fails((k, n) => k.server.resolve(n), name)).code, 'TSNET_DIAL')
  assert.equal((await node.fails((k) => k.server.resolve('192.0.2.1'))).code, 'TSNET_NO_PEER')
})

test('listenTLS: a certificate by ACME, for a native peer that verifies it', async (t) => {
  const begun = performance.now()
  await node.run(async (k) => {
    const listener = await k.server.listenTLS(443)
    k.kept.web = k.http.createServer((req, res) => {
      const { encrypted, remoteAddress } = req.socket as import('node:tls').TLSSocket
      res.end(`${req.url} ${encrypted} ${remoteAddress}`)
    })
    listener.on('connection', (s) => k.kept.web.emit('connection', s))
    k.kept.tls = listener
  })
  const name = `all.${lab.ready.suffix}`
  const fetched = await eventually(
    'a page by https',
    async () => await peer.fetch(`https://${name}/x`).catch(() => undefined),
    40_000,
  )
  t.diagnostic(`first page after ${((performance.now() - begun) / 1000).toFixed(1)} s`)
  assert.equal(fetched.body.toString(), `/x true ${peerIP}`)
  assert.deepEqual(fetched.tls?.dnsNames, [name])
  const pair = await node.run((k, n) => k.server.certPair(n), name)
  assert.match(pair.key, /^-----BEGIN [A-Z ]*PRIVATE KEY-----/)
  assert.equal(pair.cert.split('BEGIN CERTIFICATE').length - 1 >= 2, true, 'with its chain')
  assert.equal((await node.fails((k) => k.server.certPair('other.example'))).code, 'TSNET_BACKEND')
  await node.run((k) => k.kept.tls.close())
})

test('memory: no file with an identity; each start is a new, ephemeral node', async () => {
  const ids = await node.run(
    async (k, options) => {
      const ids = []
      for (let i = 0; i < 2; i++) {
        const server = new k.Server({ ...options, hostname: 'forgetful', memory: true })
        ids.push((await server.up()).self!.id)
        await server.close()
      }
      return [ids, k.fs.existsSync(`${options.dir}/tailscaled.state`)] as const
    },
    { ...node.options, dir: `${node.options.dir}-memory` },
  )
  assert.notEqual(ids[0][0], ids[0][1])
  assert.equal(ids[1], false)
})

/** What a connection to an address and port says until its end. */
const said = (ip: string, port: number): Promise<string> =>
  node.run(
    async (k, ip, port) => (await k.buffer(await k.server.dial(ip, port))).toString(),
    ip,
    port,
  )

test('acceptRoutes: what is behind a native subnet router is dialled through it', async () => {
  assert.equal((await node.fails((k, ip) => k.server.dial(ip, 9), BEHIND)).code, 'TSNET_NO_PEER')
  await peer.advertise(`${BEHIND}/32`)
  await lab.approveRoutes('peer', `${BEHIND}/32`)
  const got = await eventually('the route', () => said(BEHIND, 9).catch(() => undefined), 20_000)
  assert.equal(got, `from ${peer.ip}`)
  await peer.advertise()
  await lab.approveRoutes('peer')
})

test('advertiseRoutes: a native peer reaches what is behind the node, and nothing else', async () => {
  await lab.approveRoutes('all', `${BEHIND}/32`)
  const got = await eventually(
    'the route',
    async () => {
      try {
        return (await drain(await peer.dial(BEHIND, 9))).toString()
      } catch {
        // The peer does not know of the route yet.
        return undefined
      }
    },
    20_000,
  )
  assert.equal(got, `from ${node.ip}`)
  // A port that nobody has there: an end with an error, and the node lives on.
  const closed = await peer.dial(BEHIND, 10).then(
    (s) => drain(s).then(String, (err) => (err as Error).message),
    (err) => (err as Error).message,
  )
  assert.ok(closed === '' || /reset|refused|hang up/i.test(closed), closed)
})

test('listenFallback: all that nobody listens for, routes included', async () => {
  await node.run(async (k) => {
    k.kept.rest = await k.server.listenFallback()
    k.kept.rest.on('connection', (c: InstanceType<typeof k.Conn>) =>
      c.end(`${c.localAddress} ${c.localPort}`),
    )
  })
  for (const [ip, port] of [
    [node.addresses[0], 4711],
    [node.addresses[1], 1],
    [BEHIND, 12],
  ] as const)
    assert.equal((await drain(await peer.dial(ip, port))).toString(), `${ip} ${port}`)
  assert.equal((await node.fails((k) => k.server.listenFallback())).code, 'TSNET_LISTEN')
  await node.run((k) => k.kept.rest.close())
  await assert.rejects(peer.dial(node.addresses[0], 4711))
  await lab.approveRoutes('all')
})

test('useExitNode: a native exit node leads to what is not in the tailnet', async () => {
  await peer.advertise('0.0.0.0/0', '::/0')
  await lab.approveRoutes('peer', '0.0.0.0/0', '::/0')
  await eventually('an exit node', () =>
    node.run((k) =>
      k.server.useExitNode('peer').then(
        () => true,
        () => false,
      ),
    ),
  )
  // Not on its own network: that is no exit node's to give.
  const exit = '2001:db8:64::20'
  for (const [ns, own, other] of [
    [behind, OUTSIDE, exit],
    [peer.ns, exit, OUTSIDE],
  ] as const) {
    await lab.ip(ns, 'addr', 'add', `${own}/128`, 'dev', 'eth0', 'nodad')
    await lab.ip(ns, '-6', 'route', 'add', other, 'dev', 'eth0')
  }
  await lab.setHost('outside.lab.test', OUTSIDE)
  for (const host of [OUTSIDE, 'outside.lab.test']) {
    const got = await eventually('the way', () => said(host, 9).catch(() => undefined), 20_000)
    assert.equal(got, `from ${exit}`)
  }
  await node.run((k) => k.server.useExitNode(undefined))
  await eventually('no way', () =>
    said(OUTSIDE, 9).then(
      () => false,
      (err) => (err as { code: string }).code === 'TSNET_NO_PEER',
    ),
  )
  const { code } = await node.fails((k) => k.server.useExitNode('nobody'))
  assert.equal(code, 'TSNET_NO_PEER')
  await peer.advertise()
  await lab.approveRoutes('peer')
})

test('listenFunnel: from the internet by a relay, with the client’s address and TLS', async () => {
  const refused = await node.fails((k) => k.server.listenFunnel(443))
  assert.equal(refused.code, 'TSNET_LISTEN')
  await lab.allowFunnel('all')
  const ingress = 'https://tailscale.com/cap/ingress'
  await lab.setGrants([{ src: ['peer'], dst: ['all'], app: { [ingress]: [{}] } }])
  await eventually('Funnel', () =>
    node.run(async (k) => {
      try {
        k.kept.funnel = await k.server.listenFunnel(443, { funnelOnly: true })
      } catch {
        return false
      }
      k.kept.funnel.on('connection', (s: import('node:tls').TLSSocket) =>
        s.end(`hello ${s.remoteAddress} ${s.remotePort}`),
      )
      return true
    }),
  )
  const name = `all.${lab.ready.suffix}`
  const through = await peer.ingress(node.addresses[0], `${name}:443`, '203.0.113.9:4321')
  const secured = tls.connect({
    socket: through as Socket,
    servername: name,
    ca: await readFile(lab.ready.acmeRoots),
  })
  assert.equal((await drain(secured)).toString(), 'hello 203.0.113.9 4321')
  // For Funnel alone: the tailnet has nothing there.
  await assert.rejects(peer.dial(node.addresses[0], 443))
  await node.run((k) => k.kept.funnel.close())
  const raw = node.run(async (k) => {
    const listener = await k.server.listenFunnel(8443, { tls: false })
    const [conn] = await k.once(listener, 'connection')
    const about = [conn.target, conn.remote]
    conn.destroy()
    await listener.close()
    return about
  })
  await eventually('Funnel at 8443', () =>
    peer.ingress(node.addresses[0], `${name}:8443`, '203.0.113.9:4321').catch(() => undefined),
  )
  assert.deepEqual(await raw, [`${name}:8443`, '203.0.113.9:4321'])
})

test('loopback: SOCKS5, HTTP proxy and LocalAPI with curl, none without its password', async () => {
  const proxy = await node.run(async (k) => {
    k.kept.loopback = await k.server.loopback()
    k.kept.page = k.http.createServer((req, res) => res.end(`${req.headers.host}${req.url}`))
    const { address, proxyCred, localAPICred } = k.kept.loopback
    return { address, proxyCred, localAPICred }
  })
  // The native peer's port 7 echoes: HTTP/0.9 of a kind. A page is more than that.
  const page = path.join(lab.dir, 'page.sock')
  await unixServer(page, (s) => {
    s.once('data', () =>
      s.end('HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\npage'),
    )
  })
  await peer.serve(80, page)
  const curl = async (...args: string[]): Promise<string> => {
    const { stdout } = await lab.run(node.ns, ['curl', '-sS', '-m', '20', ...args])
    return stdout.trim()
  }
  const user = `tsnet:${proxy.proxyCred}`
  const socks = ['--socks5-hostname', proxy.address, '--proxy-user']
  assert.equal(await curl(...socks, user, 'http://peer/'), 'page')
  assert.equal(await curl(...socks, 'tsnet:wrong', 'http://peer/'), '')
  assert.equal(await curl('--socks5-hostname', proxy.address, 'http://peer/'), '')
  assert.equal(await curl(...socks, user, 'http://control.lab.test/'), '', 'not in the tailnet')
  const web = ['-x', `http://${proxy.address}`, '--proxy-user']
  assert.equal(await curl(...web, user, 'http://peer/'), 'page')
  assert.equal(await curl(...web, user, '-p', 'http://peer/'), 'page', 'CONNECT')
  const status = ['-o', '/dev/null', '-w', '%{http_code}']
  assert.equal(await curl(...web, 'tsnet:wrong', ...status, 'http://peer/'), '407')
  const api = `http://${proxy.address}/localapi/v0/status`
  const header = ['-H', 'Sec-Tailscale: localapi']
  const answer = await curl(...header, '-u', `:${proxy.localAPICred}`, api)
  assert.equal((JSON.parse(answer) as { BackendState: string }).BackendState, 'Running')
  assert.equal(await curl(...header, '-u', `:${proxy.proxyCred}`, ...status, api), '401')
  await node.run((k) => k.kept.loopback.close())
  assert.equal(await curl(...socks, user, 'http://peer/'), '')
})

test('capturePcap: a pcap file with the packets in the clear', async () => {
  const got = await node.run(async (k, ip) => {
    const capture = await k.server.capturePcap()
    const parts: Buffer[] = []
    capture.on('data', (part: Buffer) => parts.push(part))
    const c = await k.server.dial(ip, 7)
    c.end('seen in the capture')
    await k.buffer(c)
    for (let i = 0; i < 100; i++) {
      if (Buffer.concat(parts).includes('seen in the capture')) break
      await k.sleep(50)
    }
    capture.destroy()
    const all = Buffer.concat(parts)
    return [all.readUInt32LE(), all.readUInt32LE(20), all.includes('seen in the capture')]
  }, peerIP)
  assert.deepEqual(got, [0xa1b2c3d4, 147, true])
})

test('log levels: verbose 0 is less than 2, each line with its level', async () => {
  const levels = await node.run(
    async (k, options) => {
      const seen: Record<number, number[]> = {}
      for (const verbose of [0, 2] as const) {
        const levels = new Set<number>()
        const server = new k.Server({ ...options, memory: true, verbose })
        server.on('log', (line, level) => {
          if (/\[v[12]\] /.test(line)) levels.add(99) // the mark is taken off
          levels.add(level)
        })
        await server.up()
        await server.close()
        seen[verbose] = [...levels]
      }
      return seen
    },
    { ...node.options, dir: `${node.options.dir}-log`, hostname: 'talkative' },
  )
  assert.deepEqual(levels[0], [0])
  assert.ok(levels[2]!.includes(0) && levels[2]!.includes(1), String(levels[2]))
})

test('Conn: what net.Socket says of itself', async () => {
  const got = await node.run(async (k, ip) => {
    const c = await k.server.dial(ip, 7)
    const before = [c.connecting, c.pending, c.readyState, c.remoteFamily, c.localFamily]
    const { address, port, family } = c.address()
    c.setNoDelay(true).setKeepAlive(true, 1000).ref().unref()
    c.write('x'.repeat(1000))
    const written = c.bytesWritten
    c.end('y'.repeat(500))
    const ending = c.readyState
    const back = await k.buffer(c)
    return {
      before,
      own: [address === c.localAddress, port === c.localPort, family],
      written: [written, c.bytesWritten],
      read: [c.bytesRead, back.length],
      ending,
      after: c.readyState,
    }
  }, peerIP)
  assert.deepEqual(got, {
    before: [false, false, 'open', 'IPv4', 'IPv4'],
    own: [true, true, 'IPv4'],
    written: [1000, 1500],
    read: [1500, 1500],
    ending: 'readOnly',
    after: 'closed',
  })
  const timeout = await node.run(async (k, ip) => {
    const c = await k.server.dial(ip, 7)
    c.setTimeout(50)
    await k.once(c, 'timeout')
    const was = c.timeout
    const closed = k.once(c, 'close')
    c.resetAndDestroy()
    await closed
    return was
  }, peerIP)
  assert.equal(timeout, 50)
})

test('a disk that takes two seconds to sync holds no packet up', async (t) => {
  if (spawnSync('strace', ['-V']).status !== 0) return t.skip('strace is not installed')
  await node.run(async (k) => {
    ;(await k.server.listen(7)).on('connection', (c) => c.on('error', () => {}).pipe(c))
  })
  const strace = lab.exec(node.ns, [
    ...['strace', '-f', '-qq', '-o', '/dev/null', '-e', 'trace=fsync'],
    ...['-e', 'inject=fsync:delay_enter=2000000', '-p', String(node.child.pid)],
  ])
  const ended = once(strace, 'exit')
  await eventually('strace at work', async () =>
    /TracerPid:\t[1-9]/.test(await readFile(`/proc/${node.child.pid}/status`, 'utf8')),
  )
  const stream = await peer.dial(node.addresses[0], 7)
  let [longest, rounds] = [0, 0]
  const written = node.run(async (k) => {
    const begun = performance.now()
    await k.server.localAPI('PATCH', '/localapi/v0/prefs', { Hostname: 'slow', HostnameSet: true })
    return performance.now() - begun
  })
  let done = false
  void written.then(() => (done = true))
  while (!done) {
    const begun = performance.now()
    stream.write('.')
    await once(stream, 'data')
    longest = Math.max(longest, performance.now() - begun)
    rounds++
  }
  const took = await written
  strace.kill('SIGINT')
  await ended
  stream.destroy()
  t.diagnostic(
    `written in ${Math.round(took)} ms; ${rounds} echoes meanwhile, the longest ${Math.round(longest)} ms`,
  )
  assert.ok(took > 2000, `the state was on the disk after ${took} ms`)
  assert.ok(longest < 1000, `an echo took ${longest} ms`)
})

test('nothing was said on stderr, nothing left the lab', async () => {
  assert.equal(node.stderr, '')
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
