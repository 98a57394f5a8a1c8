/**
 * What the gateway holds with idle WebSockets, by its parts, before the first and with all of them,
 * beside Node.js alone (bench/floor.ts). Several fresh processes of each, turn about, bundled as the
 * image ships it. Of bench/gateway.ts it is the one figure `ws_rss_mb`. Medians (least to most), MB
 * (10^6 bytes):
 *
 *   rss all that is resident; file what of it is of files (Node.js's own text, the C library), anon
 *   the rest, of which malloc is the C library's arena of the main thread; heap V8's heap as it is
 *   committed, used what of it is in use; external what JavaScript's objects hold outside of it.
 *
 * Usage: node bench/ws-memory.ts [--runs 3] [--sockets 1000] [--only gatehouse,node]
 * [--root DIR,…: other checkouts, each measured beside this one] [--flags '…': of Node.js, beside
 * the image's; several sets parted by a comma are measured beside each other] [--env 'A=1']
 * [--snapshot FILE: heap snapshots, FILE-0 before and FILE-1 after] [--maps FILE: likewise smaps]. Ports from 8443 must be free.
 */
import { build } from 'esbuild'
import type { BuildOptions } from 'esbuild'
import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { Authority } from '../test/unit/support/authority.ts'
import { accepts } from './proc.ts'

const { values: options } = parseArgs({
  options: {
    runs: { type: 'string', default: '3' },
    sockets: { type: 'string', default: '1000' },
    only: { type: 'string', default: 'gatehouse,node' },
    root: { type: 'string', default: '' },
    flags: { type: 'string', default: '' },
    env: { type: 'string', default: '' },
    snapshot: { type: 'string', default: '' },
    maps: { type: 'string', default: '' },
  },
})
const here = path.resolve(import.meta.dirname, '..')
const name = 'gatehouse.tail.ts.net'
const directory = mkdtempSync(path.join(os.tmpdir(), 'gh-ws-memory-'))
const at = (...parts: string[]): string => path.join(directory, ...parts)
const children = new Set<ChildProcess>()

/** What a process holds, MB. */
const figures = ['rss', 'file', 'anon', 'malloc', 'heap', 'used', 'external'] as const
type Held = Record<(typeof figures)[number], number>

/** One program with one set of flags. */
interface Subject {
  label: string
  bundle: string
  flags: string[]
  runs: Array<{ before: Held; after: Held }>
}

function start(args: string[], env: NodeJS.ProcessEnv = process.env): ChildProcess {
  const child = spawn(process.execPath, args, {
    stdio: ['pipe', 'pipe', 'inherit'],
    env,
    cwd: here,
  })
  children.add(child)
  child.once('exit', () => children.delete(child))
  child.stdout!.resume()
  return child
}

async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const ended = once(child, 'exit')
  child.kill('SIGKILL')
  await ended
}

/** Of smaps (proc(5)), then of V8, which is asked last, since it allocates to answer. */
async function held(child: ChildProcess, which: 0 | 1): Promise<Held> {
  const sum = { rss: 0, file: 0, anon: 0, malloc: 0 }
  let name = ''
  const maps = readFileSync(`/proc/${child.pid}/smaps`, 'utf8')
  if (options.maps !== '') writeFileSync(`${options.maps}-${which}`, maps)
  for (const line of maps.split('\n')) {
    const head = /^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)$/.exec(line)
    if (head !== null) name = head[1]!
    const [, what, kb] = /^(Rss|Anonymous): +(\d+) kB/.exec(line) ?? []
    const mb = (Number(kb) * 1024) / 1e6
    if (what === 'Rss') sum.rss += mb
    if (what === 'Anonymous') {
      sum.anon += mb
      if (name === '[heap]') sum.malloc += mb
    }
  }
  sum.file = sum.rss - sum.anon
  const answer = at(`usage-${child.pid}`)
  rmSync(answer, { force: true })
  child.kill('SIGUSR2')
  while (!existsSync(answer)) await sleep(50)
  const usage = JSON.parse(readFileSync(answer, 'utf8')) as NodeJS.MemoryUsage
  return {
    ...sum,
    heap: usage.heapTotal / 1e6,
    used: usage.heapUsed / 1e6,
    external: usage.external / 1e6,
  }
}

async function measure(subject: Subject, run: number): Promise<void> {
  const port = 8443
  const extra = options.env === '' ? [] : options.env.split(',')
  const child = start(
    [
      '--import',
      at('usage.mjs'),
      ...subject.flags,
      subject.bundle,
      ...[String(port), at('ws.sock'), at('site.pem'), at(`run-${run}-${subject.label}`)],
    ],
    { ...process.env, ...Object.fromEntries(extra.map((one) => one.split('=', 2))) },
  )
  await accepts({ port, host: '127.0.0.1' })
  await sleep(3_000)
  const before = await held(child, 0)
  await snapshot(child, 0)
  const idle = start(['bench/websocket.ts', 'idle', String(port), options.sockets])
  await Promise.race([
    once(idle.stdout!, 'data'),
    once(idle, 'exit').then(() => {
      throw new Error('the idle WebSockets ended')
    }),
  ])
  await sleep(3_000)
  subject.runs.push({ before, after: await held(child, 1) })
  await snapshot(child, 1)
  await stop(idle)
  await stop(child)
}

async function snapshot(child: ChildProcess, which: number): Promise<void> {
  if (options.snapshot === '') return
  const file = `${path.resolve(options.snapshot)}-${which}.heapsnapshot`
  rmSync(file, { force: true })
  writeFileSync(at('snapshot'), file)
  child.kill('SIGUSR2')
  while (existsSync(at('snapshot'))) await sleep(100)
}

const median = (list: number[]): number => list.toSorted((a, b) => a - b)[list.length >> 1]!

try {
  writeFileSync(
    at('usage.mjs'),
    `import fs from 'node:fs'
process.on('SIGUSR2', async () => {
  const asked = ${JSON.stringify(at('snapshot'))}
  if (fs.existsSync(asked)) {
    const v8 = await import('node:v8')
    v8.writeHeapSnapshot(fs.readFileSync(asked, 'utf8'))
    fs.rmSync(asked)
    return
  }
  const file = ${JSON.stringify(at('usage-'))} + process.pid
  fs.writeFileSync(file + '.new', JSON.stringify(process.memoryUsage()))
  fs.renameSync(file + '.new', file)
})
`,
  )
  const authority = new Authority()
  writeFileSync(at('site.pem'), authority.issue(name))
  authority.close()
  const flags = /^(?:\w+=\S+ )*exec \/usr\/bin\/node (.*) \/usr\/lib/m
    .exec(readFileSync(path.join(here, 'overlays/usr/bin/gatehouse'), 'utf8'))![1]!
    .split(' ')
  const subjects: Subject[] = []
  for (const [i, root] of [here, ...options.root.split(',').filter((one) => one !== '')].entries())
    for (const only of options.only.split(',')) {
      if (i > 0 && only === 'node') continue
      const { common } = (await import(path.join(root, 'tools/options.ts'))) as {
        common: BuildOptions
      }
      // In parts, as tools/bundle.ts does it: what is not loaded is not read.
      await build({
        ...common,
        splitting: true,
        entryPoints: [path.join(root, `bench/${only === 'node' ? 'floor' : 'loopback'}.ts`)],
        outdir: at(`${only}-${i}`),
        outExtension: { '.js': '.mjs' },
      })
      const bundle = at(`${only}-${i}`, `${only === 'node' ? 'floor' : 'loopback'}.mjs`)
      for (const set of options.flags.split(','))
        subjects.push({
          label: [only, i > 0 ? path.basename(root) : '', set]
            .filter((part) => part !== '')
            .join(' '),
          bundle,
          flags: [...flags, ...set.split(' ').filter((flag) => flag !== '')],
          runs: [],
        })
    }
  start(['bench/echo.ts', at('ws.sock')])
  await accepts({ path: at('ws.sock') })
  for (let run = 0; run < Number(options.runs); run++)
    for (const subject of subjects) await measure(subject, run)
  for (const { label, runs } of subjects)
    for (const when of ['before', 'after'] as const)
      console.log(
        `${label.padEnd(24)} ${when.padEnd(7)}` +
          figures
            .map((figure) => {
              const list = runs.map((run) => run[when][figure])
              const most =
                figure === 'rss'
                  ? ` (${Math.min(...list).toFixed(1)}–${Math.max(...list).toFixed(1)})`
                  : ''
              return `${figure} ${median(list).toFixed(1)}${most}`
            })
            .join('  '),
      )
} finally {
  await Promise.all([...children].map(stop))
  rmSync(directory, { recursive: true, force: true })
}
