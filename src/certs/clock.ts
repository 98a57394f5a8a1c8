import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { checkClock } from '../base/cures.ts'
import { GatehouseError } from '../base/errors.ts'
import { writeFileAtomic } from '../base/files.ts'
import { builtAt } from '../base/version.ts'
import { minute, hour } from '../base/time.ts'

/**
 * The last moment that was certainly right, kept over reboots: a board without a battery starts
 * wherever its last clock was saved, or in 1970, and then no certificate has expired and no wait is
 * over.
 *
 * Only an authority's own word counts (the Date of an answer over TLS that was verified), and only
 * where it agrees with this machine's clock: one that runs years ahead must not leave a floor
 * nothing can ever reach again. systemd-timesyncd's file (/var/lib/systemd/timesync/clock) is no
 * such thing: it also keeps a time nobody confirmed.
 */
export class GoodTime {
  #path: string
  #time: number | undefined

  private constructor(path: string, time: number | undefined) {
    this.#path = path
    this.#time = time
  }

  /** @param state the agent's state directory */
  static async open(state: string): Promise<GoodTime> {
    const path = join(state, 'clock')
    const time = Date.parse((await readFile(path, 'utf8').catch(() => '')).trim())
    return new GoodTime(path, Number.isNaN(time) ? undefined : time)
  }

  /** The last confirmed moment; undefined when there was none yet. */
  get time(): Date | undefined {
    return this.#time === undefined ? undefined : new Date(this.#time)
  }

  /**
   * @throws GatehouseError when a clock is behind what it must have reached; two clocks that are
   *   right may differ by a minute
   */
  check(now: Date): void {
    const cure = checkClock
    if (now < builtAt) {
      throw new GatehouseError(
        'GH_CERTS_CLOCK',
        `the clock says ${now.toISOString()}, which is before this program was built (${builtAt.toISOString()})`,
        cure,
      )
    }
    if (this.#time !== undefined && now.getTime() < this.#time - minute) {
      throw new GatehouseError(
        'GH_CERTS_CLOCK',
        `the clock says ${now.toISOString()}, which is before ` +
          `${new Date(this.#time).toISOString()}, when it was certainly right`,
        cure,
      )
    }
  }

  /**
   * Takes an authority's word for the time. Not written more often than hourly, to spare the card.
   *
   * @returns whether it agrees with the clock, give or take an hour
   */
  async confirm(now: Date, told: Date): Promise<boolean> {
    if (!(Math.abs(now.getTime() - told.getTime()) < hour)) return false
    // The earlier of the two: a floor must not lie in anyone's future.
    const time = Math.min(now.getTime(), told.getTime())
    if (this.#time === undefined || time >= this.#time + hour) {
      this.#time = time
      await writeFileAtomic(this.#path, `${new Date(time).toISOString()}\n`, 0o600)
    }
    return true
  }
}
