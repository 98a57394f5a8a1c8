/**
 * The bindings against natively compiled tsnet: the same small program (echo, sink, source) on
 * both, in turn, in one network namespace of its own, loaded over the tailnet by a native peer in
 * another. Nothing leaves them.
 *
 *   down, down8   Mbit/s that the peer downloads from the program, on one TCP stream and on eight
 *   up, up8       Mbit/s that the peer uploads to the program
 *   rtt           µs of one byte to the program and back, the median of a measurement
 *
 * And the same on the bindings with a tun device, where the kernel's TCP takes the place of
 * netstack's (`tun_` in RESULT).
 *
 * Ratios are those to native of one round, so more is better for the first four (1: as fast as
 * native), less for rtt. RESULT has the median over the rounds; rss_mb is what the process that
 * holds the bindings has resident (10^6 bytes) when it has joined and idles.
 *
 * Usage: node bench/tsnet.ts [--rounds 5] [--ms 3000] [--network auto|ffi|node] [--out out/bench]
 * [--only tun,wasm,native] Needs root, out/bin/lab and the module: `make bench-tsnet` sees to these.
 */
import { build } from 'esbuild'
import { copyFile, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { Lab, type LabClient } from '../test/lab/lab.ts'
import { type Kind, Program } from '../test/lab/program.ts'
import { ratioPlot, type Row } from './plot.ts'
import { cpuSeconds, memory, resetPeak } from './proc.ts'

const { values: options } = parseArgs({
  options: {
    rounds: { type: 'string', default: '5' },
    ms: { type: 'string', default: '3000' },
    network: { type: 'string', default: 'auto' },
    out: { type: 'string', default: 'out/bench' },
    only: { type: 'string' },
  },
})
const rounds = Number(options.rounds)
const ms = Number(options.ms)
const measures = ['down', 'up', 'down8', 'up8', 'rtt'] as const
type Measure = (typeof measures)[number]
/** Seconds over which idle CPU is counted. */
const idleSeconds = 10
const manyStreams = 1000

/**
 * The program and the bindings as they ship: bundled. From source, Node.js would hold what it
 * strips types with too.
 */
async function bundle(dir: string): Promise<void> {
  const src = path.join(import.meta.dirname, '../src/tsnet')
  await build({
    entryPoints: {
      node: path.join(import.meta.dirname, 'node.ts'),
      'tsnet-worker': path.join(src, 'worker.ts'),
    },
    outdir: dir,
    bundle: true,
    format: 'esm',
    platform: 'node',
    target: 'node26',
    external: ['undici'],
  })
  await writeFile(path.join(dir, 'package.json'), '{"type":"module"}')
  await copyFile(path.join(src, 'build/tsnet.wasm'), path.join(dir, 'tsnet.wasm'))
}

/** Percent of one core while nothing happens. */
async function idleCPU({ pid }: Program): Promise<number> {
  const before = cpuSeconds(pid)
  await sleep(idleSeconds * 1000)
  return ((cpuSeconds(pid) - before) / idleSeconds) * 100
}

/** Mbit/s, of rtt µs; `cpu`: what the program took of processor time, ms a MB, of rtt µs a trip. */
async function measure(
  peer: LabClient,
  program: Program,
): Promise<Record<Measure, number> & { cpu: Record<Measure, number> }> {
  const cpu = {} as Record<Measure, number>
  const rate = async (kind: 'down' | 'up', streams: 1 | 8): Promise<number> => {
    const before = cpuSeconds(program.pid)
    const a = await peer.load(program.ip, kind, { streams, ms })
    cpu[streams === 1 ? kind : (`${kind}8` as const)] =
      (cpuSeconds(program.pid) - before) / (a.bytes / 1e9)
    return (a.bytes * 8) / a.ms / 1000
  }
  const result = {
    down: await rate('down', 1),
    up: await rate('up', 1),
    down8: await rate('down', 8),
    up8: await rate('up', 8),
  }
  const before = cpuSeconds(program.pid)
  const { trips } = await peer.load(program.ip, 'rtt', { ms: Math.min(ms, 2000) })
  cpu.rtt = ((cpuSeconds(program.pid) - before) * 1e6) / trips!.length
  return { ...result, rtt: trips![trips!.length >> 1]! / 1000, cpu }
}

const spread = (list: number[]): { min: number; median: number; max: number } => {
  const sorted = list.toSorted((a, b) => a - b)
  return { min: sorted[0]!, median: sorted[sorted.length >> 1]!, max: sorted.at(-1)! }
}
const say = (line: string): void => console.log(line)

const all: Kind[] = ['native', 'tun', 'wasm']
const kinds = options.only ? all.filter((k) => options.only!.split(',').includes(k)) : all
const outDir = path.resolve(options.out)
await mkdir(outDir, { recursive: true })
const labDir = await mkdtemp(path.join(os.tmpdir(), 'bench-'))
const lab = await Lab.start({ name: 'bench', dir: labDir })
try {
  await bundle(path.join(lab.dir, 'program'))
  const peer = await lab.client('peer')
  const ns = await lab.host('node', '10.77.0.60')
  const programs: Program[] = []
  const about: Record<string, Record<string, number>> = {}
  for (const kind of kinds) {
    const program = await Program.start(lab, ns, kind, {
      script: path.join(lab.dir, 'program/node.js'),
      server: { network: options.network },
    })
    programs.push(program)
    await peer.pingDirect(program.ip)
    await sleep(5000) // the joining is over
    const idleRSS = memory(program.pid).rss
    const idle = await idleCPU(program)
    about[kind] = { joinedMs: program.joinedMs, idleRSS, idleCPU: idle }
    say(
      `${kind}: joined in ${program.joinedMs.toFixed(0)} ms; idle ${idleRSS.toFixed(0)} MB, ` +
        `${idle.toFixed(2)} % of a core`,
    )
    resetPeak(program.pid)
    // Unmeasured: the path settles, code is compiled by use.
    for (const kind of ['down', 'up'] as const) await peer.load(program.ip, kind, { ms: 2000 })
  }
  const runs: Record<Kind, Awaited<ReturnType<typeof measure>>>[] = []
  for (let i = 0; i < rounds; i++) {
    const run = {} as (typeof runs)[number]
    // Each is at times the first, and at times the last.
    for (let k = 0; k < programs.length; k++) {
      const program = programs[(i + k) % programs.length]!
      const r = await measure(peer, program)
      run[program.kind] = r
      say(
        `round ${i + 1} ${program.kind.padEnd(6)} ` +
          `${measures.map((m) => `${m} ${r[m].toFixed(0)} (${r.cpu[m].toFixed(1)})`).join('  ')}`,
      )
    }
    runs.push(run)
  }
  for (const program of programs) {
    const a = about[program.kind]!
    a.peakRSS = memory(program.pid).peak
    resetPeak(program.pid)
    const many = await peer.load(program.ip, 'many', { streams: manyStreams })
    a.manyMs = many.ms
    a.manyRSS = memory(program.pid).peak
    await sleep(10_000)
    a.afterRSS = memory(program.pid).rss
    a.afterCPU = await idleCPU(program)
    say(
      `${program.kind}: peak ${a.peakRSS.toFixed(0)} MB under load; ${manyStreams} ` +
        `connections opened and used in ${(many.ms / 1000).toFixed(1)} s, ` +
        `peak ${a.manyRSS.toFixed(0)} MB; afterwards ${a.afterRSS.toFixed(0)} MB, ${a.afterCPU.toFixed(2)} % of a core`,
    )
  }
  for (const program of programs) await program.end()
  const leaked = await lab.leaked()
  if (leaked > 0)
    throw new Error(
      `${leaked} packets tried to leave the namespaces: ${JSON.stringify(await lab.leaks())}`,
    )

  const ours = kinds.filter((k) => k !== 'native')
  if (kinds.length > ours.length && ours.length > 0) {
    type Spreads = Record<Measure, ReturnType<typeof spread>>
    const ratios = Object.fromEntries(
      ours.map((kind) => [
        kind,
        Object.fromEntries(
          measures.map((m) => [m, spread(runs.map((run) => run[kind][m] / run.native[m]))]),
        ) as Spreads,
      ]),
    ) as Record<Kind, Spreads>
    const absolute = Object.fromEntries(
      kinds.map((kind) => [
        kind,
        Object.fromEntries(measures.map((m) => [m, spread(runs.map((run) => run[kind][m]))])),
      ]),
    ) as Record<Kind, Spreads>
    const machine = {
      cpus: os.cpus().length,
      model: os.cpus()[0]!.model,
      node: process.version,
      kernel: os.release(),
      network: options.network,
    }
    const when = new Date().toISOString()
    await writeFile(
      path.join(outDir, 'tsnet.json'),
      `${JSON.stringify({ when, machine, ms, ratios, absolute, about, runs }, null, 2)}\n`,
    )
    const row = (kind: Kind, m: Measure): Row => {
      const unit = m === 'rtt' ? 'µs' : 'Mbit/s'
      const [w, n] = [absolute[kind][m].median, absolute.native[m].median]
      const label = {
        down: 'download',
        up: 'upload',
        down8: 'download, 8 streams',
        up8: 'upload, 8 streams',
        rtt: 'round trip (less is better)',
      }[m]
      const goal = { tun: { rtt: 1.3, rate: 1 }, wasm: { rtt: 1.8, rate: 0.7 } }[kind as 'tun']
      return {
        label: kind === 'tun' ? `kernel: ${label}` : label,
        note: `${w.toFixed(0)} against ${n.toFixed(0)} ${unit}`,
        ...ratios[kind][m],
        goal: m === 'rtt' ? goal.rtt : goal.rate,
        goodIs: m === 'rtt' ? 'less' : 'more',
      }
    }
    const rows = ours.flatMap((kind) => measures.map((m) => row(kind, m)))
    const plot = ratioPlot(
      'tsnet: WebAssembly on Node.js / native',
      `Median, minimum and maximum of ${rounds} rounds; blue: the goal. ${machine.cpus} ` +
        `cores (${machine.model}), Node.js ${machine.node}, ${when.slice(0, 10)}`,
      rows,
      [0.1, 0.2, 0.5, 1, 2, 5, 10],
    )
    await writeFile(path.join(outDir, 'tsnet.svg'), plot)
    say('')
    const cpu = (kind: Kind, m: Measure): number => spread(runs.map((r) => r[kind].cpu[m])).median
    for (const kind of ours) {
      const head = 'min  median     max   CPU time of a MB, native'
      say(`ratio ${kind}/native`.padEnd(18) + `     ${head}`)
      for (const m of measures) {
        const { min, median, max } = ratios[kind][m]
        const took = `${cpu(kind, m).toFixed(1)}, ${cpu('native', m).toFixed(1)}`
        const unit = m === 'rtt' ? 'µs a trip' : 'ms'
        const ratio = [min, median, max].map((v) => v.toFixed(2).padStart(8)).join('')
        say(`${m.padEnd(18)}${ratio}   ${took} ${unit}`)
      }
    }
    say(`JSON and plot: ${path.relative(process.cwd(), outDir)}/tsnet.json, tsnet.svg`)
    const result = ours.flatMap((kind) =>
      measures.map(
        (m) => `${kind === 'tun' ? 'tun_' : ''}${m}=${ratios[kind][m].median.toFixed(2)}`,
      ),
    )
    const idle = about[ours.includes('wasm') ? 'wasm' : 'tun']!.idleRSS!
    say(`RESULT ${result.join(' ')} rss_mb=${idle.toFixed(0)}`)
  }
} finally {
  await lab.stop()
  await rm(labDir, { recursive: true, force: true })
}
