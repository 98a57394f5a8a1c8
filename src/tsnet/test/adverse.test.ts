/**
 * A world that does not play along for a while: loss and delay, no UDP, control server away,
 * machine asleep, clock wrong, a twin. Times are short; with GATEHOUSE_LONG=1 they are those of
 * real life.
 */
import assert from 'node:assert/strict'
import { cp } from 'node:fs/promises'
import { writeFileSync } from 'node:fs'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { ipv6, Lab, type LabClient } from '../../../test/lab/lab.ts'
import { drain, eventually, pattern, unixServer, WasmNode } from './support.ts'

const long = process.env.GATEHOUSE_LONG === '1'
let lab: Lab
let peer: LabClient
let peerIP: string
let node: WasmNode

const within = async (ns: string, ...argv: string[]): Promise<void> => {
  const { code, stderr } = await lab.run(ns, argv)
  assert.equal(code, 0, `${argv.join(' ')}: ${stderr}`)
}

const serveEcho = (n: WasmNode): Promise<void> =>
  n.run(async (k) => {
    ;(await k.server.listen(7)).on('connection', (c) => {
      k.kept.last = c
      c.on('error', () => {}).pipe(c)
    })
  })

before(async () => {
  lab = await Lab.start({ name: process.env.TSNET_NETWORK === 'node' ? 'tadvn' : 'tadv' })
  peer = await lab.client('peer')
  peerIP = (await peer.status()).ips[0]!
  node = await WasmNode.up(lab)
  const socket = path.join(lab.dir, 'peer.sock')
  await unixServer(socket, (s) => s.pipe(s))
  await peer.serve(7, socket)
  await serveEcho(node)
  await peer.pingDirect(node.addresses[0])
})
after(async () => await lab?.stop())

/** Bytes to an echo and back, by either side. */
async function roundTrip(bytes: number, n = node): Promise<void> {
  const sent = pattern(bytes)
  const stream = (await peer.dial(n.addresses[0], 7)) as import('node:net').Socket
  stream.allowHalfOpen = true
  stream.end(sent)
  assert.ok((await drain(stream)).equals(sent), 'what came back to the peer')
  const same = await n.run(
    async (k, ip, size) => {
      const c = await k.server.dial(ip, 7)
      c.end(k.pattern(size))
      return (await k.buffer(c)).equals(k.pattern(size))
    },
    peerIP,
    bytes,
  )
  assert.ok(same, 'what came back to the node')
}

/** An echo over a connection that is open already. */
async function echo(
  stream: Awaited<ReturnType<LabClient['dial']>>,
  text: string,
  timeout = 30_000,
): Promise<void> {
  let got = ''
  const listen = (b: Buffer): void => void (got += b)
  stream.on('data', listen)
  stream.write(text)
  await eventually(`the echo of ${text}`, () => got === text, timeout)
  stream.off('data', listen)
}

test('30 % of the packets lost and 100 ms of delay: slow, and every byte arrives', async (t) => {
  const netem = await lab.run(node.ns, [
    'tc',
    'qdisc',
    'add',
    'dev',
    'eth0',
    'root',
    'netem',
    'delay',
    '100ms',
    'loss',
    '30%',
  ])
  if (netem.code !== 0) {
    t.diagnostic('this kernel has no netem: loss by nftables, no delay')
    await within(
      node.ns,
      'nft',
      'table inet t { chain o { type filter hook output priority 0; meta l4proto udp numgen ' +
        'random mod 100 < 30 drop; }; }',
    )
  }
  const begun = performance.now()
  await roundTrip(long ? 1 << 20 : 16 << 10)
  t.diagnostic(
    `${long ? '1 MiB' : '16 KiB'} each way and back in ${((performance.now() - begun) / 1000).toFixed(1)} s`,
  )
  if (netem.code === 0) await within(node.ns, 'tc', 'qdisc', 'del', 'dev', 'eth0', 'root')
  else await within(node.ns, 'nft', 'delete table inet t')
  await roundTrip(1 << 20)
})

test('no UDP from the beginning: the node joins and works by its relay, and directly once UDP is let through', async (t) => {
  const late = await WasmNode.process(lab, { hostname: 'relayed' })
  await within(
    late.ns,
    'nft',
    'table inet t { chain o { type filter hook output priority 0; meta l4proto udp udp dport ' +
      '!= 53 drop; }; chain i { type filter hook input priority 0; meta l4proto udp udp sport ' +
      '!= 53 drop; }; }',
  )
  await late.up()
  await serveEcho(late)
  await eventually(
    'an answer by the relay',
    () =>
      peer.ping(late.addresses[0]).then(
        (p) => !p.direct && p.derp === 'lab',
        () => false,
      ),
    30_000,
  )
  await roundTrip(1 << 20, late)
  const { peers } = await late.run((k) => k.server.status())
  assert.deepEqual(
    peers.filter((p) => p.curAddr).map((p) => p.hostName),
    [],
    'direct paths',
  )
  await within(late.ns, 'nft', 'delete table inet t')
  const begun = performance.now()
  await eventually(
    'a direct path',
    async () => {
      await late.run(
        async (k, ip) => void (await k.server.dial(ip, 7)).on('error', () => {}).destroy(),
        peerIP,
      )
      return await peer.ping(late.addresses[0]).then(
        (p) => p.direct,
        () => false,
      )
    },
    60_000,
  )
  t.diagnostic(
    `direct ${((performance.now() - begun) / 1000).toFixed(1)} s after UDP was let through`,
  )
  await late.run((k) => k.server.close())
})

test(`control server away for ${long ? 'nine minutes' : '10 s'}: connections old and new go on; it is said, and over when it is back`, async (t) => {
  const stream = await peer.dial(node.addresses[0], 7)
  await lab.stopControl()
  const gone = Date.now()
  // Tailscale says so after eight minutes: until then the control server may be under maintenance
  // (health/warnings.go, notInMapPollWarnable).
  for (const end = gone + (long ? 540_000 : 10_000); Date.now() < end; await sleep(1000)) {
    await echo(stream, 'x')
    await roundTrip(1000)
  }
  assert.equal((await node.run((k) => k.server.status())).backendState, 'Running')
  if (long) {
    const { health } = await node.run((k) => k.server.status())
    assert.match(health.join(), /coordination server/)
  }
  await lab.startControl()
  const back = performance.now()
  const newcomer = await lab.client('newcomer')
  const name = `newcomer.${lab.ready.suffix}`
  await eventually(
    'the node to hear of a new peer',
    async () => (await node.run((k) => k.server.status())).peers.some((p) => p.dnsName === name),
    90_000,
  )
  t.diagnostic(
    `it heard of a new peer ${((performance.now() - back) / 1000).toFixed(1)} s after the control server was back`,
  )
  await eventually(
    'health',
    async () =>
      !/coordination server/.test((await node.run((k) => k.server.status())).health.join()),
    60_000,
  )
  stream.destroy()
  await newcomer.stop()
})

test(`machine asleep for ${long ? 'ten minutes' : '10 s'} (SIGSTOP): the connection goes on`, async (t) => {
  const stream = await peer.dial(node.addresses[0], 7)
  await echo(stream, 'before')
  node.child.kill('SIGSTOP')
  await sleep(long ? 600_000 : 10_000)
  node.child.kill('SIGCONT')
  const begun = performance.now()
  await echo(stream, 'after', 60_000)
  t.diagnostic(`the connection went on after ${((performance.now() - begun) / 1000).toFixed(1)} s`)
  stream.destroy()
  await peer.pingDirect(node.addresses[0])
  await roundTrip(1000)
})

test('asleep while its address changed: it is found at the new one', async (t) => {
  const stream = await peer.dial(node.addresses[0], 7)
  await echo(stream, 'before')
  node.child.kill('SIGSTOP')
  await within(node.ns, 'ip', 'addr', 'add', '10.77.0.98/24', 'dev', 'eth0')
  await within(node.ns, 'ip', 'addr', 'del', `${node.ip}/24`, 'dev', 'eth0')
  await within(node.ns, 'ip', 'addr', 'replace', '10.77.0.98/24', 'dev', 'eth0')
  await within(node.ns, 'ip', 'route', 'replace', 'default', 'via', '10.77.0.1')
  await sleep(3000)
  node.child.kill('SIGCONT')
  const begun = performance.now()
  await echo(stream, 'after', 60_000)
  t.diagnostic(`the connection went on after ${((performance.now() - begun) / 1000).toFixed(1)} s`)
  stream.destroy()
  await eventually(
    'a direct path to the new address',
    () =>
      peer.ping(node.addresses[0]).then(
        (p) => p.endpoint?.startsWith('10.77.0.98:'),
        () => false,
      ),
    30_000,
  )
})

test('a clock of 1970: no certificate is valid yet, which is said; once it is set right the node joins, and goes on', async (t) => {
  const library = await lab.run(lab.ns, ['sh', '-c', 'ls /usr/lib/*/faketime/libfaketime.so.1'])
  if (library.code !== 0) return t.skip('libfaketime is not installed (Debian package faketime)')
  const clock = path.join(lab.dir, 'clock')
  writeFileSync(clock, '@1970-01-01 00:10:00\n')
  const old = await WasmNode.process(lab, {
    hostname: 'clockless',
    processEnv: {
      LD_PRELOAD: library.stdout.trim(),
      FAKETIME_TIMESTAMP_FILE: clock,
      FAKETIME_NO_CACHE: '1',
      FAKETIME_DONT_FAKE_MONOTONIC: '1',
    },
  })
  await old.make()
  await old.run((k) => k.server.start())
  assert.equal(await old.run(() => new Date().getUTCFullYear()), 1970)
  await eventually(
    'the certificate among the health warnings',
    async () => /not yet valid/.test((await old.run((k) => k.server.status())).health.join()),
    30_000,
  )
  const right = async (): Promise<void> => {
    writeFileSync(clock, '+0\n')
    assert.ok((await old.run(() => new Date().getUTCFullYear())) > 2025)
    const begun = performance.now()
    old.status = await old.run((k) => k.server.up())
    t.diagnostic(`joined ${((performance.now() - begun) / 1000).toFixed(1)} s after it was right`)
  }
  await right()
  await serveEcho(old)
  await roundTrip(100_000, old)
  const stream = await peer.dial(old.addresses[0], 7)
  await echo(stream, 'before')
  // As by a time server that was wrong for a while: what is open does not ask.
  writeFileSync(clock, '@1970-01-01 00:10:00\n')
  await echo(stream, 'after')
  writeFileSync(clock, '+0\n')
  await echo(stream, 'later')
  stream.destroy()
  await peer.pingDirect(old.addresses[0])
  const known = (await lab.nodes()).find((n) => n.hostname === 'clockless')
  assert.equal(known?.expired, false)
  await old.run((k) => k.server.close())
  // And with the clock at 1970 again, as after a power cut without a clock that goes on: the
  // identity is still good.
  writeFileSync(clock, '@1970-01-01 00:10:00\n')
  await old.make({ authKey: '' })
  await old.run((k) => k.server.start())
  await sleep(2000)
  await right()
  assert.equal(
    (await lab.nodes()).filter((n) => n.hostname === 'clockless').length,
    1,
    'the same node',
  )
  await old.run((k) => k.server.close())
})

test('a second node with the same state: it is the same node, neither hangs or fails, and whoever is left is reached', async () => {
  const first = await WasmNode.up(lab, { hostname: 'twin' })
  const dir = path.join(lab.dir, 'twin-copy')
  await cp(first.options.dir, dir, { recursive: true })
  const second = await WasmNode.up(lab, { hostname: 'twin', dir, authKey: '' })
  assert.equal(second.status.self?.id, first.status.self?.id)
  for (const n of [first, second])
    assert.equal((await n.run((k) => k.server.status())).backendState, 'Running')
  assert.equal((await lab.nodes()).filter((n) => n.name === second.status.self?.dnsName).length, 1)
  await first.run((k) => k.server.close())
  await serveEcho(second)
  await eventually(
    'the one that is left to be reached',
    () =>
      peer.ping(second.addresses[0], 'TSMP').then(
        () => true,
        () => false,
      ),
    30_000,
  )
  await roundTrip(1000, second)
  await second.run((k) => k.server.close())
})

test('IPv6 outside, where UDP over IPv4 does not get through: the path is direct', async () => {
  const ip = '10.77.0.58'
  const ns = await lab.host('six', ip, { ipv6: true })
  await within(
    ns,
    'nft',
    'table ip t { chain o { type filter hook output priority 0; meta l4proto udp udp dport != 53 drop; }; }',
  )
  await within(peer.ns, 'ip', 'addr', 'add', `${ipv6(peer.ip)}/64`, 'dev', 'eth0', 'nodad')
  const six = await WasmNode.up(lab, { ns, hostname: 'six' })
  await serveEcho(six)
  const pong = await peer.pingDirect(six.addresses[0], 60_000)
  assert.match(pong.endpoint ?? '', /^\[2001:db8:77::58\]:/)
  await roundTrip(1 << 20, six)
  await six.run((k) => k.server.close())
})

test('IPv6 alone outside: control server, relay and peer', async () => {
  const ip = '10.77.0.59'
  const ns = await lab.host('onlysix', ip, { ipv6: 'only' })
  const six = await WasmNode.up(lab, { ns, hostname: 'onlysix' })
  await serveEcho(six)
  const pong = await peer.pingDirect(six.addresses[0], 60_000)
  assert.match(pong.endpoint ?? '', /^\[2001:db8:77::59\]:/)
  await roundTrip(1 << 20, six)
  await six.run((k) => k.server.close())
})

test('nothing was said on stderr, nothing left the lab', async () => {
  assert.equal(node.stderr, '')
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
