import { access, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

/**
 * Whether somebody has been asked what a new device needs to know (src/console/pages/welcome.tsx).
 * Kept beside the device's identity: a factory reset makes it new again.
 */
export class Welcome {
  readonly #file: string | undefined
  #done: boolean

  /** @param directory undefined: nobody is asked */
  constructor(directory: string | undefined) {
    this.#file = directory === undefined ? undefined : join(directory, 'welcomed')
    this.#done = directory === undefined
  }

  /** True until {@link done}. */
  async fresh(): Promise<boolean> {
    if (this.#done) return false
    this.#done = await access(this.#file!).then(
      () => true,
      () => false,
    )
    return !this.#done
  }

  /** Nobody is asked again. A full disk is no reason to ask for ever: in memory it holds. */
  async done(): Promise<void> {
    this.#done = true
    if (this.#file !== undefined) await writeFile(this.#file, '', { mode: 0o600 }).catch(() => {})
  }
}
