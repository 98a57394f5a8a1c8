import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { IncomingMessage, RequestListener, Server } from 'node:http'
import { createServer as createTLSServer } from 'node:https'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import { WebSocket, WebSocketServer } from 'ws'
import { defaults, parseConfig } from '../../../../src/config/config.ts'
import type { Config } from '../../../../src/config/config.ts'
import { Bench, name } from '../../support/bench.ts'
import { alice } from '../../support/tailnet.ts'
import { capability } from '../../../../src/gateway/access/access.ts'

type Settings = Config['app'][number]
const app = (path: string, upstreams: string[], more: Partial<Settings> = {}): Settings => ({
  service: undefined,
  port: undefined,
  path,
  upstreams,
  balance: 'first',
  strip: false,
  right: 'use',
  allowOrigins: [],
  serverName: undefined,
  caFile: undefined,
  healthPath: undefined,
  connectTimeout: 5_000,
  responseTimeout: 120_000,
  idleTimeout: 0,
  totalTimeout: 0,
  requestRemove: [],
  requestSet: [],
  requestAdd: [],
  responseRemove: [],
  responseSet: [],
  responseAdd: [],
  ...more,
})
const configure = (bench: Bench, ...apps: Settings[]): void => {
  bench.gateway.configure({ ...defaults(), app: apps })
}

/** A server of its own that says who it is and what it was asked. */
async function server(
  who: string,
  where: string | 0 = 0,
  handler?: RequestListener,
): Promise<{ url: string; server: Server; requests: IncomingMessage[] }> {
  const requests: IncomingMessage[] = []
  const http = createServer((request, response) => {
    requests.push(request)
    if (handler === undefined)
      response.end(JSON.stringify({ who, url: request.url, headers: request.headers }))
    else handler(request, response)
  })
  await new Promise<void>((resolve) => {
    if (where === 0) http.listen(0, '127.0.0.1', resolve)
    else http.listen(where, resolve)
  })
  http.unref()
  return {
    url: where === 0 ? `http://127.0.0.1:${(http.address() as AddressInfo).port}` : `unix:${where}`,
    server: http,
    requests,
  }
}

const ask = async (
  bench: Bench,
  path: string,
  options: Parameters<Bench['fetch']>[0] = {},
): Promise<{ who: string; url: string; headers: Record<string, string> }> =>
  JSON.parse(
    await bench
      .fetch({ path, ...options })
      .then(({ status, text }) =>
        status === 200
          ? text
          : assert.fail(`${status}: ${text.replace(/<style>[^]*<\/style>|<[^>]*>|\n/g, ' ')}`),
      ),
  ) as { who: string; url: string; headers: Record<string, string> }

test("apps by path, kept or stripped, over http and a unix socket; the longest path counts, the rest is Node-RED's", async () => {
  await using bench = await Bench.start()
  const [kept, stripped, inner] = [
    await server('kept'),
    await server('stripped', join(bench.directory, 'app.sock')),
    await server('inner'),
  ]
  configure(
    bench,
    app('/kept/', [kept.url]),
    app('/stripped/', [stripped.url], { strip: true }),
    app('/kept/inner/', [inner.url]),
  )
  assert.deepEqual(
    [(await ask(bench, '/kept/a?b=/c')).who, (await ask(bench, '/kept/a?b=/c')).url],
    ['kept', '/kept/a?b=/c'],
  )
  const seen = await ask(bench, '/stripped/a?b=/c')
  assert.deepEqual(
    [
      seen.who,
      seen.url,
      seen.headers['x-forwarded-prefix'],
      seen.headers.host,
      seen.headers['x-forwarded-for'],
      seen.headers['tailscale-user-login'],
    ],
    ['stripped', '/a?b=/c', '/stripped', name, '100.64.0.7', 'alice@example.com'],
  )
  assert.equal((await ask(bench, '/stripped/')).url, '/')
  assert.deepEqual(
    [(await ask(bench, '/kept/inner/x')).who, (await ask(bench, '/kept/innermost')).who],
    ['inner', 'kept'],
  )
  for (const path of ['/', '/keptx', '/KEPT/x'])
    assert.equal(((await ask(bench, path)) as { who?: string }).who, undefined, path)
  assert.deepEqual(
    bench.origin.requests.map((request) => request.url),
    ['/', '/keptx', '/KEPT/x'],
  )
  // Spelt otherwise, it is the same path and has the same app.
  assert.equal((await ask(bench, '/%6bept/x')).who, 'kept')
  const slash = await bench.fetch({ path: '/kept?x' })
  assert.deepEqual([slash.status, slash.headers.location], [308, '/kept/?x'])
})

test("an app needs its own right, and never sees the gateway's word to Node-RED's editor", async () => {
  await using bench = await Bench.start()
  const one = await server('one')
  configure(bench, app('/viewed/', [one.url], { right: 'view' }), app('/used/', [one.url]))
  const headers = (await ask(bench, '/viewed/')).headers
  const atNodeRed = (await ask(bench, '/flows')).headers
  const own = Object.keys(atNodeRed).filter((header) => header.includes('gatehouse'))
  assert.equal(own.length, 1, 'Node-RED gets the assertion')
  assert.equal(headers[own[0]!], undefined)
  bench.tailnet.peer = { ...alice, capMap: { [capability]: [{ may: ['view'] }] } }
  assert.deepEqual(
    [
      (await bench.fetch({ path: '/viewed/' })).status,
      (await bench.fetch({ path: '/used/' })).status,
      (await bench.fetch({ path: '/viewed/', method: 'POST', body: 'x' })).status,
    ],
    [200, 403, 200],
  )
})

test('a redirect of a stripped app stays below its path', async () => {
  await using bench = await Bench.start()
  const targets = ['/login', '/s/login', 'https://elsewhere.example/', 'relative']
  const one = await server('one', 0, (request, response) => {
    response.writeHead(302, { location: targets[Number(request.url!.slice(1))]! }).end()
  })
  configure(bench, app('/s/', [one.url], { strip: true }))
  const got = await Promise.all(
    targets.map(async (_, i) => (await bench.fetch({ path: `/s/${i}` })).headers.location),
  )
  assert.deepEqual(got, ['/s/login', '/s/login', 'https://elsewhere.example/', 'relative'])
})

test('https upstreams are verified: own authority, name asked for by SNI', async () => {
  await using bench = await Bench.start({
    options: {
      authority: (file) => (file === 'own.pem' ? bench.authority.certificate : undefined),
    },
  })
  const pem = bench.authority.issue('inside.example')
  const names: Array<string | false | undefined> = []
  const https = createTLSServer({ cert: pem, key: pem }, (request, response) => {
    names.push((request.socket as unknown as { servername: string | false }).servername)
    response.end(JSON.stringify({ who: 'tls', url: request.url, headers: request.headers }))
  })
  await new Promise<void>((resolve) => https.listen(0, '127.0.0.1', resolve))
  https.unref()
  const url = `https://127.0.0.1:${(https.address() as AddressInfo).port}`
  configure(
    bench,
    app('/good/', [url], { caFile: 'own.pem', serverName: 'inside.example' }),
    app('/other-name/', [url], { caFile: 'own.pem', serverName: 'other.example' }),
    app('/unknown/', [url], { serverName: 'inside.example' }),
    app('/no-file/', [url], { caFile: 'absent.pem', serverName: 'inside.example' }),
  )
  assert.equal((await ask(bench, '/good/x')).who, 'tls')
  assert.deepEqual(names, ['inside.example'])
  for (const path of ['/other-name/', '/unknown/', '/no-file/'])
    assert.equal((await bench.fetch({ path })).status, 502, path)
  assert.equal(names.length, 1)
})

test('an https upstream by its address is verified by that, without SNI', async () => {
  await using bench = await Bench.start({
    options: { authority: () => bench.authority.certificate },
  })
  const serve = async (pem: string): Promise<string> => {
    const https = createTLSServer({ cert: pem, key: pem }, (request, response) => {
      response.end(
        JSON.stringify({
          who: String((request.socket as unknown as { servername: string | false }).servername),
        }),
      )
    })
    new WebSocketServer({ server: https }).on('connection', (ws) => ws.send('hello'))
    await new Promise<void>((resolve) => https.listen(0, '127.0.0.1', resolve))
    https.unref()
    return `https://127.0.0.1:${(https.address() as AddressInfo).port}`
  }
  configure(
    bench,
    app('/good/', [await serve(bench.authority.issue('127.0.0.1'))], { caFile: 'own.pem' }),
    app('/bad/', [await serve(bench.authority.issue('127.0.0.2'))], { caFile: 'own.pem' }),
  )
  assert.equal((await ask(bench, '/good/')).who, 'false')
  assert.equal((await bench.fetch({ path: '/bad/' })).status, 502)
  const socket = await bench.connect()
  const ws = new WebSocket(`wss://${name}/good/ws`, { createConnection: () => socket })
  assert.equal(String(((await once(ws, 'message')) as [Buffer])[0]), 'hello')
  ws.terminate()
  const refused = new WebSocket(`wss://${name}/bad/ws`, {
    createConnection: (
      (socket) => () =>
        socket
    )(await bench.connect()),
  })
  const [, answer] = (await once(refused, 'unexpected-response')) as [unknown, IncomingMessage]
  answer.resume()
  assert.equal(answer.statusCode, 502)
})

test('failover: the next upstream answers when one is down, and the first again when it is back', async () => {
  await using bench = await Bench.start()
  const first = await server('first', join(bench.directory, 'first.sock'))
  const second = await server('second')
  configure(bench, app('/x/', [first.url, second.url]))
  assert.equal((await ask(bench, '/x/')).who, 'first')
  first.server.closeAllConnections()
  await new Promise((resolve) => first.server.close(resolve))
  assert.equal(
    (await ask(bench, '/x/')).who,
    'second',
    'the request that finds out is answered, too',
  )
  assert.equal((await ask(bench, '/x/', { method: 'POST', body: 'x' })).who, 'second')
  assert.equal(bench.log('cannot be reached').length, 1)
  assert.match(
    await bench.gateway.metrics.registry.metrics(),
    /gatehouse_upstream_up\{upstream="x-1"\} 0\ngatehouse_upstream_up\{upstream="x-2"\} 1/,
  )
  await server('first', join(bench.directory, 'first.sock'))
  await bench.until(async () => (await ask(bench, '/x/')).who === 'first')
  await using other = await Bench.start()
  configure(other, app('/x/', ['http://127.0.0.1:1', 'http://127.0.0.1:2']))
  const none = await other.fetch({ path: '/x/', headers: { accept: 'application/json' } })
  assert.deepEqual(
    [none.status, (JSON.parse(none.text) as { error: { code: string } }).error.code],
    [502, 'GH_UPSTREAM_DOWN'],
  )
})

test(
  'health_path: an upstream that takes connections and is not well, or says nothing, is not asked; it is when it is well again',
  { timeout: 30_000 },
  async () => {
    for (const ill of [
      (_request, response) => {
        response.writeHead(503).end()
      },
      () => {},
    ] as RequestListener[]) {
      await using bench = await Bench.start()
      let well = false
      const first = await server('first', 0, (request, response) => {
        if (request.url !== '/healthz' || well) response.end(JSON.stringify({ who: 'first' }))
        else ill(request, response)
      })
      const second = await server('second')
      configure(
        bench,
        app('/x/', [first.url, second.url], { healthPath: '/healthz', responseTimeout: 1_000 }),
      )
      await bench.until(() => bench.log('cannot be reached').length === 1)
      assert.match(
        bench.log('cannot be reached')[0]!.msg,
        /it answers 503 for \/healthz|no answer for \/healthz within 1 s/,
      )
      for (let i = 0; i < 3; i++) assert.equal((await ask(bench, '/x/')).who, 'second')
      assert.deepEqual(
        new Set(first.requests.map(({ url, headers }) => `${url} ${headers.host}`)),
        new Set([`/healthz ${new URL(first.url).host}`]),
      )
      second.server.closeAllConnections()
      second.server.close()
      await bench.until(async () => (await bench.fetch({ path: '/x/' })).text.includes('"first"'))
      await ask(bench, '/x/')
      assert.match(
        await bench.gateway.metrics.registry.metrics(),
        /upstream="x-1"\} 0/,
        'asked when there is no other, but not well by that',
      )
      well = true
      await bench.until(async () =>
        /upstream="x-1"\} 1/.test(await bench.gateway.metrics.registry.metrics()),
      )
    }
  },
)

test('nothing an upstream has seen is sent again', async () => {
  await using bench = await Bench.start()
  const first = await server('first', 0, (request) => {
    request.socket.destroy()
  })
  const second = await server('second')
  configure(bench, app('/x/', [first.url, second.url]))
  for (const method of ['GET', 'POST'])
    assert.equal((await bench.fetch({ path: '/x/', method })).status, 502)
  assert.deepEqual([first.requests.length, second.requests.length], [2, 0])
})

test('an app that is late is 504 by its own limit', async () => {
  await using bench = await Bench.start()
  const slow = await server('slow', 0, () => {})
  configure(bench, app('/slow/', [slow.url], { responseTimeout: 300 }))
  const answer = await bench.fetch({ path: '/slow/', headers: { accept: 'application/json' } })
  assert.deepEqual(
    [answer.status, (JSON.parse(answer.text) as { error: { code: string } }).error.code],
    [504, 'GH_UPSTREAM_TIMEOUT'],
  )
})

test('WebSockets to an app, with failover, and kept when the settings change', async () => {
  await using bench = await Bench.start()
  const one = await server('one')
  new WebSocketServer({ server: one.server }).on('connection', (ws, request) => {
    ws.send(`${request.url} ${request.headers['x-forwarded-prefix']}`)
    ws.on('message', (data) => ws.send(data))
  })
  configure(bench, app('/ws/', ['http://127.0.0.1:1', one.url], { strip: true }))
  const socket = await bench.connect()
  const ws = new WebSocket(`wss://${name}/ws/live?x`, { createConnection: () => socket })
  assert.equal(String(((await once(ws, 'message')) as [Buffer])[0]), '/live?x /ws')
  configure(bench)
  assert.equal(
    ((await ask(bench, '/ws/live')) as { who?: string }).who,
    undefined,
    "the path is Node-RED's again",
  )
  ws.send('still')
  assert.equal(String(((await once(ws, 'message')) as [Buffer])[0]), 'still')
  ws.terminate()
})

test('an [[app]] that cannot work is refused with what to write', () => {
  for (const [lines, says] of [
    ['path = "/x/"', /has no upstreams/],
    ['upstreams = ["http://a"]', /has no path/],
    ['path = "/x"\nupstreams = ["http://a"]', /begins and ends with a slash/],
    ['path = "/"\nupstreams = ["http://a"]', /begins and ends/],
    ['path = "/app/x/"\nupstreams = ["http://a"]', /not below \/app\//],
    ['path = "/a/../b/"\nupstreams = ["http://a"]', /begins and ends/],
    ['path = "/x/"\nupstreams = ["ftp://a"]', /neither http/],
    ['path = "/x/"\nupstreams = ["http://a/path"]', /neither http/],
    ['path = "/x/"\nupstreams = ["http://u:p@a"]', /neither http/],
    [
      'path = "/x-y/"\nupstreams = ["http://a"]\n[[app]]\npath = "/x/y/"\nupstreams = ["http://a"]',
      /line 4: two \[\[app\]\]/,
    ],
  ] as const)
    assert.throws(
      () => parseConfig(`[[app]]\n${lines}`, 'f'),
      (err: Error) => says.test(err.message),
      lines,
    )
  assert.deepEqual(
    parseConfig(
      '[[app]]\npath = "/g/"\nupstreams = ["https://127.0.0.1:3000"]\nca_file = "own.pem"',
      'f',
    ).app,
    [app('/g/', ['https://127.0.0.1:3000'], { caFile: 'own.pem' })],
  )
})
