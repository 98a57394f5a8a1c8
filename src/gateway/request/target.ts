import type { IncomingMessage } from 'node:http'

/**
 * Why a request is not passed on: it means one thing to one reader and another to the next, or
 * nothing at all.
 */
export interface Refusal {
  status: 400 | 421 | 431 | 505
  /** What is wrong with it, without a full stop. */
  message: string
}

/** The same target in the form to ask for. */
export interface Redirect {
  status: 308
  /** A path, with the query. */
  location: string
}

/**
 * A request has this many header lines at most: browsers send some 30, and Node would drop those
 * past 2,000 unseen.
 */
export const maxHeaders = 200

const refuse = (message: string, status: Refusal['status'] = 400): Refusal => ({ status, message })

/**
 * Looks for what Node's parser lets through and two servers may read differently (RFC 9112 §11.2,
 * request smuggling). Node itself refuses, before this is asked: Content-Length with
 * Transfer-Encoding, a second or malformed Content-Length, folded lines, bare CR or LF, NUL, white
 * space around names, `chunked` that is not last.
 *
 * @returns undefined for a request that has one reading
 */
export function ambiguity(
  request: Pick<IncomingMessage, 'httpVersion' | 'rawHeaders'>,
): Refusal | undefined {
  // Node takes `GET /` without a version for 0.9, and 2.0 in a request line for 1.1.
  if (request.httpVersion !== '1.1' && request.httpVersion !== '1.0')
    return refuse(`HTTP/${request.httpVersion} is not spoken here`, 505)
  if (request.rawHeaders.length > 2 * maxHeaders)
    return refuse(`the request has more than ${maxHeaders} headers`, 431)
  let hosts = 0
  let encodings = 0
  for (let i = 0; i < request.rawHeaders.length; i += 2) {
    const name = request.rawHeaders[i]!.toLowerCase()
    const value = request.rawHeaders[i + 1]!
    if (name === 'host') {
      // Node takes the first, other servers the last.
      if (++hosts > 1) return refuse('the request has two Host headers')
      if (!isHost(value)) return refuse('the Host header is not a name')
    } else if (name === 'transfer-encoding') {
      // Codings other than chunked would be passed on undecoded, under a framing of the gateway's
      // own.
      if (++encodings > 1 || value.toLowerCase() !== 'chunked')
        return refuse('Transfer-Encoding is not chunked alone')
      if (request.httpVersion === '1.0')
        return refuse('Transfer-Encoding does not exist in HTTP/1.0')
    }
  }
  return hosts === 0 ? refuse('the request has no Host header') : undefined
}

/**
 * Headers of an HTTP/1.1 connection, which is not there in HTTP/2 (RFC 9113 §8.2.2): a server
 * behind would take them for its own.
 */
const connectionSpecific =
  /^(?:connection|keep-alive|proxy-connection|transfer-encoding|upgrade|http2-settings)$/

/**
 * {@link ambiguity} for a request that came over HTTP/2 and goes on over HTTP/1.1. Much of it
 * nghttp2 refuses before, and it is refused here again: what is well-formed in one protocol ends a
 * line in the other.
 */
export function streamAmbiguity(request: Pick<IncomingMessage, 'rawHeaders'>): Refusal | undefined {
  if (request.rawHeaders.length > 2 * (maxHeaders + 4))
    return refuse(`the request has more than ${maxHeaders} headers`, 431)
  const pseudo = new Map<string, string>()
  let host: string | undefined
  let lengths = 0
  for (let i = 0; i < request.rawHeaders.length; i += 2) {
    const name = request.rawHeaders[i]!
    const value = request.rawHeaders[i + 1]!
    if (/[\0\r\n]/.test(value)) return refuse('a header has a line break in it')
    if (name.startsWith(':')) {
      if (pseudo.has(name)) return refuse(`the request has two of ${name}`)
      pseudo.set(name, value)
      continue
    }
    if (!/^[!#$%&'*+.^_`|~0-9a-z-]+$/.test(name))
      return refuse('a header has a name that is not valid')
    if (connectionSpecific.test(name) || (name === 'te' && value.toLowerCase() !== 'trailers'))
      return refuse(`${name} does not exist in HTTP/2`)
    if (name === 'content-length' && ++lengths > 1)
      return refuse('the request has two Content-Lengths')
    if (name === 'host') {
      if (host !== undefined) return refuse('the request has two Host headers')
      host = value
    }
  }
  if (pseudo.get(':method') === 'CONNECT' || pseudo.has(':protocol'))
    return refuse('the gateway opens no tunnels')
  if (pseudo.get(':scheme') !== 'https') return refuse('the scheme is not https')
  const path = pseudo.get(':path') ?? ''
  if (!/^\/[\x21-\x7e]*$/.test(path)) return refuse('the request target is not a path')
  const authority = pseudo.get(':authority')
  // Node takes :authority, other servers Host.
  if (authority !== undefined && host !== undefined && hostName(authority) !== hostName(host))
    return refuse(':authority and Host name two hosts')
  const named = authority ?? host
  if (named === undefined) return refuse('the request names no host')
  return isHost(named) ? undefined : refuse('the host is not a name')
}

/** RFC 3986 §3.2.2: a name, an IPv4 address or an IPv6 address in brackets, and perhaps a port. */
function isHost(host: string): boolean {
  return /^(?:[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?$/.test(
    host,
  )
}

/** The name in a Host header: lower case, without port, and without the dot that may end it. */
export function hostName(host: string): string {
  return host.toLowerCase().replace(/:\d+$/, '').replace(/\.$/, '')
}

/**
 * The target of a request in the one form every reader takes alike: a path, with what need not be
 * escaped unescaped and the rest in capitals (RFC 3986 §6.2.2.1 and .2), and the query as it came.
 * So what decides by path decides about the path the origin sees.
 *
 * Refused rather than rewritten is what servers are known to disagree about and browsers never
 * send: dot segments, however spelt, backslashes, control characters, escapes that are broken or no
 * UTF-8, fragments. Slashes at the start, which are a host to some and which base URLs that end in
 * a slash produce, are one: that is to be asked for. An absolute-form target must name the host
 * that Host names (RFC 9112 §3.2.2 would let it win over Host, unseen by those who look there).
 */
export function canonicalTarget(target: string, host: string): string | Refusal | Redirect {
  if (!target.startsWith('/')) {
    const absolute = /^https?:\/\/([^/?#]*)(.*)$/i.exec(target)
    if (absolute === null) return refuse('the request target is neither a path nor a URL')
    if (hostName(absolute[1]!) !== hostName(host))
      return refuse('the request target names another host than the Host header')
    target = absolute[2]!.startsWith('/') ? absolute[2]! : `/${absolute[2]!}`
  }
  // What nearly every request looks like. No nested repetition: this sees what anyone sends.
  if (
    /^\/[A-Za-z0-9_~@:/.-]*(?:\?[^#]*)?$/.test(target) &&
    !target.includes('/.') &&
    !target.startsWith('//')
  )
    return target
  if (target.includes('#')) return refuse('the request target has a fragment')
  const end = target.indexOf('?')
  const path = end < 0 ? target : target.slice(0, end)
  const query = end < 0 ? '' : target.slice(end)
  if (path.startsWith('//')) {
    const one = canonicalTarget(target.replace(/^\/+/, '/'), host)
    return typeof one === 'string' ? { status: 308, location: one } : one
  }
  if (path.includes('\\') || /%5c/i.test(path)) return refuse('the path has a backslash')
  if (/%(?:[01][0-9a-f]|7f)/i.test(path)) return refuse('the path has a control character')
  try {
    decodeURIComponent(path)
  } catch {
    return refuse('an escape in the path is broken or no UTF-8')
  }
  const canonical = path.replace(/%[0-9a-f]{2}/gi, (escape) => {
    const character = String.fromCharCode(Number.parseInt(escape.slice(1), 16))
    return /[A-Za-z0-9._~-]/.test(character) ? character : escape.toUpperCase()
  })
  // %2F divides segments for some and not for others: neither may see dots between them.
  if (canonical.split(/\/|%2F/).some((segment) => segment === '.' || segment === '..'))
    return refuse('the path has a dot segment')
  return canonical + query
}
