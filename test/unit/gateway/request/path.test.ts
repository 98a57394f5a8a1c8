import assert from 'node:assert/strict'
import { test } from 'node:test'
import { canonicalTarget } from '../../../../src/gateway/request/target.ts'
import { Bench, name } from '../../support/bench.ts'

test('paths that servers read differently are refused', async () => {
  await using bench = await Bench.start()
  for (const path of [
    '/a/../b',
    '/a/./b',
    '/..',
    '/a/..',
    '/a/%2e%2e/b',
    '/a/.%2E/b',
    '/a/..%2fb',
    '/a%2F..%2Fb',
    '/a\\b',
    '/a/%5c..%5cb',
    '/a%00b',
    '/a%0d%0aX: y',
    '/a%7f',
    '/%',
    '/%zz',
    '/%c0%ae%c0%ae/',
    '/a#b',
  ]) {
    const answer = await bench.raw(`GET ${path} HTTP/1.1\r\nHost: ${name}\r\n\r\n`)
    assert.match(answer, /^HTTP\/1\.1 400 /, path)
    assert.match(answer, /connection: close/i, path)
  }
  assert.equal(bench.origin.requests.length, 0)
})

test('paths are passed on in one form, and never folded further', async () => {
  await using bench = await Bench.start()
  for (const [sent, seen] of [
    ['/%66lows', '/flows'],
    ['/%7Euser', '/~user'],
    ['/a%2fb', '/a%2Fb'],
    ['/a/b//c/', '/a/b//c/'],
    ['/a;b=c', '/a;b=c'],
    ['/.well-known/x', '/.well-known/x'],
    ['/.a./b.', '/.a./b.'],
    ['/%e4%bd%a0', '/%E4%BD%A0'],
    ['/%2566', '/%2566'],
    ['/a?../..%00\\', '/a?../..%00\\'],
    ['/nodes/@scope%2Fname', '/nodes/@scope%2Fname'],
    ['/a?b?c=//d', '/a?b?c=//d'],
    ['/?', '/?'],
  ] as const) {
    const answer = await bench.raw(
      `GET ${sent} HTTP/1.1\r\nHost: ${name}\r\nConnection: close\r\n\r\n`,
    )
    assert.match(answer, /^HTTP\/1\.1 200 /, sent)
    assert.equal(bench.origin.requests.at(-1)!.url, seen)
  }
})

test('the canonical form is a fixed point, in time that grows with the length alone', () => {
  for (const target of [
    '/%66lows?x',
    '/a%2fb',
    `/${'a/'.repeat(8_000)}`,
    `/${'a.'.repeat(8_000)}%`,
    `/${'-'.repeat(16_000)}!`,
    `/${'%41'.repeat(5_000)}`,
  ]) {
    const begun = process.cpuUsage()
    const once = canonicalTarget(target, 'h')
    if (typeof once === 'string') assert.equal(canonicalTarget(once, 'h'), once)
    assert.ok(
      process.cpuUsage(begun).user < 500_000,
      `${target.slice(0, 20)} took ${process.cpuUsage(begun).user} µs`,
    )
  }
})
