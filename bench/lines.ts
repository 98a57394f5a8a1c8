/**
 * Lines as people have them: the bindings beside natively compiled tsnet, each behind a router of
 * its own with the same line (`lab wire`: delay, rate and loss, both ways), loaded by a native peer.
 *
 *   down, up    Mbit/s on one TCP stream
 *   p50, p99    ms of one byte to the program and back while nothing else is on the line
 *
 * Ratios are wasm / native of one round. RESULT has the worst line's medians.
 *
 * Usage: node bench/lines.ts [--rounds 3] [--ms 6000] [--out out/bench]
 * Needs root, out/bin/lab and the module: `make bench-lines` sees to these.
 */
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { Lab, type LabClient } from '../test/lab/lab.ts'
import { Router } from '../test/lab/networks.ts'
import { type Kind, Program } from '../test/lab/program.ts'
import { ratioPlot, type Row } from './plot.ts'

const { values: options } = parseArgs({
  options: {
    rounds: { type: 'string', default: '3' },
    ms: { type: 'string', default: '6000' },
    out: { type: 'string', default: 'out/bench' },
  },
})
const rounds = Number(options.rounds)
const ms = Number(options.ms)
const kinds: Kind[] = ['native', 'wasm']
const measures = ['down', 'up', 'p50', 'p99'] as const
type Measured = Record<(typeof measures)[number], number>

/** Round trip in ms, loss each way in percent, Mbit/s. */
const lines = [20, 66].flatMap((trip) =>
  [0, 1].flatMap((loss) => [20, 100].map((rate) => ({ trip, loss, rate }))),
)

async function measure(peer: LabClient, { ip }: Program): Promise<Measured> {
  const rate = async (kind: 'down' | 'up'): Promise<number> => {
    const { bytes, ms: took } = await peer.load(ip, kind, { ms })
    return (bytes * 8) / took / 1000
  }
  const { trips } = await peer.load(ip, 'rtt', { ms: 3_000 })
  const at = (part: number): number => trips![Math.floor((trips!.length - 1) * part)]! / 1e6
  return { down: await rate('down'), up: await rate('up'), p50: at(0.5), p99: at(0.99) }
}

const median = (list: number[]): number => list.toSorted((a, b) => a - b)[list.length >> 1]!

const out = path.resolve(options.out)
await mkdir(out, { recursive: true })
const dir = await mkdtemp(path.join(os.tmpdir(), 'lines-'))
const lab = await Lab.start({ name: 'lines', dir })
try {
  const peer = await lab.client('peer')
  const results: { line: (typeof lines)[number]; runs: Record<Kind, Measured>[] }[] = []
  let number = 60
  for (const [i, line] of lines.entries()) {
    const { trip, loss, rate } = line
    const programs = await Promise.all(
      kinds.map(async (kind, n) => {
        const router = await Router.start(lab, `line${i}${n}`, {
          ip: `10.77.0.${number++}`,
          inside: `192.168.${i * 2 + n + 10}.0/24`,
          line: { delay: trip / 2, rate, lossOut: loss, lossIn: loss },
        })
        const hostname = `line${i}-${kind}`
        // A line that loses takes its time.
        return await Program.start(lab, await router.host(), kind, { hostname, timeout: 180_000 })
      }),
    )
    const runs: Record<Kind, Measured>[] = []
    for (const program of programs) {
      await peer.pingDirect(program.ip)
      await peer.load(program.ip, 'down', { ms: 1_500 })
    }
    for (let round = 0; round < rounds; round++) {
      const run = {} as Record<Kind, Measured>
      for (const program of round % 2 ? programs.toReversed() : programs)
        run[program.kind] = await measure(peer, program)
      runs.push(run)
    }
    for (const program of programs) await program.end()
    results.push({ line, runs })
    const of = (kind: Kind, what: keyof Measured): number =>
      median(runs.map((run) => run[kind][what]))
    console.log(
      `${trip} ms, ${loss} %, ${rate} Mbit/s`.padEnd(26) +
        measures
          .map((m) => `${m} ${of('wasm', m).toFixed(1)} (native ${of('native', m).toFixed(1)})`)
          .join('  '),
    )
  }
  const leaked = await lab.leaked()
  if (leaked > 0)
    throw new Error(
      `${leaked} packets tried to leave the namespaces: ${JSON.stringify(await lab.leaks())}`,
    )
  const ratio = (runs: Record<Kind, Measured>[], m: keyof Measured): number[] =>
    runs.map((run) => run.wasm[m] / run.native[m]).toSorted((a, b) => a - b)
  const rows = results.flatMap(({ line: { trip, loss, rate }, runs }) =>
    (['down', 'up', 'p99'] as const).map((m): Row => {
      const list = ratio(runs, m)
      const value = (kind: Kind): string => median(runs.map((run) => run[kind][m])).toFixed(1)
      return {
        label: { down: 'download', up: 'upload', p99: 'round trip, p99 (less is better)' }[m],
        note:
          `${trip} ms, ${loss} % lost, ${rate} Mbit/s: ${value('wasm')} against ` +
          `${value('native')} ${m === 'p99' ? 'ms' : 'Mbit/s'}`,
        ...{ min: list[0]!, median: median(list), max: list.at(-1)! },
        goodIs: m === 'p99' ? 'less' : 'more',
      }
    }),
  )
  const when = new Date().toISOString()
  await writeFile(
    path.join(out, 'lines.json'),
    `${JSON.stringify({ when, node: process.version, ms, results }, null, 2)}\n`,
  )
  await writeFile(
    path.join(out, 'lines.svg'),
    ratioPlot(
      'tsnet: WebAssembly on Node.js / native, on lines as people have them',
      `Median, minimum and maximum of ${rounds} rounds. Node.js ${process.version}, ${when.slice(0, 10)}`,
      rows,
      [0.2, 0.5, 1, 2, 5],
    ),
  )
  const worst = (m: keyof Measured, pick: (...list: number[]) => number): string =>
    pick(...results.map(({ runs }) => median(ratio(runs, m)))).toFixed(2)
  console.log(`JSON and plot: ${path.relative(process.cwd(), out)}/lines.json, lines.svg`)
  console.log(
    `RESULT line_down=${worst('down', Math.min)} line_up=${worst('up', Math.min)} ` +
      `line_rtt=${worst('p50', Math.max)} line_p99=${worst('p99', Math.max)}`,
  )
} finally {
  await lab.stop()
  await rm(dir, { recursive: true, force: true })
}
