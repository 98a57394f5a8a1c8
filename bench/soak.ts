/**
 * Hours of mixed use in the lab, natively: does anything grow? The gateway with the real bindings and
 * Node-RED (test/lab/appliance.ts); pages, downloads, connections that stall, thousands that come and
 * go; and by turns what happens to a device in its life: a reload, a control server that is away, a
 * new certificate, another address of its own, a key that expires and is renewed.
 *
 * Usage, as root: node bench/soak.ts [--hours N]      default 6
 * Every ten seconds it notes resident memory, the size of the largest anonymous mapping (the
 * WebAssembly module's memory), and open files. Leaves out/bench/soak.json, docs/soak.svg and
 * docs/soak.md; exit code 1 when something grows: the last sixth is compared with the second one.
 */
import { execFileSync } from 'node:child_process'
import { mkdir, readFile, readdir, rm, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { Appliance, eventually } from '../test/lab/appliance.ts'
import { Downloads } from '../test/lab/downloads.ts'
import { Lab } from '../test/lab/lab.ts'

const { values } = parseArgs({ options: { hours: { type: 'string', default: '6' } } })
const hours = Number(values.hours)
if (!(hours > 0)) throw new Error('soak: --hours wants a number above 0')
const root = path.resolve(import.meta.dirname, '..')

interface Sample {
  /** Seconds since the beginning. */
  at: number
  rssMB: number
  wasmMB: number
  files: number
}

/** What the kernel knows of a process: proc(5). */
async function sample(pid: number, at: number): Promise<Sample> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8')
  let wasm = 0
  for (const line of (await readFile(`/proc/${pid}/maps`, 'utf8')).split('\n')) {
    const [, from, to, rights, inode] =
      /^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ (\d+)\s*$/.exec(line) ?? []
    if (inode === '0' && rights === 'rw-p')
      wasm = Math.max(wasm, Number.parseInt(to!, 16) - Number.parseInt(from!, 16))
  }
  return {
    at: Math.round(at),
    rssMB: Math.round((Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)![1]) * 1024) / 1e5) / 10,
    wasmMB: Math.round(wasm / 1e5) / 10,
    files: (await readdir(`/proc/${pid}/fd`)).length,
  }
}

const median = (list: number[]): number =>
  list.toSorted((a, b) => a - b)[Math.floor(list.length / 2)] ?? 0

/** Three curves, one below the other, each from 0 to a little above its highest. */
function draw(samples: Sample[], events: { at: number; what: string }[], title: string): string {
  const [width, left, right] = [860, 150, 20]
  const end = samples.at(-1)!.at
  const x = (at: number): number => left + (at / end) * (width - left - right)
  const rows = [
    ['rssMB', 'Resident, MB'],
    ['wasmMB', 'WebAssembly, MB'],
    ['files', 'Open files'],
  ] as const
  const out = [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} 420" ` +
      `font-family="sans-serif" font-size="13" fill="#222" role="img" aria-label="${title}">`,
    `<rect width="${width}" height="420" fill="#fff"/><text x="20" y="28" font-size="17" ` +
      `font-weight="bold">${title}</text>`,
  ]
  for (const { at } of events)
    out.push(
      `<line x1="${x(at).toFixed(1)}" x2="${x(at).toFixed(1)}" y1="45" y2="385" stroke="#e3e8e5"/>`,
    )
  rows.forEach(([key, label], i) => {
    const [top, height] = [50 + i * 115, 95]
    const most = Math.max(...samples.map((one) => one[key])) * 1.1
    const y = (value: number): number => top + height - (value / most) * height
    const last = samples.at(-1)![key]
    out.push(
      `<line x1="${left}" x2="${width - right}" y1="${top + height}" y2="${top + height}" stroke="#999"/>`,
      `<text x="20" y="${top + 16}" font-weight="bold">${label}</text><text x="20" ` +
        `y="${top + 34}" fill="#555">at the end ${last}</text><text x="20" y="${top + 52}" ` +
        `fill="#555">at most ${Math.max(...samples.map((one) => one[key]))}</text>`,
      '<polyline fill="none" stroke="#1a7f4b" stroke-width="1.5" ' +
        `points="${samples.map((one) => `${x(one.at).toFixed(1)},${y(one[key]).toFixed(1)}`).join(' ')}"/>`,
    )
  })
  out.push(
    `<text x="${left}" y="408" fill="#555">0</text><text x="${width - right}" y="408" ` +
      `text-anchor="end" fill="#555">${(end / 60).toFixed(0)} minutes; a grey line where ` +
      'something happened to the device</text>',
    '</svg>',
  )
  return `${out.join('\n')}\n`
}

const commit = execFileSync('git', ['rev-parse', '--short=12', 'HEAD'], {
  cwd: root,
  encoding: 'utf8',
}).trim()

await using lab = await Lab.start({ name: 'soak' })
const client = await lab.client('laptop')
const appliance = await Appliance.start(lab, { env: { NODE_OPTIONS: '--max-semi-space-size=4' } })
const { name } = (await appliance.status()).tailnet as { name: string }
const downloads = new Downloads(client, name, await readFile(lab.ready.acmeRoots))
const began = performance.now()
const since = (): number => (performance.now() - began) / 1000
const end = hours * 3600
const samples: Sample[] = []
const events: { at: number; what: string; seconds: number; failed?: string }[] = []
const load = { pages: 0, pagesFailed: 0, downloads: 0, connections: 0, stalled: 0, failed: 0 }
const serves = async (): Promise<boolean> =>
  (await client.fetch(`https://${name}/`, { timeout: 10_000 })).status === 200

/** What happens to a device; each ends when it serves again. */
const life: Record<string, () => Promise<void>> = {
  reload: async () => {
    process.kill(appliance.pid, 'SIGHUP')
    await sleep(1_000)
  },
  'control server away for 20 s': async () => {
    await lab.stopControl()
    await sleep(20_000)
    await lab.startControl()
  },
  'new certificate': async () => {
    for (const file of await readdir(path.join(appliance.dir, 'tls')))
      if (file.endsWith('.pem')) await rm(path.join(appliance.dir, 'tls', file))
    const { code, stdout, stderr } = await appliance.gatehouse(['certs'], {
      STATE_DIRECTORY: path.join(appliance.dir, 'certs'),
    })
    if (code !== 0) throw new Error(`${stdout}${stderr}`.slice(-300))
  },
  'another address for 20 s': async () => {
    const [link] = JSON.parse(
      (await lab.run(appliance.ns, ['ip', '-j', 'route', 'get', '10.77.0.1'])).stdout,
    ) as { dev: string }[]
    const address = ['10.77.0.199/24', 'dev', link!.dev]
    await lab.run(appliance.ns, ['ip', 'address', 'add', ...address])
    await sleep(20_000)
    await lab.run(appliance.ns, ['ip', 'address', 'del', ...address])
  },
  'key expired, logged in anew': async () => {
    await lab.expire(name.split('.')[0]!)
    // A key that is good for more than once logs it in by itself; otherwise somebody opens a page.
    await eventually('it is logged in again', 120, async () => {
      const [url] = await lab.logins()
      if (url !== undefined) await lab.completeLogin(url)
      return (await lab.nodes()).some((node) => node.name.startsWith(name) && !node.expired)
    })
  },
}

async function lives(): Promise<void> {
  for (let i = 0; since() < end; i++) {
    await sleep(Math.min(30_000, end * 100))
    const [what, act] = Object.entries(life)[i % Object.keys(life).length]!
    const at = since()
    try {
      await act()
      await eventually('it serves', 180, serves)
      events.push({ at, what, seconds: Math.round(since() - at) })
    } catch (error) {
      events.push({ at, what, seconds: Math.round(since() - at), failed: String(error) })
    }
  }
}
async function pages(): Promise<void> {
  for (; since() < end; await sleep(250)) {
    const right = await serves().catch(() => false)
    load.pages++
    if (!right) load.pagesFailed++
  }
}
async function heavy(): Promise<void> {
  for (; since() < end; await sleep(5_000))
    try {
      await downloads.download(1)
      load.downloads++
      load.connections += await downloads.openThousand()
      const stalled = await downloads.stall(10)
      load.stalled += stalled.length
      await sleep(10_000)
      for (const socket of stalled) socket.destroy()
    } catch {
      // While the device is away, as it is by turns.
      load.failed++
    }
}
async function watch(): Promise<void> {
  for (; since() < end; await sleep(10_000)) samples.push(await sample(appliance.pid, since()))
}

await Promise.all([lives(), pages(), heavy(), watch()])
// What is on its way ends; what stays stays.
await sleep(15_000)
samples.push(await sample(appliance.pid, since()))
const sixth = Math.max(1, Math.floor(samples.length / 6))
const parts = (['rssMB', 'wasmMB', 'files'] as const).map((key) => ({
  key,
  early: median(samples.slice(sixth, 2 * sixth).map((one) => one[key])),
  late: median(samples.slice(-sixth).map((one) => one[key])),
}))
const grown = parts.filter(({ key, early, late }) =>
  key === 'files' ? late > early + 20 : late > early * 1.15,
)
const failed = events.filter(({ failed: why }) => why !== undefined)
const leaks = await lab.leaked()
const date = new Date().toISOString().slice(0, 16).replace('T', ' ')
const result = { date, commit, hours, load, leaks, parts, events, samples }
await mkdir(path.join(root, 'out/bench'), { recursive: true })
await writeFile(path.join(root, 'out/bench/soak.json'), `${JSON.stringify(result, undefined, 1)}\n`)
const minutes = Math.round(since() / 60)
await writeFile(
  path.join(root, 'docs/soak.svg'),
  draw(samples, events, `The gateway in ${minutes} minutes of mixed use`),
)
const by = Object.groupBy(events, ({ what }) => what)
const lines = [
  '# Hours of mixed use',
  '',
  `Written by \`make soak\`: ${minutes} minutes on ${date} UTC, commit ${commit}, ${os.cpus().length} processors,`,
  `load ${os.loadavg()[2]!.toFixed(0)} in the last quarter of an hour.`,
  '',
  '![Memory, the module’s memory and open files over time](soak.svg)',
  '',
  '| of the gateway | second sixth of the time | last sixth |',
  '|---|---|---|',
  ...parts.map(
    ({ key, early, late }) =>
      `| ${{ rssMB: 'resident memory, MB', wasmMB: 'WebAssembly’s memory, MB', files: 'open files' }[key]} ` +
      `| ${early} | ${late} |`,
  ),
  '',
  '| what happened to it | times | failed | seconds until it served again, median |',
  '|---|---|---|---|',
  ...Object.entries(by).map(
    ([what, list = []]) =>
      `| ${what} | ${list.length} | ${list.filter((one) => one.failed !== undefined).length} ` +
      `| ${median(list.map((one) => one.seconds))} |`,
  ),
  '',
  `Meanwhile ${load.pages} pages (${load.pagesFailed} not had, most of them while it was away),`,
  `${load.downloads} downloads of 7 MB, ${load.connections} connections opened and closed, ${load.stalled} that`,
  `stalled; ${load.failed} rounds of these broke off. ${leaks} packets left the lab.`,
  '',
  grown.length === 0
    ? 'Nothing has grown: 15 % of memory and 20 files are what may differ.'
    : `**Grown: ${grown.map(({ key }) => key).join(', ')}.**`,
  '',
  ...failed
    .slice(0, 5)
    .map(({ what, failed: why }) => `- ${what}: ${why!}`.replaceAll('\n', ' ').slice(0, 98)),
]
await writeFile(path.join(root, 'docs/soak.md'), `${lines.join('\n').trimEnd()}\n`)
console.log(lines.join('\n'))
await appliance.stop()
process.exitCode = grown.length > 0 ? 1 : 0
