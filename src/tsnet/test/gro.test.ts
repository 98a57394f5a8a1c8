/**
 * Joining TCP segments as bytes (patches/0007) against gVisor's own GRO, both compiled as the
 * module is.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { goTest } from './gotest.ts'

test('segments are joined as by gVisor: 1,000 vectors of up to 12 connections, IPv4 and IPv6', async (t) => {
  const said = await goTest('tailscale.com/wgengine/netstack/gro', '.')
  for (const name of ['TestAgainstGVisor', 'TestLimit', 'Test_RXChecksumOffload'])
    assert.match(said, new RegExp(`^--- PASS: ${name} `, 'm'))
  t.diagnostic(/[0-9]+ packets, [0-9]+ joined to others/.exec(said)![0])
})
