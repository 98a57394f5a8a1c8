import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'

const root = mkdtempSync(join(tmpdir(), 'gh-node-red-install-'))
after(() => rmSync(root, { recursive: true, force: true }))
const require = createRequire(import.meta.url)
const overlays = '../../../overlays/usr/lib/gatehouse'

interface Result {
  code: number | null
  stdout: string
  stderr: string
}
type Run = (command: string, args: string[], options: object, emit?: boolean) => Promise<Result>
const { bound, reason } = require(`${overlays}/node-red-install.cjs`) as {
  bound(exec: { run: Run }, options: { prebuilt: boolean; free?: () => number }): void
  reason(
    result: { code: number | null; stderr: string },
    options: { prebuilt: boolean; asked?: string },
  ): string | undefined
}

/** An npm that is this script; what Node-RED gets of it. */
async function npm(script: string, prebuilt = false): Promise<Result> {
  const cli = join(mkdtempSync(join(root, 'npm-')), 'npm-cli.js')
  writeFileSync(cli, script)
  const { spawn } = await import('node:child_process')
  // As exec.run of @node-red/util does it.
  const run: Run = (command, args, options) =>
    new Promise((resolve, reject) => {
      const child = spawn(command, args, options)
      const result: Result = { code: 0, stdout: '', stderr: '' }
      child.stdout.on('data', (text: Buffer) => (result.stdout += String(text)))
      child.stderr.on('data', (text: Buffer) => (result.stderr += String(text)))
      child.on('close', (code) => {
        result.code = code
        if (code === 0) resolve(result)
        else reject(result as unknown as Error)
      })
    })
  const exec = { run }
  bound(exec, { prebuilt, free: () => 200 * 2 ** 20 })
  return await exec.run(process.execPath, [cli, 'install', '--', 'node-red-node-x'], {})
}

test('npm is the first to go when memory is short, has a heap of its own, and nothing to compile with', async () => {
  const { stdout } = await npm(
    `const fs = require('node:fs'), v8 = require('node:v8')
    console.log(JSON.stringify({ score: fs.readFileSync('/proc/self/oom_score_adj', 'utf8').trim(),
      heap: v8.getHeapStatistics().heap_size_limit / 2 ** 20, args: process.argv.slice(2),
      gyp: process.env.npm_config_node_gyp, pool: process.env.UV_THREADPOOL_SIZE }))`,
  )
  const seen = JSON.parse(stdout)
  assert.deepEqual(
    [seen.score, seen.args, seen.pool],
    ['1000', ['install', '--', 'node-red-node-x'], '2'],
  )
  assert.ok(seen.heap > 90 && seen.heap < 140, `${seen.heap} MiB`)
  assert.match(seen.gyp, /gatehouse\/no-compiler\.cjs$/)
})

test('what is no npm runs as it did', async () => {
  const calls: string[] = []
  const exec = {
    run: (async (command: string) => {
      calls.push(command)
      return { code: 0, stdout: '', stderr: '' }
    }) as Run,
  }
  bound(exec, { prebuilt: false })
  await exec.run('git', ['status'], {})
  await exec.run(process.execPath, ['/elsewhere/other.js'], {})
  assert.deepEqual(calls, ['git', process.execPath])
})

test('npm that takes too much memory ends alone, and the editor is told', async () => {
  const hungry = 'const all = []; for (;;) all.push(new Array(1e5).fill({}).map(() => ({})))'
  for (const script of [hungry, "process.kill(process.pid, 'SIGKILL'); setTimeout(() => {}, 9e3)"])
    await assert.rejects(npm(script), (error: Error & { hook: string }) => {
      assert.match(
        String(error),
        /^it needs more memory than there is beside Node-RED .*make image/,
      )
      // Node-RED passes on to the editor what a hook says, and no other word.
      assert.equal(error.hook, 'preInstall')
      return true
    })
})

test('a part that would have to be compiled is named, with what to do', async () => {
  const compiles = `const { spawnSync } = require('node:child_process')
    const { stderr } = spawnSync(process.execPath, [process.env.npm_config_node_gyp, 'rebuild'], { encoding: 'utf8' })
    console.error('npm error code 1\\nnpm error path /var/lib/node-red/node_modules/sqlite3\\nnpm error ' + stderr)
    process.exit(1)`
  await assert.rejects(npm(compiles), {
    message:
      /^sqlite3 has to be compiled for this device, and there is no compiler here\. Add "prebuilt" to allow in \[node_red\]/,
  })
  await assert.rejects(npm(compiles, true), {
    message: /^sqlite3 has to be compiled .* use another node, or have it built into the image/,
  })
})

test('the rest of what goes wrong: room, versions, hosts; a name that is not there is left to Node-RED', () => {
  const said = (stderr: string): string | undefined =>
    reason({ code: 1, stderr }, { prebuilt: false })
  assert.match(said('npm error code EDQUOT\nnpm error errno -122')!, /no room for it on the disk/)
  assert.match(
    said(
      'npm error code EBADENGINE\nnpm error engine Unsupported engine\nnpm error notsup Required: {"node":"<20"}',
    )!,
    /does not work with this device's Node\.js, which is v\d+.*; it asks for \{"node":"<20"\}/,
  )
  assert.match(
    said(
      'npm error code ENOTFOUND\n' +
        'npm error network request to https://files.example.org/x failed, reason: getaddrinfo ' +
        'ENOTFOUND files.example.org',
    )!,
    /^files\.example\.org cannot be reached\. .* as "files\.example\.org:443"$/,
  )
  assert.match(
    said('npm error code ETIMEDOUT\nnpm error connect ETIMEDOUT 192.0.2.7:443')!,
    /^192\.0\.2\.7:443 cannot be reached\..*gatehouse\.toml$/,
  )
  const needed =
    "npm error code ETARGET\nnpm error notarget No matching version found for stream@'^3'."
  assert.match(
    reason({ code: 1, stderr: needed }, { prebuilt: false, asked: 'node-red-contrib-x' })!,
    /^npm says: notarget No matching version found for stream/,
  )
  assert.equal(said("npm error code E404\nnpm error 404 'x@*' is not in this registry."), undefined)
  assert.equal(
    said('npm error code ERESOLVE\nnpm error could not resolve\nnpm error A complete log of this'),
    'npm says: could not resolve',
  )
  assert.equal(said(''), undefined)
})
