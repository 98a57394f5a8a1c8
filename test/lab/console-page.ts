/** The web console in a browser: what every test of it does with it. */
import assert from 'node:assert/strict'
import { mkdir } from 'node:fs/promises'
import path from 'node:path'
import axe from 'axe-core'
import type { Browser, Locator, Page } from 'playwright-core'

/** The console in one tab. */
export class ConsolePage {
  readonly page: Page
  /** What went wrong in it: scripts, what its policy refused, requests to anywhere else. */
  readonly wrong: string[] = []
  readonly #url: string
  readonly #shots: string

  private constructor(page: Page, url: string, shots: string) {
    this.page = page
    this.#url = url
    this.#shots = shots
  }

  /**
   * A new tab for the console.
   *
   * @param url where the console is to this browser
   * @param shots folder for pictures
   */
  static async start(
    browser: Browser,
    url: string,
    shots: string,
    timeout = 60_000,
  ): Promise<ConsolePage> {
    await mkdir(shots, { recursive: true })
    const page = await browser.newPage({ viewport: { width: 1280, height: 900 } })
    page.setDefaultTimeout(timeout)
    const self = new ConsolePage(page, url, shots)
    page.on('request', (request) => {
      if (!request.url().startsWith(url) && !/^(?:data|blob):/.test(request.url()))
        self.wrong.push(`elsewhere: ${request.url()}`)
    })
    page.on('pageerror', (err) => self.wrong.push(err.message))
    // What the policy refuses, too, is said there.
    page.on('console', (message) => {
      if (message.type() === 'error' && !message.text().startsWith('Failed to load resource'))
        self.wrong.push(message.text())
    })
    return self
  }

  /** Goes to a page of the console and waits for its heading. */
  async open(place: string, title: string): Promise<void> {
    if (this.page.url().startsWith(this.#url))
      await this.page.evaluate(`location.hash = ${JSON.stringify(`#/${place}`)}`)
    else await this.page.goto(`${this.#url}#/${place}`)
    await this.page.getByRole('heading', { level: 1, name: title, exact: true }).waitFor()
  }

  /** What the page says. */
  async text(): Promise<string> {
    return (await this.page.locator('main').textContent())!
  }

  /** The button with just these words on it. */
  button(name: string): Locator {
    return this.page.getByRole('button', { name, exact: true })
  }

  /** A picture, below the folder of the tests. */
  async shot(name: string): Promise<void> {
    await this.page.screenshot({ path: path.join(this.#shots, `${name}.png`) })
  }

  /** Nothing that axe finds wrong by WCAG 2.2 A and AA, in the light and in the dark; pictures. */
  async accessible(name: string): Promise<void> {
    for (const colorScheme of ['light', 'dark'] as const) {
      await this.page.emulateMedia({ colorScheme })
      await this.page.evaluate(axe.source)
      const violations = (await this.page.evaluate(
        `axe.run({ runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'] }).then(({ violations }) =>
          violations.map(({ id, nodes }) => id + ': ' + nodes.map(({ html }) => html).join(' ').slice(0, 500)))`,
      )) as string[]
      assert.deepEqual(violations, [], `${name}, ${colorScheme}`)
      await this.shot(`${name}-${colorScheme}`)
    }
    await this.page.emulateMedia({ colorScheme: 'light' })
  }
}
