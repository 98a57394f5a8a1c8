/**
 * Runs the tests of the folders named (`unit`, `tsnet`, `lab`, `vm`, `scenarios`, `faults`,
 * `update`, `nodes`, `raspios`), in that order, and ends with one line `N passed, N failed` (`, N skipped` where any
 * were). Exit code 1 when a test failed or none ran.
 *
 * Usage: node test/run.ts [--save FILE | --add FILE] [--record FILE] unit lab
 * --save keeps the counts and what failed in a file, --add begins with those kept there: `make test`
 * runs the quick tests before it builds the images. --record writes what came of it as a page of the
 * docs (record.ts).
 */
import { execFileSync } from 'node:child_process'
import { globSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { run } from 'node:test'
import { spec } from 'node:test/reporters'
import { parseArgs } from 'node:util'
import { record } from './record.ts'
import type { Folder } from './record.ts'

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
const unknown = asked.filter((name) => !(name in folders))
if (asked.length === 0 || unknown.length > 0) {
  console.error(
    `test/run.ts: ${unknown.length ? `no such folder: ${unknown.join(', ')}` : 'name the folders'}; ` +
      `there are ${Object.keys(folders).join(', ')}`,
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
const ran: Folder[] = []
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
for (const name of asked) {
  const before = { ...count }
  const files = globSync(folders[name]!, { cwd: root })
    .sort()
    .map((f) => path.join(root, f))
  const begun = performance.now()
  // A file that hangs fails, and the others still run. The longest take five minutes on two busy
  // cores, and power cuts as often as there are rounds; a file of unit tests takes seconds.
  const timeout = (name === 'unit' ? 2 : 15 * Number(process.env['GATEHOUSE_ROUNDS'] ?? 1)) * 60_000
  // What tells why it hangs is printed before (src/tsnet/test/support.ts).
  process.env['GATEHOUSE_TEST_LIMIT'] = String(timeout)
  const events = run({ files, cwd: root, concurrency: atOnce(name), timeout })
  const took = new Map<string, number>()
  // Of each file: its tests of the first level, one after the other. What it waits for is in it.
  for (const event of ['test:pass', 'test:fail'] as const)
    events.on(event, (t) => {
      if (t.nesting === 0 && t.file !== undefined)
        took.set(t.file, (took.get(t.file) ?? 0) + t.details.duration_ms / 1000)
    })
  events.on('test:pass', (t) => {
    if (t.details.type === 'suite') return
    if (t.skip !== undefined || t.todo !== undefined) count.skipped++
    else count.passed++
  })
  events.on('test:fail', (t) => {
    if (t.details.type === 'suite') return
    count.failed++
    failures.push(`${path.relative(root, t.file ?? name)}: ${t.name}`)
    // The reporter gives the details at its end; in a long run one wants to know now.
    const why = String(
      (t.details.error.cause as Error | undefined)?.message ?? t.details.error.message,
    )
    console.log(`${failures.at(-1)}: ${why.slice(0, 1000)}`)
    reasons.push(`${failures.at(-1)}: ${why.replaceAll(/\s+/g, ' ').slice(0, 300)}`)
  })
  const shown = events.compose(new spec())
  for await (const chunk of shown) process.stdout.write(chunk)
  const longest = [...took].toSorted(([, a], [, b]) => b - a).slice(0, 5)
  ran.push({
    name,
    files: files.length,
    passed: count.passed - before.passed,
    failed: count.failed - before.failed,
    skipped: count.skipped - before.skipped,
    seconds: (performance.now() - begun) / 1000,
  })
  console.log(
    `${name}: ${files.length} files, ${((performance.now() - begun) / 1000).toFixed(0)} s; longest: ` +
      `${longest.map(([file, s]) => `${path.basename(file, '.test.ts')} ${s.toFixed(0)}`).join(', ')}\n`,
  )
}
if (values.record !== undefined) {
  const git = (...args: string[]): string =>
    execFileSync('git', ['-c', `safe.directory=${root}`, ...args], {
      cwd: root,
      encoding: 'utf8',
    }).trim()
  const about = {
    date: new Date().toISOString().slice(0, 16).replace('T', ' '),
    commit: git('rev-parse', '--short=12', 'HEAD'),
    changed: git('status', '--porcelain', '--untracked-files=no') !== '',
    command: 'make test-long',
  }
  writeFileSync(values.record, record(about, ran, failures))
}
if (values.save) writeFileSync(values.save, JSON.stringify({ ...count, reasons }))
for (const reason of reasons) console.log(`failed: ${reason}`)
console.log(
  `${count.passed} passed, ${count.failed} failed${count.skipped ? `, ${count.skipped} skipped` : ''}`,
)
process.exit(count.failed > 0 || count.passed === 0 ? 1 : 0)
