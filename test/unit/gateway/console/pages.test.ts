import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { brotliDecompressSync } from 'node:zlib'
import { buffer } from 'node:stream/consumers'
import { capability } from '../../../../src/gateway/access/access.ts'
import { contentSecurityPolicy } from '../../../../src/gateway/console/pages.ts'
import { bundleConsole } from '../../../../tools/console.ts'
import { Bench } from '../../support/bench.ts'
import { alice } from '../../support/tailnet.ts'

const directory = mkdtempSync(join(tmpdir(), 'gh-console-'))
before(async () => {
  await bundleConsole(directory)
})
after(() => {
  rmSync(directory, { recursive: true, force: true })
})

const port = 10_000

test('the bundle is small: under 100 kB compressed in all, and nothing of it from elsewhere', () => {
  const names = readdirSync(directory)
  const compressed = names.filter((name) => name.endsWith('.br'))
  assert.equal(compressed.length, 3, 'page, script, style sheet')
  const size = compressed.reduce((sum, name) => sum + readFileSync(join(directory, name)).length, 0)
  assert.ok(size < 100_000, `${size} bytes`)
  const page = readFileSync(join(directory, 'index.html'), 'utf8')
  assert.doesNotMatch(
    page,
    /\{\{|<style|<script(?![^>]*src=)| on\w+=|(?:src|href)="(?:https?:)?\/\//,
  )
})

test('page, script and style sheet come with strict headers, compressed, and are kept', async () => {
  await using bench = await Bench.start({ options: { pages: directory } })
  const page = await bench.fetch({ port })
  assert.equal(page.status, 200)
  assert.equal(page.headers['content-type'], 'text/html; charset=utf-8')
  assert.equal(page.text, readFileSync(join(directory, 'index.html'), 'utf8'))
  const parts = [...page.text.matchAll(/(?:src|href)="(\/console\/[^"]+)"/g)].map(
    ([, path]) => path!,
  )
  assert.equal(parts.length, 2)
  for (const path of ['/', ...parts]) {
    const answer = await bench.send({ port, path, headers: { 'accept-encoding': 'gzip, br' } })
    const { headers } = answer
    assert.equal(answer.statusCode, 200, path)
    assert.equal(headers['content-security-policy'], contentSecurityPolicy)
    assert.equal(headers['x-content-type-options'], 'nosniff')
    assert.equal(headers['referrer-policy'], 'no-referrer')
    assert.equal(headers['content-encoding'], 'br')
    assert.equal(headers.vary, 'accept-encoding')
    assert.match(headers['cache-control']!, path === '/' ? /no-cache/ : /immutable/)
    const name = path === '/' ? 'index.html' : path.slice('/console/'.length)
    assert.deepEqual(
      brotliDecompressSync(await buffer(answer)),
      readFileSync(join(directory, name)),
    )
    const again = await bench.fetch({
      ...{ port, path },
      headers: { 'accept-encoding': 'br', 'if-none-match': `"other", W/${headers.etag}` },
    })
    assert.deepEqual([again.status, again.text], [304, ''])
    const plain = await bench.fetch({ port, path, headers: { 'accept-encoding': 'br;q=0' } })
    assert.equal(plain.headers['content-encoding'], undefined)
    assert.notEqual(plain.headers.etag, headers.etag, 'another form, another tag')
  }
  const head = await bench.fetch({ port, method: 'HEAD' })
  assert.deepEqual([head.status, head.text], [200, ''])
})

test('the console is at the own port alone, for those who may see the status', async () => {
  await using bench = await Bench.start({ options: { pages: directory } })
  const [script] = readdirSync(directory).filter((name) => name.endsWith('.js'))
  const path = `/console/${script}`
  const paths = bench.origin.requests.length
  await bench.fetch({ path })
  await bench.fetch({ port: 8_443, path })
  assert.equal(bench.origin.requests.length, paths + 2, 'there the path is Node-RED’s')
  for (const [other, status] of [
    ['/console/', 404],
    ['/console/index.html', 404],
    [`${path}.br`, 404],
    ['/console/../../package.json', 400],
    ['/console/%2e%2e/app.js', 400],
    ['/status', 200],
  ] as const)
    assert.equal((await bench.fetch({ port, path: other })).status, status, other)
  bench.tailnet.peer = { ...alice, capMap: { [capability]: [{ may: ['edit', 'use'] }] } }
  await bench.until(async () => (await bench.fetch({ port })).status === 403)
  assert.equal((await bench.fetch({ port, path })).status, 403)
})

test('without a bundle the port leads to the status as before', async () => {
  await using bench = await Bench.start({ options: { pages: join(directory, 'absent') } })
  const answer = await bench.fetch({ port })
  assert.deepEqual([answer.status, answer.headers.location], [307, '/status'])
})
