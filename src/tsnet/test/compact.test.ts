/** What giving memory back does to the flags of V8, which are the whole process's. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { test } from 'node:test'

const compact = path.resolve(import.meta.dirname, '../host/compact.ts')
const program = `
import vm from 'node:vm'
import { compact } from ${JSON.stringify(compact)}
compact(undefined)
let natives = true
try { vm.runInNewContext('%FlushLiftoffCode()') } catch { natives = false }
console.log(JSON.stringify({ gc: vm.runInNewContext('typeof gc') === 'function', natives }))
`

for (const [gc, natives] of [
  [false, false],
  [true, false],
  [false, true],
] as const) {
  test(`expose-gc ${gc}, allow-natives-syntax ${natives}: as the process had them`, () => {
    const flags = [...(gc ? ['--expose-gc'] : []), ...(natives ? ['--allow-natives-syntax'] : [])]
    const { stdout, stderr } = spawnSync(
      process.execPath,
      [...flags, '--disable-warning=ExperimentalWarning', '--input-type=module', '-e', program],
      { encoding: 'utf8' },
    )
    assert.equal(stderr, '')
    assert.deepEqual(JSON.parse(stdout), { gc, natives })
  })
}
