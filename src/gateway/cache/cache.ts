import CachePolicy from 'http-cache-semantics'
import type { IncomingHttpHeaders } from 'node:http'
import type { Logger } from '../shared/log.ts'
import { compressWhole, compressible, worthwhile } from './compress.ts'
import type { Coding } from './compress.ts'
import type { Headers } from '../../config/header-names.ts'

/** A request as the cache looks at it. */
export interface CacheRequest {
  method: string
  /** Canonical target. */
  url: string
  headers: IncomingHttpHeaders
}

/**
 * One stored answer: the body as the origin sent it, and each compressed form that was asked for.
 */
export class Entry {
  readonly key: string
  readonly headers: Headers
  readonly body: Buffer
  readonly forms = new Map<Coding, Buffer>()
  /** Headers of answers made of it, as deliver.ts puts them together; by coding. */
  readonly answers = new Map<string, string[]>()
  #policy!: CachePolicy
  #freshUntil = 0
  #pending = new Map<Coding, Promise<Buffer>>()

  constructor(key: string, headers: Headers, body: Buffer, policy: CachePolicy) {
    this.key = key
    this.headers = headers
    this.body = body
    this.policy = policy
  }

  get policy(): CachePolicy {
    return this.#policy
  }
  set policy(policy: CachePolicy) {
    this.#policy = policy
    const [host, url] = this.key.split(' ', 2) as [string, string]
    const plain = policy.satisfiesWithoutRevalidation({ method: 'GET', url, headers: { host } })
    this.#freshUntil =
      plain && this.headers.vary === undefined
        ? Date.now() + (policy.maxAge() - policy.age()) * 1_000
        : 0
  }

  /** Whether it may answer a request without the origin being asked. */
  fresh({ url, headers }: CacheRequest): boolean {
    // Nothing a request can say changes that but these two, where the answer does not vary. The
    // policy would go through all of its rules.
    if (
      headers['cache-control'] === undefined &&
      headers.pragma === undefined &&
      Date.now() < this.#freshUntil
    )
      return true
    // GET, since an answer to one serves HEAD too.
    return this.#policy.satisfiesWithoutRevalidation({
      method: 'GET',
      url,
      headers: headers as Headers,
    })
  }

  get etag(): string | undefined {
    return single(this.headers.etag)
  }
  get lastModified(): string | undefined {
    return single(this.headers['last-modified'])
  }

  /** Bytes held. */
  get size(): number {
    let size = this.body.length + 1_024
    for (const form of this.forms.values()) size += form.length
    return size
  }

  /** True when there is something to gain by compression. */
  get compressible(): boolean {
    return this.body.length >= worthwhile && mayCompress(this.headers)
  }

  /** The body in a coding: made once, at the first demand. */
  async form(coding: Coding, made: (coding: Coding) => void): Promise<Buffer> {
    let pending = this.#pending.get(coding)
    if (pending === undefined) {
      pending = compressWhole(this.body, coding, 'quick')
        .then((compressed) => {
          this.forms.set(coding, compressed)
          made(coding)
          return compressed
        })
        .finally(() => this.#pending.delete(coding))
      this.#pending.set(coding, pending)
    }
    return await pending
  }
}

/**
 * Whether an answer's headers let a proxy compress it (RFC 9111 §5.2.2.6: not with no-transform).
 */
export function mayCompress(headers: Headers): boolean {
  return (
    headers['content-encoding'] === undefined &&
    headers['content-range'] === undefined &&
    compressible(single(headers['content-type'])) &&
    !/\bno-transform\b/i.test(String(headers['cache-control'] ?? ''))
  )
}

/**
 * Answers that may be used again, by RFC 9111 as a shared cache (http-cache-semantics knows the
 * rules), in bounded memory: the entries used longest ago go first.
 *
 * Every request here says who it comes from, as one with Authorization does. So nothing is stored
 * but what the origin calls public (§3.5: `public`, `s-maxage`, `must-revalidate`), never with
 * Set-Cookie, and nothing that differs by anything but the coding: what is private cannot get in.
 */
export class Cache {
  #limit = 0
  #log: Logger
  #entries = new Map<string, Entry>()
  #size = 0
  #small: Array<{ entry: Entry; coding: Coding }> = []
  #working = false

  constructor(log: Logger) {
    this.#log = log
  }

  /** Bytes that may be held; 0 stores nothing, which is so until it is set. */
  get limit(): number {
    return this.#limit
  }
  set limit(bytes: number) {
    this.#limit = bytes
    this.#trim()
  }

  get size(): number {
    return this.#size
  }
  get count(): number {
    return this.#entries.size
  }

  /** The largest body stored, in bytes. */
  get largest(): number {
    return Math.min(16 * 1024 * 1024, this.limit / 4)
  }

  static key(request: CacheRequest): string {
    return `${request.headers.host ?? ''} ${request.url}`
  }

  /** What is stored for a request, and whether it may be used without asking the origin. */
  find(request: CacheRequest): { entry: Entry; fresh: boolean } | undefined {
    if (this.limit === 0 || request.headers.range !== undefined) return undefined
    const key = Cache.key(request)
    const entry = this.#entries.get(key)
    if (entry === undefined) return undefined
    // The most recently used is the last.
    this.#entries.delete(key)
    this.#entries.set(key, entry)
    return { entry, fresh: entry.fresh(request) }
  }

  /**
   * Whether an answer may be stored, given that its body will be. `headers` are as they would be
   * passed on.
   */
  storable(request: CacheRequest, status: number, headers: Headers): CachePolicy | undefined {
    if (
      this.limit === 0 ||
      request.method !== 'GET' ||
      request.headers.range !== undefined ||
      status !== 200
    )
      return undefined
    const length = Number(headers['content-length'] ?? Number.NaN)
    if (!(length <= this.largest)) return undefined
    if (
      headers['set-cookie'] !== undefined ||
      headers['content-encoding'] !== undefined ||
      headers['content-range'] !== undefined
    )
      return undefined
    if (
      String(headers.vary ?? '')
        .toLowerCase()
        .split(',')
        .some((name) => !['', 'accept-encoding'].includes(name.trim()))
    )
      return undefined
    // Most answers end here, before the rules are gone through one by one.
    if (!/public|s-maxage|must-revalidate/i.test(String(headers['cache-control'] ?? '')))
      return undefined
    // Its own credentials stand for what each request here has: an identity.
    const policy = new CachePolicy(
      {
        method: 'GET',
        url: request.url,
        headers: { ...(request.headers as Headers), authorization: 'tailnet' },
      },
      { status, headers },
      { shared: true, cacheHeuristic: 0 },
    )
    if (
      !policy.storable() ||
      (policy.timeToLive() <= 0 &&
        headers.etag === undefined &&
        headers['last-modified'] === undefined)
    )
      return undefined
    return policy
  }

  /** Stores an answer; what does not fit makes room. */
  store(request: CacheRequest, headers: Headers, body: Buffer, policy: CachePolicy): Entry {
    const key = Cache.key(request)
    this.remove(key)
    const entry = new Entry(key, headers, body, policy)
    this.#entries.set(key, entry)
    this.#size += entry.size
    this.#trim()
    return entry
  }

  /** The origin said that an entry is still right. */
  revalidated(entry: Entry, request: CacheRequest, headers: Headers): void {
    entry.policy = entry.policy.revalidatedPolicy(
      {
        method: 'GET',
        url: request.url,
        headers: { ...(request.headers as Headers), authorization: 'tailnet' },
      },
      { status: 304, headers },
    ).policy
  }

  /**
   * Forgets what is stored for a target: it was changed (RFC 9111 §4.4), or is not right any more.
   */
  remove(key: string): void {
    const entry = this.#entries.get(key)
    if (entry === undefined) return
    this.#entries.delete(key)
    this.#size -= entry.size
  }

  /** Forgets everything. */
  purge(): { entries: number; bytes: number } {
    const purged = { entries: this.#entries.size, bytes: this.#size }
    this.#entries.clear()
    this.#small = []
    this.#size = 0
    return purged
  }

  /** The body in a coding, which takes a moment the first time. */
  body(entry: Entry, coding: Coding | undefined): Buffer | Promise<Buffer> {
    if (coding === undefined) return entry.body
    return (
      entry.forms.get(coding) ??
      entry.form(coding, () => {
        this.#account(entry, entry.forms.get(coding)!.length)
        this.#small.push({ entry, coding })
        void this.#compressSmall()
      })
    )
  }

  /**
   * Makes the forms that were made in a hurry smaller, one at a time: the other cores have work to
   * do.
   */
  async #compressSmall(): Promise<void> {
    if (this.#working) return
    this.#working = true
    try {
      for (let next = this.#small.shift(); next !== undefined; next = this.#small.shift()) {
        const { entry, coding } = next
        if (this.#entries.get(entry.key) !== entry) continue
        const small = await compressWhole(entry.body, coding, 'small')
        const before = entry.forms.get(coding)!.length
        if (small.length >= before) continue
        entry.forms.set(coding, small)
        this.#account(entry, small.length - before)
      }
    } catch (err) {
      this.#log.warn(
        { code: 'GH_COMPRESS', err },
        'compression failed; what was compressed in a hurry stays',
      )
    } finally {
      this.#working = false
    }
  }

  /** An entry grew or shrank; one that is no longer stored does not count. */
  #account(entry: Entry, by: number): void {
    if (this.#entries.get(entry.key) !== entry) return
    this.#size += by
    this.#trim()
  }

  #trim(): void {
    for (const key of this.#entries.keys()) {
      if (this.#size <= this.limit) return
      this.remove(key)
    }
  }
}

function single(value: string | string[] | undefined): string | undefined {
  return Array.isArray(value) ? value[0] : value
}
