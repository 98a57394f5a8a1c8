/** What a person does with Node-RED's editor in a browser. */
import type { Page } from 'playwright-core'

/** Opens the editor and waits until it is all there. */
export async function openEditor(page: Page, url: string): Promise<void> {
  await page.goto(url)
  await page.locator('.red-ui-palette-node[data-palette-type="inject"]').waitFor()
  await page.locator('#red-ui-loading-progress').waitFor({ state: 'hidden' })
}

/** Drags a node from the palette to a place on the sheet. */
export async function drag(page: Page, type: string, x: number, y: number): Promise<void> {
  const from = (await page
    .locator(`.red-ui-palette-node[data-palette-type="${type}"]`)
    .boundingBox())!
  const sheet = (await page.locator('#red-ui-workspace-chart').boundingBox())!
  await page.mouse.move(from.x + from.width / 2, from.y + from.height / 2)
  await page.mouse.down()
  await page.mouse.move(sheet.x + x, sheet.y + y, { steps: 12 })
  await page.mouse.up()
}

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
