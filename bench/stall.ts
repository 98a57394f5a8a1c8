/**
 * What peers and apps that mean harm cost the gateway: its processor time, its memory, and how long
 * nobody else is answered. Prints a line for each attack. It needs nothing of the gateway but what
 * test/unit/support uses, so that it runs on an older commit too: the figures of docs/decisions.md
 * are of one run before a change and one after it.
 *
 * Usage: node bench/stall.ts [ATTACK…]
 */
import { fork, spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { on, once } from 'node:events'
import { connect as connectHTTP2 } from 'node:http2'
import { connect } from 'node:net'
import type { Socket } from 'node:net'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { connect as tlsConnect } from 'node:tls'
import type { TLSSocket } from 'node:tls'
import { defaults } from '../src/config/config.ts'
import { Bench, name } from '../test/unit/support/bench.ts'
import { alice } from '../test/unit/support/tailnet.ts'

/** What the gateway's process says of itself. */
interface Figures {
  /** MiB. */
  rss: number
  /** Seconds since the last time, and the longest in which it did nothing else. */
  cpu: number
  blocked: number
  /** What the app has sent. */
  sent: number
  connections: number
}

const [attack] = process.argv.slice(2)
const bodySize = 2 * 1024 * 1024

/** The gateway in a process of its own, as the attacker sees it. */
class Gateway {
  readonly child: ChildProcess
  readonly port!: string
  readonly ca!: string

  constructor(child: ChildProcess) {
    this.child = child
  }

  async figures(): Promise<Figures> {
    this.child.send('figures')
    return ((await once(this.child, 'message')) as [Figures])[0]
  }

  /** Connections from now on come from another node. */
  async from(node: {
    id: string
    addresses: string[]
    rights: boolean
    at: number
  }): Promise<void> {
    this.child.send(node)
    await once(this.child, 'message')
  }

  /** A connection that is accepted. */
  async connect(protocol = 'http/1.1'): Promise<TLSSocket> {
    const socket = tlsConnect({
      socket: connect(this.port),
      servername: name,
      ca: this.ca,
      ALPNProtocols: [protocol],
    })
    await once(socket, 'secureConnect')
    socket.on('error', () => {})
    return socket
  }
}

/** The attacks, by name; what each came to. */
function attacks(): Record<string, (gateway: Gateway) => Promise<string>> {
  return {
    'client-hello': async (gateway) => {
      await gateway.figures()
      const sockets = Array.from({ length: 4 }, () => connect(gateway.port).on('error', () => {}))
      await Promise.all(sockets.map(async (socket) => await records(socket)))
      const { cpu, blocked } = await gateway.figures()
      return (
        `4 connections of 10,000 records in 300 segments: ${cpu.toFixed(2)} s of CPU time, ` +
        `nobody else served for ${blocked.toFixed(2)} s`
      )
    },
    interim: async (gateway) => {
      const before = await gateway.figures()
      const socket = await gateway.connect()
      socket.pause()
      socket.write(`GET /hints HTTP/1.1\r\nHost: ${name}\r\n\r\n`)
      await pause(8_000)
      const after = await gateway.figures()
      return (
        `8 s of 103s to a peer that does not read: ${after.sent} sent, ` +
        `${(after.rss - before.rss).toFixed(0)} MiB more, ${after.cpu.toFixed(2)} s of CPU time`
      )
    },
    'cached-http1': async (gateway) => {
      await stored(gateway)
      const before = await gateway.figures()
      const sockets: Socket[] = []
      for (let i = 0; i < 250; i++) {
        if (i % 20 === 0) await pause(1_000)
        const socket = await gateway.connect()
        socket.pause()
        socket.write(`GET /large.js HTTP/1.1\r\nHost: ${name}\r\n\r\n`)
        sockets.push(socket)
      }
      await pause(2_000)
      const after = await gateway.figures()
      return (
        `250 stalled GETs of ${bodySize / 1024 / 1024} MiB: ` +
        `${(after.rss - before.rss).toFixed(0)} MiB more (${before.rss.toFixed(0)} to ` +
        `${after.rss.toFixed(0)}), ${after.connections} open`
      )
    },
    'cached-http2': async (gateway) => {
      await stored(gateway)
      const before = await gateway.figures()
      for (let i = 0; i < 5; i++) {
        const socket = await gateway.connect('h2')
        const session = connectHTTP2(`https://${name}`, {
          createConnection: () => socket,
          settings: { initialWindowSize: 2 ** 31 - 1 },
        })
        session.on('error', () => {})
        await once(session, 'remoteSettings')
        session.setLocalWindowSize(2 ** 31 - 1)
        for (let j = 0; j < 50; j++)
          session
            .request({ ':path': '/large.js', ':authority': name })
            .on('error', () => {})
            .pause()
        await pause(50)
        socket.pause()
      }
      await pause(3_000)
      const after = await gateway.figures()
      return (
        `250 stalled streams of ${bodySize / 1024 / 1024} MiB on 5 connections: ` +
        `${(after.rss - before.rss).toFixed(0)} MiB more (${before.rss.toFixed(0)} to ` +
        `${after.rss.toFixed(0)})`
      )
    },
    'cached-speed': async (gateway) => {
      await stored(gateway)
      await gateway.figures()
      const socket = await gateway.connect()
      const begun = performance.now()
      let bytes = 0
      const wanted = 200 * bodySize
      for (let i = 0; i < 200; i++) socket.write(`GET /large.js HTTP/1.1\r\nHost: ${name}\r\n\r\n`)
      for await (const [piece] of on(socket, 'data') as AsyncIterable<[Buffer]>) {
        bytes += piece.length
        if (bytes > wanted) break
      }
      const { cpu } = await gateway.figures()
      return (
        '200 times 2 MiB from the cache to a peer that reads: ' +
        `${((bytes * 8) / 1e6 / ((performance.now() - begun) / 1000)).toFixed(0)} Mbit/s, ` +
        `${cpu.toFixed(2)} s of CPU time`
      )
    },
    'two-addresses': async (gateway) => {
      let open = 0
      for (const at of [0, 1]) {
        await gateway.from({
          id: 'one',
          addresses: ['100.64.1.1', 'fd7a:115c:a1e0::101'],
          rights: true,
          at,
        })
        open += await many(gateway, 300)
      }
      return `one node with two addresses holds ${open} connections`
    },
    'without-rights': async (gateway) => {
      for (let i = 1; i <= 5; i++) {
        await gateway.from({ id: `s${i}`, addresses: [`100.64.1.${i}`], rights: false, at: 0 })
        await many(gateway, 25)
      }
      await gateway.from({ id: 'owner', addresses: ['100.64.2.1'], rights: true, at: 0 })
      let served = 0
      for (let i = 0; i < 20; i++) {
        const connected = Promise.race([
          gateway.connect(),
          pause(2_000).then(() => {
            throw new Error('refused')
          }),
        ])
        const answer = await connected.then(
          async (socket) => {
            socket.write(`GET / HTTP/1.1\r\nHost: ${name}\r\n\r\n`)
            return String(
              (
                await Promise.race([once(socket, 'data'), once(socket, 'close')]).catch(() => '')
              )[0],
            )
          },
          () => '',
        )
        if (answer.startsWith('HTTP/1.1 200')) served++
      }
      return (
        '5 nodes without rights hold what they can get of 100 connections: one with rights ' +
        `gets ${served} of 20 connections`
      )
    },
    'python-413': async (gateway) => {
      const child = spawn('python3', ['-c', python, gateway.port, name], {
        stdio: ['ignore', 'pipe', 'inherit'],
      })
      let out = ''
      child.stdout.setEncoding('utf8').on('data', (piece: string) => {
        out += piece
      })
      await once(child, 'close')
      return `a body of 5 MiB where 1 is allowed, by Python: ${out.trim()}`
    },
  }
}

/** Python's http.client over TLS over the unix socket; the answers it could read. */
const python = `
import http.client, socket, ssl, sys, collections
context = ssl._create_unverified_context()
class Unix(http.client.HTTPConnection):
    def connect(self):
        raw = socket.socket(socket.AF_UNIX)
        raw.connect(sys.argv[1])
        self.sock = context.wrap_socket(raw, server_hostname=sys.argv[2])
seen = collections.Counter()
for chunked in (False, True):
    for _ in range(12):
        connection = Unix(sys.argv[2], timeout=20)
        try:
            body = (b'x' * 65536 for _ in range(80)) if chunked else b'x' * 5 * 1024 * 1024
            connection.request('POST', '/', body, encode_chunked=chunked,
                headers={'Transfer-Encoding': 'chunked'} if chunked else {})
            seen[('chunked' if chunked else 'sized', connection.getresponse().status)] += 1
        except Exception as error:
            seen[('chunked' if chunked else 'sized', type(error).__name__)] += 1
        connection.close()
print(', '.join(f'{how} {what}: {count}' for (how, what), count in seen.items()))
`

async function pause(ms: number): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, ms))
}

/** Puts the large file into the cache. */
async function stored(gateway: Gateway): Promise<void> {
  const socket = await gateway.connect()
  socket.write(`GET /large.js HTTP/1.1\r\nHost: ${name}\r\nConnection: close\r\n\r\n`)
  socket.resume()
  await once(socket, 'close')
  await pause(1_000)
}

/** The beginning of a ClientHello of 16,000 bytes, a byte a record. */
async function records(socket: Socket): Promise<void> {
  await once(socket, 'connect')
  // A ClientHello (1) and its length, three bytes; then nothing but zeros.
  const hello = [1, 0, 62]
  const bytes = Buffer.alloc(60_000)
  for (let i = 0; i < 10_000; i++) bytes.set([22, 3, 1, 0, 1, hello[i] ?? 0], 6 * i)
  for (let i = 0; i < 300 && !socket.destroyed; i++) {
    socket.write(bytes.subarray(200 * i, 200 * (i + 1)))
    await pause(2)
  }
  socket.destroy()
}

/** As many connections as are let in of so many; they send nothing more. */
async function many(gateway: Gateway, count: number): Promise<number> {
  const open = []
  for (let i = 0; i < count; i++) {
    if (i % 20 === 0) await pause(900)
    open.push(await gateway.connect().catch(() => undefined))
  }
  await pause(100)
  return open.filter((socket) => socket !== undefined && !socket.destroyed).length
}

/** The gateway's process. */
async function serve(which: string): Promise<void> {
  const bench = await Bench.start()
  const limits = { ...defaults().limits, memoryMib: 4_000 }
  if (which === 'python-413') limits.bodyMib = 1
  // What is measured is the number, not the rate.
  if (which === 'two-addresses' || which === 'without-rights') limits.headerTimeout = 120_000
  if (which === 'without-rights')
    Object.assign(limits, { connections: 100, connectionsPerPeer: 25 })
  bench.gateway.configure({
    ...defaults(),
    limits,
    ...(which === 'client-hello'
      ? {
          forward: [
            {
              port: 443,
              sni: ['git.example.org'],
              target: '127.0.0.1:1',
              protocol: 'tcp',
              terminateTLS: false,
              proxyProtocol: 'off' as const,
              right: 'edit' as const,
            },
          ],
        }
      : {}),
  })
  const delay = monitorEventLoopDelay({ resolution: 5 })
  delay.enable()
  let cpu = process.cpuUsage()
  let sent = 0
  const large = Buffer.alloc(bodySize, 'x')
  bench.origin.handler = (request, response) => {
    if (request.url === '/large.js')
      response
        .writeHead(200, {
          'content-type': 'image/png',
          'cache-control': 'public, max-age=3600',
          'content-length': large.length,
        })
        .end(large)
    else if (request.url === '/hints') {
      const { socket } = request
      const hint = `HTTP/1.1 103 Early Hints\r\nLink: </${'x'.repeat(8_000)}>; rel=preload\r\n\r\n`
      const more = (): void => {
        while (!socket.destroyed) {
          sent++
          if (!socket.write(hint)) break
        }
      }
      socket.on('drain', more)
      more()
    } else if (request.method === 'POST') request.resume().on('end', () => response.end('taken'))
    else response.end('well')
  }
  process.on('message', (message: 'figures' | Parameters<Gateway['from']>[0]) => {
    if (message === 'figures') {
      globalThis.gc?.()
      const used = process.cpuUsage(cpu)
      cpu = process.cpuUsage()
      process.send!({
        rss: process.memoryUsage.rss() / 1024 / 1024,
        cpu: (used.user + used.system) / 1e6,
        blocked: delay.max / 1e9,
        sent,
        connections: bench.gateway.connections,
      } satisfies Figures)
      delay.reset()
      return
    }
    bench.tailnet.from = message.addresses[message.at]!
    const whoIs = {
      ...alice,
      node: { ...alice.node, id: message.id, addresses: message.addresses },
      capMap: message.rights ? alice.capMap : {},
    }
    for (const address of message.addresses) bench.tailnet.peers.set(address, whoIs)
    process.send!('done')
  })
  process.send!({ port: bench.tailnet.path(443), ca: bench.authority.certificate })
}

if (process.send === undefined) {
  for (const one of attack === undefined ? Object.keys(attacks()) : process.argv.slice(2)) {
    const child = fork(import.meta.filename, [one], {
      execArgv: ['--disable-warning=ExperimentalWarning', '--max-semi-space-size=4'],
    })
    const gateway = new Gateway(child)
    const [ready] = (await once(child, 'message')) as [{ port: string; ca: string }]
    Object.assign(gateway, ready)
    console.log(`${one.padEnd(20)} ${await attacks()[one]!(gateway)}`)
    child.kill()
    await once(child, 'exit')
  }
  process.exit(0)
} else {
  await serve(attack!)
}
