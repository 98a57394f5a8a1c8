/**
 * Runs the tests of the folders named (`unit`, `tsnet`, `lab`, `vm`, `scenarios`, `faults`,
 * `update`, `nodes`, `raspios`) or files of them (`vm/service`), in that order, and ends with one line
 * `N passed, N failed` (`, N skipped` where any were). Exit code 1 when a test failed or none ran.
 *
 * Usage: node test/run.ts [--save FILE | --add FILE] [--record FILE] unit lab vm/service
 * --save keeps the counts and what failed in a file, --add begins with those kept there: `make test`
 * runs the quick tests before it builds the images. --record writes what came of each file into a
 * page of the docs (record.ts), as soon as the file has ended.
 */
import { execFileSync } from 'node:child_process'
import { existsSync, globSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { run } from 'node:test'
import { spec } from 'node:test/reporters'
import { parseArgs } from 'node:util'
import { record } from './record.ts'
import type { Result } from './record.ts'

const root = path.resolve(import.meta.dirname, '..')
const folders: Record<string, string> = {
  unit: 'test/unit/**/*.test.ts',
  tsnet: 'src/tsnet/test/*.test.ts',
  lab: 'test/lab/*.test.ts',
  vm: 'test/vm/*.test.ts',
  scenarios: 'test/scenarios/**/*.test.ts',
  faults: 'test/scenarios/faults.ts',
  update: 'test/update/*.test.ts',
  nodes: 'test/nodes/*.test.ts',
  raspios: 'test/raspios/*.test.ts',
}

const { values, positionals: asked } = parseArgs({
  options: { save: { type: 'string' }, add: { type: 'string' }, record: { type: 'string' } },
  allowPositionals: true,
})
/** The files of what was asked for: a folder, or `folder/name`. */
function filesOf(what: string): string[] {
  const [folder = '', name] = what.split('/')
  const files = folder in folders ? globSync(folders[folder]!, { cwd: root }).sort() : []
  return files.filter((file) => name === undefined || path.basename(file, '.test.ts') === name)
}
const unknown = asked.filter((what) => filesOf(what).length === 0)
if (asked.length === 0 || unknown.length > 0) {
  console.error(
    `test/run.ts: ${unknown.length ? `no tests there: ${unknown.join(', ')}` : 'name the folders'}; ` +
      `there are ${Object.keys(folders).join(', ')}, and folder/name for one file`,
  )
  process.exit(2)
}

/**
 * Files at a time. The lab's tests have namespaces of their own and mostly wait for timers; a
 * booted machine takes both processors; what `make test-long` measures is measured alone.
 */
function atOnce(folder: string): number {
  if (folder === 'unit') return 4
  return ['tsnet', 'lab'].includes(folder) && process.env['GATEHOUSE_LONG'] !== '1' ? 2 : 1
}

const count = { passed: 0, failed: 0, skipped: 0 }
const failures: string[] = []
/** The same with the reason, a line each: said again beside the counts, where one looks first. */
const reasons: string[] = []
if (values.add) {
  const earlier = JSON.parse(readFileSync(values.add, 'utf8')) as typeof count & {
    reasons: string[]
  }
  reasons.push(...earlier.reasons)
  for (const one of ['passed', 'failed', 'skipped'] as const) count[one] = earlier[one]
}
/** What a file of tests has given so far. */
interface Tally {
  passed: number
  skipped: number
  failures: string[]
}

/** Notes what one file of tests gave, beside what is noted of the others. */
function note(file: string, result: Omit<Result, 'test' | 'at' | 'commit'>): void {
  if (values.record === undefined) return
  const git = (...args: string[]): string =>
    execFileSync('git', ['-c', `safe.directory=${root}`, ...args], {
      cwd: root,
      encoding: 'utf8',
    }).trim()
  // What it writes itself is no change.
  const changed = git('status', '--porcelain', '--untracked-files=no', '--', `:!${values.record}`)
  const page = existsSync(values.record) ? readFileSync(values.record, 'utf8') : ''
  const about = {
    test: path.relative(root, file).replace(/(?:\.test)?\.ts$/, ''),
    at: new Date().toISOString().slice(0, 16).replace('T', ' '),
    commit: git('rev-parse', '--short=12', 'HEAD') + (changed === '' ? '' : '+'),
  }
  writeFileSync(values.record, record(page, [{ ...about, ...result }]))
}

for (const what of asked) {
  const name = what.split('/')[0]!
  const files = filesOf(what).map((f) => path.join(root, f))
  const begun = performance.now()
  // A file that hangs fails, and the others still run. The longest take five minutes on two busy
  // cores, half an hour where it is not `make test`, and power cuts as often as there are rounds, or
  // as many as there are to be; a file of unit tests takes seconds.
  const usual = process.env['GATEHOUSE_LONG'] === '1' ? 60 : 15
  const { GATEHOUSE_ROUNDS: rounds = 1, GATEHOUSE_CUTS: cuts = 0 } = process.env
  const minutes = name === 'unit' ? 2 : usual * Number(rounds) + 5 * Number(cuts)
  const timeout = minutes * 60_000
  // What tells why it hangs is printed before (src/tsnet/test/support.ts).
  process.env['GATEHOUSE_TEST_LIMIT'] = String(timeout)
  const events = run({ files, cwd: root, concurrency: atOnce(name), timeout })
  const took = new Map<string, number>()
  const results = new Map<string, Tally>()
  let since = begun
  const resultOf = (file = ''): Tally => {
    const result = results.get(file) ?? { passed: 0, skipped: 0, failures: [] }
    results.set(file, result)
    return result
  }
  // Of each file: its tests of the first level, one after the other. What it waits for is in it.
  for (const event of ['test:pass', 'test:fail'] as const)
    events.on(event, (t) => {
      if (t.nesting === 0 && t.file !== undefined)
        took.set(t.file, (took.get(t.file) ?? 0) + t.details.duration_ms / 1000)
    })
  events.on('test:pass', (t) => {
    if (t.details.type === 'suite') return
    const kind = t.skip !== undefined || t.todo !== undefined ? 'skipped' : 'passed'
    count[kind]++
    resultOf(t.file)[kind]++
  })
  events.on('test:fail', (t) => {
    if (t.details.type === 'suite') return
    count.failed++
    // A file that ended too early or too late is named by its path.
    const one = path.isAbsolute(t.name) ? 'the file did not come to its end' : t.name
    resultOf(t.file).failures.push(one)
    failures.push(`${path.relative(root, t.file ?? name)}: ${t.name}`)
    // The reporter gives the details at its end; in a long run one wants to know now.
    const why = String(
      (t.details.error.cause as Error | undefined)?.message ?? t.details.error.message,
    )
    console.log(`${failures.at(-1)}: ${why.slice(0, 1000)}`)
    reasons.push(`${failures.at(-1)}: ${why.replaceAll(/\s+/g, ' ').slice(0, 300)}`)
  })
  // Files are run one after another where this is noted; the last of them has ended with the run.
  const noteAll = (): void => {
    for (const [file, result] of results)
      note(file, {
        ...result,
        failed: result.failures.length,
        minutes: (performance.now() - since) / 60_000,
      })
    results.clear()
    since = performance.now()
  }
  events.on('test:summary', noteAll)
  const shown = events.compose(new spec())
  for await (const chunk of shown) process.stdout.write(chunk)
  const longest = [...took].toSorted(([, a], [, b]) => b - a).slice(0, 5)
  noteAll()
  console.log(
    `${what}: ${files.length} files, ${((performance.now() - begun) / 1000).toFixed(0)} s; longest: ` +
      `${longest.map(([file, s]) => `${path.basename(file, '.test.ts')} ${s.toFixed(0)}`).join(', ')}\n`,
  )
}
if (values.save) writeFileSync(values.save, JSON.stringify({ ...count, reasons }))
for (const reason of reasons) console.log(`failed: ${reason}`)
console.log(
  `${count.passed} passed, ${count.failed} failed${count.skipped ? `, ${count.skipped} skipped` : ''}`,
)
process.exit(count.failed > 0 || count.passed === 0 ? 1 : 0)
