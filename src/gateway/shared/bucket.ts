/**
 * A token bucket: `rate` events a second on average, `burst` at once. A rate of 0 lets everything
 * through. Costs one number and one time, whatever the rate.
 */
export class Bucket {
  #tokens: number
  #at = performance.now()

  constructor(burst: number) {
    this.#tokens = burst
  }

  /**
   * Takes one event. Answers 0 when it may happen, else the seconds until one may.
   *
   * @param kept tokens that this event must leave for others
   */
  take(rate: number, burst: number, kept = 0): number {
    if (rate === 0) return 0
    const now = performance.now()
    this.#tokens = Math.min(burst, this.#tokens + ((now - this.#at) / 1_000) * rate)
    this.#at = now
    if (this.#tokens >= 1 + kept) {
      this.#tokens--
      return 0
    }
    return (1 + kept - this.#tokens) / rate
  }
}
