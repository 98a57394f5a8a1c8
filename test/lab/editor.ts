/** What a person does with Node-RED's editor in a browser. */
import type { Page } from 'playwright-core'

/**
 * Opens the editor and waits until it is all there. One that does not come is loaded again, as a
 * person does; what went wrong until then is printed, so that it is seen when it lasts.
 *
 * @throws Error when three loads brought none: what failed, and what the page says
 */
export async function openEditor(page: Page, url: string): Promise<void> {
  const wrong: string[] = []
  page.on('requestfailed', (request) =>
    wrong.push(`${request.method()} ${request.url()}: ${request.failure()?.errorText}`),
  )
  page.on('response', (answer) => {
    if (answer.status() >= 400) wrong.push(`${answer.url()}: HTTP ${answer.status()}`)
  })
  page.on('pageerror', (error) => wrong.push(`in the page: ${error.message}`))
  for (let tries = 1; tries <= 3; tries++) {
    try {
      await page.goto(url, { timeout: 60_000 })
      await page
        .locator('.red-ui-palette-node[data-palette-type="inject"]')
        .waitFor({ timeout: 60_000 })
      await page.locator('#red-ui-loading-progress').waitFor({ state: 'hidden' })
      return
    } catch (error) {
      wrong.push(String(error), `the page says: ${await textOf(page)}`)
      console.log(`the editor did not come, try ${tries}:\n${wrong.join('\n')}`)
    }
  }
  throw new Error(`three loads of ${url} brought no editor: ${wrong.join('; ')}`)
}

/** What a page says, for a message: its first 300 characters, or why it says nothing. */
async function textOf(page: Page): Promise<string> {
  return await page
    .locator('body')
    .innerText({ timeout: 5_000 })
    .then(
      (text) => JSON.stringify(text.slice(0, 300)),
      (error: unknown) => String(error),
    )
}

/** Drags a node from the palette to a place on the sheet, once the palette has come to rest. */
export async function drag(page: Page, type: string, x: number, y: number): Promise<void> {
  const from = await atRest(page, `.red-ui-palette-node[data-palette-type="${type}"]`)
  const sheet = await atRest(page, '#red-ui-workspace-chart')
  await page.mouse.move(from.x + from.width / 2, from.y + from.height / 2)
  await page.mouse.down()
  await page.mouse.move(sheet.x + x, sheet.y + y, { steps: 12 })
  await page.mouse.up()
}

/**
 * Drags a node to the sheet and sees it there. The editor takes no drag while its page is still
 * being laid out, which lasts on a busy machine; a person drags again then, and so does this.
 *
 * @throws Error when three drags brought none: what is on the sheet, and what lies over it
 */
export async function add(page: Page, type: string, x: number, y: number): Promise<void> {
  const nodes = page.locator('.red-ui-flow-node-group')
  const before = await nodes.count()
  for (let tries = 1; tries <= 3; tries++) {
    await drag(page, type, x, y)
    const one = nodes.nth(before)
    if (
      await one.waitFor({ timeout: 5_000 }).then(
        () => true,
        () => false,
      )
    )
      return
    console.log(`the editor did not take the drag of ${type}, try ${tries}`)
  }
  const over = await page.evaluate(
    `[...document.querySelectorAll('.ui-dialog, .red-ui-popover, .red-ui-notification')]` +
      `.map((one) => one.textContent)`,
  )
  throw new Error(
    `three drags of ${type} brought no node; on the sheet: ${before}; over it: ${JSON.stringify(over)}`,
  )
}

/** Where an element is, once it was in the same place three times, a tenth of a second apart. */
async function atRest(page: Page, selector: string): Promise<Box> {
  const element = page.locator(selector)
  let last = ''
  for (let same = 0, tries = 0; tries < 100; tries++) {
    const box = await element.boundingBox()
    same = JSON.stringify(box) === last ? same + 1 : 0
    last = JSON.stringify(box)
    if (box !== null && same === 2) return box
    await page.waitForTimeout(100)
  }
  throw new Error(`${selector} did not come to rest in ten seconds; last: ${last}`)
}

type Box = NonNullable<Awaited<ReturnType<ReturnType<Page['locator']>['boundingBox']>>>

/** Middle of an element, for the mouse. */
export async function middle(page: Page, selector: string): Promise<[number, number]> {
  const box = (await page.locator(selector).first().boundingBox())!
  return [box.x + box.width / 2, box.y + box.height / 2]
}

/** Deploys, and waits until that is done; also what the editor finds incomplete. */
export async function deploy(page: Page): Promise<void> {
  await page.locator('#red-ui-header-button-deploy').click()
  const confirm = page.getByRole('button', { name: /confirm/i })
  await page.locator('#red-ui-header-button-deploy.disabled').or(confirm).first().waitFor()
  if (await confirm.isVisible()) await confirm.click()
  await page.locator('#red-ui-header-button-deploy.disabled').waitFor()
}
