/** What a run of many tests leaves behind for whoever reads the docs: when, of what, how many. */

/** The counts of one folder. */
export interface Folder {
  name: string
  files: number
  passed: number
  failed: number
  skipped: number
  seconds: number
}

/** The file's text. @param failures names of the tests that failed, with their file */
export function record(
  {
    date,
    commit,
    changed,
    command,
  }: Record<'date' | 'commit' | 'command', string> & {
    /** Whether the checkout had changes beside the commit. */
    changed: boolean
  },
  folders: readonly Folder[],
  failures: readonly string[],
): string {
  const sum = (key: 'passed' | 'failed' | 'skipped' | 'seconds'): number =>
    folders.reduce((all, folder) => all + folder[key], 0)
  const minutes = (seconds: number): string => (seconds / 60).toFixed(0)
  return [
    '# The last full run of the long tests',
    '',
    `Written by \`${command}\` on ${date} UTC, of commit ${commit}${changed ? ' with changes' : ''}:`,
    `**${sum('passed')} passed, ${sum('failed')} failed, ${sum('skipped')} skipped** in ` +
      `${minutes(sum('seconds'))} minutes.`,
    '',
    '| folder | files | passed | failed | skipped | minutes |',
    '|---|---|---|---|---|---|',
    ...folders.map(
      ({ name, files, passed, failed, skipped, seconds }) =>
        `| ${name} | ${files} | ${passed} | ${failed} | ${skipped} | ${minutes(seconds)} |`,
    ),
    ...(failures.length === 0
      ? []
      : ['', 'Failed:', '', ...failures.map((one) => `- ${one}`.slice(0, 98))]),
    '',
  ].join('\n')
}
