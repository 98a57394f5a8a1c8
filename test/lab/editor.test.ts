/**
 * The Node-RED editor in a real browser, through the tailnet and the gateway: what a person does
 * with it.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { connect } from 'node:http2'
import { after, before, test } from 'node:test'
import { text } from 'node:stream/consumers'
import { connect as connectTLS } from 'node:tls'
import type { Browser, Page } from 'playwright-core'
import { capability } from '../../src/gateway/access/access.ts'
import { Appliance, eventually } from './appliance.ts'
import { browse } from './browser.ts'
import { add, deploy, drag, middle, openEditor } from './editor.ts'
import { Lab, type LabClient } from './lab.ts'

let lab: Lab
let appliance: Appliance
let name: string
const browsers: Browser[] = []

before(async () => {
  lab = await Lab.start({ name: 'editor' })
  appliance = await Appliance.start(lab)
  name = (await appliance.names())[0]!
})
after(async () => {
  for (const browser of browsers) await browser.close()
  await appliance?.stop()
  await lab?.stop()
})

/**
 * Opens the editor as a client and waits until it is all there. Requests to anywhere but the
 * gateway are noted.
 */
async function open(client: LabClient): Promise<{ page: Page; elsewhere: string[]; url: string }> {
  const { browser, url } = await browse(lab, client, `https://${name}`)
  browsers.push(browser)
  const page = await browser.newPage({ viewport: { width: 1400, height: 900 } })
  page.setDefaultTimeout(90_000)
  const elsewhere: string[] = []
  page.on('request', (request) => {
    if (!request.url().startsWith(url) && !/^(?:data|blob):/.test(request.url()))
      elsewhere.push(request.url())
  })
  await openEditor(page, url)
  return { page, elsewhere, url }
}

test(
  'the owner opens the editor, drags nodes in, wires and deploys them, and sees them run',
  { timeout: 240_000 },
  async () => {
    const laptop = await lab.client('laptop')
    const { page, elsewhere } = await open(laptop)
    await add(page, 'inject', 200, 150)
    await add(page, 'debug', 500, 150)
    await page.mouse.move(...(await middle(page, '.red-ui-flow-port-output')))
    await page.mouse.down()
    await page.mouse.move(...(await middle(page, '.red-ui-flow-port-input')), { steps: 12 })
    await page.mouse.up()
    await page.locator('.red-ui-flow-link-line').first().waitFor({ state: 'attached' })
    await deploy(page)
    const flows = await eventually('the flow is on disk', 30, async () => {
      const list = (await appliance.flows()) as Array<{ type: string; wires?: string[][] }>
      return list.some(({ type }) => type === 'inject') && list
    })
    assert.deepEqual(
      flows
        .map(({ type }) => type)
        .filter((type) => type !== 'tab')
        .toSorted(),
      ['debug', 'inject'],
    )
    assert.equal(flows.find(({ type }) => type === 'inject')!.wires![0]!.length, 1)

    await page.locator('.red-ui-flow-node-button').first().click()
    await page.evaluate("RED.sidebar.show('debug')")
    const message = page.locator('.red-ui-debug-msg .red-ui-debug-msg-element').first()
    await message.waitFor()
    assert.match(
      (await message.textContent())!,
      /\d{13}/,
      "the time that inject sent, over the editor's WebSocket",
    )
    assert.deepEqual(elsewhere, [], 'nothing is loaded from elsewhere')
    await page.locator('#red-ui-header-button-user').click()
    assert.match(
      (await page
        .locator('#usermenu-item-username, #red-ui-header-button-user-submenu')
        .first()
        .textContent())!,
      /@/,
    )
  },
)

test(
  'the editor comes over HTTP/2 through the tailnet: its page and all that is in it, on one connection',
  { timeout: 120_000 },
  async () => {
    const laptop = await lab.client('laptop-h2')
    await eventually(
      'the gateway knows the client',
      30,
      async () => (await laptop.fetch(`https://${name}/settings`)).status === 200,
    )
    const socket = connectTLS({
      socket: await laptop.dial(name, 443),
      servername: name,
      ca: await readFile(lab.ready.acmeRoots),
      ALPNProtocols: ['h2', 'http/1.1'],
    })
    await once(socket, 'secureConnect')
    assert.equal(socket.alpnProtocol, 'h2')
    const session = connect(`https://${name}`, { createConnection: () => socket })
    const get = async (path: string): Promise<{ status: number; body: string }> => {
      const stream = session.request({ ':path': path })
      const headers = once(stream, 'response') as Promise<[{ ':status': number }]>
      const body = await text(stream)
      return { status: (await headers)[0][':status'], body }
    }
    const page = await get('/')
    const parts = [...page.body.matchAll(/(?:src|href)="(?!https?:)([^"#]+)"/g)].map(
      ([, path]) => `/${path!.replace(/^\//, '')}`,
    )
    assert.ok(parts.length >= 8, parts.join())
    const got = await Promise.all(parts.map(async (path) => ({ path, ...(await get(path)) })))
    assert.deepEqual(
      got
        .filter(({ status, body }) => status !== 200 || body.length === 0)
        .map(({ path, status }) => [path, status]),
      [],
    )
    assert.ok(
      got.reduce((sum, { body }) => sum + body.length, 0) > 1_000_000,
      'the editor is some megabytes',
    )
    session.close()
    await once(session, 'close')
  },
)

test(
  'a second person, who may only view, sees the same flow read-only, and who they are',
  { timeout: 240_000 },
  async () => {
    const phone = await lab.client('phone')
    await lab.setOwner('phone', { user: 'bob@example.com' })
    await lab.setGrants([
      { src: ['bob@example.com'], dst: ['*'], app: { [capability]: [{ may: ['view'] }] } },
    ])
    await eventually(
      'bob may view',
      30,
      async () =>
        (await phone.fetch(`https://${name}/settings`, { headers: { accept: 'application/json' } }))
          .status === 200,
    )
    const before = JSON.stringify(await appliance.flows())
    const { page, url } = await open(phone)
    await page.locator('.red-ui-flow-node-group').nth(1).waitFor()
    await page.locator('#red-ui-header-button-user').click()
    assert.match(
      (await page.locator('#red-ui-header-button-user-submenu').textContent())!,
      /bob@example\.com/,
    )
    await page.keyboard.press('Escape')
    await drag(page, 'inject', 300, 400)
    assert.equal(
      await page.locator('#red-ui-header-button-deploy:not(.disabled)').count(),
      0,
      'there is nothing to deploy with',
    )
    // By hand, as somebody would who does not take the editor's word for it.
    const status = await page.evaluate(
      `fetch(${JSON.stringify(`${url}flows`)}, { method: 'POST', headers: { 'content-type': ` +
        `'application/json' }, body: '[]' }).then((answer) => answer.status)`,
    )
    assert.equal(status, 403)
    assert.equal(JSON.stringify(await appliance.flows()), before)
  },
)

test('nothing left the lab', async () => {
  assert.deepEqual(await lab.leaks(), [])
  assert.equal(await lab.leaked(), 0)
})
