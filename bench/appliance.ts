/**
 * The booted image, measured: how long it takes to serve, beside the same image with nothing of
 * ours started; what it writes to the card when idle; memory. In QEMU, so times are good for ratios
 * alone.
 *
 * Usage: node bench/appliance.ts [amd64|arm64] [--minutes N] [--boots N]
 * Leaves out/bench/appliance.json and boot-<arch>.svg (systemd-analyze plot). Needs the lab and the
 * image.
 */
import { mkdir, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { Lab, type LabClient } from '../test/lab/lab.ts'
import { bootAppliance, editor, eventually, joined } from '../test/vm/appliance.ts'
import type { Arch, Machine } from '../test/vm/machine.ts'

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { minutes: { type: 'string', default: '4' }, boots: { type: 'string', default: '2' } },
})
const arch = (positionals[0] ?? 'amd64') as Arch
const minutes = Number(values.minutes)
const boots = Number(values.boots)
const out = path.resolve(import.meta.dirname, '../out/bench')

/** Seconds since the kernel started, at which a unit became active. */
async function activeAt(machine: Machine, unit: string): Promise<number> {
  return await eventually(`${unit} is active`, 300, async () => {
    const at = Number(
      (await machine.run(`systemctl show -P ActiveEnterTimestampMonotonic ${unit}`)).stdout,
    )
    return at > 0 ? at / 1e6 : undefined
  })
}

/**
 * Bytes written to the disk since it was attached: sectors of 512 bytes, the seventh field
 * (Documentation/block/stat.rst).
 */
async function written(machine: Machine): Promise<number> {
  return Number((await machine.run('cat /sys/block/vda/stat')).stdout.trim().split(/\s+/)[6]) * 512
}

/**
 * Turns a time of this machine (performance.now()) into seconds since the guest's kernel started:
 * its answer, half way between question and reply.
 */
async function guestClock(machine: Machine): Promise<(now: number) => number> {
  let offset = 0
  let nearest = Infinity
  for (let i = 0; i < 5; i++) {
    const asked = performance.now()
    const uptime = Number((await machine.run('cut -d" " -f1 /proc/uptime')).stdout)
    const took = performance.now() - asked
    if (took >= nearest) continue
    nearest = took
    offset = uptime - (asked + took / 2) / 1000
  }
  return (now) => now / 1000 + offset
}

/**
 * When the gateway first sent to HTTPS, a time of performance.now(). Somebody asks every half
 * second and waits long: the first question wakes the path up.
 */
async function firstAnswer(client: LabClient, url: string): Promise<number> {
  const { promise, resolve } = Promise.withResolvers<number>()
  const ask = (): void =>
    void client.fetch(url, { timeout: 20_000 }).then(
      ({ status }) => {
        if (status === 308) resolve(performance.now())
      },
      () => {},
    )
  const asking = setInterval(ask, 500)
  const late = AbortSignal.timeout(300_000)
  try {
    return await Promise.race([
      promise,
      new Promise<never>((_, reject) => {
        late.onabort = () => {
          reject(new Error(`${url}: no answer in 300 s`))
        }
      }),
    ])
  } finally {
    clearInterval(asking)
  }
}

const best = (list: number[]): number => Math.min(...list)

await using lab = await Lab.start({ name: 'bench' })
const client = await lab.client('laptop')
const result: Record<string, unknown> = { arch, boots, minutes }

// The bare image: the same file, nothing of ours started.
const units = [
  'gatehouse.service',
  'gatehouse-admin.socket',
  'gatehouse-certs.socket',
  'gatehouse-provision.service',
  'gatehouse-report.path',
  'gatehouse-report.service',
  'gatehouse-firewall.service',
  'gatehouse-console.service',
  'node-red.service',
]
const bare = await bootAppliance(lab, arch, {
  credentials: Object.fromEntries(
    units.map((unit) => [
      `systemd.unit-dropin.${unit}`,
      '[Unit]\nConditionPathExists=/nonexistent\n',
    ]),
  ),
})
const bareTimes: number[] = []
try {
  await activeAt(bare, 'multi-user.target')
  for (let i = 0; i < boots; i++) {
    await bare.reboot()
    bareTimes.push(await activeAt(bare, 'multi-user.target'))
  }
} finally {
  await bare.destroy()
}

const machine = await bootAppliance(lab, arch)
try {
  const { name } = await joined(lab)
  await editor(client, name)
  const times: { multiUser: number; gateway: number; page: number }[] = []
  for (let i = 0; i < boots; i++) {
    await machine.reboot()
    const answered = await firstAnswer(client, `http://${name}/`)
    await editor(client, name)
    const shown = performance.now()
    const since = await guestClock(machine)
    const [gateway, page] = [since(answered), since(shown)]
    times.push({ multiUser: await activeAt(machine, 'multi-user.target'), gateway, page })
  }
  const gateway = best(times.map((time) => time.gateway))
  Object.assign(result, {
    bareMultiUser: best(bareTimes),
    multiUser: best(times.map((time) => time.multiUser)),
    gatewayServes: gateway,
    editorServes: best(times.map((time) => time.page)),
    ratio: Number((gateway / best(bareTimes)).toFixed(2)),
  })
  await mkdir(out, { recursive: true })
  await eventually(
    'the boot is over',
    300,
    async () => (await machine.run('systemd-analyze time')).code === 0 || undefined,
  )
  await writeFile(
    path.join(out, `boot-${arch}.svg`),
    (await machine.run('systemd-analyze plot', { timeout: 200 })).stdout,
  )

  // What a boot writes late (compiled code, the certificates' first look) is not idling.
  await sleep(90_000)
  const before = await written(machine)
  await sleep(minutes * 60_000)
  const bytes = (await written(machine)) - before
  const { stdout } = await machine.run(
    'for u in gatehouse node-red; do systemctl show -P MemoryCurrent $u; done; sed -n ' +
      '"s/^MemAvailable: *//p" /proc/meminfo',
  )
  const [gatewayMemory, nodeRedMemory, available] = stdout
    .trim()
    .split('\n')
    .map((text) => Number.parseInt(text, 10))
  Object.assign(result, {
    idleBytes: bytes,
    idleMinutes: minutes,
    mbPerDay: Number((((bytes / minutes) * 1440) / 1e6).toFixed(1)),
    gatewayMiB: Math.round(gatewayMemory! / 2 ** 20),
    nodeRedMiB: Math.round(nodeRedMemory! / 2 ** 20),
    availableMiB: Math.round(available! / 1024),
  })
  await writeFile(path.join(out, 'appliance.json'), `${JSON.stringify(result, undefined, 2)}\n`)
  console.log(JSON.stringify(result, undefined, 2))
} finally {
  await machine.destroy()
}
