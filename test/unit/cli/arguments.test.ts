/** What the command line refuses, and says; nothing of it runs. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { test } from 'node:test'

const main = join(import.meta.dirname, '../../../src/main.ts')

function gatehouse(...args: string[]): { status: number | null; stderr: string; stdout: string } {
  return spawnSync(process.execPath, ['--disable-warning=ExperimentalWarning', main, ...args], {
    encoding: 'utf8',
  })
}

test('what a command does not take is refused with exit code 64, and named', () => {
  for (const [args, says] of [
    [['version', 'x'], /^gatehouse version: Unexpected "x"\. See gatehouse help\n$/],
    [['status', '--foo'], /^gatehouse status: Unknown option '--foo'\. See gatehouse help\n$/],
    [['update', '--force=1'], /'--force' does not take an argument\. See/],
    [['broker', 'foo'], /^gatehouse broker: Unexpected "foo"/],
    [['cache'], /^Usage: gatehouse cache purge\n$/],
    [['backup'], /^usage: gatehouse backup FILE/],
    [['bogus'], /^gatehouse: no command "bogus"\n\nUsage/],
  ] as const) {
    const { status, stderr, stdout } = gatehouse(...args)
    assert.deepEqual([status, stdout], [64, ''], args.join(' '))
    assert.match(stderr, says)
  }
})

test('version and help go to standard output', () => {
  assert.deepEqual([gatehouse('--version').status, gatehouse('--version').stderr], [0, ''])
  assert.match(gatehouse('help').stdout, /^Usage: gatehouse COMMAND/)
})
