/** A peer that is gone without a word: its connections end, silent or not, and nobody else's. */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { Lab, type LabClient } from '../../../test/lab/lab.ts'
import { eventually, WasmNode } from './support.ts'

/** Seconds of silence; a minute by default. All of it takes twice that. */
const idle = 4

let lab: Lab
let gone: LabClient
let stays: LabClient
let node: WasmNode

before(async () => {
  lab = await Lab.start({ name: 'tkeep' })
  ;[gone, stays] = [await lab.client('gone'), await lab.client('stays')]
  node = await WasmNode.up(lab, { env: { TSNET_KEEPALIVE: `${idle}s` } })
  // It keeps what happens to each connection, by the first byte that came on it.
  await node.run(async (k) => {
    k.kept.ended = {}
    k.kept.conns = {}
    ;(await k.server.listen(7)).on('connection', (c) => {
      let name = ''
      c.once('data', (piece) => {
        name = piece.toString()
        k.kept.conns[name] = c
      })
      c.resume()
        .on('error', (err) => (k.kept.ended[name] = (err as NodeJS.ErrnoException).code))
        .on('end', () => (k.kept.ended[name] ??= 'end'))
    })
  })
  for (const client of [gone, stays]) await client.pingDirect(node.addresses[0])
})
after(async () => await lab?.stop())

test('a peer that is gone without a word: connections that are silent, and those with data under way', async () => {
  for (const [client, names] of [
    [gone, ['gone silent', 'gone sending']],
    [stays, ['stays silent']],
  ] as const)
    for (const name of names) (await client.dial(node.addresses[0], 7)).write(name)
  await eventually(
    'all are there',
    async () => (await node.run((k) => Object.keys(k.kept.conns).length)) === 3,
  )
  const { code, stderr } = await lab.run(gone.ns, ['ip', 'link', 'set', 'eth0', 'down'])
  assert.equal(code, 0, stderr)
  const begun = performance.now()
  await node.run((k) => void k.kept.conns['gone sending'].write('anybody there?'))
  const ended = await eventually('both have ended', async () => {
    const seen = (await node.run((k) => k.kept.ended)) as Record<string, string>
    return seen['gone silent'] && seen['gone sending'] && seen
  })
  const seconds = (performance.now() - begun) / 1000
  assert.deepEqual(ended, { 'gone silent': 'ECONNRESET', 'gone sending': 'ECONNRESET' })
  assert.ok(seconds >= idle && seconds < 4 * idle, `${seconds} s`)
  // The other's is as it was, long after.
  await new Promise((resolve) => setTimeout(resolve, 3_000 * idle))
  assert.deepEqual(await node.run((k) => Object.keys(k.kept.ended).length), 2)
  await node.run((k) => void k.kept.conns['stays silent'].end('still here'))
})

test('nothing left the lab', async () => {
  assert.equal(await lab.leaked(), 0)
})
