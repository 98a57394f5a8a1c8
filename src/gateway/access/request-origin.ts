import { GatehouseError } from '../../base/errors.ts'
import type { Logger } from '../shared/log.ts'
import { sendError } from '../shared/pages.ts'
import { plugin } from '../shared/plugin.ts'

/** Why a request is refused because of the page it comes from. */
export interface Foreign {
  /** The origin of the page, when the browser tells it; else what the browser says of it. */
  from: string
  /** What is refused, as the object of "may not". */
  what: string
}

/** What {@link foreign} looks at. */
export interface Sent {
  method: string
  /** The host, and perhaps port, that the request is for: Host, or :authority. */
  host: string
  /** Headers as they came: name, value, name, value. Names in any case. */
  rawHeaders: readonly string[]
}

/** An origin as browsers write it (RFC 6454 §6.2): no default port, lower case. */
const serialized = (host: string): string => `https://${host.toLowerCase().replace(/:443$/, '')}`

/**
 * Judges where a request comes from: who sends it is known by address, so the browser of somebody
 * who has rights lends them to every page it shows, unless this is looked at.
 *
 * Browsers say what kind of page a request comes from in headers that no page can set or remove
 * (Fetch Metadata, https://www.w3.org/TR/fetch-metadata/; Origin, RFC 6454 §7). A program that is
 * no browser sends none of them and passes.
 *
 * - What changes something, and every upgrade: refused unless Sec-Fetch-Site is `same-origin` or
 *   `none` (the person typed the address, or opened a bookmark). `same-site` is foreign: every
 *   other node of the tailnet is that.
 * - What reads: refused too, so that a foreign page can neither include nor time nor measure it.
 *   But a page that is opened as a whole (a link) passes: GET of mode `navigate` and destination
 *   `document`. Not in a frame, an object or the like, and not ahead of time (Sec-Purpose), which
 *   a page can do without anybody seeing it.
 * - Where Sec-Fetch-Site is not there (older browsers; some leave it out of WebSocket handshakes),
 *   an Origin that is there must be the one that the request is for. `null` is not: any page can
 *   have that.
 * - A header of these that comes twice, or with a value that is not in the standards, is foreign.
 *
 * @param allowed foreign origins that may, by Origin, or for a read without one by Referer (a page
 *   can hide its origin from it, and cannot put another in its place)
 * @returns undefined for a request that may pass
 */
export function foreign(
  { method, host, rawHeaders }: Sent,
  allowed: readonly string[] = [],
): Foreign | undefined {
  const seen: Partial<Record<(typeof names)[number], string>> = {}
  let twice = false
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const raw = rawHeaders[i]!
    // Nearly all headers end here, by their length alone.
    if (!lengths.has(raw.length)) continue
    const name = raw.toLowerCase() as (typeof names)[number]
    if (!names.includes(name)) continue
    const again = seen[name] !== undefined
    if (again && decisive.has(name)) twice = true
    seen[name] = again ? '' : rawHeaders[i + 1]!
  }
  const { origin, referer, upgrade } = seen
  const site = seen['sec-fetch-site']
  if (!twice) {
    if (site === 'same-origin' || site === 'none') return undefined
    if (site === undefined && (origin === undefined || origin === serialized(host)))
      return undefined
    if (origin !== undefined && allowed.includes(origin)) return undefined
  }
  const from =
    twice || origin === undefined || origin === 'null'
      ? (words[site ?? ''] ?? 'a page that does not say which')
      : origin.slice(0, 200)
  if (upgrade !== undefined) return { from, what: 'open a WebSocket here' }
  if (!safe.has(method)) return { from, what: `send ${method} requests here` }
  if (!twice && origin === undefined && referer !== undefined) {
    const by = URL.parse(referer)?.origin
    if (by !== undefined && allowed.includes(by)) return undefined
  }
  const opens =
    !twice &&
    method === 'GET' &&
    seen['sec-fetch-mode'] === 'navigate' &&
    seen['sec-fetch-dest'] === 'document'
  if (!opens) return { from, what: 'include or read what is here' }
  return seen['sec-purpose'] === undefined && seen.purpose === undefined
    ? undefined
    : { from, what: 'load pages from here ahead of time' }
}

const names = [
  'origin',
  'referer',
  'upgrade',
  'sec-fetch-site',
  'sec-fetch-mode',
  'sec-fetch-dest',
  'sec-purpose',
  'purpose',
] as const
/** What decides; browsers send each once at most. */
const decisive: ReadonlySet<string> = new Set(
  names.filter((name) => name === 'origin' || name.startsWith('sec-')),
)
const lengths: ReadonlySet<number> = new Set(names.map((name) => name.length))

/** Methods that change nothing (RFC 9110 §9.2.1). Of others nobody can know it. */
const safe: ReadonlySet<string> = new Set(['GET', 'HEAD', 'OPTIONS'])

const words: Record<string, string | undefined> = {
  'cross-site': 'a page of another site',
  'same-site': 'a page of another machine in the tailnet, or of another port',
}

/**
 * Refuses what a foreign page has sent ({@link foreign}), before anybody is asked who sends it: the
 * answer says nothing of that. Holds for every app and the gateway's own pages. Foreign origins
 * that are meant to call flows or an [[app]] are named in gatehouse.toml (`allow_origins`), and
 * their preflights then pass too; the editor and the gateway's own pages have none.
 */
export const requestOrigin = plugin<{ log: Logger }>('request-origin', async (app, { log }) => {
  const said = new Set<string>()
  app.addHook('onRequest', (request, reply, done) => {
    const { method } = request
    const refused = foreign(
      { method, host: request.headers.host ?? '', rawHeaders: request.raw.rawHeaders },
      request.route.allowOrigins,
    )
    if (refused === undefined) {
      done()
      return
    }
    const { from, what } = refused
    const about = `${from} ${request.route.name}`
    if (!said.has(about)) {
      // Each once, or a page could fill the log.
      if (said.size > 100) said.clear()
      said.add(about)
      log.warn(
        { code: 'GH_FOREIGN_PAGE', from, app: request.route.name },
        `refused: ${from} may not ${what}`,
      )
    }
    // The connection of an upload that is refused holds the rest of its body.
    if (method !== 'GET' && method !== 'HEAD') reply.raw.shouldKeepAlive = false
    const callable = request.route.right !== undefined && request.route.right !== 'status'
    void sendError(
      request,
      reply,
      403,
      'Not from another page',
      new GatehouseError(
        'GH_FOREIGN_PAGE',
        `The browser says that this request comes from ${from}, which may not ${what}`,
        callable
          ? 'Open the address in a tab of its own. If that page is meant to do this, write its ' +
              'origin into gatehouse.toml: allow_origins = ' +
              `[${JSON.stringify(/^https?:/.test(from) ? from : 'https://panel.example')}] in ` +
              `${request.route.nodeRed ? '[node_red]' : 'the [[app]]'}`
          : 'Open the address in a tab of its own',
      ),
    )
  })
})
