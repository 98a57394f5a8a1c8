/** IP packets made by hand (RFC 791, 8200, 9293, 768, 792), for what no socket sends. */
import { isIPv6 } from 'node:net'

/** The sum of RFC 1071. */
function checksum(...parts: Buffer[]): number {
  const all = Buffer.concat(parts)
  const data = all.length % 2 === 0 ? all : Buffer.concat([all, Buffer.alloc(1)])
  let sum = 0
  for (let i = 0; i < data.length; i += 2) sum += data.readUInt16BE(i)
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16)
  return ~sum & 0xffff
}

/** An address as bytes; of IPv6 without IPv4 in it. */
function octets(text: string): Buffer {
  if (!isIPv6(text)) return Buffer.from(text.split('.').map(Number))
  const [head = [], tail = []] = text.split('::').map((part) => part.split(':').filter(Boolean))
  const zeros = Array<string>(8 - head.length - tail.length).fill('0')
  const groups = [...head, ...zeros, ...tail].map((group) => group.padStart(4, '0'))
  return Buffer.from(groups.join(''), 'hex')
}

/** Ends of a packet, and what is in it. */
export interface Packet {
  from: string
  to: string
  /** Of TCP and UDP. */
  fromPort?: number
  toPort?: number
}

/** Flags of TCP. */
export const tcpFlags = { fin: 1, syn: 2, rst: 4, psh: 8, ack: 16 } as const

function packet({ from, to }: Packet, protocol: number, payload: Buffer): Buffer {
  const [source, target] = [octets(from), octets(to)]
  if (source.length === 16) {
    const header = Buffer.alloc(8)
    header[0] = 0x60
    header.writeUInt16BE(payload.length, 4)
    header[6] = protocol
    header[7] = 64
    return Buffer.concat([header, source, target, payload])
  }
  const header = Buffer.alloc(12)
  header[0] = 0x45
  header.writeUInt16BE(20 + payload.length, 2)
  header[8] = 64
  header[9] = protocol
  header.writeUInt16BE(checksum(header, source, target), 10)
  return Buffer.concat([header, source, target, payload])
}

/** With its checksum set at an offset, over the pseudo header too. */
function summed(ends: Packet, protocol: number, payload: Buffer, at: number): Buffer {
  const tail = Buffer.alloc(8)
  tail.writeUInt32BE(payload.length, 0)
  tail[7] = protocol
  payload.writeUInt16BE(checksum(octets(ends.from), octets(ends.to), tail, payload), at)
  return packet(ends, protocol, payload)
}

/** A TCP segment without data. */
export function tcp(
  ends: Packet,
  flags: number = tcpFlags.syn,
  { seq = 1_000, ack = 0 }: { seq?: number; ack?: number } = {},
): Buffer {
  const segment = Buffer.alloc(20)
  segment.writeUInt16BE(ends.fromPort!, 0)
  segment.writeUInt16BE(ends.toPort!, 2)
  segment.writeUInt32BE(seq, 4)
  segment.writeUInt32BE(ack, 8)
  segment[12] = 5 << 4
  segment[13] = flags
  segment.writeUInt16BE(64_240, 14)
  return summed(ends, 6, segment, 16)
}

/** A datagram. */
export function udp(ends: Packet, data: string): Buffer {
  const datagram = Buffer.concat([Buffer.alloc(8), Buffer.from(data)])
  datagram.writeUInt16BE(ends.fromPort!, 0)
  datagram.writeUInt16BE(ends.toPort!, 2)
  datagram.writeUInt16BE(datagram.length, 4)
  return summed(ends, 17, datagram, 6)
}

/** A ping. */
export function ping(ends: Packet): Buffer {
  const echo = Buffer.from('0000000000010001', 'hex')
  const six = isIPv6(ends.from)
  echo[0] = six ? 128 : 8
  if (six) return summed(ends, 58, echo, 2)
  echo.writeUInt16BE(checksum(echo), 2)
  return packet(ends, 1, echo)
}

/** Ends, protocol and flags of a packet of IPv4 or IPv6, as text: `100.64.0.1:443 > … tcp 18`. */
export function describe(bytes: Buffer): string {
  const six = bytes[0]! >> 4 === 6
  const [protocol, at] = six ? [bytes[6]!, 40] : [bytes[9]!, 4 * (bytes[0]! & 15)]
  const address = (offset: number): string =>
    six
      ? bytes
          .toString('hex', offset, offset + 16)
          .match(/.{4}/g)!
          .join(':')
      : bytes.subarray(offset, offset + 4).join('.')
  const [from, to] = six ? [address(8), address(24)] : [address(12), address(16)]
  const port = (offset: number): string =>
    protocol === 6 || protocol === 17 ? `:${bytes.readUInt16BE(at + offset)}` : ''
  const name = { 1: 'icmp', 6: `tcp ${bytes[at + 13]}`, 17: 'udp', 58: 'icmp6' }[protocol]
  return `${from}${port(0)} > ${to}${port(2)} ${name ?? protocol}`
}
