import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  canonicalName,
  certificateNames,
  isAlias,
  serviceName,
} from '../../../../src/gateway/certificates/names.ts'
import type { NameSources } from '../../../../src/gateway/certificates/names.ts'

const node = { name: 'gate.tail.ts.net', names: ['gate.tail.ts.net', 'grafana.tail.ts.net'] }
const sources = (
  mode: NameSources['settings']['mode'],
  name: string[] = [],
  over: Partial<NameSources> = {},
): NameSources => ({ settings: { mode, name }, node, covered: () => true, ...over })

test('the tailnet gives the names unless they are of one’s own', () => {
  assert.deepEqual(certificateNames(sources('tailscale')), node.names)
  assert.equal(canonicalName(sources('tailscale')), node.name)
  for (const mode of ['acme', 'files'] as const) {
    assert.deepEqual(certificateNames(sources(mode, ['a.example', '*.a.example'])), [
      'a.example',
      '*.a.example',
    ])
    assert.equal(canonicalName(sources(mode, ['*.a.example', 'a.example'])), 'a.example')
  }
})

test('an authority of the device’s own is for all of its names, and waits until it knows them', () => {
  assert.deepEqual(certificateNames(sources('self', ['a.example'])), ['a.example', node.name])
  assert.deepEqual(certificateNames(sources('self')), [node.name])
  assert.deepEqual(certificateNames(sources('self', ['a.example'], { node: undefined })), [])
})

test('of several names the one that has a certificate is shown', () => {
  const covered = (name: string): boolean => name === 'b.example'
  assert.equal(canonicalName(sources('acme', ['a.example', 'b.example'], { covered })), 'b.example')
  assert.equal(canonicalName(sources('acme', ['a.example'], { covered: () => false })), 'a.example')
})

test('other names of the device are aliases; a stranger’s are not', () => {
  const own = sources('acme', ['a.example', 'b.example', '*.a.example'])
  for (const host of ['b.example', 'x.a.example', 'gate.tail.ts.net', 'gate'])
    assert.equal(isAlias(own, host), true, host)
  for (const host of ['evil.example', 'x.y.a.example', 'xa.example', ''])
    assert.equal(isAlias(own, host), false, host)
  assert.equal(isAlias(sources('tailscale'), 'anything.tail.ts.net'), false)
})

test('a Service has a name of one’s own where there is one for it', () => {
  const tailnet = 'grafana.tail.ts.net'
  assert.equal(serviceName(sources('tailscale'), 'grafana', tailnet), tailnet)
  assert.equal(serviceName(sources('acme', ['a.example']), 'grafana', tailnet), tailnet)
  assert.equal(
    serviceName(sources('acme', ['a.example', 'grafana.example']), 'grafana', tailnet),
    'grafana.example',
  )
  assert.equal(
    serviceName(sources('acme', ['a.example', '*.a.example']), 'grafana', tailnet),
    'grafana.a.example',
  )
  assert.equal(serviceName(sources('acme', ['a.example']), 'grafana', undefined), undefined)
})
