import type { FastifyReply, FastifyRequest } from 'fastify'
import type { IncomingHttpHeaders, ServerResponse } from 'node:http'
import type { Transform } from 'node:stream'
import { Counter, Gauge } from 'prom-client'
import type { Registry } from 'prom-client'
import type { Config } from '../../config/config.ts'
import { Cache, mayCompress } from './cache.ts'
import type { CacheRequest, Entry } from './cache.ts'
import { compressStream, negotiate, worthwhile } from './compress.ts'
import type { Coding } from './compress.ts'
import { secure } from '../request/hygiene.ts'
import { whenClosed } from '../shared/on-close.ts'
import { plugin } from '../shared/plugin.ts'
import type { Headers } from '../../config/header-names.ts'

/** How the cache came to an answer. */
type How = 'hit' | 'revalidated' | 'stored'

/**
 * What is done with an answer's body: taken in as a whole, which then answers the peer, or sent
 * through a compressor.
 */
export type Plan = { whole: (body: Buffer) => void } | { through: Transform }

/** An entry that is to be asked about, while its request is at the origin. */
const asked = new WeakMap<object, Entry>()

/**
 * How answers get to peers: from the cache where HTTP lets them, compressed where it pays. It
 * is asked before the origin is ({@link deliver}), for the headers that go there (proxy.ts), and
 * for what to do with the origin's answer (exchange.ts).
 */
export class Delivery {
  readonly cache: Cache
  #settings!: Config['cache']
  /** Bytes of answers that are being taken in. */
  #comingIn = 0
  #count: (how: How) => void = () => {}

  constructor(cache: Cache, settings: Config['cache']) {
    this.cache = cache
    this.settings = settings
  }

  get settings(): Config['cache'] {
    return this.#settings
  }
  set settings(settings: Config['cache']) {
    this.#settings = settings
    this.cache.limit = settings.memoryMib * 1024 * 1024
  }

  /** Adds what the cache does to the metrics. */
  measure(registry: Registry): void {
    const { cache } = this
    const answers = new Counter({
      name: 'gatehouse_cache_answers_total',
      help: 'Answers of the cache: hit, revalidated with the origin, or newly stored.',
      labelNames: ['how'],
      registers: [registry],
    })
    this.#count = (how) => {
      answers.inc({ how })
    }
    new Gauge({
      name: 'gatehouse_cache_bytes',
      help: 'Bytes the cache holds.',
      registers: [registry],
      collect() {
        this.set(cache.size)
      },
    })
    new Gauge({
      name: 'gatehouse_cache_entries',
      help: 'Answers the cache holds.',
      registers: [registry],
      collect() {
        this.set(cache.count)
      },
    })
  }

  /**
   * Before the origin is asked: the answer, when it is known and fresh. True when it is on its way.
   */
  answer(request: FastifyRequest, reply: FastifyReply): boolean {
    // What a body asks for is not in the key.
    if ((request.method !== 'GET' && request.method !== 'HEAD') || request.payload !== undefined)
      return false
    const found = this.cache.find(cacheRequest(request))
    if (found === undefined) return false
    if (found.fresh) {
      this.#send(request, reply, found.entry, 'hit')
      return true
    }
    if (
      request.method === 'GET' &&
      (found.entry.etag !== undefined || found.entry.lastModified !== undefined)
    )
      asked.set(request.raw, found.entry)
    return false
  }

  /**
   * The headers a request goes to the origin with: what it sends is compressed here, once, and what
   * is stored is asked about.
   */
  prepare(request: FastifyRequest, headers: Headers): void {
    if (request.method !== 'GET' || headers.range !== undefined) return
    if (this.settings.compress || this.cache.limit > 0) headers['accept-encoding'] = 'identity'
    const entry = asked.get(request.raw)
    if (entry === undefined) return
    for (const name of [
      'if-none-match',
      'if-modified-since',
      'if-match',
      'if-unmodified-since',
      'if-range',
    ])
      delete headers[name]
    if (entry.etag !== undefined) headers['if-none-match'] = entry.etag
    if (entry.lastModified !== undefined) headers['if-modified-since'] = entry.lastModified
  }

  /**
   * What to do with the origin's answer, by its status and its headers, which it makes those of
   * what the peer gets.
   */
  take(
    request: FastifyRequest,
    reply: FastifyReply,
    status: number,
    headers: Headers,
  ): Plan | undefined {
    const entry = asked.get(request.raw)
    if (entry !== undefined && status === 304) {
      return {
        whole: () => {
          this.cache.revalidated(entry, cacheRequest(request), headers)
          this.#send(request, reply, entry, 'revalidated')
        },
      }
    }
    if (request.method !== 'GET') {
      // RFC 9111 §4.4: what changes something makes what is stored of it wrong.
      if (!['HEAD', 'OPTIONS', 'TRACE'].includes(request.method) && status < 400)
        this.cache.remove(Cache.key(cacheRequest(request)))
      return undefined
    }
    const policy =
      request.payload === undefined
        ? this.cache.storable(cacheRequest(request), status, headers)
        : undefined
    const taken = policy === undefined ? undefined : this.#takeIn(reply, headers)
    if (policy !== undefined && taken !== undefined)
      return {
        whole: (body) => {
          taken()
          this.#send(
            request,
            reply,
            this.cache.store(cacheRequest(request), headers, body, policy),
            'stored',
          )
        },
      }
    // Only what has a length is compressed: an answer that comes bit by bit must not wait for a
    // compressor's buffer.
    const length = Number(headers['content-length'] ?? Number.NaN)
    if (
      !this.settings.compress ||
      !(length >= worthwhile) ||
      status < 200 ||
      status === 204 ||
      status === 206 ||
      status === 304 ||
      !mayCompress(headers)
    )
      return undefined
    headers.vary = vary(headers.vary)
    const coding = negotiate(request.headers['accept-encoding'], 'stream')
    if (coding === undefined) return undefined
    for (const name of ['content-length', 'accept-ranges', 'content-md5', 'digest'])
      delete headers[name]
    headers['content-encoding'] = coding
    if (headers.etag !== undefined) headers.etag = weak(String(headers.etag))
    return { through: compressStream(coding, length) }
  }

  /**
   * Makes room for an answer that is to be taken in as a whole. As much as may be stored may be on
   * its way in; what comes beside it is passed on, and not stored.
   *
   * @returns what ends it; undefined when there is no room
   */
  #takeIn(reply: FastifyReply, headers: Headers): (() => void) | undefined {
    const length = Number(headers['content-length'])
    if (this.#comingIn + length > this.cache.limit) return undefined
    this.#comingIn += length
    let over = false
    const taken = (): void => {
      if (over) return
      over = true
      this.#comingIn -= length
    }
    whenClosed(reply.raw, () => {
      taken()
      return undefined
    })
    return taken
  }

  #send(request: FastifyRequest, reply: FastifyReply, entry: Entry, how: How): void {
    this.#count(how)
    const compress = this.settings.compress && entry.compressible
    const coding = compress ? negotiate(request.headers['accept-encoding']) : undefined
    const body = this.cache.body(entry, coding)
    if (body instanceof Promise)
      body
        .then((made) => {
          write(request, reply, entry, how, compress, coding, made)
        })
        .catch((err: Error) => {
          reply.send(err)
        })
    else write(request, reply, entry, how, compress, coding, body)
  }
}

// RFC 9211.
const cacheStatus: Record<How, string> = {
  hit: 'gatehouse; hit',
  revalidated: 'gatehouse; hit; detail=revalidated',
  stored: 'gatehouse; fwd=miss; stored',
}

/**
 * Writes an answer of the cache past Fastify's reply, which would copy and look at each header
 * again; an entry's are the same every time.
 */
function write(
  request: FastifyRequest,
  reply: FastifyReply,
  entry: Entry,
  how: How,
  compress: boolean,
  coding: Coding | undefined,
  body: Buffer,
): void {
  const { raw } = reply
  reply.hijack()
  if (raw.destroyed) return
  const key = coding ?? String(compress)
  let headers = entry.answers.get(key)
  if (headers === undefined) {
    headers = answerHeaders(request, entry, compress, coding)
    entry.answers.set(key, headers)
  }
  headers = ['cache-status', cacheStatus[how], ...headers]
  if (how !== 'stored' || entry.headers.age !== undefined)
    headers.push('age', String(Math.round(entry.policy.age())))
  if (unchanged(request.headers, entry)) {
    raw.writeHead(
      304,
      headers.filter((_, i) => !ofTheBody.has(headers[i - (i % 2)]!)),
    )
    raw.end()
    return
  }
  headers.push('content-length', String(body.length))
  raw.writeHead(200, headers)
  if (request.method === 'HEAD') raw.end()
  else sendInPieces(raw, body)
}

/** Bytes of a stored body that are on their way to one peer. */
const piece = 64 * 1024

/**
 * Gives a stored body out as the peer takes it: all of it at once would be encrypted at once, and
 * each peer that does not read would hold a copy of its own.
 */
function sendInPieces(raw: ServerResponse, body: Buffer): void {
  let at = 0
  const go = (): void => {
    while (at + piece < body.length) {
      const next = body.subarray(at, at + piece)
      at += piece
      if (raw.write(next)) continue
      raw.once('drain', go)
      return
    }
    raw.end(body.subarray(at))
  }
  go()
}

/** Headers that are not in an answer without the body. */
const ofTheBody: ReadonlySet<string> = new Set([
  'content-type',
  'content-encoding',
  'content-language',
])

/** Names and values in turn. Date is Node's: the moment it is sent. */
function answerHeaders(
  request: FastifyRequest,
  entry: Entry,
  compress: boolean,
  coding: Coding | undefined,
): string[] {
  const { 'content-length': _length, date: _date, age: _age, ...headers } = entry.headers
  if (compress) headers.vary = vary(headers.vary)
  if (coding !== undefined) {
    headers['content-encoding'] = coding
    delete headers['accept-ranges']
    if (entry.etag !== undefined) headers.etag = weak(entry.etag)
  }
  return Object.entries(secure(headers, request)).flatMap(([name, value]) =>
    [value].flat().flatMap((one) => [name, one]),
  )
}

/** Asks the cache before the origin. Registered behind everything that decides who may see what. */
export const deliver = plugin<{ delivery: Delivery }>('deliver', async (app, { delivery }) => {
  app.addHook('preHandler', (request, reply, done) => {
    if (!delivery.answer(request, reply)) done()
  })
})

/**
 * Whether the client has it already (RFC 9110 §13.2.2): If-None-Match first, compared weakly, else
 * If-Modified-Since.
 */
function unchanged(headers: IncomingHttpHeaders, entry: Entry): boolean {
  const none = headers['if-none-match']
  if (none !== undefined) {
    const tag = entry.etag?.replace(/^W\//, '')
    return (
      none.trim() === '*' ||
      (tag !== undefined &&
        none.split(',').some((candidate) => candidate.trim().replace(/^W\//, '') === tag))
    )
  }
  const since = Date.parse(headers['if-modified-since'] ?? '')
  const modified = Date.parse(entry.lastModified ?? '')
  return modified <= since
}

/** Bytes that differ have no strong tag in common (RFC 9110 §8.8.1). */
function weak(etag: string): string {
  return etag.startsWith('W/') ? etag : `W/${etag}`
}

function vary(value: string | string[] | undefined): string {
  const text = String(value ?? '')
  if (text === '') return 'Accept-Encoding'
  return text === '*' || /\baccept-encoding\b/i.test(text) ? text : `${text}, Accept-Encoding`
}

function cacheRequest(request: FastifyRequest): CacheRequest {
  return { method: request.method, url: request.raw.url ?? '/', headers: request.headers }
}
