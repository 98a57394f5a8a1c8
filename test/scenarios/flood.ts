/**
 * What a hostile machine on the local network sends: runs in its namespace, as root, and prints how
 * many packets went out.
 *
 * Usage: node flood.ts syn|udp|malformed|ports|tcp ADDRESS COUNT
 * - syn: TCP SYNs from forged addresses of the segment to random ports
 * - udp: datagrams to the WireGuard port, each from a port of its own, so that each is a new flow
 * - malformed: IP packets that no sender makes: wrong lengths and checksums, impossible flags and
 *   options, fragments that overlap; IPv6 too: headers that contradict each other, routing headers,
 *   neighbour discovery from afar
 * - ports: one datagram to every UDP port (COUNT of them, from 1 on); IPv6 too
 * - tcp: one SYN to every TCP port, likewise, from this machine's own address, so that answers come
 *   back to it
 *
 * Raw sockets by way of node:ffi: Node.js has none of its own.
 */
import dgram from 'node:dgram'
import { randomBytes, randomInt } from 'node:crypto'
import { dlopen } from 'node:ffi'
import { isIPv6 } from 'node:net'
import { networkInterfaces } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'

const [kind, address, number] = process.argv.slice(2)
const count = Number(number)
if (!kind || !address || !(count > 0)) {
  console.error('usage: flood.ts syn|udp|malformed|ports|tcp ADDRESS COUNT')
  process.exit(2)
}

/** RFC 1071. */
function checksum(...parts: Buffer[]): number {
  const all = Buffer.concat(parts)
  const data = all.length % 2 === 0 ? all : Buffer.concat([all, Buffer.alloc(1)])
  let sum = 0
  for (let i = 0; i < data.length; i += 2) sum += data.readUInt16BE(i)
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16)
  return ~sum & 0xffff
}

const octets = (text: string): Buffer => Buffer.from(text.split('.').map(Number))

/** An IPv6 address without IPv4 in it. */
function octets6(text: string): Buffer {
  const [head = [], tail] = text
    .replace(/%.*/, '')
    .split('::')
    .map((part) => part.split(':').filter(Boolean))
  const groups =
    tail === undefined
      ? head
      : [...head, ...Array<string>(8 - head.length - tail.length).fill('0'), ...tail]
  return Buffer.from(groups.map((group) => group.padStart(4, '0')).join(''), 'hex')
}

/**
 * An IPv6 packet (RFC 8200) around a payload; from a neighbour that is none, unless told otherwise.
 */
function ip6(
  next: number,
  payload: Buffer,
  {
    length = payload.length,
    hops = 64,
    from = Buffer.concat([Buffer.from('fe80000000000000', 'hex'), randomBytes(8)]),
  }: { length?: number; hops?: number; from?: Buffer } = {},
): Buffer {
  const header = Buffer.alloc(40)
  header[0] = 0x60
  header.writeUInt16BE(length, 4)
  header[6] = next
  header[7] = hops
  from.copy(header, 8)
  octets6(address!).copy(header, 24)
  return Buffer.concat([header, payload])
}

/** An IPv4 packet (RFC 791) around a payload. The kernel fills in the header's checksum. */
function ip(
  from: Buffer,
  to: Buffer,
  protocol: number,
  payload: Buffer,
  change: (header: Buffer) => void = () => {},
): Buffer {
  const header = Buffer.alloc(20)
  header[0] = 0x45
  header.writeUInt16BE(20 + payload.length, 2)
  header.writeUInt16BE(randomInt(65536), 4)
  header[8] = 64
  header[9] = protocol
  from.copy(header, 12)
  to.copy(header, 16)
  change(header)
  return Buffer.concat([header, payload])
}

/** A TCP header without data (RFC 9293). */
function tcp(from: Buffer, to: Buffer, flags: number, port = randomInt(1, 65536)): Buffer {
  const segment = Buffer.alloc(20)
  segment.writeUInt16BE(randomInt(1024, 65536), 0)
  segment.writeUInt16BE(port, 2)
  segment.writeUInt32BE(randomInt(2 ** 32), 4)
  segment[12] = 5 << 4
  segment[13] = flags
  segment.writeUInt16BE(64240, 14)
  const pseudo = Buffer.concat([
    from,
    to,
    from.length === 4 ? Buffer.from([0, 6, 0, 20]) : Buffer.from([0, 0, 0, 20, 0, 0, 0, 6]),
  ])
  segment.writeUInt16BE(checksum(pseudo, segment), 16)
  return segment
}

async function raw(make: (i: number) => Buffer): Promise<number> {
  const six = isIPv6(address!.replace(/%.*/, ''))
  const { functions: libc } = dlopen('libc.so.6', {
    socket: { arguments: ['i32', 'i32', 'i32'], return: 'i32' },
    sendto: { arguments: ['i32', 'buffer', 'u64', 'i32', 'buffer', 'u32'], return: 'i64' },
  })
  // AF_INET or AF_INET6, SOCK_RAW, IPPROTO_RAW: the header is ours.
  const fd = libc['socket']!(six ? 10 : 2, 3, 255) as number
  if (fd < 0) throw new Error('no raw socket: run as root')
  const to = Buffer.alloc(six ? 28 : 16)
  to.writeUInt16LE(six ? 10 : 2, 0)
  if (six) {
    octets6(address!).copy(to, 8)
    const [, link] = address!.split('%')
    to.writeUInt32LE(
      networkInterfaces()[link ?? '']?.find(({ family }) => family === 'IPv6')?.scopeid ?? 0,
      24,
    )
  } else octets(address!).copy(to, 4)
  let sent = 0
  for (let i = 0; i < count; i++) {
    const packet = make(i)
    if ((libc['sendto']!(fd, packet, BigInt(packet.length), 0, to, to.length) as bigint) >= 0n)
      sent++
    if (i % 200 === 199) await sleep(20)
  }
  return sent
}

async function datagrams(port: (i: number) => number, ownSocket: boolean): Promise<number> {
  const type = isIPv6(address!.replace(/%.*/, '')) ? 'udp6' : 'udp4'
  const one = dgram.createSocket(type).on('error', () => {})
  let sent = 0
  for (let i = 0; i < count; i++) {
    const socket = ownSocket ? dgram.createSocket(type).on('error', () => {}) : one
    socket.send(randomBytes(48), port(i), address!, (error) => {
      if (!error) sent++
      if (ownSocket) socket.close()
    })
    if (i % 100 === 99) await sleep(10)
  }
  await sleep(500)
  one.close()
  return sent
}

const to = isIPv6(address.replace(/%.*/, '')) ? Buffer.alloc(4) : octets(address)
const forged = (): Buffer => Buffer.from([10, 77, 0, randomInt(151, 250)])
const malformed: (() => Buffer)[] = [
  // TCP with impossible flags: none, all, SYN with FIN, SYN with RST; and to port 0.
  ...[0, 0xff, 0x03, 0x06].map((flags) => () => {
    const from = forged()
    return ip(from, to, 6, tcp(from, to, flags))
  }),
  () => {
    const from = forged()
    return ip(from, to, 6, tcp(from, to, 2, 0))
  },
  // A header cut short, for each protocol that has one.
  () => ip(forged(), to, randomInt(256), randomBytes(randomInt(8))),
  // Random protocols and payloads.
  () => ip(forged(), to, randomInt(256), randomBytes(randomInt(1, 200))),
  // UDP to WireGuard with a wrong length, and with a wrong checksum.
  () =>
    ip(
      forged(),
      to,
      17,
      Buffer.concat([Buffer.from([0x10, 0x00, 0xa2, 0xa9, 0xff, 0xff, 0, 0]), randomBytes(20)]),
    ),
  () =>
    ip(
      forged(),
      to,
      17,
      Buffer.concat([Buffer.from([0x10, 0x00, 0xa2, 0xa9, 0, 28, 0x12, 0x34]), randomBytes(20)]),
    ),
  // Fragments: a first one without the rest, ones that overlap, one that ends beyond 65,535 bytes
  // ("ping of death").
  () =>
    ip(forged(), to, 17, randomBytes(64), (header) =>
      header.writeUInt16BE(0x2000 | randomInt(3), 6),
    ),
  () => ip(forged(), to, 1, randomBytes(64), (header) => header.writeUInt16BE(0x1fff, 6)),
  // A DHCP answer that is none.
  () =>
    ip(
      octets('10.77.0.1'),
      to,
      17,
      Buffer.concat([Buffer.from([0, 67, 0, 68, 1, 0x08, 0, 0]), randomBytes(256)]),
    ),
  // A packet from itself, and from 127.0.0.1.
  () => ip(to, to, 6, tcp(to, to, 2)),
  () => {
    const from = octets('127.0.0.1')
    return ip(from, to, 6, tcp(from, to, 2, 80))
  },
  // ICMP: a redirect, a source quench, an error about a connection that is not.
  () =>
    ip(
      forged(),
      to,
      1,
      Buffer.concat([
        Buffer.from(
          [
            [5, 1],
            [4, 0],
            [3, 3],
          ][randomInt(3)]!,
        ),
        randomBytes(62),
      ]),
    ),
]

const malformed6: (() => Buffer)[] = [
  // A length that is not there, and one that leaves some out.
  () => ip6(17, randomBytes(16), { length: 1200 }),
  () => ip6(17, randomBytes(200), { length: 3 }),
  // Any next header, cut short or random.
  () => ip6(randomInt(256), randomBytes(randomInt(8))),
  () => ip6(randomInt(256), randomBytes(randomInt(1, 200))),
  // Hop-by-hop options that run over the end, twice in a row; a routing header of type 0 (RFC
  // 5095).
  () => ip6(0, Buffer.concat([Buffer.from([0, 200]), randomBytes(30)])),
  () =>
    ip6(
      0,
      Buffer.concat([
        Buffer.from([0, 0, 1, 4, 0, 0, 0, 0]),
        Buffer.from([6, 0, 1, 4, 0, 0, 0, 0]),
        randomBytes(20),
      ]),
    ),
  () => ip6(43, Buffer.concat([Buffer.from([6, 2, 0, 1, 0, 0, 0, 0]), randomBytes(36)])),
  // Fragments: one alone, ones that overlap, of nothing (RFC 6946).
  () =>
    ip6(
      44,
      Buffer.concat([
        Buffer.from([17, 0, 0, 1 | (randomInt(3) << 3), 0, 0, 0, randomInt(4)]),
        randomBytes(64),
      ]),
    ),
  () => ip6(44, Buffer.from([6, 0, 0, 0, 0, 0, 0, 9])),
  // TCP and UDP with checksums that are wrong.
  () => ip6(6, tcp(Buffer.alloc(4), Buffer.alloc(4), randomInt(256))),
  () =>
    ip6(
      17,
      Buffer.concat([Buffer.from([0x10, 0x00, 0xa2, 0xa9, 0, 28, 0x12, 0x34]), randomBytes(20)]),
    ),
  // Neighbour discovery: from afar (hop limit 64), and of the right form with nonsense in it. A
  // redirect.
  () => ip6(58, Buffer.concat([Buffer.from([133 + randomInt(5), 0]), randomBytes(30)])),
  () =>
    ip6(58, Buffer.concat([Buffer.from([133 + randomInt(5), 0]), randomBytes(30)]), { hops: 255 }),
]

/** A SYN from this machine's own address. */
const syn = (() => {
  const six = isIPv6(address.replace(/%.*/, ''))
  const own = Object.values(networkInterfaces())
    .flat()
    .find(
      (one) =>
        one !== undefined &&
        !one.internal &&
        one.family === (six ? 'IPv6' : 'IPv4') &&
        (!six || one.address.startsWith('fe80')),
    )
  if (own === undefined)
    return () => {
      throw new Error('this machine has no such address')
    }
  const [from, target] = six
    ? [octets6(own.address), octets6(address)]
    : [octets(own.address), octets(address)]
  return (port: number): Buffer =>
    six
      ? ip6(6, tcp(from, target, 2, port), { from })
      : ip(from, target, 6, tcp(from, target, 2, port))
})()

const kinds: Record<string, () => Promise<number>> = {
  syn: () =>
    raw(() => {
      const from = forged()
      return ip(from, to, 6, tcp(from, to, 2))
    }),
  udp: () => datagrams(() => 41641, true),
  malformed: () =>
    raw(() =>
      (isIPv6(address.replace(/%.*/, ''))
        ? malformed6[randomInt(malformed6.length)]!
        : malformed[randomInt(malformed.length)]!)(),
    ),
  tcp: () => raw((i) => syn(i + 1)),
  ports: () => datagrams((i) => i + 1, false),
}
if (!Object.hasOwn(kinds, kind)) throw new Error(`no kind ${kind}`)
console.log(await kinds[kind]!())
