/** reset.test.ts with the other way for packets to leave the process: node:dgram and Node's event loop. */
process.env.TSNET_NETWORK = 'node'
await import('./reset.test.ts')
