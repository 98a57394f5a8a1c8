/**
 * Over the tailnet: the gateway on the bindings beside Go's ReverseProxy on native tsnet
 * (test/lab/proxy.go), each with the same origin, loaded by a native peer: h2load on its unix
 * socket, and from there over pooled TLS connections through the tailnet.
 */
import type { ChildProcess } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import path from 'node:path'
import readline from 'node:readline'
import { makeInterface } from '../test/lab/kernel-path.ts'
import { Lab } from '../test/lab/lab.ts'
import { inside, rulesetForRoot, run } from '../test/lab/ruleset.ts'
import { kernelRedirection } from '../src/firewall/apply.ts'
import { Authority } from '../test/unit/support/authority.ts'
import type { Load } from './h2load.ts'
import { h2load } from './h2load.ts'
import { cpuSeconds, memory } from './proc.ts'

export interface TailnetOptions {
  /** Unix socket of the origin. */
  origin: string
  /** Of one measurement. */
  requests: number
  /**
   * Whether the gateway is measured with the kernel's data path too ([tailnet] data_path), behind
   * the image's ruleset.
   */
  kernel: boolean
  say: (line: string) => void
}

/** What one of them came to in a round. */
export interface Measured {
  /** 1 KiB, uncached, 64 connections. */
  small: Load
  /** 10 MB, uncached, 4 connections. */
  big: Load
  /** Processor time of its process for these, in seconds, and what it holds then, in MB. */
  cpu: number
  rss: number
}

/** Who is measured: ours, ours with the kernel's data path, and Go's. */
export type Contender = 'ours' | 'kernel' | 'go'

/** Ratios to Go's: medians of the rounds. */
export interface Ratios {
  /** Requests a second, 1 KiB. */
  small: number
  /** Bytes a second, 10 MB. */
  big: number
  /** 1 KiB. */
  p99: number
}

export interface TailnetResult {
  ours: Ratios
  kernel?: Ratios
  rounds: Array<Partial<Record<Contender, Measured>>>
}

const rounds = 5

export async function measureTailnet({
  origin,
  requests,
  kernel,
  say,
}: TailnetOptions): Promise<TailnetResult> {
  const authority = new Authority()
  const lab = await Lab.start({ name: 'benchgw' })
  const children: ChildProcess[] = []
  const contenders = new Map<Contender, { socket: string; pid: number }>()
  try {
    const ca = path.join(lab.dir, 'ca.pem')
    await writeFile(ca, authority.certificate)
    const peer = await lab.client('peer')
    const keyFile = path.join(lab.dir, 'bench-authkey')
    await writeFile(keyFile, lab.ready.authKey, { mode: 0o600 })
    const serve = async (
      hostname: Contender,
      ip: string,
      argv: (files: { pem: string; chain: string; key: string; name: string }) => string[],
    ): Promise<void> => {
      const name = `${hostname}.${lab.ready.suffix}`
      const text = authority.issue(name)
      const at = (file: string): string => path.join(lab.dir, `${hostname}-${file}`)
      const files = { pem: at('pem'), chain: at('chain'), key: at('key'), name }
      await writeFile(files.pem, text, { mode: 0o600 })
      await writeFile(files.chain, text.slice(0, text.indexOf('-----BEGIN PRIVATE')))
      await writeFile(files.key, text.slice(text.indexOf('-----BEGIN PRIVATE')), { mode: 0o600 })
      const ns = await lab.host(hostname, ip)
      if (hostname === 'kernel') {
        await makeInterface(ns, '0')
        const rules = (await rulesetForRoot()) + kernelRedirection(true, false)
        await run(inside(ns, 'nft', '-f', '-'), rules)
      }
      const child = lab.exec(ns, argv(files), {
        stdio: ['pipe', 'pipe', 'inherit'],
        env: { ...process.env, SSL_CERT_FILE: lab.ready.authority },
      })
      children.push(child)
      await new Promise((resolve, reject) => {
        readline.createInterface({ input: child.stdout! }).once('line', resolve)
        child.once('exit', (code) => reject(new Error(`${hostname} ended early (code ${code})`)))
      })
      await peer.browse(`https://${name}`, { roots: ca })
      const socket = path.join(peer.dir, `browser-${children.length}.sock`)
      contenders.set(hostname, { socket, pid: child.pid! })
    }
    for (const hostname of kernel ? (['ours', 'kernel'] as const) : (['ours'] as const))
      await serve(hostname, hostname === 'ours' ? '10.77.0.60' : '10.77.0.62', ({ pem, name }) => [
        process.execPath,
        '--disable-warning=ExperimentalWarning',
        path.join(import.meta.dirname, 'tailnet-node.ts'),
        JSON.stringify({
          dir: path.join(lab.dir, hostname),
          hostname,
          controlURL: lab.ready.controlURL,
          extraCAFile: lab.ready.authority,
          authKey: lab.ready.authKey,
          origin,
          pem,
          name,
          kernel: hostname === 'kernel',
        }),
      ])
    await serve('go', '10.77.0.61', ({ chain, key }) => [
      lab.bin,
      'proxy-node',
      '--dir',
      path.join(lab.dir, 'go'),
      '--control',
      lab.ready.controlURL,
      '--authkey-file',
      keyFile,
      '--hostname',
      'go',
      '--origin',
      origin,
      '--chain',
      chain,
      '--key',
      key,
    ])
    const load = (socket: string, file: string, connections: number, count: number): Load =>
      h2load(`http://localhost/${file}`, connections, count, [`--base-uri=unix:${socket}`])
    const result: TailnetResult = { ours: ratios([], 'ours'), rounds: [] }
    // Compiled, and the path found, before anything counts.
    for (const { socket } of contenders.values()) {
      load(socket, 'uncached.json', 64, Math.ceil(requests / 5))
      load(socket, 'big.bin', 4, 8)
    }
    for (let i = 0; i < rounds; i++) {
      const round: TailnetResult['rounds'][number] = {}
      // Each is first in turn, since the machine has other work too.
      const all = [...contenders]
      for (const [who, { socket, pid }] of [
        ...all.slice(i % all.length),
        ...all.slice(0, i % all.length),
      ]) {
        const before = cpuSeconds(pid)
        const small = load(socket, 'uncached.json', 64, requests)
        const big = load(socket, 'big.bin', 4, Math.ceil(requests / 100))
        const cpu = cpuSeconds(pid) - before
        round[who] = { small, big, cpu, rss: memory(pid).rss }
        const failed = small.failed + big.failed
        say(
          `tailnet    round ${i + 1} ${who.padEnd(9)} ${small.rps.toFixed(0)} req/s, p99 ` +
            `${small.p99.toFixed(1)} ms, 10 MB bodies ${big.mbps.toFixed(1)} MB/s, ` +
            `${cpu.toFixed(1)} s of CPU, ${round[who].rss.toFixed(0)} MB` +
            `${failed > 0 ? `, ${failed} FAILED` : ''}`,
        )
      }
      result.rounds.push(round)
    }
    result.ours = ratios(result.rounds, 'ours')
    if (kernel) result.kernel = ratios(result.rounds, 'kernel')
    return result
  } finally {
    for (const child of children) if (child.exitCode === null) child.kill('SIGKILL')
    await lab.stop()
    authority.close()
  }
}

/** One's figures by Go's of the same round. */
function ratios(measured: TailnetResult['rounds'], who: Contender): Ratios {
  const median = (of: (one: Measured) => number): number =>
    measured.map((round) => of(round[who]!) / of(round.go!)).toSorted((a, b) => a - b)[
      measured.length >> 1
    ] ?? Number.NaN
  return {
    small: median(({ small }) => small.rps),
    big: median(({ big }) => big.mbps),
    p99: median(({ small }) => small.p99),
  }
}
