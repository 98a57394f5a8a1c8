/**
 * The web console in a real browser, through the tailnet, the gateway and its API, to the real
 * broker (managed.ts): what a person does with each page.
 */
import assert from 'node:assert/strict'
import { mkdir, readFile, readdir, rm, stat, writeFile } from 'node:fs/promises'
import { createReadStream, createWriteStream } from 'node:fs'
import { createServer } from 'node:http'
import type { Server } from 'node:http'
import path from 'node:path'
import { pipeline } from 'node:stream/promises'
import { after, before, test } from 'node:test'
import { generateX25519Identity, identityToRecipient } from 'age-encryption'
import type { FastifyInstance } from 'fastify'
import type { Browser, Locator, Page } from 'playwright-core'
import { capability } from '../../src/gateway/access/access.ts'
import { bundleConsole } from '../../tools/console.ts'
import { eventually } from './appliance.ts'
import type { Appliance } from './appliance.ts'
import { browse } from './browser.ts'
import { ConsolePage } from './console-page.ts'
import { Lab } from './lab.ts'
import { startManaged } from './managed.ts'

/** How long a change is on trial here. Milliseconds. */
const trialTime = 15_000

const shots = path.resolve(import.meta.dirname, '../../out/console-shots')

let lab: Lab
let appliance: Appliance
let broker: FastifyInstance
let nas: Server
let updates: string
/** What the updater finds; undefined: nothing newer. */
let offers: object | undefined
let browser: Browser
let shown: ConsolePage
let page: Page
let url: string
let card: string
let systemd: string[]
let codes: string[]

before(async () => {
  lab = await Lab.start({ name: 'console' })
  const bundle = path.join(lab.dir, 'console')
  await bundleConsole(bundle)
  const laptop = await lab.client('laptop')
  // A peer that keeps what is PUT there.
  const socket = path.join(lab.dir, 'nas.sock')
  nas = createServer((request, response) => {
    if (request.method === 'PUT')
      void pipeline(
        request,
        createWriteStream(path.join(lab.dir, path.basename(request.url!))),
      ).then(() => response.writeHead(201).end())
    else createReadStream(path.join(lab.dir, path.basename(request.url!))).pipe(response)
  }).listen(socket)
  await laptop.serve(8080, socket)
  const peer = (await laptop.status()).ips[0]!
  // Of the broker, which is in this process.
  updates = path.join(lab.dir, 'updates')
  await mkdir(updates)
  await writeFile(path.join(updates, 'os-release'), 'IMAGE_VERSION=9.1\n')
  const offered = path.join(updates, 'offered.json')
  Object.assign(process.env, {
    GATEHOUSE_SLOTS_DIR: updates,
    GATEHOUSE_OS_RELEASE: path.join(updates, 'os-release'),
    GATEHOUSE_UPDATE_ASKED: path.join(updates, 'asked'),
    GATEHOUSE_UPDATE_OFFERED: offered,
    GATEHOUSE_UPDATE_OUTCOME: path.join(updates, 'outcome'),
  })
  const recipient = await identityToRecipient(await generateX25519Identity())
  ;({ appliance, broker, card, systemd, codes } = await startManaged(lab, {
    ...{ pages: bundle, trialTime },
    settings:
      `[access]\nview = ["bob@example.com"]\n[backup]\nrecipient = "${recipient}"\nto = ` +
      `"http://${peer}:8080/kept"\n`,
    // Used up, as on a device that has joined: a key that ends is renewed by a login.
    authKey: await lab.key('once'),
    does: async (args) => {
      if (!args.includes('gatehouse-update.service')) return
      if (offers === undefined) await rm(offered, { force: true })
      else await writeFile(offered, JSON.stringify(offers))
    },
  }))

  const name = (await appliance.names())[0]!
  await eventually(
    'the gateway knows the client',
    60,
    async () => (await laptop.fetch(`https://${name}:10000/api/v1/me`)).status === 200,
  )
  ;({ browser, url } = await browse(lab, laptop, `https://${name}:10000`))
  shown = await ConsolePage.start(browser, url, shots)
  page = shown.page
})
after(async () => {
  await browser?.close()
  await broker?.close()
  nas?.close()
  await appliance?.stop()
  await lab?.stop()
})

const open = (place: string, title: string): Promise<void> => shown.open(place, title)
const accessible = (name: string): Promise<void> => shown.accessible(name)
const text = (): Promise<string> => shown.text()
const button = (name: string): Locator => shown.button(name)

test(
  'first minutes: three questions, skipped or answered, become one change of settings',
  { timeout: 240_000 },
  async () => {
    await open('', 'Welcome')
    await page.getByText('1 of 3: Name and time').waitFor()
    await accessible('welcome-1')
    await page.getByLabel('Time zone').selectOption('Europe/Vienna')
    await button('Next').click()
    await page.getByLabel('Nodes may be installed').waitFor()
    await accessible('welcome-2')
    await button('Next').click()
    await page.getByLabel('Public key').waitFor()
    await accessible('welcome-3')
    await button('Skip').click()
    await page.getByRole('heading', { level: 1, name: 'Settings' }).waitFor()
    await page.getByRole('row', { name: /node_red\.timezone.*Europe\/Vienna/ }).waitFor()
    await page.getByRole('row', { name: /node_red\.allow.*palette/ }).waitFor()
    assert.doesNotMatch(await readFile(card, 'utf8'), /Vienna/)
    await page.getByRole('textbox', { name: 'gatehouse.toml' }).fill(await readFile(card, 'utf8'))
  },
)

test(
  'Overview: the one sentence, addresses, certificate and peers',
  { timeout: 240_000 },
  async () => {
    await open('', 'Overview')
    await page.getByText('All is well').waitFor()
    await page.getByRole('heading', { name: 'Board' }).waitFor()
    const said = await text()
    for (const part of ['Editor', 'Certificates', 'laptop', 'does not end', 'Memory', 'Disk'])
      assert.ok(said.includes(part), `${part}: ${said}`)
    await accessible('overview')
  },
)

test(
  'Overview: the key that ends is renewed by its owner, who stays connected',
  { timeout: 120_000 },
  async () => {
    const device = (await appliance.names())[0]!.split('.', 1)[0]!
    await lab.expire(device, 10 * 86_400)
    await page.getByText('ends in 10 days').waitFor()
    await button('Renew now').click()
    const link = page.getByRole('link', { name: 'Log in to renew it' })
    await link.waitFor()
    await accessible('overview-renew')
    // While it waits for the login, it is as it was.
    await page.reload()
    await page.getByText('ends in 10 days').waitFor()
    await button('Renew now').click()
    await lab.completeLogin((await link.getAttribute('href'))!)
    await page.getByText('does not end').waitFor()
    await page.reload()
    await page.getByText('All is well').waitFor()
  },
)

test(
  'Node-RED: it is restarted, its log comes live, what is plugged in is shown',
  { timeout: 120_000 },
  async () => {
    await open('node-red', 'Node-RED')
    await page.getByText('line 20 of the meter').waitFor()
    await page.getByText('line 22 of the meter').waitFor()
    await button('Restart Node-RED').click()
    await accessible('node-red')
    await button('Yes, restart node-red').click()
    await page.getByText('Node-RED was restarted.').waitFor()
    assert.ok(systemd.includes('restart node-red.service'), systemd.join())
  },
)

test(
  'Node-RED: what it was not allowed to reach is allowed by a change of settings',
  { timeout: 120_000 },
  async () => {
    await open('node-red', 'Node-RED')
    await page.getByText('192.168.1.10:1883').waitFor()
    await button('Allow 192.168.1.10:1883').click()
    await page.getByRole('heading', { level: 1, name: 'Settings' }).waitFor()
    await page.getByRole('row', { name: /node_red\.allow.*192\.168\.1\.10:1883/ }).waitFor()
    // Left as it was, for what comes next.
    await page.getByRole('textbox', { name: 'gatehouse.toml' }).fill(await readFile(card, 'utf8'))
    await open('', 'Overview')
  },
)

test(
  'Access: what somebody would see, and the lines that would change it',
  { timeout: 120_000 },
  async () => {
    await open('access', 'Access')
    // What comes later moves what is below it, and a click would miss.
    await page.getByText('owns the device').waitFor()
    await page.getByText('node-red.restart').waitFor()
    await page.getByLabel('Login name or tag').fill('bob@example.com')
    await button('Show').click()
    await page
      .getByText('bob@example.com may view.')
      .waitFor()
      .catch(async (err: unknown) => {
        throw new Error(await text(), { cause: err })
      })
    await page.getByText('gatehouse.internal/cap/app', { exact: false }).last().waitFor()
    await accessible('access')
  },
)

test(
  'Settings: a change is tried, confirmed and kept; another is not confirmed, and is taken back',
  { timeout: 240_000 },
  async () => {
    const before = await readFile(card, 'utf8')
    await open('settings', 'Settings')
    await page.locator('summary', { hasText: '[node_red]' }).click()
    await page.getByLabel('timezone', { exact: true }).fill('Europe/Nowhere')
    await page.getByText('The settings are not valid yet.').waitFor()
    assert.equal(await button('Try for 60 s').isDisabled(), true)
    await page.getByRole('button', { name: /^Line \d+$/ }).click()
    assert.equal(await page.evaluate('getSelection().toString()'), 'timezone = "Europe/Nowhere"')
    await accessible('settings-wrong')
    await page.getByLabel('timezone', { exact: true }).fill('Europe/Berlin')
    await page.getByRole('row', { name: /node_red\.timezone.*Europe\/Berlin/ }).waitFor()
    await button('Try for 60 s').click()
    await page.getByText('The device answers with it.').waitFor()
    assert.match(await readFile(card, 'utf8'), /timezone = "Europe\/Berlin"/)
    await accessible('settings-trial')
    await button('Confirm').click()
    await page.getByText('The change is kept.').waitFor()
    assert.equal(
      await readFile(card, 'utf8'),
      `${before}\n[node_red]\ntimezone = "Europe/Berlin"\n`,
    )

    await page.getByRole('textbox', { name: 'gatehouse.toml' }).fill(before)
    await button('Try for 60 s').click()
    await page.getByRole('heading', { name: 'A change is on trial' }).waitFor()
    // Also seen from another page.
    await open('', 'Overview')
    await page.getByText('The change is over').waitFor()
    assert.match(await readFile(card, 'utf8'), /timezone = "Europe\/Berlin"/)
  },
)

test(
  'Settings: what would hand over the device wants the code that its screen shows',
  { timeout: 120_000 },
  async () => {
    await open('settings', 'Settings')
    await page.locator('summary', { hasText: '[console]' }).click()
    await page.getByLabel('login', { exact: true }).selectOption('true')
    await page.getByText('would hand over the device, so a code').waitFor()
    await button('Try for 60 s').click()
    const code = page.getByLabel("Code on the device's screen")
    await code.fill((await eventually('a code is shown', 30, async () => codes.at(-1)))!)
    await accessible('settings-code')
    await button('Try for 60 s').click()
    await page.getByText('A change is on trial').waitFor()
    await button('Take back').click()
    await page.getByText('The change is taken back').waitFor()
    assert.doesNotMatch(await readFile(card, 'utf8'), /login/)
  },
)

test('Logs: of all parts, searched, and downloaded', { timeout: 120_000 }, async () => {
  await open('logs', 'Logs')
  await page.getByLabel('Search').fill('line 7 ')
  await page.getByText('line 7 of the meter').waitFor()
  assert.equal(await page.locator('.line').count(), 1)
  const [download] = await Promise.all([page.waitForEvent('download'), button('Download').click()])
  assert.match(
    await readFile(await download.path(), 'utf8'),
    /^\S+ gatehouse info: line 7 of the meter/,
  )
  await page.getByLabel('Search').fill('')
  await accessible('logs')
})

test(
  'Updates: what is offered with what it changes, its installation, and the way back',
  { timeout: 120_000 },
  async () => {
    await open('updates', 'Updates')
    await button('Look for an update').click()
    await page.getByText('nothing newer is offered').waitFor()
    offers = {
      version: '9.2',
      changes: ['deb openssl 3.5.1 → 3.5.2  closes CVE-2026-1234', '1 package has changed'],
    }
    await button('Look for an update').click()
    await page.getByText('closes CVE-2026-1234').waitFor()
    await accessible('updates')
    await button('Install 9.2').click()
    await page.getByText('It is installed now').waitFor()
    assert.ok(systemd.includes('start gatehouse-update-install.service'))

    await writeFile(
      path.join(updates, 'record.json'),
      JSON.stringify({ from: '9.0', to: '9.1', good: true, installedAt: new Date().toISOString() }),
    )
    const images = path.join(path.dirname(card), 'EFI/Linux')
    await mkdir(images, { recursive: true })
    for (const version of ['9.0', '9.1'])
      await writeFile(path.join(images, `gatehouse_${version}.efi`), version)
    await button('Go back to 9.0').click()
    await accessible('updates-back')
    systemd.length = 0
    await button('Yes, go back to 9.0').click()
    await page.getByText('The device starts 9.0').waitFor()
    assert.deepEqual((await readdir(images)).toSorted(), [
      'gatehouse_9.0.efi',
      'gatehouse_9.1+0.efi',
    ])
    await eventually('the restart', 30, async () => systemd.includes('--no-block reboot'))
  },
)

test(
  'Backup: one each night is kept by a peer of the tailnet, and can be read back',
  { timeout: 120_000 },
  async () => {
    await open('backup', 'Backup')
    // The first is made by itself, within a minute of the start.
    await page.getByText('read back and decrypted to its end').waitFor()
    await button('Make one now').click()
    await page.getByText('It is kept, and can be read.').waitFor()
    await accessible('backup-nightly')
  },
)

test(
  'Backup: one is downloaded, and restored from; a wrong passphrase is said',
  { timeout: 240_000 },
  async () => {
    await open('backup', 'Backup')
    await accessible('backup')
    await page.getByLabel('Passphrase', { exact: true }).fill('correct horse battery staple')
    await page.getByLabel('Once more').fill('correct horse battery staple')
    // It would hand over the secrets of all three parts: whoever asks must be beside the device.
    const code = async (nth: number): Promise<void> => {
      const shown = await eventually('a code is shown', 30, async () => codes.at(-1))
      await page.getByLabel('Code from its screen').nth(nth).fill(shown!)
    }
    codes.length = 0
    await button('Download').click()
    await page.getByRole('alert').filter({ hasText: 'GH_SETTINGS_CODE' }).waitFor()
    await code(0)
    const [download] = await Promise.all([
      page.waitForEvent('download'),
      button('Download').click(),
    ])
    const file = path.join(lab.dir, 'backup.age')
    await download.saveAs(file)
    assert.ok((await stat(file)).size > 200)
    await page.getByLabel('File').setInputFiles(file)
    await page.getByLabel('Its passphrase').fill('another passphrase of theirs')
    codes.length = 0
    await button('Replace and restart').click()
    await page.getByRole('alert').filter({ hasText: 'GH_SETTINGS_CODE' }).waitFor()
    await code(1)
    await button('Replace and restart').click()
    await page.getByRole('alert').filter({ hasText: 'GH_RESTORE_PASSPHRASE' }).waitFor()
    await accessible('backup-wrong')
    await page.getByLabel('Its passphrase').fill('correct horse battery staple')
    codes.length = 0
    await button('Replace and restart').click()
    await page.getByRole('alert').filter({ hasText: 'GH_SETTINGS_CODE' }).waitFor()
    await code(1)
    await button('Replace and restart').click()
    await page.getByText('The backup is whole, and is put in place now.').waitFor()
    await eventually('the restart', 30, async () => systemd.includes('--no-block reboot'))
  },
)

test('Device: a reset wants the name, and every act asks twice', { timeout: 120_000 }, async () => {
  await open('device', 'Device')
  await button('Power off').click()
  await accessible('device')
  await button('No').first().click()
  const name = (await appliance.names())[0]!.split('.', 1)[0]!
  const field = page.getByLabel("Type the device's name", { exact: false })
  await field.fill('another')
  assert.equal(await button('Delete everything').isDisabled(), true)
  await field.fill(name)
  await button('Delete everything').click()
  await page.getByText('The device forgets everything').waitFor()
  await stat(path.join(path.dirname(card), 'gatehouse-reset'))
  assert.ok(!systemd.includes('--no-block poweroff'))
})

test(
  'by keyboard, and on a phone: nothing is wider than its screen',
  { timeout: 240_000 },
  async () => {
    await page.goto(url)
    await page.getByText('All is well').waitFor()
    await page.keyboard.press('Tab')
    assert.equal(await page.evaluate('document.activeElement.textContent'), 'Skip to the page')
    await page.keyboard.press('Enter')
    assert.equal(await page.evaluate('document.activeElement.tagName'), 'H1')
    await page.setViewportSize({ width: 360, height: 740 })
    for (const [place, title] of [
      ['', 'Overview'],
      ['node-red', 'Node-RED'],
      ['access', 'Access'],
      ['settings', 'Settings'],
      ['logs', 'Logs'],
      ['updates', 'Updates'],
      ['backup', 'Backup'],
      ['device', 'Device'],
    ] as const) {
      await open(place, title)
      await shown.shot(`phone-${place || 'overview'}`)
      assert.ok(
        Number(await page.evaluate('document.documentElement.scrollWidth')) <= 360,
        `${title} is wider than a phone`,
      )
    }
  },
)

test(
  'who may only see the status sees the page Overview alone, and why not more',
  { timeout: 120_000 },
  async () => {
    await page.setViewportSize({ width: 1280, height: 900 })
    await lab.setGrants([{ src: ['*'], dst: ['*'], app: { [capability]: [{ may: ['status'] }] } }])
    await eventually('the grant counts', 30, async () => {
      const script = "fetch('/api/v1/settings').then(({ status }) => status)"
      return (await page.evaluate(script)) === 403
    })
    await page.goto(url)
    await page.getByText('You may look at this page.').waitFor()
    await page.getByText('All is well').waitFor()
    assert.deepEqual(await page.getByRole('navigation').getByRole('link').allTextContents(), [
      'Overview',
    ])
    await accessible('overview-viewer')
    await open('settings', 'Settings')
    await page.getByRole('alert').filter({ hasText: 'GH_FORBIDDEN' }).waitFor()
  },
)

test('nothing was loaded from elsewhere, refused by the policy, or left the lab', async () => {
  assert.deepEqual(shown.wrong, [])
  assert.deepEqual(await lab.leaks(), [])
  assert.equal(await lab.leaked(), 0)
})
