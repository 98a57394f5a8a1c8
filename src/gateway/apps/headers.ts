import type { FastifyRequest } from 'fastify'
import type { IncomingHttpHeaders, IncomingMessage } from 'node:http'
import type { WhoIs } from '@gatehouse/tsnet'
import { applyRules } from '../../config/header-rules.ts'
import { peerOf } from '../tailnet/peer.ts'
import { channelHeader, hopByHop, isOwned, leaks, ownHeader } from '../../config/header-names.ts'

/** What is true of the request, for {@link requestHeaders}. */
export interface Origin {
  /** Address of the peer. */
  address: string
  /** Host header of the request as it came. */
  host: string
  whoIs: WhoIs | undefined
  /** The gateway's word to Node-RED (channel.ts); undefined for what is not Node-RED's editor. */
  assertion?: string | undefined
}

/** The headers a request goes to its app with, the app's own rules among them. */
export function headersFor(request: FastifyRequest): Record<string, string | string[]> {
  const { route } = request
  const headers = requestHeaders(request.headers, {
    address: peerOf(request.raw.socket).address,
    host: request.headers.host ?? '',
    whoIs: request.whoIs,
    assertion: request.assertion,
  })
  if (route.strip) headers['x-forwarded-prefix'] = route.path.slice(0, -1)
  return route.rules === undefined ? headers : applyRules(headers, route.rules.request)
}

/**
 * The headers a request goes to the upstream with: inbound copies of what only the gateway may say
 * deleted (also spelt with underscores, which some origins fold to hyphens), hop-by-hop ones and
 * those named by Connection removed, then X-Forwarded-For, -Host and -Proto, Forwarded (RFC 7239)
 * and the peer's identity set.
 */
export function requestHeaders(
  headers: IncomingHttpHeaders,
  origin: Origin,
): Record<string, string | string[]> {
  const named = namedBy(headers.connection)
  const out: Record<string, string | string[]> = {}
  for (const [name, value] of Object.entries(headers)) {
    if (value === undefined || isOwned(name) || hopByHop.has(name) || named?.has(name) === true)
      continue
    out[name] = value
  }
  out.host = origin.host
  out['x-forwarded-for'] = origin.address
  out['x-forwarded-host'] = origin.host
  out['x-forwarded-proto'] = 'https'
  // An IPv6 address goes in brackets, and with its colons in quotes (RFC 7239 §6).
  out.forwarded = `for=${origin.address.includes(':') ? `"[${origin.address}]"` : origin.address};host="${origin.host}";proto=https`
  if (origin.assertion !== undefined) out[channelHeader] = origin.assertion
  return Object.assign(out, identityHeaders(origin.whoIs))
}

/** What Connection names, which is nothing but `keep-alive` or `close` in nearly every message. */
function namedBy(connection: string | undefined): ReadonlySet<string> | undefined {
  return connection === undefined || connection === 'keep-alive' || connection === 'close'
    ? undefined
    : new Set(
        connection
          .toLowerCase()
          .split(',')
          .map((name) => name.trim()),
      )
}

/** By the answer of WhoIs, which counts for many requests. */
const identities = new WeakMap<WhoIs, Record<string, string>>()

/**
 * Identity headers exactly as `tailscale serve` sets them: none for tagged nodes and unknown peers.
 */
export function identityHeaders(whoIs: WhoIs | undefined): Readonly<Record<string, string>> {
  if (whoIs?.user === undefined || whoIs.node.tags.length > 0) return {}
  const known = identities.get(whoIs)
  if (known !== undefined) return known
  const headers = {
    'tailscale-user-login': qEncode(whoIs.user.loginName),
    'tailscale-user-name': qEncode(whoIs.user.displayName),
    'tailscale-user-profile-pic': qEncode(whoIs.user.profilePicURL),
    'tailscale-headers-info': 'https://tailscale.com/s/serve-headers',
  }
  identities.set(whoIs, headers)
  return headers
}

/**
 * RFC 2047 Q-encoding, done when the text is not printable ASCII, split into words of at most 75
 * characters on character boundaries: what Go's mime.QEncoding does, and so what origins written
 * for `tailscale serve` decode.
 */
export function qEncode(text: string): string {
  if (/^[\x20-\x7e\t]*$/.test(text)) return text
  const prefix = '=?utf-8?q?'
  const room = 75 - prefix.length - 2
  const words: string[] = []
  let word = ''
  for (const character of text.toWellFormed()) {
    const encoded = qCharacter(character)
    if (word.length + encoded.length > room) {
      words.push(word)
      word = ''
    }
    word += encoded
  }
  words.push(word)
  return words.map((part) => `${prefix}${part}?=`).join(' ')
}

function qCharacter(character: string): string {
  if (character === ' ') return '_'
  if (/^[!-<>@-^`-~]$/.test(character)) return character
  return [...Buffer.from(character)]
    .map((byte) => `=${byte.toString(16).toUpperCase().padStart(2, '0')}`)
    .join('')
}

/**
 * Response headers that must not pass through a proxy: hop-by-hop ones, those named by Connection,
 * and {@link leaks}.
 */
export function responseHeaders(headers: IncomingHttpHeaders): Record<string, string | string[]> {
  const named = namedBy(headers.connection)
  const out: Record<string, string | string[]> = {}
  for (const [name, value] of Object.entries(headers)) {
    if (value === undefined || hopByHop.has(name) || named?.has(name) === true || leaks.has(name))
      continue
    out[name] = value
  }
  return out
}

/**
 * What decides how a message is framed, routed, read or stored, and so may not come after it (RFC
 * 9110 §6.5.1).
 */
const notInTrailers =
  /^(?:content-.*|set-cookie2?|cookie|host|authorization|www-authenticate|authentication-info|cache-control|expires|pragma|vary|age|date|location|retry-after|accept.*|etag|last-modified|clear-site-data|alt-svc|if-.*|range|max-forwards|origin|referer|sec-.*)$/

/** Trailers of an answer that are passed on. */
export function responseTrailers(trailers: IncomingHttpHeaders): Record<string, string | string[]> {
  return Object.fromEntries(
    Object.entries(responseHeaders(trailers)).filter(
      ([name]) => !notInTrailers.test(name) && !isOwned(name),
    ),
  )
}

/**
 * Names of the trailers of a request that are passed on: those it announces (RFC 9110 §6.6.2),
 * without what may not come after a message, what is of the connection and what is the gateway's
 * own, underscores counted as hyphens. `headers` as they came.
 */
export function announcedTrailers(headers: IncomingHttpHeaders): Set<string> {
  const named = namedBy(headers.connection)
  return new Set(
    (headers.trailer ?? '')
      .toLowerCase()
      .split(',')
      .map((name) => name.trim())
      .filter(
        (name) =>
          /^[!#$%&'*+.^_`|~0-9a-z-]+$/.test(name) &&
          ownHeader(name, 'request') === undefined &&
          !notInTrailers.test(name.replaceAll('_', '-')) &&
          named?.has(name) !== true,
      ),
  )
}

/** The trailers of a request with these names. */
export function requestTrailers(
  trailers: IncomingMessage['trailers'],
  names: ReadonlySet<string>,
): Record<string, string> {
  return Object.fromEntries(
    Object.entries(trailers).filter((trailer): trailer is [string, string] =>
      names.has(trailer[0]),
    ),
  )
}
