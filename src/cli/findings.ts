import type { Check } from '../broker/checks.ts'

/** The findings for a person. */
export function report(checks: Check[]): string {
  const marks = { ok: 'ok  ', warn: 'WARN', fail: 'FAIL', skip: '-   ' }
  const width = Math.max(...checks.map(({ name }) => name.length))
  const lines = checks.flatMap(({ name, result, found, cure }) => [
    `${marks[result]} ${name.padEnd(width)}  ${found}`,
    ...(cure === undefined
      ? []
      : cure
          .split('\n')
          .map((line, index) => `     ${' '.repeat(width)}  ${index === 0 ? '→ ' : '  '}${line}`)),
  ])
  const bad = checks.filter(({ result }) => result === 'fail' || result === 'warn').length
  return `${lines.join('\n')}\n\n${bad === 0 ? 'Nothing is wrong.' : `${bad} of ${checks.length} need attention.`}\n`
}
