/**
 * `[tailnet] data_path = "kernel"`: what the gateway makes of it over sockets of loopback, and what
 * unit, interface and firewall are told. The kernel's part is test/lab/kernel-path*.test.ts.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { request } from 'node:http'
import type { IncomingMessage } from 'node:http'
import { connect, createServer } from 'node:net'
import type { AddressInfo } from 'node:net'
import path from 'node:path'
import { test } from 'node:test'
import { text } from 'node:stream/consumers'
import { connect as tlsConnect } from 'node:tls'
import type { TLSSocket } from 'node:tls'
import { defaults, parseConfig } from '../../../../src/config/config.ts'
import { isTailnetAddress, kernelPath, kernelPort } from '../../../../src/config/data-path.ts'
import { parseIngress } from '../../../../src/config/ingress.ts'
import { kernelRedirection } from '../../../../src/firewall/apply.ts'
import { interfaces } from '../../../../src/firewall/networks.ts'
import { gatehouseDropIn } from '../../../../src/provision/gatehouse-unit.ts'
import { kernelPathFiles } from '../../../../src/provision/kernel-path.ts'
import { table } from '../../../../src/gateway/operate/status-text.ts'
import { Bench, name } from '../../support/bench.ts'
import { LoopbackTailnet } from '../../support/tailnet.ts'

const overlays = path.resolve(import.meta.dirname, '../../../../overlays')
const kernel = parseConfig('[tailnet]\ndata_path = "kernel"\n', 'gatehouse.toml')

/** A port of loopback that nobody has. */
async function freePort(): Promise<number> {
  const server = createServer().listen(0)
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  return port
}

/** A gateway whose kernel's data path is loopback: the ports behind the node's. */
async function bench(
  how: Parameters<typeof Bench.start>[0] = {},
  addresses: string[] = ['127.0.0.1', '::1'],
): Promise<{ bench: Bench; ports: Record<number, number> }> {
  const ports: Record<number, number> = {}
  for (const port of [443, 8_443, 10_000]) ports[port] = await freePort()
  const made = await Bench.start({
    ...how,
    certificate: false,
    options: { kernelPath: { addresses, portOf: (port) => ports[port] }, ...how.options },
    node: { kernel: true, ...how.node },
  })
  made.putCertificate()
  await made.until(() => made.log('serving').length > 0)
  return { bench: made, ports }
}

/** A TLS connection by the kernel, as peers have it. */
async function dial(made: Bench, port: number, host = '127.0.0.1'): Promise<TLSSocket> {
  const socket = tlsConnect({
    ...{ host, port, servername: name },
    ca: made.authority.certificate,
  })
  await once(socket, 'secureConnect')
  return socket
}

async function get(socket: TLSSocket, host = name): Promise<IncomingMessage> {
  const asked = request({ createConnection: () => socket, path: '/', headers: { host } }).end()
  return ((await once(asked, 'response')) as [IncomingMessage])[0]
}

test('its three ports are served by sockets of the kernel, with who is at the other end', async () => {
  const { bench: made, ports } = await bench()
  await using _ = made
  for (const host of ['127.0.0.1', '::1']) {
    const answer = await get(await dial(made, ports[443]!, host))
    assert.equal(answer.statusCode, 200)
    answer.resume()
  }
  // As the tailnet writes addresses: none is mapped.
  assert.deepEqual(made.tailnet.whoIsCalls.map((asked) => asked.replace(/:\d+$/, '')).toSorted(), [
    '127.0.0.1',
    '[::1]',
  ])
  await made.until(async () => (await made.gateway.status()).tailnet.dataPath === 'kernel')
  const own = await get(await dial(made, ports[10_000]!), `${name}:10000`)
  assert.equal(own.headers['content-security-policy'] !== undefined, true)
  own.resume()
  assert.match(table(await made.gateway.status()), /^Data path +the kernel's TCP$/m)
  assert.deepEqual(made.gateway.problems.list(), [])
})

test('a forward by name takes its connection from port 443, and the others go on', async () => {
  const { bench: made, ports } = await bench()
  await using _ = made
  const target = createServer((socket) => socket.end('forwarded'))
  target.listen(0, '127.0.0.1')
  await once(target, 'listening')
  made.gateway.configure({
    ...defaults(),
    forward: parseConfig(
      `[[forward]]\nport = 443\nsni = ["other.example"]\ntarget = "127.0.0.1:${(target.address() as AddressInfo).port}"\n`,
      'gatehouse.toml',
    ).forward,
  })
  const raw = tlsConnect({ host: '127.0.0.1', port: ports[443]!, servername: 'other.example' })
  const [notTLS] = (await once(raw, 'error')) as [NodeJS.ErrnoException]
  assert.equal(notTLS.code, 'ERR_SSL_WRONG_VERSION_NUMBER', 'the target answered')
  const bare = connect(ports[443]!, '127.0.0.1')
  await once(bare, 'connect')
  bare.destroy()
  const answer = await get(await dial(made, ports[443]!))
  assert.equal(answer.statusCode, 200, 'its first bytes were read before, and are not lost')
  assert.ok((await text(answer)).length > 0)
  target.close()
})

test('what the firewall has not translated is closed unheard', async () => {
  const { bench: made, ports } = await bench({}, ['192.0.2.77'])
  await using _ = made
  const socket = connect(ports[443]!, '127.0.0.1').on('error', () => {})
  await once(socket, 'close')
  assert.equal(socket.bytesRead, 0)
  assert.deepEqual(made.tailnet.whoIsCalls, [])
})

test('without an interface the node starts with its own stack, and the status says so', async () => {
  const asked: boolean[] = []
  let one!: Bench
  const made = await Bench.start({
    node: {
      kernel: true,
      create: (wanted) => {
        asked.push(wanted)
        if (!wanted) return one.tailnet
        const other = new LoopbackTailnet()
        other.startError = Object.assign(new Error('the device gatehouse0 cannot be opened: no'), {
          code: 'TSNET_TUN',
        })
        return other
      },
    },
    before: (bench) => {
      one = bench
    },
  })
  await using _ = made
  assert.deepEqual(asked, [true, false])
  assert.equal((await made.fetch()).status, 200)
  const { problems, tailnet } = await made.gateway.status()
  assert.equal(tailnet.dataPath, 'userspace')
  assert.deepEqual(
    problems.map(({ code, part, severity }) => [code, part, severity]),
    [['GH_DATA_PATH', 'data path', 'warning']],
  )
  assert.match(problems[0]!.message, /gatehouse0 cannot be opened: no/)
})

test('a port that cannot be had, an interface without its address, another tailnet: likewise, port by port', async () => {
  for (const [options, words, current] of [
    [{ addresses: ['127.0.0.1'], portOf: () => 1 }, /EACCES|EADDRINUSE|permission/],
    [{ patience: 1 }, /the interface gatehouse0 has not the address/],
    [
      { addresses: ['127.0.0.1'] },
      /10\.99\.0\.1, which is no Tailscale address/,
      { ...LoopbackTailnet.running(), tailscaleIPs: ['10.99.0.1'] as string[] },
    ],
  ] as const) {
    const taken = createServer()
    if ('portOf' in options) {
      taken.listen({ host: '::', port: 0 })
      await once(taken, 'listening')
    }
    const port = (taken.address() as AddressInfo | null)?.port
    await using made = await Bench.start({
      options: {
        kernelPath: {
          ...options,
          addresses: 'addresses' in options ? [...options.addresses] : undefined!,
          ...('portOf' in options ? { portOf: () => port } : {}),
        },
      },
      node: { kernel: true },
      before: (one) => {
        if (current !== undefined) one.tailnet.current = { ...current }
      },
    })
    assert.equal((await made.fetch()).status, 200)
    const problem = made.gateway.problems.get('data path')
    assert.equal(problem?.code, 'GH_DATA_PATH')
    assert.match(problem!.message, words)
    taken.close()
  }
})

test('unit: one device and three ports, with the setting alone', () => {
  assert.equal(gatehouseDropIn(defaults()), '')
  assert.deepEqual(
    gatehouseDropIn(kernel)
      .split('\n')
      .filter((line) => /^\w+=/.test(line)),
    [
      ...Object.values(kernelPath.ports).map((port) => `SocketBindAllow=tcp:${port}`),
      'PrivateDevices=no',
      'DevicePolicy=closed',
      'DeviceAllow=/dev/net/tun rw',
    ],
  )
})

test("interface: the gateway's user's, with fixed addresses, and routes for these alone", () => {
  for (const file of kernelPathFiles(defaults().tailnet).values()) assert.equal(file, '')
  const [netdev, network] = [...kernelPathFiles(kernel.tailnet).values()]
  assert.match(netdev!, /^Kind=tun\n\[Tun\]\nUser=gatehouse\nVNetHeader=yes$/m)
  for (const line of [
    'MTUBytes=1280',
    'Address=192.0.2.77/32',
    'Address=fd67:6174:6568:6f75::1/128',
  ])
    assert.ok(network!.includes(`${line}\n`), line)
  // No route is in the table that all else goes by.
  const routes = network!.split(/^(?=\[)/m).filter((part) => part.startsWith('[Rout'))
  assert.equal(routes.length, 6)
  for (const route of routes) assert.match(route, /^Table=43443$/m)
})

test('firewall: what the image has written out is what the program goes by', () => {
  const rules = readFileSync(path.join(overlays, 'etc/nftables.conf'), 'utf8')
  const own = Object.values(kernelPath.ports).toSorted((a, b) => a - b)
  for (const set of rules.match(/\{ 43100[^}]*\}/g)!) assert.equal(set, `{ ${own.join(', ')} }`)
  assert.equal(rules.match(new RegExp(`name "${kernelPath.interface}" goto`, 'g'))?.length, 2)
  for (const address of Object.values(kernelPath.addresses)) assert.ok(rules.includes(address))
  const reserved = readFileSync(path.join(overlays, 'usr/lib/sysctl.d/60-gatehouse.conf'), 'utf8')
  const list = /ip_local_reserved_ports = (.*)/.exec(reserved)![1]!.split(',').map(Number)
  for (const port of own) {
    assert.ok(list.includes(port))
    assert.ok('wrong' in parseIngress(`${port}/tcp from lan`), 'nor can a flow have it')
  }
  assert.equal(kernelRedirection(false, false), '', 'no translation where none is needed')
  assert.match(kernelRedirection(false, true), /delete chain/)
  const script = kernelRedirection(true, false)
  for (const [from, to] of Object.entries(kernelPath.ports)) {
    assert.match(
      script,
      new RegExp(
        `iifname "gatehouse0" ip saddr 100\\.64\\.0\\.0/10 .* dport ${from} dnat ip to 192\\.0\\.2\\.77:${to} `,
      ),
    )
    assert.match(
      script,
      new RegExp(`dport ${from} dnat ip6 to \\[fd67:6174:6568:6f75::1\\]:${to} `),
    )
    assert.equal(kernelPort(Number(from)), to)
  }
  assert.equal(kernelPort(80), undefined)
})

test('the interface is none of the local networks, and its addresses are this machine’s', () => {
  const of = (address: string, cidr: string): never =>
    ({ address, cidr, internal: false, family: address.includes(':') ? 'IPv6' : 'IPv4' }) as never
  const found = interfaces({
    eth0: [of('192.168.1.7', '192.168.1.7/24')],
    gatehouse0: [
      of('192.0.2.77', '192.0.2.77/32'),
      of('fd67:6174:6568:6f75::1', 'fd67:6174:6568:6f75::1/128'),
    ],
  })
  assert.deepEqual(found.networks, [{ network: '192.168.1.0/24', family: 4 }])
  assert.equal(found.ipv6, false)
  assert.ok(found.addresses.includes('192.0.2.77'))
  for (const [address, is] of [
    ['100.64.0.1', true],
    ['fd7a:115c:a1e0::1', true],
    ['100.128.0.1', false],
    ['fd7b::1', false],
  ] as const)
    assert.equal(isTailnetAddress(address), is, address)
})
