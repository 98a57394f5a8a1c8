/**
 * The nodes that people install, on the booted image: each is asked for through the editor's own API
 * as a person would, from a registry in the lab that has what the real one has (fetch.ts), and what
 * came of it is kept for docs/nodes.md (report.ts). GATEHOUSE_TRY: names, `quick` or `all`
 * (default), with commas.
 */
import assert from 'node:assert/strict'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { Lab, type LabClient } from '../lab/lab.ts'
import { bootAppliance, editor, joined, settings } from '../vm/appliance.ts'
import type { Arch, Machine } from '../vm/machine.ts'
import { candidates } from './list.ts'
import type { Tried } from './report.ts'
import { install, shop, shopList } from './shop.ts'

const arch: Arch = process.env['GATEHOUSE_TRY_ARCH'] === 'arm64' ? 'arm64' : 'amd64'
const asked = (process.env['GATEHOUSE_TRY'] ?? 'all').split(',')
const chosen = candidates.filter(
  ({ name, quick }) =>
    asked.includes('all') || asked.includes(name) || (asked.includes('quick') && quick),
)
const root = path.resolve(import.meta.dirname, '../..')
const results = path.join(root, `out/nodes/${arch}.json`)
/** As many are installed beside one another; a person has fewer. */
const batch = 8

let lab: Lab
let owner: LabClient
let machine: Machine
let name: string

before(async () => {
  lab = await Lab.start({ name: 'nodes' })
  owner = await lab.client('laptop')
  await shop(lab)
  machine = await bootAppliance(lab, arch, {
    memory: 1536,
    diskSize: 8192,
    toml: `${settings(lab)}${shopList({ allow: ['prebuilt'], devices: ['serial', 'gpio', 'i2c', 'spi'] })}`,
    ...(arch === 'amd64' && { serial: path.join(lab.dir, 'serial') }),
  })
  name = (await joined(lab, 'gatehouse', 600)).name
  await editor(owner, name, 600)
})

after(async () => {
  await machine?.destroy()
  await lab?.stop()
})

test('what becomes of each node that is asked for', { timeout: 6 * 3_600_000 }, async (t) => {
  const tried: Record<string, Tried> = JSON.parse(await readFile(results, 'utf8').catch(() => '{}'))
  for (const [i, { name: module, version }] of chosen.entries()) {
    if (i > 0 && i % batch === 0) {
      await machine.run(
        'systemctl stop node-red; cd /var/lib/node-red && rm -rf node_modules package.json ' +
          'package-lock.json .config.nodes.json; systemctl start node-red',
        { timeout: 240 },
      )
      await editor(owner, name, 400)
    }
    const outcome = await install(owner, name, module, version)
    const { stdout: memory } = await machine.run(
      'cat /sys/fs/cgroup/system.slice/node-red.service/memory.peak; systemctl show -P NRestarts node-red',
    )
    const [peak, restarts] = memory.trim().split('\n').map(Number)
    tried[module] = { ...outcome, peak: peak! }
    t.diagnostic(`${module}: ${JSON.stringify(tried[module])}`)
    await mkdir(path.dirname(results), { recursive: true })
    await writeFile(results, `${JSON.stringify(tried, null, 2)}\n`)
    assert.equal(restarts, 0, 'Node-RED is the same process')
  }
  const { stdout: log } = await machine.run('journalctl -q -u node-red -o cat -p warning -n 60')
  t.diagnostic(log)
  assert.ok(chosen.every(({ name: module }) => tried[module] !== undefined))
})

test('nothing left the lab', async () => {
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
