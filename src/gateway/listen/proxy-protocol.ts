import { isIPv4 } from 'node:net'

/** Both ends of a connection: addresses of one family, and ports. */
export interface Ends {
  source: string
  sourcePort: number
  destination: string
  destinationPort: number
}

const signature = Buffer.from('\r\n\r\n\0\r\nQUIT\n', 'latin1')

/**
 * What goes before the first byte to a target that asks who is behind a connection
 * (haproxy.org/download/3.0/doc/proxy-protocol.txt, §2.1 and §2.2).
 */
export function proxyHeader(
  version: 'v1' | 'v2',
  { source, sourcePort, destination, destinationPort }: Ends,
): Buffer {
  const four = isIPv4(source)
  if (version === 'v1')
    return Buffer.from(
      `PROXY ${four ? 'TCP4' : 'TCP6'} ${source} ${destination} ${sourcePort} ${destinationPort}\r\n`,
      'latin1',
    )
  const addresses = Buffer.concat([bytes(source), bytes(destination)])
  const ports = Buffer.alloc(4)
  ports.writeUInt16BE(sourcePort, 0)
  ports.writeUInt16BE(destinationPort, 2)
  const head = Buffer.alloc(4)
  // Version 2, command PROXY; family and STREAM; length of what follows.
  head.writeUInt8(0x21, 0)
  head.writeUInt8(four ? 0x11 : 0x21, 1)
  head.writeUInt16BE(addresses.length + ports.length, 2)
  return Buffer.concat([signature, head, addresses, ports])
}

/** An address in network order. */
function bytes(address: string): Buffer {
  if (isIPv4(address)) return Buffer.from(address.split('.').map(Number))
  // URL writes IPv6 in one form; what is left is to fill `::`.
  const [left, right] = new URL(`http://[${address}]`).hostname.slice(1, -1).split('::')
  const groups = (text: string | undefined): string[] =>
    text === undefined || text === '' ? [] : text.split(':')
  const [head, tail] = [groups(left), groups(right)]
  const all =
    right === undefined
      ? head
      : [...head, ...Array<string>(8 - head.length - tail.length).fill('0'), ...tail]
  const out = Buffer.alloc(16)
  for (const [i, group] of all.entries()) out.writeUInt16BE(Number.parseInt(group, 16), 2 * i)
  return out
}
