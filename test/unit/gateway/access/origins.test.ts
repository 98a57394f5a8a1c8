import assert from 'node:assert/strict'
import { once } from 'node:events'
import type { IncomingHttpHeaders } from 'node:http'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { pino } from 'pino'
import { WebSocket } from 'ws'
import { defaults, parseConfig } from '../../../../src/config/config.ts'
import { originOf } from '../../../../src/config/ports.ts'
import { capability } from '../../../../src/gateway/access/access.ts'
import { editorRoot } from '../../../../src/gateway/access/channel.ts'
import { Arrivals } from '../../../../src/gateway/apps/old-links.ts'
import { Problems } from '../../../../src/gateway/shared/problems.ts'
import { Bench, name } from '../../support/bench.ts'
import { ask } from '../../support/h2.ts'
import { alice } from '../../support/tailnet.ts'

const flows = originOf(name, 8_443)
const link = {
  'sec-fetch-site': 'none',
  'sec-fetch-mode': 'navigate',
  'sec-fetch-dest': 'document',
}

/** What came of a request: status, where it was sent on to, and the path Node-RED saw. */
type Got = [status: number, location: string | undefined, seen: string | undefined]
async function get(
  bench: Bench,
  port: number,
  path: string,
  headers: Record<string, string> = {},
  method = 'GET',
): Promise<Got> {
  const before = bench.origin.requests.length
  const answer = await bench.fetch({ port, path, headers, method })
  return [answer.status, answer.headers.location, bench.origin.requests[before]?.url]
}

/** A gateway whose Node-RED has the editor where the channel key says. */
async function start(): Promise<{ bench: Bench; root: string }> {
  let root = ''
  const bench = await Bench.start({
    before: (made) => {
      root = editorRoot(made.channelKey).slice(0, -1)
    },
    options: { editorRoot: undefined as never },
  })
  return { bench, root }
}

test('the editor is below a path of its own that the port of flows does not lead to, in no spelling', async () => {
  const { bench: made, root } = await start()
  await using bench = made
  assert.match(root, /^\/[0-9a-f]{32}$/)
  assert.deepEqual(await get(bench, 443, '/flows'), [200, undefined, `${root}/flows`])
  assert.deepEqual(await get(bench, 443, '/'), [200, undefined, `${root}/`])
  assert.deepEqual(await get(bench, 443, '/?a=/b'), [200, undefined, `${root}/?a=/b`])
  assert.deepEqual(
    await get(bench, 443, `${root}/icons/x`),
    [200, undefined, `${root}/icons/x`],
    'an address that Node-RED made itself',
  )
  assert.deepEqual(await get(bench, 8_443, '/flows'), [200, undefined, '/flows'])
  const escaped = `%${root.charCodeAt(1).toString(16)}${root.slice(2)}`
  for (const path of [
    `${root}/flows`,
    root,
    `${root}?x`,
    `${root.toUpperCase()}/flows`,
    `/${escaped}/flows`,
    `/${escaped.toUpperCase()}`,
    `/app${root}/flows`,
    `/APP${root}/flows`,
  ]) {
    const [status, , seen] = await get(bench, 8_443, path)
    // What is escaped otherwise is another path to Node-RED, and it is passed on as it is.
    assert.ok(status === 404 ? seen === undefined : /^\/app\//i.test(seen!), `${path}: ${seen}`)
  }
  assert.deepEqual(await get(bench, 443, `/app${root}/flows`), [404, undefined, undefined])
  const socket = await bench.connect(8_443)
  const ws = new WebSocket(`wss://${name}:8443/app${root}/comms`, {
    createConnection: () => socket,
  })
  const [, answer] = (await once(ws, 'unexpected-response')) as [unknown, { statusCode: number }]
  assert.equal(answer.statusCode, 404)
  ws.on('error', () => {})
  ws.terminate()
})

test('without the key nobody gets to what flows have at the root as if it were the editor', async () => {
  await using bench = await Bench.start({
    options: { editorRoot: undefined as never, channelKey: undefined },
  })
  const [, , seen] = await get(bench, 443, '/x')
  assert.match(seen!, /^\/[0-9a-f]{32}\/x$/)
})

test('flows need the right use at their port, the status page status, the editor view and edit', async () => {
  await using bench = await Bench.start()
  const statuses = async (): Promise<number[]> =>
    await Promise.all(
      (
        [
          [443, '/', 'GET'],
          [443, '/flows', 'POST'],
          [8_443, '/flows', 'POST'],
          [10_000, '/status', 'GET'],
          [443, '/app/x', 'GET'],
        ] as const
      ).map(async ([port, path, method]) => (await bench.fetch({ port, path, method })).status),
    )
  for (const [may, expected] of [
    [['view'], [200, 403, 403, 403, 403]],
    [['edit'], [200, 200, 403, 403, 403]],
    [['use'], [403, 403, 200, 403, 200]],
    [['status'], [403, 403, 403, 200, 403]],
    [[], [403, 403, 403, 403, 403]],
  ] as const) {
    bench.tailnet.peer = { ...alice, capMap: { [capability]: [{ may }] } }
    assert.deepEqual(await statuses(), expected, may.join())
  }
})

test('the word on who asks goes to the editor alone', async () => {
  await using bench = await Bench.start()
  for (const [port, path, told] of [
    [443, '/x', true],
    [8_443, '/x', false],
    [8_443, '/app/x', false],
    [443, '/app/x', false],
  ] as const) {
    await bench.fetch({ port, path })
    assert.equal(
      bench.origin.requests.at(-1)!.headers['x-gatehouse-user'] !== undefined,
      told,
      `${port}${path}`,
    )
  }
})

test('Host has the port that was asked: two origins are never one', async () => {
  await using bench = await Bench.start()
  for (const [port, host, status] of [
    [443, name, 200],
    [443, `${name}:443`, 200],
    [443, `${name}:8443`, 421],
    [8_443, name, 421],
    [8_443, `${name}:8443`, 200],
    [8_443, `${name}:08443`, 200],
    [10_000, `${name}:8443`, 421],
    [8_443, 'evil.example:8443', 421],
  ] as const) {
    const answer = await bench.fetch({ port, path: '/status', headers: { host } })
    assert.equal(answer.status, status, `${port} ${host}`)
    if (status === 421) assert.ok(answer.text.includes(`Use ${originOf(name, port)}/`), answer.text)
  }
  for (const host of ['gatehouse:8443', 'gatehouse', '100.64.0.1:8443', '[fd7a:115c:a1e0::1]:8443'])
    assert.deepEqual(await get(bench, 8_443, '/x?y', { host }), [308, `${flows}/x?y`, undefined])
  const session = await bench.session({}, 8_443)
  assert.equal((await ask(session, { ':authority': name })).status, 421)
  assert.equal((await ask(session, { ':authority': `${name}:8443` })).status, 200)
  session.close()
})

test('old addresses: a browser is sent to the flows’ own, a program is answered and may run nothing', async () => {
  await using bench = await Bench.start()
  const get308 = async (path: string, headers: Record<string, string>, method?: string) =>
    await get(bench, 443, path, headers, method)
  for (const [path, to] of [
    ['/app/hello?a=b', '/hello?a=b'],
    ['/app', '/'],
    ['/app?x', '/?x'],
    ['/App/x', '/x'],
    ['/%61pp/x', '/x'],
    ['/app//evil.example/x', '//evil.example/x'],
  ] as const)
    assert.deepEqual(await get308(path, link), [308, `${flows}${to}`, undefined], path)
  const own = { origin: `https://${name}` }
  assert.deepEqual(await get308('/app/x', own, 'POST'), [308, `${flows}/x`, undefined])
  assert.deepEqual(await get308('/app/sw.js', { 'service-worker': 'script' }), [
    308,
    `${flows}/sw.js`,
    undefined,
  ])
  assert.equal((await get308('/app/x', { origin: flows }, 'POST'))[0], 403, 'foreign at 443')
  for (const [path, seen] of [
    ['/app/hello?a=b', '/hello?a=b'],
    ['/app', '/'],
    ['/app?x', '/?x'],
    ['/APP/x/', '/x/'],
  ] as const) {
    const before = bench.origin.requests.length
    const answer = await bench.fetch({ path, method: 'POST' })
    assert.deepEqual([answer.status, bench.origin.requests[before]!.url], [200, seen])
    assert.equal(answer.headers['content-security-policy'], "frame-ancestors 'self', sandbox", path)
    assert.equal(bench.origin.requests[before]!.headers['x-forwarded-prefix'], '/app')
  }
  // An app's own policy does not take its place.
  bench.origin.handler = (_request, response) =>
    response.setHeader('content-security-policy', "default-src 'self'").end()
  assert.match(
    (await bench.fetch({ path: '/app/x' })).headers['content-security-policy'] as string,
    /, sandbox$/,
  )
  for (const [path, seen] of [
    ['/apple', '/apple'],
    ['/app%2Fx', '/app%2Fx'],
    ['/x/app/', '/x/app/'],
  ] as const)
    assert.deepEqual(await get308(path, link), [200, undefined, seen], path)
})

test('old WebSockets: of programs at 443, of all at the flows’ port', async () => {
  await using bench = await Bench.start()
  const open = async (port: number, headers: Record<string, string>): Promise<string> => {
    const socket = await bench.connect(port)
    const before = bench.origin.requests.length
    const ws = new WebSocket(`${originOf(name, port).replace('https', 'wss')}/app/ws?x`, {
      createConnection: () => socket,
      headers,
    })
    const result = await Promise.race([
      once(ws, 'open').then(() => bench.origin.requests[before]!.url!),
      once(ws, 'unexpected-response').then(([, answer]) =>
        String((answer as { statusCode: number }).statusCode),
      ),
    ])
    ws.on('error', () => {})
    ws.terminate()
    return result
  }
  assert.deepEqual(
    [
      await open(443, {}),
      await open(443, { origin: `https://${name}` }),
      await open(443, { origin: flows }),
      await open(8_443, {}),
      await open(8_443, { origin: flows }),
    ],
    ['/ws?x', '308', '403', '/ws?x', '/ws?x'],
  )
})

test('what Node-RED does not have is looked for where it may be', async () => {
  const { bench: made, root } = await start()
  await using bench = made
  bench.origin.handler = (request, response) => {
    response.statusCode = request.url === '/app/own' || request.url === '/lib.js' ? 200 : 404
    response.end('x')
  }
  assert.deepEqual(
    await get(bench, 443, '/ui/?x', link),
    [307, `${flows}/ui/?x`, `${root}/ui/?x`],
    'a link of the editor to a dashboard',
  )
  assert.equal((await get(bench, 443, '/ui/'))[0], 404, 'a program’s 404 is one')
  assert.equal(
    (await get(bench, 443, '/icons/x.svg', { ...link, 'sec-fetch-dest': 'image' }))[0],
    404,
  )
  assert.deepEqual(await get(bench, 8_443, '/app/own', link), [200, undefined, '/app/own'])
  assert.deepEqual(await get(bench, 8_443, '/app/lib.js?v=1'), [
    307,
    `${flows}/lib.js?v=1`,
    '/app/lib.js?v=1',
  ])
  assert.deepEqual(await get(bench, 8_443, '/app/x', { origin: flows }, 'POST'), [
    307,
    `${flows}/x`,
    '/app/x',
  ])
  assert.equal((await get(bench, 8_443, '/x', link))[0], 404)
})

test('what Node-RED says of its own root is not told', async () => {
  const { bench: made, root } = await start()
  await using bench = made
  bench.origin.handler = (request, response) => {
    response.writeHead(302, { location: `${request.url}/` }).end()
  }
  assert.deepEqual(await get(bench, 443, '/icons'), [302, '/icons/', `${root}/icons`])
})

/** Headers that keep origins apart. */
function apart(headers: IncomingHttpHeaders): unknown[] {
  return [
    headers['cross-origin-resource-policy'],
    headers['cross-origin-opener-policy'],
    headers['content-security-policy'],
    headers['x-frame-options'],
  ]
}

test('answers may be neither framed nor included elsewhere, where the app says nothing itself', async () => {
  await using bench = await Bench.start()
  const self = "frame-ancestors 'self'"
  const html = async (port: number, path: string, more: Record<string, string> = {}) => {
    bench.origin.handler = (_request, response) => {
      response.writeHead(200, { 'content-type': 'text/html; charset=utf-8', ...more }).end('x')
    }
    return apart((await bench.fetch({ port, path })).headers)
  }
  const popups = 'same-origin-allow-popups'
  assert.deepEqual(await html(443, '/'), ['same-origin', popups, self, 'SAMEORIGIN'])
  assert.deepEqual(await html(443, '/?x'), ['same-origin', popups, self, 'SAMEORIGIN'])
  assert.deepEqual(
    await html(443, '/google/auth/callback'),
    ['same-origin', undefined, self, 'SAMEORIGIN'],
    'a pop-up that comes back from elsewhere may speak to the editor',
  )
  assert.deepEqual(await html(8_443, '/'), ['same-origin', undefined, self, 'SAMEORIGIN'])
  assert.deepEqual(apart((await bench.fetch({ port: 10_000, path: '/status' })).headers), [
    'same-origin',
    'same-origin',
    self,
    'SAMEORIGIN',
  ])
  assert.deepEqual(await html(8_443, '/', { 'x-frame-options': 'DENY' }), [
    'same-origin',
    undefined,
    undefined,
    'DENY',
  ])
  assert.deepEqual(
    await html(8_443, '/', { 'content-security-policy': "script-src 'self'; Frame-Ancestors *" }),
    ['same-origin', undefined, "script-src 'self'; Frame-Ancestors *", undefined],
  )
  assert.deepEqual(await html(8_443, '/', { 'content-security-policy': "script-src 'self'" }), [
    'same-origin',
    undefined,
    `script-src 'self', ${self}`,
    'SAMEORIGIN',
  ])
  assert.deepEqual(
    await html(443, '/', {
      'cross-origin-resource-policy': 'cross-origin',
      'cross-origin-opener-policy': 'unsafe-none',
    }),
    ['cross-origin', 'unsafe-none', self, 'SAMEORIGIN'],
  )
  bench.origin.handler = (_request, response) => {
    response.writeHead(200, { 'service-worker-allowed': '/' }).end()
  }
  for (const port of [443, 8_443])
    assert.equal(
      (await bench.fetch({ port, path: '/sw.js' })).headers['service-worker-allowed'],
      undefined,
    )
})

test('the cache keeps origins apart', async () => {
  await using bench = await Bench.start()
  bench.origin.handler = (request, response) => {
    response.setHeader('cache-control', 'public, max-age=60').end(request.headers.host)
  }
  for (let round = 0; round < 2; round++)
    for (const [port, host] of [
      [443, name],
      [8_443, `${name}:8443`],
    ] as const) {
      const answer = await bench.fetch({ port, path: '/x.js' })
      assert.deepEqual(
        [answer.text, answer.headers['cross-origin-resource-policy']],
        [host, 'same-origin'],
      )
    }
  assert.equal(bench.origin.requests.length, 2)
})

test('an app has a port of its own when gatehouse.toml says so, and gives it back', async () => {
  await using bench = await Bench.start()
  const configured = (text: string): void => {
    bench.gateway.configure(parseConfig(text, 'gatehouse.toml'))
  }
  const upstreams = `upstreams = ["unix:${bench.origin.socket}"]`
  configured(`[[app]]\nport = 8444\n${upstreams}\n[[app]]\nport = 8445\npath = "/x/"\n${upstreams}`)
  await bench.until(() => bench.tailnet.connect(8_445).destroy() !== undefined)
  await bench.until(async () => {
    const socket = await bench.connect(8_445).catch(() => undefined)
    socket?.destroy()
    return socket !== undefined
  })
  assert.deepEqual(await get(bench, 8_444, '/any/path'), [200, undefined, '/any/path'])
  assert.deepEqual(await get(bench, 8_444, '/app/x'), [200, undefined, '/app/x'])
  assert.deepEqual(await get(bench, 8_445, '/x/y'), [200, undefined, '/x/y'])
  assert.deepEqual(await get(bench, 8_445, '/y'), [404, undefined, undefined])
  assert.deepEqual(await get(bench, 443, '/x/y'), [200, undefined, '/x/y'], 'the editor’s')
  const socket = await bench.connect(8_444)
  bench.gateway.configure(defaults())
  assert.equal(
    (await bench.fetch({ socket, headers: { host: `${name}:8444` } })).status,
    404,
    'what is open stays open, and leads nowhere',
  )
  await bench.until(async () => await refused(bench, 8_444))
})

async function refused(bench: Bench, port: number): Promise<boolean> {
  const socket = bench.tailnet.connect(port)
  const [result] = await Promise.race([
    once(socket, 'connect').then(() => [false]),
    new Promise<[boolean]>((resolve) => socket.once('error', () => resolve([true]))),
  ])
  socket.destroy()
  return result!
}

test('a forward that has one of the ports keeps it, and that is said', async () => {
  await using bench = await Bench.start()
  bench.gateway.configure(
    parseConfig('[[forward]]\nport = 8443\ntarget = "127.0.0.1:9"', 'gatehouse.toml'),
  )
  const problem = bench.gateway.problems.get('ports')
  assert.equal(problem?.code, 'GH_PORT_TAKEN')
  assert.match(problem.message, /8443/)
  assert.equal((await bench.fetch({ port: 10_000, path: '/status' })).status, 200)
  bench.gateway.configure(defaults())
  assert.equal(bench.gateway.problems.get('ports'), undefined)
})

test('mistakes about ports in gatehouse.toml', () => {
  for (const [text, message] of [
    ['port = 8444\nservice = "svc:a"', /has the name "svc:a" and the port 8444/],
    ['port = 443', /one of the gateway's own/],
    ['port = 8443', /one of the gateway's own/],
    ['port = 10000', /one of the gateway's own/],
    ['port = 70000', /outside 1 to 65535/],
    ['port = 8444\n[[app]]\nupstreams = ["http://a"]\nport = 8444', /two \[\[app\]\]/],
  ] as const)
    assert.throws(
      () => parseConfig(`[[app]]\nupstreams = ["http://a"]\n${text}`, 'gatehouse.toml'),
      message,
    )
})

test('a peer that is sent to the flows’ port and never comes is a problem, until it comes', async () => {
  const problems = new Problems(pino({ level: 'silent' }))
  const arrivals = new Arrivals(problems, 20)
  const [phone, laptop] = [
    { address: '100.64.0.7', local: false },
    { address: '100.64.0.8', local: false },
  ]
  arrivals.sent(phone)
  arrivals.sent({ address: '192.168.1.2', local: true })
  arrivals.sent({ address: '192.168.1.2', local: true })
  arrivals.arrived(laptop)
  arrivals.sent(laptop)
  arrivals.sent(laptop)
  await sleep(60)
  assert.equal(problems.get('flows'), undefined, 'once may be a tab that was closed')
  arrivals.sent(phone)
  await sleep(60)
  const problem = problems.get('flows')
  assert.equal(problem?.code, 'GH_FLOWS_PORT')
  assert.match(`${problem.message} ${problem.cure}`, /100\.64\.0\.7 .*"tcp:8443"/)
  arrivals.arrived(phone)
  assert.equal(problems.get('flows'), undefined)
})

test('a browser that is sent on, and does not come, is noted; one that comes is not', async () => {
  await using bench = await Bench.start()
  for (let i = 0; i < 2; i++) await get(bench, 443, '/app/x', link)
  assert.equal((await get(bench, 8_443, '/x', link))[0], 200)
  assert.equal(bench.gateway.problems.get('flows'), undefined)
})
