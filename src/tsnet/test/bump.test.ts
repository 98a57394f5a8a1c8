/**
 * The script that tries another version of tailscale.com, on the version that is pinned (which is
 * in Go's cache).
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { test } from 'node:test'

const here = path.resolve(import.meta.dirname, '..')
const goMod = fs.readFileSync(path.join(here, 'go/go.mod'), 'utf8')
const version = /^\ttailscale.com (\S+)/m.exec(goMod)![1]!
const patches = ['patches', 'patches-wireguard', 'patches-gvisor'].flatMap((series) =>
  fs
    .readdirSync(path.join(here, series))
    .sort()
    .map((name) => `${series}/${name}`),
)

/** A copy of what the script reads and changes. */
function copy(t: { after(f: () => void): void }): string {
  const root = fs.mkdtempSync(path.join(os.tmpdir(), 'tsnet-bump-'))
  t.after(() => fs.rmSync(root, { recursive: true }))
  const dir = path.join(root, 'src/tsnet')
  for (const name of ['bump', 'build.sh', 'patches', 'patches-wireguard', 'patches-gvisor'])
    fs.cpSync(path.join(here, name), path.join(dir, name), { recursive: true })
  fs.mkdirSync(path.join(dir, 'go'))
  fs.writeFileSync(
    path.join(dir, 'go/go.mod'),
    goMod.replace(version, 'v1.0.0').replace(/(wireguard-go|gvisor) v\S+/g, '$1 v0.0.0'),
  )
  return dir
}

function bump(dir: string, ...args: string[]): { code: number | null; out: string; err: string } {
  const { status, stdout, stderr } = spawnSync(path.join(dir, 'bump'), args, {
    encoding: 'utf8',
    env: { ...process.env, GOPROXY: 'off' },
  })
  return { code: status, out: stdout, err: stderr }
}

test('every patch has its reason and what would make it needless', () => {
  for (const name of patches)
    assert.match(fs.readFileSync(path.join(here, name), 'utf8'), /^No longer needed when .+/m, name)
})

/** In place of compiling and of the tests: they say that they were called, and end with a code. */
function steps(dir: string, build: string, tests: number): void {
  const script = path.join(dir, 'build.sh')
  const [first, ...rest] = fs.readFileSync(script, 'utf8').split('\n')
  fs.writeFileSync(script, [first, build, ...rest].join('\n'))
  const bin = path.join(dir, '../../node_modules/.bin')
  fs.mkdirSync(bin, { recursive: true })
  const node = `#!/bin/sh\necho "ran $*" | sed 's|/.*/test/|test/|'\nexit ${tests}\n`
  fs.writeFileSync(path.join(bin, 'node'), node, { mode: 0o755 })
}

test('every test of upstream’s tsnet is in the table of UPSTREAM.md, and no other', () => {
  const tests = path.join(here, 'build/tailscale.com/tsnet')
  const there = fs
    .readdirSync(tests)
    .filter((name) => name.endsWith('_test.go'))
    .flatMap(
      (name) => fs.readFileSync(path.join(tests, name), 'utf8').match(/^func Test\w+/gm) ?? [],
    )
    .map((line) => line.replace('func ', ''))
  assert.ok(there.length > 30, String(there.length))
  const rows = fs.readFileSync(path.join(here, 'UPSTREAM.md'), 'utf8').match(/^\| Test.*/gm)!
  const named = rows.flatMap((row) => row.split('|')[1]!.match(/\bTest\w+/g)!)
  assert.deepEqual(named.sort(), there.sort())
})

test('all patches apply: version and checksums are pinned, compiled and tested', (t) => {
  const dir = copy(t)
  steps(dir, 'echo built; exit', 0)
  const script = path.join(dir, 'build.sh')
  const there = fs.readFileSync(script, 'utf8')
  fs.writeFileSync(script, there.replace(/^(\w*sum)="h1.*$/gm, '$1="h1:old"'))
  const { code, out, err } = bump(dir, version)
  assert.equal(code, 0, err)
  for (const name of patches) assert.match(out, new RegExp(`^applies +${name}$`, 'm'))
  assert.equal(fs.readFileSync(path.join(dir, 'go/go.mod'), 'utf8'), goMod)
  assert.equal(fs.readFileSync(script, 'utf8'), there)
  const said = out.slice(out.indexOf('pinned  ')).split('\n')
  assert.match(said[0]!, new RegExp(`^pinned +${version}$`))
  assert.equal(said[1], 'built')
  assert.match(said[2]!, /^compiled/)
  assert.match(said[3]!, /^ran .*test\/run\.ts tsnet$/)
  assert.match(said[4]!, /^tested/)
})

test('what is pinned and fails its tests is said to, with the way back', (t) => {
  const dir = copy(t)
  steps(dir, 'exit 0', 1)
  const { code, err } = bump(dir, version)
  assert.equal(code, 1)
  assert.match(err, /is pinned, but tests fail \(back: git checkout/)
})

test('a patch that no longer applies, and one that upstream has, are named, and nothing is changed', (t) => {
  const dir = copy(t)
  const file = path.join(dir, 'patches/0003-netns-dialer-hook.patch')
  fs.writeFileSync(
    file,
    fs.readFileSync(file, 'utf8').replace('-\tif d == nil {', '-\tif d != nil {'),
  )
  const first = path.join(dir, 'patches/0001-neterror-build-on-wasip1.patch')
  const there = fs.readFileSync(first, 'utf8')
  // Its changes turned round are a patch whose result is what upstream has.
  fs.writeFileSync(
    first,
    there
      .replace(/^-(\/\/go:build .*)$/m, '~$1')
      .replace(/^\+(\/\/go:build .*)$/m, '-$1')
      .replace(/^~/m, '+'),
  )
  const before = fs.readFileSync(path.join(dir, 'go/go.mod'), 'utf8')
  const { code, out, err } = bump(dir, version)
  assert.equal(code, 1)
  assert.match(out, /^upstream has it +patches\/0001/m)
  assert.match(out, /^applies +patches\/0002/m)
  assert.match(out, /^no longer applies +patches\/0003.*needed until upstream has such a hook/m)
  assert.match(err, /nothing is changed/)
  assert.equal(fs.readFileSync(path.join(dir, 'go/go.mod'), 'utf8'), before)
})

/** `go` that has one module, whatever is asked for. */
function fakeGo(dir: string, goMod: string): NodeJS.ProcessEnv {
  const module = path.join(dir, 'module')
  fs.mkdirSync(module)
  fs.writeFileSync(path.join(module, 'go.mod'), goMod)
  const answer = JSON.stringify({ Sum: 'h1:x', Dir: module }, null, '\t')
  fs.writeFileSync(path.join(dir, 'answer.json'), answer)
  fs.mkdirSync(path.join(dir, 'bin'))
  fs.writeFileSync(path.join(dir, 'bin/go'), `#!/bin/sh\ncat ${path.join(dir, 'answer.json')}\n`, {
    mode: 0o755,
  })
  return { ...process.env, PATH: `${path.join(dir, 'bin')}:${process.env.PATH}` }
}

test('a Tailscale that requires a patched module no more is said to, and nothing is changed', (t) => {
  const dir = copy(t)
  const before = fs.readFileSync(path.join(dir, 'go/go.mod'), 'utf8')
  const env = fakeGo(dir, 'module tailscale.com\n\nrequire (\n\tgvisor.dev/gvisor v1.2.3\n)\n')
  const { status, stderr } = spawnSync(path.join(dir, 'bump'), [version], { encoding: 'utf8', env })
  assert.equal(status, 1)
  assert.match(stderr, /requires no github\.com\/tailscale\/wireguard-go: find what has taken/)
  assert.equal(fs.readFileSync(path.join(dir, 'go/go.mod'), 'utf8'), before)
})

test('a patch whose place has moved is said to', (t) => {
  const dir = copy(t)
  const file = path.join(dir, 'patches/0008-tstun-accepted-packets-are-not-logged.patch')
  const text = fs.readFileSync(file, 'utf8')
  // As if it had been made when its place was ten lines further up.
  const up = (n: string): number => Number(n) - 10
  fs.writeFileSync(
    file,
    text.replace(/^@@ -(\d+),(\d+) \+(\d+),/m, (_, a, b, c) => `@@ -${up(a)},${b} +${up(c)},`),
  )
  const { out } = bump(dir, version, '--check')
  assert.match(out, /^applies, moved +patches\/0008.*: 10 lines/m)
})

test('a version that is none, and an option that there is not, are refused', () => {
  assert.equal(bump(here, version, '--now').code, 2)
  assert.equal(bump(here, 'latest').code, 2)
  assert.match(bump(here).err, new RegExp(`now: ${version}`))
})
