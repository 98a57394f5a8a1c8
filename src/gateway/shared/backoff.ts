/**
 * Exponential back-off with jitter: doubles from `first` to `last` milliseconds, each wait drawn
 * from its upper half.
 */
export class Backoff {
  #first: number
  #last: number
  #failures = 0

  constructor(first: number, last: number) {
    this.#first = first
    this.#last = last
  }

  /** Milliseconds to wait after one more failure. */
  next(): number {
    const full = Math.min(this.#last, this.#first * 2 ** this.#failures++)
    return full / 2 + (Math.random() * full) / 2
  }

  /** After a success. */
  reset(): void {
    this.#failures = 0
  }
}
