import assert from 'node:assert/strict'
import { createSocket } from 'node:dgram'
import type { RemoteInfo, Socket } from 'node:dgram'
import { once } from 'node:events'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { pino } from 'pino'
import { defaults, parseConfig } from '../../../../src/config/config.ts'
import { capability } from '../../../../src/gateway/access/access.ts'
import { gatewayTargets } from '../../../../src/firewall/gateway-targets.ts'
import { UDPForward } from '../../../../src/gateway/listen/forward-udp.ts'
import { Bench } from '../../support/bench.ts'
import { alice } from '../../support/tailnet.ts'

/** A socket on the loopback interface; a target that answers in capitals, if it is to. */
async function socket(answers = false): Promise<Socket & { seen: Array<[string, number]> }> {
  const made = Object.assign(createSocket('udp4'), { seen: [] as Array<[string, number]> })
  made.on('message', (data: Buffer, from: RemoteInfo) => {
    made.seen.push([data.toString(), from.port])
    if (answers) made.send(data.toString().toUpperCase(), from.port, from.address)
  })
  made.bind(0, '127.0.0.1')
  await once(made, 'listening')
  made.unref()
  return made
}

async function forwarding(target: Socket): Promise<Bench> {
  const bench = await Bench.start()
  bench.gateway.configure(
    parseConfig(
      `[[forward]]\nprotocol = "udp"\nport = 5140\ntarget = "127.0.0.1:${target.address().port}"\nright = "use"\n`,
      'f',
    ),
  )
  await bench.until(() => bench.tailnet.packetPorts.has(5140))
  return bench
}

test('each port of a peer is a flow of its own: answers find their way back', async () => {
  const target = await socket(true)
  await using bench = await forwarding(target)
  const [one, two] = [await socket(), await socket()]
  const to = bench.tailnet.packetPorts.get(5140)!
  one.send('one', to, '127.0.0.1')
  two.send('two', to, '127.0.0.1')
  await bench.until(() => one.seen.length === 1 && two.seen.length === 1)
  assert.deepEqual([one.seen[0]![0], two.seen[0]![0]], ['ONE', 'TWO'])
  one.send('again', to, '127.0.0.1')
  await bench.until(() => one.seen.length === 2)
  const behind = target.seen.map(([, port]) => port)
  assert.equal(new Set(behind).size, 2, 'one socket towards the target for each flow')
  // Taken off the list, nothing is passed on any more.
  bench.gateway.configure(defaults())
  await bench.until(() => !bench.tailnet.packetPorts.has(5140))
  for (const each of [target, one, two]) each.close()
})

test('who lacks the right gets nothing through, and is asked about once; who gets it, later does', async () => {
  const target = await socket(true)
  await using bench = await forwarding(target)
  bench.tailnet.peer = { ...alice, capMap: { [capability]: [{ may: ['status'] }] } }
  const peer = await socket()
  const to = bench.tailnet.packetPorts.get(5140)!
  for (let i = 0; i < 20; i++) peer.send('x', to, '127.0.0.1')
  await bench.until(() => bench.lines.some(({ code }) => code === 'GH_FORBIDDEN'))
  await sleep(100)
  assert.deepEqual([target.seen, peer.seen], [[], []])
  assert.equal(bench.lines.filter(({ code }) => code === 'GH_FORBIDDEN').length, 1)
  for (const each of [target, peer]) each.close()
})

test('flows are limited, for one peer and in all, wait for their answer and end when they are idle', async () => {
  const target = await socket(true)
  await using bench = await Bench.start()
  const port = await socket()
  const forward = parseConfig(
    `[[forward]]\nprotocol = "udp"\nport = 5140\ntarget = "127.0.0.1:${target.address().port}"\nright = "use"\n`,
    'f',
  ).forward[0]!
  const udp = new UDPForward({
    forward,
    socket: port,
    log: pino({ level: 'silent' }),
    guard: bench.gateway.guard,
    limits: bench.gateway.limits,
    tailnet: bench.tailnet,
    flows: { perPeer: 3, all: 10, waiting: 2, idle: 300 },
  })
  const peers = await Promise.all([1, 2, 3, 4, 5].map(async () => await socket()))
  for (const peer of peers) peer.send('x', port.address().port, '127.0.0.1')
  await bench.until(() => udp.open === 3)
  await bench.until(() => peers.filter(({ seen }) => seen.length > 0).length === 3)
  await bench.until(() => udp.open === 0)
  // The same peers again: there is room.
  peers[4]!.send('y', port.address().port, '127.0.0.1')
  await bench.until(() => peers[4]!.seen.some(([text]) => text === 'Y'))
  udp.close()
  for (const each of [target, ...peers]) each.close()
})

test('what a [[forward]] of UDP cannot have, and what the firewall opens for it', () => {
  const udp = '[[forward]]\nprotocol = "udp"\nport = 514\n'
  for (const [more, message] of [
    ['target = "a:1"\nterminate_tls = true', /which are for TCP alone/],
    ['target = "a:1"\nproxy_protocol = "v2"', /which are for TCP alone/],
    ['target = "unix:/run/x"', /a socket as target/],
    [
      'target = "a:1"\n[[forward]]\nprotocol = "udp"\nport = 514\ntarget = "b:1"',
      /two \[\[forward\]\]/,
    ],
  ] as const)
    assert.throws(() => parseConfig(`${udp}${more}\n`, 'f'), message)
  const both = parseConfig(
    `${udp}target = "127.0.0.1:514"\n[[forward]]\nport = 514\ntarget = "a:1"\n`,
    'f',
  )
  assert.equal(both.forward.length, 2, 'TCP and UDP have ports of their own')
  assert.deepEqual(
    gatewayTargets(both).map(({ text, protocol }) => `${text} ${protocol}`),
    ['a:1 tcp', '127.0.0.1:514 udp'],
  )
  // Elsewhere the gateway may send UDP in any case.
  assert.deepEqual(gatewayTargets(parseConfig(`${udp}target = "192.168.1.20:514"\n`, 'f')), [])
})
