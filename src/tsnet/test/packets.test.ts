/**
 * Both ways for packets to leave the process (option `network`): they carry the same, and the
 * choice is as documented.
 */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import type { Socket } from 'node:net'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { Lab, type LabClient } from '../../../test/lab/lab.ts'
import type { Stats } from '../index.ts'
import { drain, pattern, unixServer, WasmNode } from './support.ts'

let lab: Lab
let peer: LabClient
let peerIP: string

before(async () => {
  lab = await Lab.start({ name: 'tpkt' })
  peer = await lab.client('peer')
  peerIP = (await peer.status()).ips[0]!
  const socket = path.join(lab.dir, 'peer.sock')
  await unixServer(socket, (s) => s.pipe(s))
  await peer.serve(7, socket)
})
after(async () => await lab?.stop())

const sha256 = (b: Uint8Array): string => createHash('sha256').update(b).digest('hex')

/**
 * 8 MiB to the node and back, 8 MiB from it and back, on a direct path; then the node's end.
 * Returns what it says of itself.
 */
async function exercise(node: WasmNode): Promise<Stats> {
  await node.up()
  await node.run(
    async (k) =>
      void (await k.server.listen(7)).on(
        'connection',
        (c) => void k.pipeline(c, c).catch(() => {}),
      ),
  )
  assert.equal((await peer.pingDirect(node.addresses[0])).direct, true)
  const bytes = pattern((8 << 20) + 1)
  const inward = (await peer.dial(node.addresses[0], 7)) as Socket
  inward.allowHalfOpen = true
  inward.end(bytes)
  assert.equal(sha256(await drain(inward)), sha256(bytes))
  const got = await node.run(
    async (k, ip, n) => {
      const c = await k.server.dial(ip, 7)
      c.end(k.pattern(n))
      return k.crypto
        .createHash('sha256')
        .update(await k.buffer(c))
        .digest('hex')
    },
    peerIP,
    bytes.length,
  )
  assert.equal(got, sha256(bytes))
  const stats = await node.run((k) => k.server.stats())
  await node.run((k) => k.server.close())
  assert.equal(await node.end(), 0)
  assert.equal(node.stderr, '', 'no warning of what is experimental in Node.js')
  return stats
}

const hasFFI = process.platform === 'linux' && ['x64', 'arm64'].includes(process.arch)

for (const network of ['ffi', 'node'] as const) {
  test(
    `8 MiB each way with network "${network}"`,
    { skip: network === 'ffi' && !hasFFI && 'no node:ffi here' },
    async () => {
      assert.equal(
        (await exercise(await WasmNode.process(lab, { hostname: `pkt-${network}`, network })))
          .network,
        network,
      )
    },
  )
}

test('by default it is ffi where there is node:ffi', async () => {
  assert.equal(
    (await exercise(await WasmNode.process(lab, { hostname: 'pkt-auto' }))).network,
    hasFFI ? 'ffi' : 'node',
  )
})

test('without node:ffi the default is node, and ffi is refused', async () => {
  const flags = ['--no-experimental-ffi']
  assert.equal(
    (await exercise(await WasmNode.process(lab, { hostname: 'pkt-noffi', flags }))).network,
    'node',
  )
  const refused = await WasmNode.process(lab, { hostname: 'pkt-refused', flags, network: 'ffi' })
  const error = await refused.fails(async (k, o) => await new k.Server(o).up(), refused.options)
  assert.equal(error.code, 'TSNET_OPTIONS')
  assert.match(error.message, /network "ffi" needs/)
  assert.equal(await refused.end(), 0)
})

test('the environment chooses too, and what is no way is TSNET_OPTIONS', async () => {
  assert.equal(
    (
      await exercise(
        await WasmNode.process(lab, { hostname: 'pkt-env', processEnv: { TSNET_NETWORK: 'node' } }),
      )
    ).network,
    'node',
  )
  const wrong = await WasmNode.process(lab, {
    hostname: 'pkt-wrong',
    processEnv: { TSNET_NETWORK: 'carrier-pigeon' },
  })
  const error = await wrong.fails((k, o) => new k.Server(o), wrong.options)
  assert.deepEqual(error, {
    code: 'TSNET_OPTIONS',
    message: 'network "carrier-pigeon" is not valid: use auto, ffi or node',
  })
  await wrong.end()
})

test("packets are encrypted with SIMD, and by Go's code where the environment says so", async () => {
  assert.equal(
    (await exercise(await WasmNode.process(lab, { hostname: 'pkt-simd' }))).cipher,
    'simd',
  )
  assert.equal(
    (
      await exercise(
        await WasmNode.process(lab, { hostname: 'pkt-go', processEnv: { TSNET_SIMD: '0' } }),
      )
    ).cipher,
    'go',
  )
})

test('nothing left the lab', async () =>
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks())))
