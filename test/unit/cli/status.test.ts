import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { text } from 'node:stream/consumers'
import { once } from 'node:events'
import { join } from 'node:path'
import { test } from 'node:test'
import type { GatewayStatus } from '../../../src/gateway/operate/status.ts'
import { Bench, name } from '../support/bench.ts'

async function status(
  admin: string,
  ...args: string[]
): Promise<{ code: number; stdout: string; stderr: string }> {
  const child = spawn(
    process.execPath,
    [join(import.meta.dirname, '../../../src/main.ts'), 'status', ...args],
    {
      env: {
        ...process.env,
        GATEHOUSE_ADMIN_SOCKET: admin,
        GATEHOUSE_PROBLEM_FILE: '/nonexistent',
      },
    },
  )
  const [stdout, stderr, [code]] = await Promise.all([
    text(child.stdout),
    text(child.stderr),
    once(child, 'close') as Promise<[number]>,
  ])
  return { code, stdout, stderr }
}

test('all well: exit code 0, table and JSON', async () => {
  await using bench = await Bench.start()
  const table = await status(bench.admin)
  assert.deepEqual([table.code, table.stderr], [0, ''])
  for (const part of [
    `https://${name}/`,
    'Running',
    '100.64.0.1',
    'Throw-away authority',
    'expires',
    'Node-RED',
    'up',
    /laptop\.tail\.ts\.net\s+online\s+direct to 10\.0\.0\.2:41641/,
  ]) {
    assert.match(table.stdout, typeof part === 'string' ? new RegExp(RegExp.escape(part)) : part)
  }
  const json = await status(bench.admin, '--json')
  const parsed = JSON.parse(json.stdout) as GatewayStatus
  assert.deepEqual(
    [json.code, parsed.ok, parsed.tailnet.peers[0]],
    [0, true, { name: 'laptop.tail.ts.net', online: true, path: 'direct', via: '10.0.0.2:41641' }],
  )
})

test('something wrong: exit code 1, problem and cure first', async () => {
  await using bench = await Bench.start({ origin: false })
  const { code, stdout } = await status(bench.admin)
  assert.equal(code, 1)
  assert.match(
    stdout,
    /^! upstream: Node-RED is not running\.\n {2}→ .*page Node-RED of the web console.*GH_UPSTREAM_DOWN/,
  )
})

test('no gateway: exit code 2 and what to do', async () => {
  const { code, stdout, stderr } = await status('/nonexistent/admin.sock')
  assert.deepEqual([code, stdout], [2, ''])
  assert.match(
    stderr,
    /nothing listens on \/nonexistent\/admin\.sock\.\n {2}→ The gateway starts again by itself/,
  )
  const json = await status('/nonexistent/admin.sock', '--json')
  assert.deepEqual([json.code, (JSON.parse(json.stdout) as { ok: boolean }).ok], [2, false])
})
