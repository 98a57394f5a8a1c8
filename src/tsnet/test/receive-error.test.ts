/**
 * A receive that fails (network "ffi"): the kernel short of memory is one that passes. What makes
 * it fail is strace(1), which answers system calls in the kernel's place.
 */
import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Lab, type LabClient } from '../../../test/lab/lab.ts'
import { eventually, WasmNode } from './support.ts'

const skip = spawnSync('strace', ['-V']).status === 0 ? false : 'strace is not installed'
let lab: Lab
let peer: LabClient
let node: WasmNode

before(async () => {
  if (skip) return
  lab = await Lab.start({ name: 'trerr' })
  peer = await lab.client('peer')
  node = await WasmNode.up(lab, { processEnv: { TSNET_NETWORK: 'ffi' } })
  await peer.pingDirect(node.addresses[0])
})
after(async () => await lab?.stop())

/**
 * Has every recvmsg(2) in the node's process fail with `error` for `duration` ms from the first on,
 * also those by which the machine's interfaces are asked for.
 */
async function failing(error: string, duration: number): Promise<void> {
  const log = path.join(lab.dir, `strace-${error}-${duration}`)
  const argv = [
    '-f',
    '-qq',
    '-o',
    log,
    '-e',
    'trace=recvmsg',
    '-e',
    `inject=recvmsg:error=${error}`,
  ]
  writeFileSync(log, '')
  const strace = spawn('strace', [...argv, '-p', `${node.child.pid}`], { stdio: 'ignore' })
  const ended = once(strace, 'exit')
  try {
    await eventually(`a receive that fails with ${error}`, async () => {
      await peer.ping(node.addresses[0]).catch(() => {})
      return readFileSync(log, 'utf8').includes('(INJECTED)')
    })
    await sleep(duration)
  } finally {
    strace.kill('SIGINT')
    await ended
  }
}

for (const [error, duration] of [
  ['ENOMEM', 0],
  ['ENOMEM', 6000], // longer than WireGuard tries again
  ['EIO', 1000],
] as const) {
  test(`${error} for ${duration} ms: packets are received again afterwards`, { skip }, async () => {
    await failing(error, duration)
    await peer.pingDirect(node.addresses[0], 20_000)
    assert.equal(node.stderr, '')
  })
}
