/**
 * Nodes that people install, through the gateway and the editor's own API, by the image's Node-RED
 * and npm: from a registry in the lab that has what the real one has (test/nodes). Without the
 * image's sandbox, which is test/nodes' business. What came of each is kept for docs/nodes.md.
 * GATEHOUSE_TRY: names of test/nodes/list.ts with commas, or `all`; default: one of each kind.
 */
import assert from 'node:assert/strict'
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { candidates } from '../nodes/list.ts'
import type { Tried } from '../nodes/report.ts'
import { install, registry, shop } from '../nodes/shop.ts'
import { Appliance, eventually } from './appliance.ts'
import { Lab, type LabClient } from './lab.ts'

const asked = (process.env['GATEHOUSE_TRY'] ?? 'quick').split(',')
const chosen = candidates.filter(
  ({ name, quick }) =>
    asked.includes('all') || asked.includes(name) || (asked.includes('quick') && quick),
)
const results = path.resolve(import.meta.dirname, '../../out/nodes/lab.json')
/** As many are installed beside one another; a person has fewer. */
const batch = 8

let lab: Lab
let owner: LabClient
let appliance: Appliance
let name: string
const came: Record<string, Tried> = {}

before(async () => {
  lab = await Lab.start({ name: 'shop' })
  owner = await lab.client('laptop')
  await shop(lab)
  appliance = await Appliance.start(lab, { registry })
  name = (await appliance.names())[0]!
})

after(async () => {
  await appliance?.stop()
  await lab?.stop()
})

test('nodes are installed from the editor', { timeout: 3_600_000 }, async (t) => {
  for (const [i, { name: module }] of chosen.entries()) {
    if (i > 0 && i % batch === 0) {
      await appliance.stopNodeRed()
      for (const left of ['node_modules', 'package.json', 'package-lock.json'])
        await rm(path.join(appliance.dir, 'node-red', left), { recursive: true, force: true })
      await rm(appliance.env['GATEHOUSE_NODE_RED_SOCKET']!, { force: true })
      await appliance.startNodeRed()
      await eventually('the editor answers', 120, async () =>
        (await owner.fetch(`https://${name}/settings`)).status === 200 ? true : undefined,
      )
    }
    came[module] = { ...(await install(owner, name, module)), peak: 0 }
    t.diagnostic(`${module}: ${JSON.stringify(came[module])}`)
    const known: object = JSON.parse(await readFile(results, 'utf8').catch(() => '{}'))
    await mkdir(path.dirname(results), { recursive: true })
    await writeFile(results, `${JSON.stringify({ ...known, ...came }, null, 2)}\n`)
  }
})

test('a native add-on that comes compiled loads; what is to be compiled is said, with what to do', () => {
  const serial = came['node-red-node-serialport']
  if (serial !== undefined) {
    assert.deepEqual(serial.said, [])
    assert.ok(serial.types.includes('serial in'), serial.types.join())
  }
  const sqlite = came['node-red-node-sqlite']
  if (sqlite !== undefined)
    assert.match(
      sqlite.said.join(),
      /^Install failed: sqlite3 has to be compiled .* no compiler here\. Add "prebuilt" to allow/,
    )
  for (const module of ['node-red-node-random', 'node-red-node-pi-gpio'])
    if (came[module] !== undefined) assert.deepEqual(came[module].said, [])
})

test('nothing left the lab', async () => {
  // npm asks where a maker's compiled add-on is; the lab's DNS has no answer, and nothing goes out.
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
