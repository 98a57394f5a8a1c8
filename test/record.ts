/** What long tests leave behind for whoever reads the docs: of each file when, of what, how many. */

/** What one file of tests gave. */
export interface Result {
  /** Its path below test/ or src/, without its ending. */
  test: string
  /** When it ended: "2026-11-27 14:05", UTC. */
  at: string
  /** Of what; with a + where the checkout had changes beside it. */
  commit: string
  passed: number
  failed: number
  skipped: number
  minutes: number
  /** Names of the tests that failed. */
  failures: readonly string[]
}

const head = [
  '# What the long tests gave last',
  '',
  'Written by the runs themselves (`make test-long`, or some of them: docs/developing.md), a line for',
  'each file of tests, in UTC. A + after the commit: with changes beside it. What has no line has not',
  'been run since these lines are kept.',
  '',
]
const columns = ['test', 'at', 'commit', 'passed', 'failed', 'skipped', 'minutes', 'what failed']

/** Names as a cell of a table holds them, not too many. */
function cell(failures: readonly string[]): string {
  const shown = failures.slice(0, 3).map((name) => name.replaceAll(/[|\s]+/g, ' ').slice(0, 60))
  return [...shown, ...(failures.length > 3 ? [`and ${failures.length - 3} more`] : [])].join('; ')
}

/**
 * The page with what has come of some files, in the place of what it said of them before.
 *
 * @param page the page so far; empty where there is none
 */
export function record(page: string, results: readonly Result[]): string {
  const lines = new Map<string, string>()
  for (const line of page.split('\n')) {
    const test = /^\| ([^|]+\/[^|]+?) +\|/.exec(line)?.[1]
    if (test !== undefined) lines.set(test, line)
  }
  for (const { test, at, commit, passed, failed, skipped, minutes, failures } of results)
    lines.set(
      test,
      `| ${[test, at, commit, passed, failed, skipped, minutes.toFixed(1), cell(failures)].join(' | ')} |`,
    )
  return [
    ...head,
    `| ${columns.join(' | ')} |`,
    `|${columns.map(() => '---').join('|')}|`,
    ...[...lines].toSorted(([a], [b]) => (a < b ? -1 : 1)).map(([, line]) => line),
    '',
  ].join('\n')
}
