/**
 * adverse.test.ts with the other way for packets to leave the process: node:dgram and Node's event
 * loop.
 */
import { test } from 'node:test'

if (process.env.GATEHOUSE_LONG === '1') {
  process.env.TSNET_NETWORK = 'node'
  await import('./adverse.test.ts')
} else {
  test(
    'adverse.test.ts with node:dgram',
    { skip: 'takes three minutes: GATEHOUSE_LONG=1' },
    () => {},
  )
}
