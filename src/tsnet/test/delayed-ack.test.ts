/**
 * Acknowledgements that wait (patches-gvisor/0001), packet by packet against a peer made by hand,
 * compiled as the module is.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { goTest } from './gotest.ts'

test('an ACK waits for the answer or a second segment, 10 ms at most; what RFC 5681 wants at once goes at once', async (t) => {
  const said = await goTest('gvisor.dev/gvisor/pkg/tcpip/transport/tcp', '^TestDelayedAck')
  for (const name of ['Exchange', 'Stream', 'AtOnce', 'Closed'])
    assert.match(said, new RegExp(`^--- PASS: TestDelayedAck${name} `, 'm'))
  t.diagnostic(/[0-9]+ packets for [0-9]+ round trips/.exec(said)![0])
})
