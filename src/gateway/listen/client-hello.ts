/**
 * The name a TLS client asks for (SNI), read from the first bytes of its connection without taking
 * part in the handshake (RFC 8446 §4.1.2, RFC 6066 §3).
 *
 * @returns the name in lower case; `more` when the bytes are the beginning of a ClientHello;
 *   undefined when there is no name or no TLS
 */
export function serverName(bytes: Buffer): string | 'more' | undefined {
  // A ClientHello may be spread over records: put together what they carry.
  const parts: Buffer[] = []
  let at = 0
  let complete = false
  while (at < bytes.length) {
    if (bytes[at] !== 22) return parts.length === 0 ? undefined : name(Buffer.concat(parts), true)
    if (at + 5 > bytes.length) break
    const end = at + 5 + bytes.readUInt16BE(at + 3)
    parts.push(bytes.subarray(at + 5, Math.min(end, bytes.length)))
    if (end > bytes.length) break
    at = end
    const message = Buffer.concat(parts)
    if (message.length >= 4 && message.length >= 4 + message.readUIntBE(1, 3)) {
      complete = true
      break
    }
  }
  return name(Buffer.concat(parts), complete)
}

function name(message: Buffer, complete: boolean): string | 'more' | undefined {
  if (message.length > 0 && message[0] !== 1) return undefined
  if (!complete) return 'more'
  try {
    let at = 4 + 2 + 32
    at += 1 + message.readUInt8(at)
    at += 2 + message.readUInt16BE(at)
    at += 1 + message.readUInt8(at)
    const end = at + 2 + message.readUInt16BE(at)
    at += 2
    while (at + 4 <= end) {
      const [type, length] = [message.readUInt16BE(at), message.readUInt16BE(at + 2)]
      at += 4
      if (type === 0) {
        // A list, of which only host names (type 0) were ever defined.
        if (message.readUInt8(at + 2) !== 0) return undefined
        return message
          .toString('latin1', at + 5, at + 5 + message.readUInt16BE(at + 3))
          .toLowerCase()
      }
      at += length
    }
    return undefined
  } catch {
    // It ends before what it says it holds.
    return undefined
  }
}
