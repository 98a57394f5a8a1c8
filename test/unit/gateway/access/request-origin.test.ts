import assert from 'node:assert/strict'
import { once } from 'node:events'
import type { IncomingMessage } from 'node:http'
import { test } from 'node:test'
import { WebSocket } from 'ws'
import { defaults, parseConfig } from '../../../../src/config/config.ts'
import type { ConfigError } from '../../../../src/config/config.ts'
import { foreign } from '../../../../src/gateway/access/request-origin.ts'
import { authorityOf, originOf } from '../../../../src/config/ports.ts'
import { Bench, name } from '../../support/bench.ts'
import { RawPeer, ask, block, flag, frame, request as headersOf } from '../../support/h2.ts'

const own = `https://${name}`
const evil = 'https://evil.example'
const panel = 'https://panel.example'

/** What a browser sends with a request of each kind. */
const browser = {
  typed: ['none', 'navigate', 'document'],
  link: ['cross-site', 'navigate', 'document'],
  linkFromNode: ['same-site', 'navigate', 'document'],
  frame: ['cross-site', 'navigate', 'iframe'],
  script: ['cross-site', 'no-cors', 'script'],
  fetch: ['cross-site', 'cors', 'empty'],
  own: ['same-origin', 'cors', 'empty'],
} as const
const sent = (
  kind: keyof typeof browser,
  more: Record<string, string> = {},
): Record<string, string> => {
  const [site, mode, dest] = browser[kind]
  return { 'Sec-Fetch-Site': site, 'Sec-Fetch-Mode': mode, 'Sec-Fetch-Dest': dest, ...more }
}

type Case = [what: string, method: string, headers: Record<string, string>, passes: boolean]

/** The rule, case by case; `passes` for whom nobody has named. */
const cases: Case[] = [
  ['a program that reads', 'GET', {}, true],
  ['a program that posts', 'POST', {}, true],
  ['a program with a method of its own', 'PURGE', {}, true],
  ['the person types the address', 'GET', sent('typed'), true],
  ['the person sends a form again after typing', 'POST', sent('typed'), true],
  ['the editor reads', 'GET', sent('own'), true],
  ['the editor deploys', 'POST', sent('own', { Origin: own }), true],
  // A page with Referrer-Policy: no-referrer sends this to itself.
  ['the editor deploys, its origin withheld', 'POST', sent('own', { Origin: 'null' }), true],
  ['the editor deletes', 'DELETE', sent('own', { Origin: own }), true],
  ['a form of a foreign page', 'POST', sent('link', { Origin: evil }), false],
  ['a form of a foreign page without Origin', 'POST', sent('link'), false],
  ['a form of another node', 'POST', sent('linkFromNode', { Origin: evil }), false],
  ['a form that claims the own origin', 'POST', sent('link', { Origin: own }), false],
  ['a form of a sandboxed frame', 'POST', sent('link', { Origin: 'null' }), false],
  ['PUT of a foreign page', 'PUT', sent('fetch', { Origin: evil }), false],
  ['DELETE of another port', 'DELETE', sent('fetch', { 'Sec-Fetch-Site': 'same-site' }), false],
  ['PROPFIND of a foreign page', 'PROPFIND', sent('fetch', { Origin: evil }), false],
  ['a preflight of a foreign page', 'OPTIONS', sent('fetch', { Origin: evil }), false],
  ['a link from a foreign page', 'GET', sent('link'), true],
  ['a link from another node', 'GET', sent('linkFromNode'), true],
  ['a link, by HEAD', 'HEAD', sent('link'), false],
  ['a frame of a foreign page', 'GET', sent('frame'), false],
  ...['frame', 'embed', 'object', 'fencedframe', 'empty', '', 'Document'].map((dest): Case => [
    `opened as ${JSON.stringify(dest)} by a foreign page`,
    'GET',
    sent('link', { 'Sec-Fetch-Dest': dest }),
    false,
  ]),
  ...['nested-navigate', 'no-cors', 'cors', 'same-origin', 'websocket', '', 'NAVIGATE'].map(
    (mode): Case => [
      `a document by mode ${JSON.stringify(mode)}`,
      'GET',
      sent('link', { 'Sec-Fetch-Mode': mode }),
      false,
    ],
  ),
  ['prefetched by a foreign page', 'GET', sent('link', { 'Sec-Purpose': 'prefetch' }), false],
  [
    'prerendered by a foreign page',
    'GET',
    sent('link', { 'Sec-Purpose': 'prefetch;prerender' }),
    false,
  ],
  ['prefetched by an older browser', 'GET', sent('link', { Purpose: 'prefetch' }), false],
  ['prefetched by the own page', 'GET', sent('own', { 'Sec-Purpose': 'prefetch' }), true],
  ['a script of a foreign page', 'GET', sent('script'), false],
  ['an image of another node', 'GET', sent('script', { 'Sec-Fetch-Site': 'same-site' }), false],
  ['fetch of a foreign page', 'GET', sent('fetch', { Origin: evil }), false],
  ['a worker of a foreign page', 'GET', sent('fetch', { 'Sec-Fetch-Dest': 'worker' }), false],
  ['nothing but the site', 'GET', { 'Sec-Fetch-Site': 'cross-site' }, false],
  ...['', 'Same-Origin', 'same-origin, same-origin', 'same-origin;x', 'own', ' none'].flatMap(
    (site): Case[] => [
      [`GET, site ${JSON.stringify(site)}`, 'GET', { 'Sec-Fetch-Site': site }, false],
      [`POST, site ${JSON.stringify(site)}`, 'POST', { 'Sec-Fetch-Site': site }, false],
    ],
  ),
  // Older browsers.
  ['an older browser, own page', 'POST', { Origin: own }, true],
  ['an older browser, foreign page', 'POST', { Origin: evil }, false],
  ['an older browser, foreign page that reads', 'GET', { Origin: evil }, false],
  ['an older browser, no origin', 'POST', { Origin: 'null' }, false],
  ...[
    `${own}:8443`,
    `${own}.`,
    `${own}/`,
    `http://${name}`,
    `HTTPS://${name}`,
    'https://gatehouse',
    'https://100.64.0.1',
    `https://x.${name}`,
    `https://${name}.evil.example`,
    `https://${name}@evil.example`,
    '',
    `${own} ${own}`,
    `${own}, ${own}`,
    'file://',
  ].map((origin): Case => [`Origin ${JSON.stringify(origin)}`, 'POST', { Origin: origin }, false]),
  // What is written for nobody to see decides nothing.
  ['Sec_Fetch_Site of a page', 'POST', sent('link', { Sec_Fetch_Site: 'same-origin' }), false],
  ['Referer of a foreign page alone', 'GET', { Referer: `${evil}/` }, true],
]

const raw = (headers: Record<string, string>): string[] => Object.entries(headers).flat()

for (const [what, method, headers, passes] of cases) {
  test(`${what} ${passes ? 'passes' : 'is refused'}`, () => {
    assert.equal(
      foreign({ method, host: name, rawHeaders: raw(headers) }) === undefined,
      passes,
      JSON.stringify(foreign({ method, host: name, rawHeaders: raw(headers) })),
    )
  })
}

test('the origin is that of the address that was asked, with its port and its dot', () => {
  const judge = (host: string, origin: string): boolean =>
    foreign({ method: 'POST', host, rawHeaders: ['origin', origin] }) === undefined
  assert.deepEqual(
    [
      judge(`${name}:443`, own),
      judge(name.toUpperCase(), own),
      judge(`${name}:8443`, `${own}:8443`),
      judge(`${name}:8443`, own),
      judge(`${name}.`, `${own}.`),
      judge(`${name}.`, own),
    ],
    [true, true, true, false, true, false],
  )
})

test('what comes twice is foreign, be it twice the same', () => {
  for (const [header, value] of [
    ['Sec-Fetch-Site', 'same-origin'],
    ['sec-fetch-site', 'none'],
    ['Sec-Fetch-Mode', 'navigate'],
    ['Sec-Fetch-Dest', 'document'],
    ['Origin', own],
  ] as const) {
    const rawHeaders = [...raw(sent('own', { Origin: own })), header, value]
    assert.notEqual(foreign({ method: 'GET', host: name, rawHeaders }), undefined, header)
    assert.notEqual(
      foreign({ method: 'POST', host: name, rawHeaders }, [own, panel]),
      undefined,
      header,
    )
  }
})

test('a foreign origin that is named may, and no other', () => {
  const judge = (method: string, headers: Record<string, string>): boolean =>
    foreign({ method, host: name, rawHeaders: raw(headers) }, [panel]) === undefined
  for (const [method, headers, passes] of [
    ['POST', sent('fetch', { Origin: panel }), true],
    ['OPTIONS', sent('fetch', { Origin: panel }), true],
    ['GET', { Upgrade: 'websocket', Origin: panel }, true],
    ['POST', { Origin: panel }, true],
    ['GET', sent('frame', { Referer: `${panel}/` }), true],
    ['GET', sent('script', { Referer: `${panel}/a?b` }), true],
    ['POST', sent('link', { Referer: `${panel}/` }), false],
    ['POST', sent('link', { Origin: 'null', Referer: `${panel}/` }), false],
    ['GET', sent('fetch', { Origin: evil, Referer: `${panel}/` }), false],
    ['GET', sent('script', { Referer: `https://x.panel.example/` }), false],
    ['GET', sent('script', { Referer: 'panel.example' }), false],
    ['POST', sent('fetch', { Origin: `${panel}:444` }), false],
    ['POST', sent('fetch', { Origin: 'http://panel.example' }), false],
  ] as const)
    assert.equal(judge(method, headers), passes, `${method} ${JSON.stringify(headers)}`)
})

/** Statuses of one case over HTTP/1.1 and HTTP/2. */
async function both(
  bench: Bench,
  method: string,
  path: string,
  headers: Record<string, string>,
  port = 443,
): Promise<number[]> {
  const session = await bench.session({}, port)
  const [one, two] = await Promise.all([
    bench.fetch({ method, path, headers, port }),
    ask(session, {
      ':authority': authorityOf(name, port),
      ':method': method,
      ':path': path,
      ...headers,
    }),
  ])
  session.close()
  return [one.status, two.status!]
}

/** What a WebSocket handshake is answered with. */
async function socket(
  bench: Bench,
  path: string,
  headers: Record<string, string>,
  port = 443,
): Promise<number> {
  const connection = await bench.connect(port)
  const ws = new WebSocket(`wss://${authorityOf(name, port)}${path}`, {
    createConnection: () => connection,
    headers,
  })
  const status = await Promise.race([
    once(ws, 'open').then(() => 101),
    once(ws, 'unexpected-response').then(
      ([, answer]) => (answer as IncomingMessage).statusCode ?? 0,
    ),
  ])
  ws.on('error', () => {})
  ws.terminate()
  return status
}

/** Editor, flows and the gateway's pages, with a path of each. */
const ports = [
  [443, '/flow'],
  [8_443, '/hook'],
  [10_000, '/status'],
] as const

test('over both protocols, for the editor, flows and the own pages', async () => {
  await using bench = await Bench.start()
  for (const [port, path] of ports) {
    const here = originOf(name, port)
    const post = port === 10_000 ? 405 : 200
    for (const [method, headers, status] of [
      ['POST', {}, post],
      ['POST', sent('own', { Origin: here }), post],
      ['POST', { Origin: here }, post],
      ['POST', sent('link', { Origin: evil }), 403],
      ['POST', { origin: 'null' }, 403],
      ...ports
        .filter(([other]) => other !== port)
        .map(([other]) => ['POST', { Origin: originOf(name, other) }, 403] as const),
      ['GET', sent('linkFromNode'), 200],
      ['GET', sent('script'), 403],
      ['GET', sent('frame'), 403],
      ['OPTIONS', sent('fetch', { Origin: evil }), 403],
    ] as const)
      assert.deepEqual(
        await both(bench, method, path, headers, port),
        [status, status],
        `${method} ${port} ${path} ${JSON.stringify(headers)}`,
      )
  }
  assert.ok(
    bench.origin.requests.every(
      ({ headers }) => headers.origin === undefined || headers.origin === `https://${headers.host}`,
    ),
    'nothing foreign has reached Node-RED',
  )
})

test('a WebSocket is the own pages’ alone', async () => {
  await using bench = await Bench.start()
  for (const [port, path] of [
    [443, '/comms'],
    [8_443, '/ws'],
  ] as const) {
    const here = originOf(name, port)
    for (const [headers, status] of [
      [{}, 101],
      [{ Origin: here }, 101],
      [{ Origin: here, 'Sec-Fetch-Site': 'same-origin' }, 101],
      [{ Origin: evil }, 403],
      [{ Origin: 'null' }, 403],
      [{ Origin: originOf(name, port === 443 ? 8_443 : 443) }, 403],
      [{ Origin: here, 'Sec-Fetch-Site': 'same-site' }, 403],
      [{ 'Sec-Fetch-Site': 'cross-site', 'Sec-Fetch-Mode': 'websocket' }, 403],
      [sent('link'), 403],
    ] as const)
      assert.equal(
        await socket(bench, path, headers as Record<string, string>, port),
        status,
        `${port} ${path} ${JSON.stringify(headers)}`,
      )
  }
  assert.equal(await socket(bench, '/x', {}, 10_000), 404, 'the own pages have none')
})

test('headers count as they came: Connection takes none away, and twice is twice', async () => {
  await using bench = await Bench.start()
  const start = `POST /flow HTTP/1.1\r\nHost: ${name}\r\nContent-Length: 0\r\n`
  for (const lines of [
    'Sec-Fetch-Site: cross-site\r\nConnection: sec-fetch-site\r\n',
    'Origin: https://evil.example\r\nConnection: close, origin\r\n',
    'Sec-Fetch-Site: same-origin\r\nSec-Fetch-Site: same-origin\r\n',
    'Sec-Fetch-Site: same-origin\r\nsec-fetch-site: cross-site\r\n',
    `Origin: ${own}\r\nOrigin: https://evil.example\r\n`,
    `Origin: https://evil.example\r\nOrigin: ${own}\r\n`,
    `Origin: ${own}\r\norigin: ${own}\r\n`,
    // An upgrade without Connection is one too.
    'Upgrade: websocket\r\nSec-Fetch-Site: cross-site\r\n',
  ])
    assert.match(await bench.raw(`${start}${lines}\r\n`), /^HTTP\/1\.1 403 /, lines)
  const base = headersOf({ ':path': '/flow' }, 'POST')
  for (const more of [
    [['origin', evil]],
    [
      ['sec-fetch-site', 'same-origin'],
      ['sec-fetch-site', 'cross-site'],
    ],
    [
      ['origin', own],
      ['origin', own],
    ],
  ] as Array<Array<[string, string]>>) {
    const peer = await RawPeer.connect(bench)
    peer.send(frame.headers, flag.endHeaders | flag.endStream, 1, block([...base, ...more]))
    assert.equal(await peer.see('1:'), '1: 403', JSON.stringify(more))
    peer.socket.destroy()
  }
  assert.deepEqual(bench.origin.requests, [])
})

test('page and JSON say what was refused and why; an upload is not read', async () => {
  await using bench = await Bench.start()
  const page = await bench.fetch({ port: 8_443, path: '/x', headers: sent('script') })
  assert.match(page.text, /a page of another site/)
  const json = await bench.fetch({
    method: 'POST',
    port: 8_443,
    path: '/x',
    body: 'x'.repeat(100_000),
    headers: sent('fetch', { Origin: evil, accept: 'application/json' }),
  })
  const { error } = JSON.parse(json.text) as { error: Record<string, string> }
  assert.deepEqual(
    [json.status, error.code, json.headers.connection],
    [403, 'GH_FOREIGN_PAGE', 'close'],
  )
  assert.match(error.message!, /https:\/\/evil\.example, which may not send POST requests here/)
  assert.match(error.cure!, /allow_origins = \["https:\/\/evil\.example"\] in \[node_red\]/)
  const editor = await bench.fetch({
    method: 'POST',
    path: '/flow',
    headers: sent('fetch', { Origin: evil, accept: 'application/json' }),
  })
  assert.doesNotMatch(editor.text, /allow_origins/, 'the editor takes nobody')
  assert.equal(bench.log('evil.example may not send POST').length, 2, 'once for each app')
})

test('flows and an app take the origins that gatehouse.toml names, at once', async () => {
  await using bench = await Bench.start()
  const configured = (text: string): void => {
    bench.gateway.configure(parseConfig(text, 'gatehouse.toml'))
  }
  configured(
    `[node_red]\nallow_origins = ["${panel}"]\n[[app]]\npath = "/x/"\nupstreams = ` +
      `["unix:${bench.origin.socket}"]\nallow_origins = ["http://ha.local:8123"]\n`,
  )
  const from = sent('fetch', { Origin: panel })
  const preflight = { ...from, 'Access-Control-Request-Method': 'PUT' }
  assert.deepEqual(await both(bench, 'PUT', '/x', from, 8_443), [200, 200])
  assert.deepEqual(await both(bench, 'OPTIONS', '/x', preflight, 8_443), [200, 200])
  assert.deepEqual(await both(bench, 'PUT', '/app/x', from), [200, 200], 'an old address, too')
  assert.equal(await socket(bench, '/ws', { Origin: panel }, 8_443), 101)
  for (const path of ['/flows', '/.gatehouse/status', '/x/', '/apple', '/app%2Fx'])
    assert.deepEqual(await both(bench, 'POST', path, from), [403, 403], path)
  assert.deepEqual(await both(bench, 'POST', '/status', from, 10_000), [403, 403])
  assert.equal(await socket(bench, '/comms', { Origin: panel }), 403)
  const home = sent('fetch', { Origin: 'http://ha.local:8123' })
  assert.deepEqual(await both(bench, 'POST', '/x/', home), [200, 200])
  assert.deepEqual(await both(bench, 'POST', '/x', home, 8_443), [403, 403])
  const framed = await bench.fetch({
    port: 8_443,
    path: '/x',
    headers: sent('frame', { Referer: `${panel}/` }),
  })
  assert.deepEqual(
    [
      framed.status,
      framed.headers['content-security-policy'],
      framed.headers['x-frame-options'],
      framed.headers['cross-origin-resource-policy'],
    ],
    [200, `frame-ancestors 'self' ${panel}`, undefined, undefined],
    'it may be embedded there',
  )
  bench.gateway.configure(defaults())
  assert.deepEqual(await both(bench, 'PUT', '/x', from, 8_443), [403, 403])
})

test('an origin in gatehouse.toml is one exactly', () => {
  for (const [value, better] of [
    ['https://panel.example/', 'https://panel.example'],
    ['https://panel.example:443', 'https://panel.example'],
    ['https://Panel.example', 'https://panel.example'],
    ['https://panel.example/x?y', 'https://panel.example'],
    ['panel.example', 'https://panel.example'],
    ['*', 'https://panel.example'],
    ['null', 'https://panel.example'],
    ['https://*.example', 'https://panel.example'],
    ['ftp://panel.example', 'https://panel.example'],
    ['', 'https://panel.example'],
  ] as const)
    for (const table of ['[node_red]', '[[app]]\npath = "/x/"\nupstreams = ["http://a"]'])
      assert.throws(
        () => parseConfig(`${table}\nallow_origins = ["${value}"]`, 'gatehouse.toml'),
        (err: ConfigError) =>
          err.message.includes('is not an origin') &&
          err.cure.includes(`Write allow_origins = ["${better}"]`),
        value,
      )
})
