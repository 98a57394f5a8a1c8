/**
 * What a hostile page gets in a real browser of somebody who may do everything: on another node of
 * the tailnet (the same site to a browser), elsewhere over plain http, and served by a flow. Beside
 * it the editor, both dashboards, and flows' HTTP and WebSocket nodes work.
 *
 * What the table calls "before" was measured by these attempts with the check taken out of the
 * gateway (test/lab only sees the version that is there).
 */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { access, readFile } from 'node:fs/promises'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { promisify } from 'node:util'
import type { Browser, BrowserContext, Page } from 'playwright-core'
import { Authority } from '../unit/support/authority.ts'
import { Appliance, eventually } from './appliance.ts'
import { browseNames } from './browser.ts'
import { add, deploy, openEditor } from './editor.ts'
import type { Site } from './browser.ts'
import { Lab } from './lab.ts'
import type { LabClient } from './lab.ts'

const repository = path.resolve(import.meta.dirname, '../..')

/** Dashboards as people install them. */
const dashboards = ['node-red-dashboard@3.6.6', '@flowfuse/node-red-dashboard@1.31.0']

/** From npm's registry, by npm, outside the lab, once: kept in out/cache. */
async function installDashboards(): Promise<string> {
  const directory = path.join(repository, 'out/cache/dashboards')
  const modules = path.join(directory, 'node_modules')
  const there = await Promise.all(
    dashboards.map(async (spec) =>
      access(path.join(modules, spec.slice(0, spec.lastIndexOf('@')))).then(
        () => true,
        () => false,
      ),
    ),
  )
  if (!there.every(Boolean))
    await promisify(execFile)('npm', [
      'install',
      '--prefix',
      directory,
      '--ignore-scripts',
      '--no-audit',
      '--no-fund',
      '--no-package-lock',
      ...dashboards,
    ])
  return modules
}

const html = (body: string): string => `<!doctype html><title>page</title><body>${body}</body>`

/** An http in node with an answer of its own. */
const served = (
  id: string,
  method: string,
  url: string,
  func: string,
  type = 'text/html; charset=utf-8',
): object[] => [
  { id: `${id}-in`, z: 'flow', type: 'http in', url, method, wires: [[`${id}-fn`]] },
  {
    id: `${id}-fn`,
    z: 'flow',
    type: 'function',
    outputs: 1,
    func: `${func}\nmsg.headers = { 'content-type': ${JSON.stringify(type)} }\nreturn msg`,
    wires: [[`${id}-out`]],
  },
  { id: `${id}-out`, z: 'flow', type: 'http response', wires: [] },
]

const flows: readonly object[] = [
  { id: 'flow', type: 'tab', label: 'flow' },
  ...served('hello', 'get', '/hello', `msg.payload = 'the keep says hello'`),
  ...served('page', 'get', '/page', `msg.payload = ${JSON.stringify(html('a page of a flow'))}`),
  ...served('hook', 'post', '/hook', `msg.payload = 'took ' + msg.payload.value`),
  ...served('count', 'get', '/count', `msg.payload = String(global.get('count') ?? 0)`),
  ...served(
    'worker',
    'get',
    '/sw.js',
    `msg.payload = "self.addEventListener('install', () => self.skipWaiting()); ` +
      `self.addEventListener('activate', (event) => event.waitUntil(self.clients.claim())); ` +
      `self.addEventListener('fetch', (event) => event.respondWith(new Response('by the ` +
      `worker')))"`,
    'text/javascript',
  ),
  // A pattern that takes every first part of an address.
  ...served(
    'any',
    'get',
    '/:any/nowhere/:rest',
    `msg.payload = ${JSON.stringify(html('<script>window.owned = true</script>'))}`,
  ),
  // What a page could set off.
  {
    id: 'inject1',
    z: 'flow',
    type: 'inject',
    payload: '1',
    payloadType: 'num',
    wires: [['count-up', 'debug']],
  },
  {
    id: 'count-up',
    z: 'flow',
    type: 'function',
    func: `global.set('count', (global.get('count') ?? 0) + 1)\nreturn msg`,
    outputs: 1,
    wires: [[]],
  },
  {
    id: 'debug',
    z: 'flow',
    type: 'debug',
    active: true,
    tosidebar: true,
    complete: 'payload',
    wires: [],
  },
  { id: 'listener', type: 'websocket-listener', path: '/ws', wholemsg: 'false' },
  {
    id: 'ws-in',
    z: 'flow',
    type: 'websocket in',
    server: 'listener',
    client: '',
    wires: [['ws-out']],
  },
  { id: 'ws-out', z: 'flow', type: 'websocket out', server: 'listener', client: '', wires: [] },
  // Dashboard 1.
  { id: 'd1-tab', type: 'ui_tab', name: 'First', icon: 'dashboard', order: 1 },
  {
    id: 'd1-group',
    type: 'ui_group',
    name: 'Group',
    tab: 'd1-tab',
    order: 1,
    disp: true,
    width: '6',
  },
  {
    id: 'd1-button',
    z: 'flow',
    type: 'ui_button',
    group: 'd1-group',
    order: 1,
    width: 0,
    height: 0,
    label: 'press one',
    payload: 'pressed one',
    payloadType: 'str',
    wires: [['d1-text']],
  },
  {
    id: 'd1-text',
    z: 'flow',
    type: 'ui_text',
    group: 'd1-group',
    order: 2,
    width: 0,
    height: 0,
    label: 'said',
    format: '{{msg.payload}}',
    layout: 'row-spread',
    wires: [],
  },
  // Dashboard 2.
  {
    id: 'd2-base',
    type: 'ui-base',
    name: 'Second',
    path: '/dashboard',
    includeClientData: true,
    acceptsClientConfig: ['ui-notification', 'ui-control'],
    showPathInSidebar: false,
  },
  {
    id: 'd2-theme',
    type: 'ui-theme',
    name: 'Theme',
    colors: {
      surface: '#ffffff',
      primary: '#0094ce',
      bgPage: '#eeeeee',
      groupBg: '#ffffff',
      groupOutline: '#cccccc',
    },
    sizes: { pagePadding: '12px', groupGap: '12px', groupBorderRadius: '4px', widgetGap: '12px' },
  },
  {
    id: 'd2-page',
    type: 'ui-page',
    name: 'Page',
    ui: 'd2-base',
    path: '/page',
    layout: 'grid',
    theme: 'd2-theme',
    order: 1,
    visible: true,
    disabled: false,
  },
  {
    id: 'd2-group',
    type: 'ui-group',
    name: 'Group',
    page: 'd2-page',
    width: '6',
    height: '1',
    order: 1,
    showTitle: true,
    visible: true,
    disabled: false,
  },
  {
    id: 'd2-button',
    z: 'flow',
    type: 'ui-button',
    group: 'd2-group',
    label: 'press two',
    order: 1,
    width: 0,
    height: 0,
    payload: 'pressed two',
    payloadType: 'str',
    emulateClick: false,
    icon: '',
    iconPosition: 'left',
    className: '',
    tooltip: '',
    color: '',
    bgcolor: '',
    buttonColor: '',
    textColor: '',
    iconColor: '',
    topic: '',
    topicType: 'str',
    passthru: false,
    enableClick: true,
    enablePointerdown: false,
    enablePointerup: false,
    wires: [['d2-text']],
  },
  {
    id: 'd2-text',
    z: 'flow',
    type: 'ui-text',
    group: 'd2-group',
    label: 'said',
    order: 2,
    width: 0,
    height: 0,
    format: '{{msg.payload}}',
    layout: 'row-spread',
    wires: [],
  },
].map((node) => ('z' in node ? { x: 100, y: 100, ...node } : node))

let lab: Lab
let appliance: Appliance
let laptop: LabClient
let name: string
let browser: Browser
let context: BrowserContext
let sibling: string
const authority = new Authority()
const table: Array<[attempt: string, before: string, after: string]> = []

/** Hosts of the hostile pages: they serve nothing but an empty page, in which a test's script runs. */
const hostile: Site = (_request, response) =>
  response.writeHead(200, { 'content-type': 'text/html' }).end(html('a hostile page'))

before(async () => {
  const modules = await installDashboards()
  lab = await Lab.start({ name: 'hostile' })
  appliance = await Appliance.start(lab, { flows, modules })
  name = (await appliance.names())[0]!
  laptop = await lab.client('laptop')
  sibling = `elsewhere.${lab.ready.suffix}`
  const pem = authority.issue(sibling)
  browser = await browseNames(lab, laptop, {
    trust: [await readFile(path.join(appliance.dir, 'tls', `${name}.pem`), 'utf8'), pem],
    http: { 'evil.example': hostile },
    https: { [sibling]: { pem, site: hostile } },
  })
  context = await browser.newContext()
  context.setDefaultTimeout(60_000)
  await eventually(
    'the gateway knows the client',
    30,
    async () => (await laptop.fetch(`https://${name}/settings`)).status === 200,
  )
})
after(async () => {
  await browser?.close()
  await appliance?.stop()
  await lab?.stop()
  authority.close()
  const width = Math.max(...table.map(([attempt]) => attempt.length))
  for (const [attempt, was, is] of [['attempt', 'before', 'now'] as const, ...table])
    console.log(`${attempt.padEnd(width)}  ${was.padEnd(34)}  ${is}`)
})

/**
 * Statuses that requests got from now on, by method, host and path, as the gateway's log has them:
 * a browser tells nobody of an answer that it keeps from a page.
 */
function noted(): { get: (request: string) => number | undefined } {
  const from = appliance.log.length
  return {
    get: (request) => {
      for (const line of appliance.log.slice(from).split('\n')) {
        if (!line.includes('"msg":"request"')) continue
        const { method, host, path: target, status } = JSON.parse(line) as Record<string, string>
        if (`${method} ${host}${target}` === request) return Number(status)
      }
      return undefined
    },
  }
}

/** What the gateway answered a request with, when it has. */
async function answered(statuses: ReturnType<typeof noted>, url: string, method = 'GET') {
  const { host, pathname } = new URL(url)
  return await eventually(`an answer to ${method} ${url}`, 30, async () =>
    statuses.get(`${method} ${host}${pathname}`),
  )
}

/** Runs a script in a page and gives what it evaluates to. */
const run = async (page: Page, script: string): Promise<unknown> => await page.evaluate(script)

/** A form that a page sends by itself. */
const form = (action: string, fields: Record<string, string>): string => `(() => {
  const form = document.createElement('form')
  form.method = 'POST'
  form.action = ${JSON.stringify(action)}
  for (const [name, value] of Object.entries(${JSON.stringify(fields)})) {
    const input = document.createElement('input')
    input.name = name
    input.value = value
    form.append(input)
  }
  document.body.append(form)
  form.submit()
})()`

/** What the gateway answers a page's POST with, which the page itself does not learn. */
async function post(page: Page, url: string, body: string): Promise<number | undefined> {
  const statuses = noted()
  await run(
    page,
    `fetch(${JSON.stringify(url)}, { mode: 'no-cors', method: 'POST', body: ${body} }).catch(() => 0).then(() => 0)`,
  )
  return await answered(statuses, url, 'POST')
}

/** Every attempt of a page at an origin, and that nothing came of any. */
async function attempts(
  who: string,
  page: Page,
  home: string,
  ofFlow: boolean = false,
): Promise<void> {
  const editor = `https://${name}`
  const statuses = noted()
  const untouched = JSON.stringify(await appliance.flows())
  const row = (attempt: string, was: string, is: string): void => {
    table.push([`${who}: ${attempt}`, was, is])
  }
  const refused = (attempt: string, was: string, status: unknown): void => {
    row(attempt, was, String(status))
    assert.equal(status, 403, `${who}: ${attempt}`)
  }
  refused(
    'fetch no-cors, POST /flow urlencoded',
    earlier.fetch,
    await post(
      page,
      `${editor}/flow`,
      `new URLSearchParams({ label: 'y', 'nodes[0][id]': 'b1', 'nodes[0][type]': 'comment' })`,
    ),
  )
  refused(
    'fetch, multipart POST /nodes',
    earlier.multipart,
    await post(
      page,
      `${editor}/nodes`,
      `(() => { const form = new FormData(); form.append('tarball', new Blob(['x']), 'x.tgz'); return form })()`,
    ),
  )
  refused('POST /inject/:id', earlier.inject, await post(page, `${editor}/inject/inject1`, `''`))
  if (!ofFlow)
    refused(
      'POST to a flow (8443)',
      earlier.hook,
      await post(page, `${editor}:8443/hook`, `new URLSearchParams({ value: '1' })`),
    )
  const socket = (await run(
    page,
    `new Promise((resolve) => {
      const socket = new WebSocket('wss://${name}/comms')
      socket.onopen = () => { socket.send('{"subscribe":"debug"}'); resolve('open') }
      socket.onerror = () => resolve('refused')
    })`,
  )) as string
  row('WebSocket to /comms', earlier.comms, socket)
  assert.equal(socket, 'refused', `${who}: /comms`)
  if (!ofFlow) {
    const flowSocket = (await run(
      page,
      `new Promise((resolve) => {
      const socket = new WebSocket('wss://${name}:8443/ws')
      socket.onopen = () => resolve('open')
      socket.onerror = () => resolve('refused')
    })`,
    )) as string
    row('WebSocket to a flow (8443)', earlier.ws, flowSocket)
    assert.equal(flowSocket, 'refused', `${who}: /ws`)
  }
  await run(
    page,
    `new Promise((resolve) => {
      const script = document.createElement('script')
      script.src = '${editor}/red/red.min.js'
      script.onload = () => resolve('ran')
      script.onerror = () => resolve('refused')
      document.head.append(script)
    })`,
  )
  refused(
    'script of the editor included',
    earlier.script,
    await answered(statuses, `${editor}/red/red.min.js`),
  )
  // What is there and what is not: a page must not learn it, by status or by time.
  const times = (await run(
    page,
    `(async () => {
      const times = []
      for (const path of ['/settings', '/not-there']) {
        const begun = performance.now()
        await fetch('${editor}' + path, { mode: 'no-cors' }).catch(() => 0)
        times.push(Math.round(performance.now() - begun))
      }
      return times
    })()`,
  )) as number[]
  const pair = [
    await answered(statuses, `${editor}/settings`),
    await answered(statuses, `${editor}/not-there`),
  ]
  row(
    'time of what is there / is not',
    earlier.timing,
    `${pair.join(' / ')}, ${times.join(' / ')} ms`,
  )
  assert.deepEqual(pair, [403, 403], who)
  const framed = (await run(
    page,
    `new Promise((resolve) => {
      const frame = document.createElement('iframe')
      let answered = 'nothing'
      addEventListener('message', () => { answered = 'a message' })
      frame.onload = () => {
        frame.contentWindow.postMessage('hello', '*')
        let inside
        try { inside = frame.contentDocument?.title } catch (err) { inside = err.name }
        setTimeout(() => resolve([inside ?? null, frame.contentWindow.length, answered]), 300)
      }
      frame.src = '${editor}/'
      document.body.append(frame)
    })`,
  )) as [string | null, number, string]
  row(
    'editor in an iframe, postMessage',
    earlier.frame,
    `${await answered(statuses, `${editor}/`)}, ${framed[2]} comes back`,
  )
  assert.deepEqual(
    [await answered(statuses, `${editor}/`), framed],
    [403, [null, 0, 'nothing']],
    who,
  )
  const [popup] = await Promise.all([
    context.waitForEvent('page'),
    run(page, `void (window.opened = open('${editor}/settings'))`),
  ])
  await popup.waitForLoadState()
  assert.match(popup.url(), /\/settings$/, 'a link to the editor is followed')
  await popup.close()
  const [opened] = await Promise.all([
    context.waitForEvent('page'),
    run(page, `void (window.opened = open('${editor}/'))`),
  ])
  await opened.waitForLoadState()
  const handle = await run(
    page,
    `(() => { try { return window.opened.closed ? 'cut off' : window.opened.document.title } ` +
      'catch (err) { return err.name } })()',
  )
  row('editor in a window that it opened', earlier.popup, String(handle))
  assert.equal(handle, 'cut off', who)
  await opened.close()

  const sent = noted()
  await run(
    page,
    form(`${editor}/flow`, {
      label: 'x',
      'nodes[0][id]': 'a1',
      'nodes[0][type]': 'inject',
      'nodes[0][once]': 'true',
    }),
  )
  refused(
    'form, POST /flow urlencoded',
    earlier.form,
    await answered(sent, `${editor}/flow`, 'POST'),
  )
  await page.waitForURL(`${editor}/flow`)
  assert.match((await page.textContent('body'))!, /may not send POST requests here/)
  await page.goto(home)
  assert.equal(JSON.stringify(await appliance.flows()), untouched, 'no flow has changed')
  assert.equal(
    (await laptop.fetch(`https://${name}:8443/count`)).body.toString(),
    '0',
    'nothing was injected',
  )
}

/** What each got with the check, and the headers that go with it, taken out. */
const earlier = {
  fetch: '200, a flow was made',
  multipart: 'got to Node-RED (400: no package)',
  inject: '200, injected',
  hook: '200',
  comms: 'open, all debug messages',
  ws: 'open',
  script: '200, ran in the page',
  timing: '200 / 404',
  frame: '200, refused by the browser',
  popup: 'stays in its hands',
  form: '200, its command ran',
}

test('a page on another node of the tailnet', { timeout: 120_000 }, async () => {
  const page = await context.newPage()
  await page.goto(`https://${sibling}/`)
  await attempts('another node', page, `https://${sibling}/`)
  await page.close()
})

test('a page elsewhere, over plain http', { timeout: 120_000 }, async () => {
  const page = await context.newPage()
  await page.goto('http://evil.example/')
  await attempts('plain http', page, 'http://evil.example/')
  await page.close()
})

test('a page that a flow serves', { timeout: 120_000 }, async () => {
  const home = `https://${name}:8443/page`
  const page = await context.newPage()
  await page.goto(home)
  await attempts('a flow', page, home, true)
  // Its origin is its own, and there it may do as it likes.
  assert.equal(
    await run(
      page,
      `fetch('/hook', { method: 'POST', body: new URLSearchParams({ value: '7' }) }).then((answer) => answer.text())`,
    ),
    'took 7',
  )
  const scope = (await run(
    page,
    `navigator.serviceWorker.register('/sw.js').then(async (registration) => {
      await navigator.serviceWorker.ready
      return registration.scope
    })`,
  )) as string
  assert.equal(scope, `https://${name}:8443/`)
  await eventually('the worker rules the flows’ pages', 30, async () => {
    await page.goto(home)
    return (await page.textContent('body')) === 'by the worker'
  })
  await page.goto(`https://${name}/`)
  const ruled = await run(page, 'navigator.serviceWorker.controller === null')
  table.push([
    'a flow: service worker',
    'ruled /app/ of the editor’s origin',
    ruled === true ? 'rules its own origin, not the editor' : 'RULES THE EDITOR',
  ])
  assert.equal(ruled, true)
  assert.match(await page.title(), /Node-RED/)
  await run(
    page,
    'navigator.serviceWorker.getRegistrations().then((all) => { if (all.length > 0) throw ' +
      `new Error('a worker at the editor') })`,
  )
  await page.goto(`https://${name}:8443/page`)
  await run(
    page,
    `navigator.serviceWorker.getRegistrations().then((all) => Promise.all(all.map((one) => one.unregister())))`,
  )
  await page.close()
  // What the editor does not have is not looked for among flows.
  const at = async (address: string): Promise<[number, string]> => {
    const { status, body } = await laptop.fetch(address)
    return [status, body.toString()]
  }
  assert.match((await at(`https://${name}:8443/a/nowhere/x`))[1], /owned/)
  const [status, body] = await at(`https://${name}/nowhere/x`)
  table.push(['a flow: answers for the editor', 'not at /app/', String(status)])
  assert.equal(status, 404)
  assert.doesNotMatch(body, /owned/)
})

test('what flows serve works at 8443, and by its old address', { timeout: 60_000 }, async () => {
  const page = await context.newPage()
  for (const address of [`https://${name}:8443/hello`, `https://${name}/app/hello`]) {
    await page.goto(address)
    assert.equal(await page.textContent('body'), 'the keep says hello')
    assert.equal(page.url(), `https://${name}:8443/hello`)
  }
  assert.equal(
    await run(
      page,
      `new Promise((resolve, reject) => {
        const socket = new WebSocket('wss://' + location.host + '/ws')
        socket.onopen = () => socket.send('there and back')
        socket.onmessage = ({ data }) => resolve(data)
        socket.onerror = reject
      })`,
    ),
    'there and back',
  )
  const program = await laptop.fetch(`https://${name}/app/hook`, {
    method: 'POST',
    headers: { 'content-type': 'application/x-www-form-urlencoded' },
    body: 'value=9',
  })
  assert.deepEqual(
    [program.status, program.body.toString(), program.headers['Content-Security-Policy']],
    [200, 'took 9', ["frame-ancestors 'self', sandbox"]],
    'a sensor',
  )
  await page.close()
})

test('both dashboards work, with what comes by socket.io', { timeout: 120_000 }, async () => {
  for (const [address, there, press, said] of [
    [`https://${name}:8443/ui/`, /:8443\/ui\//, 'press one', 'pressed one'],
    [`https://${name}:8443/dashboard/page`, /:8443\/dashboard\/page/, 'press two', 'pressed two'],
    // As a link in the editor, and a bookmark of before, have them.
    [`https://${name}/ui/`, /:8443\/ui\//, 'press one', 'pressed one'],
    [`https://${name}/app/dashboard/page`, /:8443\/dashboard\/page/, 'press two', 'pressed two'],
  ] as const) {
    const page = await context.newPage()
    const failed: string[] = []
    page.on('response', (response) => {
      if (response.status() >= 400) failed.push(`${response.status()} ${response.url()}`)
    })
    await page.goto(address)
    await page.getByRole('button', { name: press }).click()
    await page.getByText(said).waitFor()
    assert.match(page.url(), there)
    assert.deepEqual(
      failed.filter((line) => /40[35]/.test(line)),
      [],
    )
    await page.close()
  }
})

test('the editor works: open, drag, deploy, debug', { timeout: 120_000 }, async () => {
  const page = await context.newPage()
  await page.setViewportSize({ width: 1400, height: 900 })
  await openEditor(page, `https://${name}/`)
  await add(page, 'inject', 500, 300)
  await deploy(page)
  await eventually(
    'the node is on disk',
    30,
    async () =>
      ((await appliance.flows()) as Array<{ type: string }>).filter(({ type }) => type === 'inject')
        .length > 1,
  )
  await run(page, `RED.sidebar.show('debug')`)
  // A deploy is answered before its nodes are started: until then there is nothing to press.
  await eventually('the flow is started', 30, async () =>
    run(page, `$.post('inject/inject1').then(() => true, () => false)`),
  )
  const message = page.locator('.red-ui-debug-msg .red-ui-debug-msg-element').first()
  await message.waitFor()
  assert.match((await message.textContent())!, /1/)
  await page.close()
})

test('nothing left the lab', async () => {
  assert.deepEqual(await lab.leaks(), [])
  assert.equal(await lab.leaked(), 0)
})
