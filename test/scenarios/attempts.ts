/** What attackers tried and what they got, in one table that the run prints. */
export class Attempts {
  readonly #rows: { from: string; attempt: string; got: string; held: boolean }[] = []

  /**
   * Notes one attempt. `got` is what the attacker saw, in the system's own words; `held`: it was
   * nothing worth having.
   */
  note(from: string, attempt: string, got: string, held: boolean): void {
    this.#rows.push({ from, attempt, got: got.replaceAll(/\s+/g, ' ').trim().slice(0, 110), held })
  }

  /** The attempts that got through, for the message of a failed test. */
  through(from?: string): string[] {
    return this.#rows
      .filter((row) => !row.held && (from === undefined || row.from === from))
      .map((row) => `${row.from}: ${row.attempt}: ${row.got}`)
  }

  get count(): number {
    return this.#rows.length
  }

  /** The table, one line an attempt. */
  toString(): string {
    const width = (pick: (row: { from: string; attempt: string }) => string): number =>
      Math.max(...this.#rows.map((row) => pick(row).length))
    const [from, attempt] = [width((row) => row.from), width((row) => row.attempt)]
    const lines = this.#rows.map(
      (row) =>
        `${row.held ? 'held   ' : 'THROUGH'}  ${row.from.padEnd(from)}  ${row.attempt.padEnd(attempt)}  ${row.got}`,
    )
    return [
      '',
      `         ${'from'.padEnd(from)}  ${'attempt'.padEnd(attempt)}  what it got`,
      ...lines,
      '',
    ].join('\n')
  }
}
