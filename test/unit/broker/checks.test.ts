import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { examineSystem } from '../../../src/broker/checks.ts'
import type { Check } from '../../../src/broker/checks.ts'

const directory = mkdtempSync(join(tmpdir(), 'gh-checks-'))
after(() => {
  rmSync(directory, { recursive: true, force: true })
})

/** The check of the resolver, with this in the file that systemd-resolved keeps. */
async function resolver(text?: string): Promise<Check> {
  const file = join(directory, 'resolv.conf')
  rmSync(file, { force: true })
  if (text !== undefined) writeFileSync(file, text)
  const checks = await examineSystem({ problem: join(directory, 'problem') }, file)
  return checks.find(({ name }) => name === 'resolver')!
}

test('the resolver: the servers that it asks, that there is none, that it is not known', async () => {
  const usual = '# This is managed.\n\nnameserver 192.168.1.1\nnameserver fe80::1%2\nsearch .\n'
  const asks = await resolver(usual)
  assert.deepEqual([asks.result, asks.found], ['ok', 'asks 192.168.1.1, fe80::1%2'])
  const none = await resolver('# No DNS servers known.\nsearch .\n')
  assert.equal(none.result, 'fail')
  assert.match(none.cure!, /DHCP/)
  const unknown = await resolver()
  assert.equal(unknown.result, 'skip')
  assert.match(unknown.found, /ENOENT/)
})
