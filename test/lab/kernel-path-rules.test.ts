/**
 * The kernel's data path by the kernel alone: the image's own ruleset, the interface as
 * provisioning has it made, and whoever has broken into the gateway at its other end, with packets
 * of their making; a machine on the local network beside it.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import readline from 'node:readline'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Config } from '../../src/config/config.ts'
import { kernelPath } from '../../src/config/data-path.ts'
import { kernelRedirection, redirection } from '../../src/firewall/apply.ts'
import { kernelPathFiles } from '../../src/provision/kernel-path.ts'
import { makeInterface } from './kernel-path.ts'
import { describe, ping, tcp, tcpFlags, udp } from './packets.ts'
import type { Packet } from './packets.ts'
import { asUser, cable, inside, ruleset, run, users } from './ruleset.ts'

const TUN = kernelPath.interface
const [box, stranger] = [`gh-kp-box-${process.pid}`, `gh-kp-out-${process.pid}`]
const [own, lan] = ['192.168.79.1', '192.168.79.2']
/** Another device of the tailnet, and the node itself. */
const [peer, node] = ['100.64.0.7', '100.64.0.1']
const [peer6, node6] = ['fd7a:115c:a1e0::7', 'fd7a:115c:a1e0::1']
const { addresses, ports } = kernelPath
const children: ChildProcess[] = []
let ids: Map<string, string>
let directory: string
let injector: ChildProcess
/** What the kernel gave the gateway to send into the tailnet. */
const out: string[] = []
let nextPort = 50_000

const load = async (text: string): Promise<unknown> =>
  await run(inside(box, 'nft', '-f', '-'), text)

/** A program in a namespace; resolves when it has said something. */
async function start(ns: string, argv: string[]): Promise<ChildProcess> {
  const [command, ...rest] = inside(ns, ...argv)
  const child = spawn(command!, rest, { stdio: ['pipe', 'pipe', 'inherit'] })
  children.push(child)
  const [said] = (await Promise.race([
    once(child.stdout!, 'data'),
    once(child, 'exit').then(() => ['ended']),
  ])) as [Buffer | string]
  assert.match(String(said), /^(?:up|open)\n$/)
  return child
}
const program = (body: string, user?: string): string[] => {
  const node = [process.execPath, '-e', body]
  return user === undefined ? node : asUser(ids.get(user) ?? user, ...node)
}
const listener = (port: number): string =>
  `require('node:net').createServer((c) => c.on('error', () => {}).write('here')).listen(${port}, '::', () => console.log('up'))`

/** Writes packets to the interface; what came back to it, and to the local network, within a while. */
async function inject(...packets: Buffer[]): Promise<string[]> {
  const before = out.length
  for (const one of packets) injector.stdin!.write(`${one.toString('hex')}\n`)
  await sleep(300)
  return out.slice(before)
}
const ends = (
  to: [string, number],
  from: string = to[0].includes(':') ? peer6 : peer,
): Required<Packet> => ({ from, to: to[0], fromPort: nextPort++, toPort: to[1] })

/** Packets of IP that came from the box by the cable, but for what keeps IPv6 going. */
async function onCable(): Promise<number> {
  const said = await run(inside(stranger, 'nft', 'list', 'counter', 'inet', 'watch', 'seen'))
  return Number(/packets (\d+)/.exec(said)![1])
}

before(async () => {
  ids = await users()
  directory = await mkdtemp(path.join(tmpdir(), 'gh-kpath-'))
  await cable([
    [box, `${own}/24`, 'fd00:79::1/64'],
    [stranger, `${lan}/24`, 'fd00:79::2/64'],
  ])
  // A way to everywhere, as a router is.
  await run(['ip', '-n', box, 'route', 'add', 'default', 'via', lan])
  await run(['ip', '-n', box, '-6', 'route', 'add', 'default', 'via', 'fd00:79::2'])
  await run(
    inside(stranger, 'nft', '-f', '-'),
    `table inet watch { counter seen { }
       chain in { type filter hook prerouting priority -400;
         iif eth0 meta l4proto != ipv6-icmp counter name seen
       }
     }
`,
  )
  await makeInterface(box, ids.get('gatehouse')!)
  for (const all of ['all', 'default'])
    await run(inside(box, 'sysctl', '-qw', `net.ipv4.conf.${all}.rp_filter=1`))
  await load(await ruleset())
  await start(box, program(listener(3_000), '65534'))
  for (const port of Object.values(ports)) await start(box, program(listener(port), 'gatehouse'))
  // Everybody may read and write /dev/net/tun, as udev has it; the unit gives it to the gateway.
  const mounts =
    `mount -t tmpfs none ${directory} && mknod -m 666 ${directory}/tun c 10 200 && ` +
    `mount --bind ${directory}/tun /dev/net/tun && exec "$@"`
  const script = path.join(import.meta.dirname, 'tun-injector.ts')
  const node = [process.execPath, '--disable-warning=ExperimentalWarning', script, TUN]
  const opened = (user: string): string[] => [
    'sh',
    '-c',
    mounts,
    'sh',
    ...asUser(ids.get(user)!, ...node),
  ]
  // Nobody but the gateway's user has it.
  await assert.rejects(start(box, opened('node-red')), /refused/)
  injector = await start(box, opened('gatehouse'))
  readline.createInterface({ input: injector.stdout! }).on('line', (line) => {
    out.push(describe(Buffer.from(line, 'hex')))
  })
})

after(async () => {
  for (const child of children) child.kill()
  for (const ns of [box, stranger]) await run(['ip', 'netns', 'del', ns]).catch(() => {})
  await rm(directory, { recursive: true, force: true })
})

test('without the setting nothing comes in by the interface', async () => {
  assert.deepEqual(await inject(tcp(ends([node, 443])), tcp(ends([addresses[4], 43_443]))), [])
})

test("with it, ports 443, 8443 and 10000 of the node's addresses are answered from there", async () => {
  await load(kernelRedirection(true, false))
  await load(kernelRedirection(true, true))
  for (const [to, zeros] of [
    [node, node],
    [node6, 'fd7a:115c:a1e0:0000:0000:0000:0000:0001'],
  ] as const)
    for (const port of [443, 8_443, 10_000]) {
      const one = ends([to, port])
      const [answer] = await inject(tcp(one))
      await inject(tcp(one, tcpFlags.rst, { seq: 1_001 }))
      assert.match(
        answer ?? 'silence',
        new RegExp(`^${zeros}:${port} > .*:${one.fromPort} tcp 18$`),
      )
    }
})

test('no other port, address, source or protocol, and not the ports behind, is answered', async () => {
  const before = await onCable()
  const packets = [
    // Ports that somebody listens on, at each address the kernel may take for its own.
    ...[node, addresses[4], own, '127.0.0.1', '255.255.255.255', '192.168.79.255'].flatMap((to) =>
      [3_000, 22, ...Object.values(ports)].map((port) => tcp(ends([to, port]))),
    ),
    ...[node6, addresses[6], 'fd00:79::1', '::1', 'ff02::1'].flatMap((to) =>
      [3_000, 22, ...Object.values(ports)].map((port) => tcp(ends([to, port]))),
    ),
    // 443 of addresses that are not the tailnet's.
    ...[own, addresses[4], '127.0.0.1'].map((to) => tcp(ends([to, 443]))),
    tcp(ends(['fd00:79::1', 443])),
    // Sources of the local network, the internet, this machine, nobody.
    ...[lan, own, '8.8.8.8', '127.0.0.1', addresses[4], '0.0.0.0'].map((from) =>
      tcp(ends([node, 443], from)),
    ),
    ...['fd00:79::2', '2001:db8::1', '::1', addresses[6]].map((from) =>
      tcp(ends([node6, 443], from)),
    ),
    // No new connection begins so.
    ...[tcpFlags.ack, tcpFlags.fin, tcpFlags.rst, 0, 63].map((flags) =>
      tcp(ends([node, 443]), flags),
    ),
    ...[node, own, addresses[4]].flatMap((to) => [
      udp(ends([to, 443]), 'hello'),
      udp(ends([to, 41_641]), 'hello'),
      ping(ends([to, 0])),
    ]),
    ping(ends([node6, 0])),
  ]
  assert.deepEqual(await inject(...packets), [])
  assert.equal((await onCable()) - before, 0, 'nor did anything leave by the cable')
})

test('to be passed on: nothing, from whomever to whomever', async () => {
  const before = await onCable()
  const packets = [peer, lan, own, node, '8.8.8.8'].flatMap((from) =>
    [lan, '8.8.8.8', '192.168.79.255'].flatMap((to) => [
      tcp(ends([to, 443], from)),
      udp(ends([to, 53], from), 'hello'),
      ping(ends([to, 0], from)),
    ]),
  )
  assert.deepEqual(await inject(...packets), [])
  assert.equal((await onCable()) - before, 0)
})

test("another's connection cannot be spoken into by the interface", async () => {
  // The clock's user asks a server on the local network; whoever has the interface forges an answer.
  const server = await start(
    stranger,
    program(
      `const s = require('node:dgram').createSocket('udp4');
       s.on('message', (m, from) => { console.log(from.port); process.stdin.once('data', () => s.send('true', from.port, from.address)) });
       s.bind(123, () => console.log('up'))`,
    ),
  )
  const asked = once(server.stdout!, 'data') as Promise<[Buffer]>
  const client = await start(
    box,
    program(
      `const s = require('node:dgram').createSocket('udp4'); s.on('message', (m) => console.log(String(m)));
       s.send('what time', 123, '${lan}', () => console.log('up'))`,
      'systemd-timesync',
    ),
  )
  const heard: string[] = []
  client.stdout!.on('data', (text) => heard.push(String(text)))
  const [port] = await asked
  const forged = { from: lan, to: own, fromPort: 123, toPort: Number(port) }
  assert.deepEqual(await inject(udp(forged, 'forged')), [])
  assert.deepEqual(heard, [])
  server.stdin!.write('\n')
  await once(client.stdout!, 'data')
  assert.deepEqual(heard, ['true\n'])
  // Nor into one of the listener on the local network, which is translated too.
  await load(redirection(true, false))
  assert.deepEqual(
    await inject(...[443, 41_443].map((toPort) => tcp({ ...ends([own, toPort], lan) }))),
    [],
  )
  await load(redirection(false, true))
})

test('out by it goes no packet of any user but answers, and answers go no other way', async () => {
  const before = await onCable()
  const tries = ['gatehouse', 'node-red', 'gatehouse-update', '0'].flatMap((user) =>
    (
      [
        [addresses[4], peer],
        [addresses[4], lan],
        [addresses[6], peer6],
        [addresses[6], 'fd00:79::2'],
      ] as const
    ).map(async ([from, to]) => {
      const six = from.includes(':')
      await run(
        inside(
          box,
          ...program(
            `const s = require('node:net').connect({ host: '${to}', port: 443, localAddress: '${from}' }).on('error', () => {});
             const u = require('node:dgram').createSocket('udp${six ? 6 : 4}').on('error', () => {});
             u.bind(0, '${from}', () => u.send('hello', 443, '${to}', () => {}));
             setTimeout(() => process.exit(), 700)`,
            user,
          ),
        ),
      )
    }),
  )
  const said = out.length
  await Promise.all(tries)
  assert.deepEqual(out.slice(said), [])
  assert.equal((await onCable()) - before, 0)
})

test('from the local network its ports and addresses are not reached, whoever it says it is', async () => {
  await run(['ip', '-n', stranger, 'route', 'add', addresses[4], 'via', own])
  await run(['ip', '-n', stranger, 'route', 'add', node, 'via', own])
  await run(['ip', '-n', stranger, 'address', 'add', `${peer}/32`, 'dev', 'eth0'])
  const knock = async (host: string, port: number, from = lan): Promise<string> =>
    await run(
      inside(
        stranger,
        ...program(
          `require('node:net').connect({ host: '${host}', port: ${port}, localAddress: '${from}' }).setTimeout(900, () => { console.log('silence'); process.exit() })
             .on('error', (e) => console.log(e.code)).on('data', () => { console.log('open'); process.exit() })`,
        ),
      ),
    )
  await Promise.all(
    [own, addresses[4], node].flatMap((host) =>
      [43_443, 443].flatMap((port) =>
        [lan, peer].map(async (from) => {
          assert.equal(await knock(host, port, from), 'silence\n', `${from} to ${host}:${port}`)
        }),
      ),
    ),
  )
})

test('a connection that is open when the interface goes down or away sends nothing elsewhere', async () => {
  const one = ends([node, 443])
  const [synack] = await inject(tcp(one))
  assert.match(synack ?? 'silence', /tcp 18$/)
  const before = await onCable()
  // Unanswered, it is sent again; and the server's own data when the handshake is over.
  await run(['ip', '-n', box, 'link', 'set', TUN, 'down'])
  await sleep(1_500)
  await run(['ip', '-n', box, 'link', 'delete', TUN])
  await sleep(1_500)
  assert.equal((await onCable()) - before, 0)
})

const networkd = '/usr/lib/systemd/systemd-networkd'
const without = existsSync(networkd) ? false : `there is no ${networkd} here (Debian's systemd)`

test(
  'systemd-networkd makes the interface of these files, and has nothing to say against them',
  { skip: without },
  async () => {
    const files = path.join(directory, 'network')
    await mkdir(files)
    for (const [name, text] of kernelPathFiles({ dataPath: 'kernel' } as Config['tailnet']))
      await writeFile(path.join(files, name), text)
    await writeFile(
      path.join(directory, 'passwd'),
      'root:x:0:0::/:/bin/sh\nsystemd-network:x:998:998::/:/bin/false\n' +
        `gatehouse:x:${ids.get('gatehouse')!}:601::/:/bin/false\n`,
    )
    await writeFile(path.join(directory, 'group'), 'root:x:0:\nsystemd-network:x:998:\n')
    // With /sys to read alone it waits for no udev. Nothing of this machine's /run is seen.
    const script = `set -e
    mount --bind ${directory}/passwd /etc/passwd; mount --bind ${directory}/group /etc/group
    mount -o remount,ro,bind /sys; mount -t tmpfs run /run
    mkdir -p /run/systemd/network /run/systemd/netif/{links,leases,lldp}
    cp ${files}/* /run/systemd/network; chown -R 998:998 /run/systemd/netif
    ${networkd} >/run/said 2>&1 & pid=$!
    end=$((SECONDS + 60))
    until ip -6 rule | grep -q ${kernelPath.table} && ip -4 rule | grep -q ${kernelPath.table}
    do [ $SECONDS -lt $end ] || break; sleep 0.1; done
    sleep 0.3; set +e; kill $pid
    cat /sys/class/net/${TUN}/owner /sys/class/net/${TUN}/mtu
    echo; ip -o address show dev ${TUN}; ip -4 rule; ip -6 rule
    for family in 4 6; do ip -$family route show table ${kernelPath.table}; done
    ip route show table main; cat /run/said`
    const namespace = `gh-kp-nd-${process.pid}`
    await run(['ip', 'netns', 'add', namespace])
    try {
      const said = await run(inside(namespace, 'bash', '-c', script))
      const [owner, mtu] = said.split('\n')
      assert.deepEqual([owner, mtu], [ids.get('gatehouse'), '1280'], said)
      for (const line of [
        /inet 192\.0\.2\.77\/32 scope link/,
        /inet6 fd67:6174:6568:6f75::1\/128 .*deprecated/,
        /from 192\.0\.2\.77 lookup 43443/,
        /from fd67:6174:6568:6f75::1 lookup 43443/,
        /^100\.64\.0\.0\/10 dev gatehouse0 .*scope link/m,
        /^fd7a:115c:a1e0::\/48 dev gatehouse0/m,
      ])
        assert.match(said, line)
      assert.equal(said.match(/^unreachable default/gm)?.length, 2, said)
      assert.doesNotMatch(
        said,
        /ignor(?:ed|ing) (?:line|assignment)|will be ignored|Unknown|Failed to parse/,
      )
    } finally {
      await run(['ip', 'netns', 'del', namespace])
    }
  },
)
