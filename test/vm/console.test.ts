/**
 * The web console of the booted image in a real browser on the tailnet: the main act of each page.
 * What is wrong with a page in itself is test/lab/console.test.ts's.
 */
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { after, before, test } from 'node:test'
import type { Browser, Page } from 'playwright-core'
import { browse } from '../lab/browser.ts'
import { ConsolePage } from '../lab/console-page.ts'
import { Lab, type LabClient } from '../lab/lab.ts'
import { deployShell, shell } from '../scenarios/shell.ts'
import { bootAppliance, editor, eventually, joined, settings, tried } from './appliance.ts'
import type { Machine } from './machine.ts'

const skip =
  process.env['GATEHOUSE_LONG'] === '1' ? false : 'boots a machine for itself: GATEHOUSE_LONG=1'
const shots = path.resolve(import.meta.dirname, '../../out/console-shots/booted')

let lab: Lab
let client: LabClient
let machine: Machine
let name: string
let browser: Browser
let shown: ConsolePage
let page: Page
let backup: string

before(async () => {
  if (skip !== false) return
  lab = await Lab.start({ name: 'vmcons' })
  client = await lab.client('laptop')
  machine = await bootAppliance(lab, tried, {
    toml: `${settings(lab)}[node_red]\nallow = ["10.77.0.61:1883"]\n`,
  })
  name = (
    await joined(lab, 'gatehouse', 600).catch(async (err: unknown) => {
      throw new Error((await machine.console()).slice(-4_000), { cause: err })
    })
  ).name
  await editor(client, name)
  const { browser: started, url } = await browse(lab, client, `https://${name}:10000`)
  browser = started
  shown = await ConsolePage.start(browser, url, shots, 120_000)
  page = shown.page
})

after(async () => {
  await browser?.close()
  await machine?.destroy()
  await lab?.stop()
})

const card = async (): Promise<string> => (await machine.run('cat /efi/gatehouse.toml')).stdout
const flows = async (): Promise<string> =>
  (await machine.run('cat /var/lib/node-red/flows.json')).stdout
const bootId = async (): Promise<string> =>
  (await machine.run('cat /proc/sys/kernel/random/boot_id')).stdout
const button = (words: string) => shown.button(words)

/** The newest code that the screen shows and that is not one of `before`. */
async function codeOnScreen(before: readonly string[]): Promise<string> {
  return await eventually('the screen shows a code', 60, async () => {
    const code = (await codes()).at(-1)
    return code !== undefined && !before.includes(code) ? code : undefined
  })
}
const codes = async (): Promise<string[]> =>
  [...(await machine.console()).matchAll(/the code for [a-z ]+ is (\d{6})/g)].map(
    ([, code]) => code!,
  )

test('Welcome: the answers become a change, which is tried and confirmed', { skip }, async () => {
  await shown.open('', 'Welcome')
  await page.getByLabel('Time zone').selectOption('Europe/Vienna')
  await button('Next').click()
  await page.getByLabel('Nodes may be installed').waitFor()
  await button('Skip').click()
  await page.getByLabel('Public key').waitFor()
  await button('Skip').click()
  await page.getByRole('row', { name: /node_red\.timezone.*Europe\/Vienna/ }).waitFor()
  await button('Try for 60 s').click()
  await page.getByText('The device answers with it.').waitFor()
  await shown.shot('settings-trial')
  await button('Confirm').click()
  await page.getByText('The change is kept.').waitFor()
  assert.match(await card(), /timezone = "Europe\/Vienna"/)
  const zone = await machine.run('systemctl show -P Environment node-red')
  assert.match(zone.stdout, /TZ=Europe\/Vienna/)
})

test('Overview: all is well, with the board and its figures', { skip }, async () => {
  await shown.open('', 'Overview')
  await page.getByText('All is well').waitFor()
  await page.getByRole('heading', { name: 'Board' }).waitFor()
  const said = await shown.text()
  for (const part of ['Editor', 'Certificates', 'laptop', 'Memory', 'Disk'])
    assert.ok(said.includes(part), `${part}: ${said}`)
  await shown.accessible('overview')
})

test('Node-RED: it is restarted, and its log comes live', { skip }, async () => {
  const pid = async (): Promise<string> =>
    (await machine.run('systemctl show -P MainPID node-red')).stdout.trim()
  const before = await pid()
  await shown.open('node-red', 'Node-RED')
  await button('Restart Node-RED').click()
  await button('Yes, restart node-red').click()
  await page.getByText('Node-RED was restarted.').waitFor()
  assert.notEqual(await pid(), before)
  await page.locator('.line', { hasText: 'Started flows' }).last().waitFor()
  await shown.shot('node-red')
  await editor(client, name)
})

test('Node-RED: what a flow may not reach is shown, and allowed by a click', { skip }, async () => {
  await deployShell(client, name)
  await eventually('the refused call is shown', 120, async () => {
    await shell(client, name, 'timeout 3 bash -c "</dev/tcp/10.77.0.62/1883"', 30)
    await shown.open('', 'Overview')
    await shown.open('node-red', 'Node-RED')
    const row = button('Allow 10.77.0.62:1883')
    return await row.waitFor({ timeout: 10_000 }).then(() => true)
  })
  await button('Allow 10.77.0.62:1883').click()
  await page.getByRole('row', { name: /node_red\.allow.*10\.77\.0\.62:1883/ }).waitFor()
  await button('Try for 60 s').click()
  await page.getByText('The device answers with it.').waitFor()
  await button('Confirm').click()
  await page.getByText('The change is kept.').waitFor()
  const rules = await machine.run('nft list ruleset')
  assert.match(rules.stdout, /10\.77\.0\.62/)
})

test('Access: what somebody would see', { skip }, async () => {
  await shown.open('access', 'Access')
  await page.getByText('owns the device').waitFor()
  await page.getByText('node-red.restart').waitFor()
  await page.getByLabel('Login name or tag').fill('stranger@example.com')
  await button('Show').click()
  await page.getByText(/stranger@example\.com may/).waitFor()
  await shown.shot('access')
})

test('Settings: a code from the screen is wanted, and is on the screen', { skip }, async () => {
  const before = await card()
  const old = await codes()
  await shown.open('settings', 'Settings')
  await page.locator('summary', { hasText: '[console]' }).click()
  await page.getByLabel('login', { exact: true }).selectOption('true')
  await button('Try for 60 s').click()
  const code = page.getByLabel("Code on the device's screen")
  await code.fill(await codeOnScreen(old))
  await button('Try for 60 s').click()
  await page.getByRole('heading', { name: 'A change is on trial' }).waitFor()
  await button('Take back').click()
  await page.getByText('The change is taken back').waitFor()
  assert.equal(await card(), before)
})

test('Logs: of all parts, searched and downloaded', { skip }, async () => {
  await shown.open('logs', 'Logs')
  await page.getByLabel('Search').fill('Started flows')
  await page.locator('.line', { hasText: 'Started flows' }).first().waitFor()
  const [download] = await Promise.all([page.waitForEvent('download'), button('Download').click()])
  assert.match(await readFile(await download.path(), 'utf8'), /node-red .*Started flows/)
  await shown.shot('logs')
})

test('Updates: it looks, and says that none can come', { skip }, async () => {
  await shown.open('updates', 'Updates')
  await button('Look for an update').click()
  await page
    .getByText(/nothing newer is offered|updates\.url/)
    .first()
    .waitFor()
  await shown.shot('updates')
})

test('Backup: one is downloaded with the code from the screen', { skip }, async () => {
  const old = await codes()
  await shown.open('backup', 'Backup')
  await page.getByLabel('Passphrase', { exact: true }).fill('correct horse battery staple')
  await page.getByLabel('Once more').fill('correct horse battery staple')
  await button('Download').click()
  await page.getByRole('alert').filter({ hasText: 'GH_SETTINGS_CODE' }).waitFor()
  await page
    .getByLabel('Code from its screen')
    .first()
    .fill(await codeOnScreen(old))
  const [download] = await Promise.all([page.waitForEvent('download'), button('Download').click()])
  backup = path.join(lab.dir, 'backup.age')
  await download.saveAs(backup)
  const file = await readFile(backup)
  assert.equal(file.subarray(0, 21).toString(), 'age-encryption.org/v1')
  assert.ok(file.length > 1_000)
})

test('Backup: what was deployed since is gone after a restore', { skip }, async () => {
  const before = await bootId()
  const kept = await flows()
  assert.match(kept, /\/shell/)
  const emptied = await client.fetch(`https://${name}/flows`, {
    ...{ method: 'POST', body: '[]', timeout: 120_000 },
    headers: { 'content-type': 'application/json', 'node-red-deployment-type': 'full' },
  })
  assert.equal(emptied.status, 204)
  const old = await codes()
  await page.getByLabel('File').setInputFiles(backup)
  await page.getByLabel('Its passphrase').fill('correct horse battery staple')
  await button('Replace and restart').click()
  await page.getByRole('alert').filter({ hasText: 'GH_SETTINGS_CODE' }).waitFor()
  await page
    .getByLabel('Code from its screen')
    .nth(1)
    .fill(await codeOnScreen(old))
  await button('Replace and restart').click()
  await page
    .getByText('The backup is whole, and is put in place now.')
    .waitFor()
    .catch(async (err: unknown) => {
      const journal = await machine.run('journalctl -b -u gatehouse -u gatehouse-broker -n 30')
      throw new Error(`${await shown.text()}\n${journal.stdout}`, { cause: err })
    })
  await eventually('it has started anew', 300, async () => (await bootId()) !== before || undefined)
  await editor(client, name)
  assert.equal(await flows(), kept)
})

test('Device: a restart, of which the page tells when it is over', { skip }, async () => {
  const before = await bootId()
  await shown.open('device', 'Device')
  await button('Restart').click()
  await page.getByRole('button', { name: /^Yes, restart/ }).click()
  await page
    .getByText('The device is back.')
    .waitFor({ timeout: 320_000 })
    .catch(async (err: unknown) => {
      const answers = await client.fetch(`https://${name}:10000/api/v1/status`).then(
        ({ status }) => status,
        (failed: Error) => failed.message,
      )
      const journal = await machine.run('journalctl -b -u gatehouse -u gatehouse-broker -n 30')
      const said = `${await shown.text()}\nAPI: ${answers}\n${journal.stdout}`
      throw new Error(said, { cause: err })
    })
  assert.notEqual(await bootId(), before)
  await shown.open('', 'Overview')
  await page.getByText('All is well').waitFor()
})

test('nothing was loaded from elsewhere or refused by the policy', { skip }, () => {
  assert.deepEqual(shown.wrong, [])
})

test('nothing left the lab', { skip }, async () => {
  assert.deepEqual(await lab.leaks(), [])
  assert.equal(await lab.leaked(), 0)
})
