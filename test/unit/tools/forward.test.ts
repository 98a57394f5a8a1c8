/** What `make rebuild` moves, and what it says of advisories (tools/forward.ts). */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { audited, difference, forward } from '../../../tools/forward.ts'

test('a version moves within what is compatible, and what is newer is named', () => {
  const versions = ['5.0.7', '5.1.0', '5.0.8', '6.0.0', '6.1.0-beta.1', '4.9.9', '5.2.0-rc.1']
  assert.deepEqual(forward('5.0.7', versions, 'compatible'), { to: '5.1.0', beyond: '6.0.0' })
  assert.deepEqual(forward('5.0.7', versions, 'minor'), { to: '5.0.8', beyond: '6.0.0' })
  assert.deepEqual(forward('6.0.0', versions, 'compatible'), {})
  // Below 1.0 the minor version is what may break.
  assert.deepEqual(forward('0.4.1', ['0.4.2', '0.5.0'], 'compatible'), {
    to: '0.4.2',
    beyond: '0.5.0',
  })
  // By value, not by letters; Go's and Tailscale's forms; a pre-release is left alone.
  assert.deepEqual(forward('1.26.8', ['1.26.10', '1.26.9', '1.26rc1'], 'minor'), { to: '1.26.10' })
  assert.deepEqual(forward('v1.102.5', ['v1.102.4', 'v1.104.0'], 'minor'), { beyond: 'v1.104.0' })
  assert.deepEqual(forward('3.0.0-next.1', ['3.0.0'], 'compatible'), {})
})

// As npm's documentation of `npm audit --json` has it (auditReportVersion 2).
const report = (...names: string[]): string =>
  JSON.stringify({
    auditReportVersion: 2,
    vulnerabilities: Object.fromEntries([
      ['outer', { via: ['inner'] }],
      ...names.map((name) => [
        name,
        {
          via: [
            {
              name,
              title: 'Prototype pollution',
              url: `https://github.com/advisories/GHSA-${name}`,
              severity: 'high',
            },
          ],
        },
      ]),
    ]),
  })

test('what an audit says no more is closed, what it still says is open', () => {
  const [before, after] = [audited(report('aaaa', 'bbbb')), audited(report('bbbb'))]
  assert.deepEqual(difference('npm audit', before, after), [
    '  npm audit: 1 closed, 1 open',
    '    closed: GHSA-aaaa (aaaa, high): Prototype pollution',
    '    open: GHSA-bbbb (bbbb, high): Prototype pollution',
  ])
})

test('a registry that does not answer is no clean bill', () => {
  for (const answer of ['', 'npm error 405', '{"message":"405 Method Not Allowed"}']) {
    assert.equal(audited(answer), undefined)
    assert.match(difference('npm audit', audited(answer), [])[0]!, /nothing is said/)
  }
})
