/**
 * gVisor's TCP where upstream's stands still for ever (patches-gvisor/0002 to 0005), packet by
 * packet, compiled as the module is. The patches have the tests; of two ends, either may be
 * upstream's there, and where both are, the test wants a hang.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { goTest } from './gotest.ts'

const tcp = 'gvisor.dev/gvisor/pkg/tcpip/transport/tcp'

test('a loss at a window edge that the scale has cut off: no hang, whichever end is ours', async (t) => {
  const said = await goTest(tcp, '^TestWindowEdge$')
  for (const ends of ['neither', 'client', 'server', 'both']) {
    const passed = said.match(new RegExp(`^ +--- PASS: TestWindowEdge/.*patched=${ends} `, 'gm'))
    assert.equal(passed?.length, 7, `${ends}: ${said}`)
  }
  t.diagnostic(/--- PASS: TestWindowEdge .*/.exec(said)![0])
})

test('a window that shrinks below a segment is probed until it opens', async () => {
  assert.match(await goTest(tcp, '^TestWindowShrinks$'), /^--- PASS: TestWindowShrinks /m)
})

// Without the patch this does not return: one thread runs it all.
test('a segment for a connection whose lock a timer holds does not keep the thread', async () => {
  assert.match(await goTest(tcp, '^TestDispatcherYields$'), /^--- PASS: TestDispatcherYields /m)
})

// Without the patch the connection ends after two minutes, though the peer answers.
test('a user timeout ends a connection whose peer is gone, and none whose window is shut', async () => {
  assert.match(
    await goTest(tcp, '^TestUserTimeoutOfAShutWindow$'),
    /^--- PASS: TestUserTimeoutOfAShutWindow /m,
  )
})
