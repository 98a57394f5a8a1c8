/**
 * The booted image with 512 MB, as a Zero 2 W has: what many downloads and connections at a time
 * leave behind does not keep the next one out, and memory that stays short ends in a new start.
 */
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { after, before, test } from 'node:test'
import { Downloads } from '../lab/downloads.ts'
import { Lab, type LabClient } from '../lab/lab.ts'
import { bootAppliance, editor, eventually, joined, statusOf, tried } from './appliance.ts'
import type { Machine } from './machine.ts'

let lab: Lab
let client: LabClient
let machine: Machine
let name: string
let downloads: Downloads

const skip =
  process.env['GATEHOUSE_LONG'] === '1' ? false : 'takes ten minutes and more: GATEHOUSE_LONG=1'

before(async () => {
  if (skip !== false) return
  lab = await Lab.start({ name: 'memory' })
  client = await lab.client('laptop')
  machine = await bootAppliance(lab, tried, { memory: 512 })
  name = (await joined(lab, 'gatehouse', 900)).name
  downloads = new Downloads(client, name, await readFile(lab.ready.acmeRoots))
  await editor(client, name, 600)
})

after(async () => {
  await machine?.destroy()
  await lab?.stop()
})

/** The gateway: MiB that it has, and how often systemd has started it anew. */
async function gateway(): Promise<{ rss: number; restarts: number; pid: number }> {
  const { stdout } = await machine.run(
    'systemctl show -p MainPID,NRestarts gatehouse; awk \'/VmRSS/ {print "RSS=" $2}\' ' +
      '/proc/$(systemctl show -p MainPID --value gatehouse)/status',
  )
  const number = (key: string): number =>
    Number(new RegExp(`^${key}=(\\d+)$`, 'm').exec(stdout)![1])
  return { rss: number('RSS') / 1024, restarts: number('NRestarts'), pid: number('MainPID') }
}

const problems = async (): Promise<string[]> =>
  ((await statusOf(machine))['problems'] as Array<{ code: string }>).map(({ code }) => code)

test(
  'eight downloads at a time, eight that stall, 1,000 connections opened and closed: then it serves',
  { skip },
  async (t) => {
    const start = await gateway()
    const stalled = await downloads.stall(8)
    let begun = performance.now()
    const bytes = await Promise.all(
      Array.from({ length: 8 }, async () => await downloads.download(1)),
    )
    const seconds = (performance.now() - begun) / 1000
    // Age is not of one length in all of them.
    assert.ok(
      bytes.every((all) => Math.abs(all - bytes[0]!) < 1_000 && all > 2 ** 20),
      bytes.join(),
    )
    const downloaded = await gateway()
    t.diagnostic(
      `${(bytes.reduce((a, b) => a + b) / 2 ** 20).toFixed(0)} MiB in ${seconds.toFixed(0)} s`,
    )
    for (const secure of stalled) secure.destroy()
    // What they held is given back first.
    await editor(client, name, 120)
    begun = performance.now()
    const opened = await downloads.openThousand()
    t.diagnostic(
      `${opened} of 1,000 connections in ${((performance.now() - begun) / 1000).toFixed(0)} s`,
    )
    assert.ok(opened > 500, `${opened} opened`)
    await editor(client, name, 60)
    const end = await gateway()
    t.diagnostic(
      `MiB: ${start.rss.toFixed(0)}, after the downloads ${downloaded.rss.toFixed(0)}, at ` +
        `the end ${end.rss.toFixed(0)}`,
    )
    assert.deepEqual(
      [end.restarts, end.pid],
      [start.restarts, start.pid],
      'it was not started anew',
    )
    assert.deepEqual(
      (await problems()).filter((code) => code.startsWith('GH_MEMORY')),
      [],
    )
  },
)

test(
  'memory that stays short: a problem in status and /readyz, and after two minutes a new start',
  { skip },
  async (t) => {
    const start = await gateway()
    const file = '/efi/gatehouse.toml'
    // As a person writes it; from provisioning on it is as with any other file.
    const card = async (change: string): Promise<string> =>
      await run(
        `mount -o remount,rw /efi && ${change} && mount -o remount,ro /efi && systemctl restart gatehouse-provision`,
      )
    // Else provisioning runs once more, in the middle.
    await eventually('the auth key is off the card', 200, async () =>
      (await machine.run('! grep -s tskey /efi/gatehouse.toml')).code === 0 ? true : undefined,
    )
    const run = async (command: string): Promise<string> => {
      const { code, stdout, stderr } = await machine.run(command, { timeout: 120 })
      assert.equal(code, 0, `${command}: ${stderr}${stdout}`)
      return stdout
    }
    await card(`cp ${file} /run/before && printf '[limits]\\nmemory_mib = 64\\n' >> ${file}`)
    await run('gatehouse reload')
    const begun = performance.now()
    await eventually('it is a problem', 100, async () =>
      (await problems()).includes('GH_MEMORY') ? true : undefined,
    )
    assert.match(await run('cat /run/gatehouse/state'), /short of memory/)
    // For the start to come: the gateway is not told.
    await card(`cp /run/before ${file}`)
    await eventually('it is started anew', 240, async () =>
      (await gateway()).restarts > start.restarts ? true : undefined,
    )
    t.diagnostic(`started anew after ${((performance.now() - begun) / 1000).toFixed(0)} s`)
    assert.match(
      await run('journalctl -b --no-pager -o cat -u gatehouse -n 200'),
      /GH_MEMORY_STUCK.*memory has been short for 1[234]\d s/,
    )
    await editor(client, name, 240)
    assert.deepEqual(
      (await problems()).filter((code) => code.startsWith('GH_MEMORY')),
      [],
    )
  },
)

test('nothing left the lab', { skip }, async () => {
  assert.equal(await lab.leaked(), 0)
})
