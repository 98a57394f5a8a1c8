import type { FastifyReply, FastifyRequest } from 'fastify'
import type { IncomingHttpHeaders } from 'node:http'
import { pipeline } from 'node:stream'
import type { Readable } from 'node:stream'
import { Counter, Gauge } from 'prom-client'
import type { Registry } from 'prom-client'
import type { Config } from '../config/config.ts'
import { Cache, mayCompress } from './cache.ts'
import type { CacheRequest, Entry } from './cache.ts'
import { compressStream, negotiate, worthwhile } from './compress.ts'
import { plugin } from './plugin.ts'

type Headers = Record<string, string | string[]>

/** How the cache came to an answer. */
type How = 'hit' | 'revalidated' | 'stored'

/** An entry that is to be asked about, while its request is at the origin. */
const asked = new WeakMap<object, Entry>()

/**
 * How answers get to peers: from the cache where HTTP lets them, compressed where it pays. proxy.ts asks it at the three points
 * where it deals with the origin.
 */
export class Delivery {
  readonly cache: Cache
  #settings!: Config['cache']
  #count: (how: How) => void = () => {}

  constructor (cache: Cache, settings: Config['cache']) {
    this.cache = cache
    this.settings = settings
  }

  get settings (): Config['cache'] { return this.#settings }
  set settings (settings: Config['cache']) {
    this.#settings = settings
    this.cache.limit = settings.memoryMib * 1024 * 1024
  }

  /** Adds what the cache does to the metrics. */
  measure (registry: Registry): void {
    const { cache } = this
    const answers = new Counter({ name: 'gatehouse_cache_answers_total', help: 'Answers of the cache: hit, revalidated with the origin, or newly stored.', labelNames: ['how'], registers: [registry] })
    this.#count = (how) => { answers.inc({ how }) }
    new Gauge({ name: 'gatehouse_cache_bytes', help: 'Bytes the cache holds.', registers: [registry], collect () { this.set(cache.size) } })
    new Gauge({ name: 'gatehouse_cache_entries', help: 'Answers the cache holds.', registers: [registry], collect () { this.set(cache.count) } })
  }

  /** Before the origin is asked: the answer, when it is known and fresh. */
  async answer (request: FastifyRequest, reply: FastifyReply): Promise<boolean> {
    if (request.method !== 'GET' && request.method !== 'HEAD') return false
    const found = this.cache.find(cacheRequest(request))
    if (found === undefined) return false
    if (found.fresh) {
      await this.#send(request, reply, found.entry, 'hit')
      return true
    }
    if (request.method === 'GET' && (found.entry.etag !== undefined || found.entry.lastModified !== undefined)) asked.set(request.raw, found.entry)
    return false
  }

  /** The headers a request goes to the origin with: what it sends is compressed here, once, and what is stored is asked about. */
  prepare (request: FastifyRequest, headers: Headers): void {
    if (request.method !== 'GET' || headers.range !== undefined) return
    if (this.settings.compress || this.cache.limit > 0) headers['accept-encoding'] = 'identity'
    const entry = asked.get(request.raw)
    if (entry === undefined) return
    for (const name of ['if-none-match', 'if-modified-since', 'if-match', 'if-unmodified-since', 'if-range']) delete headers[name]
    if (entry.etag !== undefined) headers['if-none-match'] = entry.etag
    if (entry.lastModified !== undefined) headers['if-modified-since'] = entry.lastModified
  }

  /**
   * What to do with the origin's answer, whose status and headers are on the reply.
   *
   * @returns the body to send on, or undefined when the answer has been sent
   * @throws what breaks off the origin's body while it is taken in
   */
  async take (request: FastifyRequest, reply: FastifyReply, body: Readable): Promise<Readable | undefined> {
    const status = reply.statusCode
    const entry = asked.get(request.raw)
    if (entry !== undefined && status === 304) {
      body.resume()
      this.cache.revalidated(entry, cacheRequest(request), reply.getHeaders() as Headers)
      for (const name of Object.keys(reply.getHeaders())) reply.removeHeader(name)
      await this.#send(request, reply, entry, 'revalidated')
      return undefined
    }
    if (request.method !== 'GET') {
      // RFC 9111 §4.4: what changes something makes what is stored of it wrong.
      if (!['HEAD', 'OPTIONS', 'TRACE'].includes(request.method) && status < 400) this.cache.remove(Cache.key(cacheRequest(request)))
      return body
    }
    const headers = reply.getHeaders() as Headers
    const policy = this.cache.storable(cacheRequest(request), status, headers)
    if (policy !== undefined) {
      const pieces: Buffer[] = []
      for await (const piece of body) pieces.push(piece as Buffer)
      const stored = this.cache.store(cacheRequest(request), { ...headers }, Buffer.concat(pieces), policy)
      for (const name of Object.keys(headers)) reply.removeHeader(name)
      await this.#send(request, reply, stored, 'stored')
      return undefined
    }
    // Only what has a length is compressed: an answer that comes bit by bit must not wait for a compressor's buffer.
    const length = Number(headers['content-length'] ?? Number.NaN)
    if (!this.settings.compress || !(length >= worthwhile) || status < 200 || status === 204 || status === 206 || status === 304 || !mayCompress(headers)) return body
    reply.header('vary', vary(headers.vary))
    const coding = negotiate(request.headers['accept-encoding'])
    if (coding === undefined) return body
    reply.removeHeader('content-length').removeHeader('accept-ranges').removeHeader('content-md5').removeHeader('digest')
    reply.header('content-encoding', coding)
    if (headers.etag !== undefined) reply.header('etag', weak(String(headers.etag)))
    const compressor = compressStream(coding, length)
    // Each breaks off the other; the reply ends as it does without compression.
    pipeline(body, compressor, () => {})
    return compressor
  }

  async #send (request: FastifyRequest, reply: FastifyReply, entry: Entry, how: How): Promise<void> {
    this.#count(how)
    const compress = this.settings.compress && entry.compressible
    const { body, coding } = compress ? await this.cache.body(entry, request.headers['accept-encoding']) : { body: entry.body, coding: undefined }
    const { age, date } = entry.policy.responseHeaders() as Record<string, string>
    reply.code(200).headers(entry.headers).removeHeader('content-length')
    if (date !== undefined) reply.header('date', date)
    if (age !== undefined && how !== 'stored') reply.header('age', age)
    // RFC 9211.
    reply.header('cache-status', how === 'hit' ? 'gatehouse; hit' : how === 'revalidated' ? 'gatehouse; hit; detail=revalidated' : 'gatehouse; fwd=miss; stored')
    if (compress) reply.header('vary', vary(entry.headers.vary))
    if (coding !== undefined) {
      reply.header('content-encoding', coding).removeHeader('accept-ranges')
      if (entry.etag !== undefined) reply.header('etag', weak(entry.etag))
    }
    if (unchanged(request.headers, entry)) {
      for (const name of ['content-type', 'content-encoding', 'content-language']) reply.removeHeader(name)
      await reply.code(304).send()
      return
    }
    reply.header('content-length', String(body.length))
    await reply.send(request.method === 'HEAD' ? undefined : body)
  }
}

/** Asks the cache before the origin. Registered behind everything that decides who may see what. */
export const deliver = plugin<{ delivery: Delivery }>('deliver', async (app, { delivery }) => {
  app.addHook('preHandler', async (request, reply) => {
    if (!reply.sent && await delivery.answer(request, reply)) return reply
  })
})

/** Whether the client has it already (RFC 9110 §13.2.2): If-None-Match first, compared weakly, else If-Modified-Since. */
function unchanged (headers: IncomingHttpHeaders, entry: Entry): boolean {
  const none = headers['if-none-match']
  if (none !== undefined) {
    const tag = entry.etag?.replace(/^W\//, '')
    return none.trim() === '*' || (tag !== undefined && none.split(',').some((candidate) => candidate.trim().replace(/^W\//, '') === tag))
  }
  const since = Date.parse(headers['if-modified-since'] ?? '')
  const modified = Date.parse(entry.lastModified ?? '')
  return modified <= since
}

/** Bytes that differ have no strong tag in common (RFC 9110 §8.8.1). */
function weak (etag: string): string {
  return etag.startsWith('W/') ? etag : `W/${etag}`
}

function vary (value: string | string[] | undefined): string {
  const text = String(value ?? '')
  if (text === '') return 'Accept-Encoding'
  return text === '*' || /\baccept-encoding\b/i.test(text) ? text : `${text}, Accept-Encoding`
}

function cacheRequest (request: FastifyRequest): CacheRequest {
  return { method: request.method, url: request.raw.url ?? '/', headers: request.headers }
}
