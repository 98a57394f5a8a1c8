/** h2load(1) of nghttp2, the load generator. */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'

/**
 * What a load came to: requests a second, times in ms, MB (10^6 bytes) a second, requests that
 * failed or were answered otherwise than 2xx.
 */
export interface Load {
  rps: number
  p50: number
  p99: number
  p999: number
  mbps: number
  failed: number
}

/**
 * Loads a URL over HTTP/1.1 with keep-alive, `requests` times in all. Figures are of the last four
 * fifths: connecting and warming up are over.
 *
 * By number, not by time: h2load 1.52 with 1,000 connections does not always end when its time is
 * up.
 */
export function h2load(url: string, connections: number, requests: number, how: string[]): Load {
  const directory = mkdtempSync(path.join(os.tmpdir(), 'gh-h2load-'))
  try {
    const log = path.join(directory, 'log')
    const out = execFileSync(
      'h2load',
      ['--h1', '-t1', `-c${connections}`, `-n${requests}`, `--log-file=${log}`, ...how, url],
      {
        encoding: 'utf8',
        maxBuffer: 1 << 26,
        stdio: ['ignore', 'pipe', 'pipe'],
        timeout: 90_000,
        killSignal: 'SIGKILL',
      },
    )
    const bytes = Number(/traffic: [^(]*\((\d+)\) total/.exec(out)?.[1] ?? Number.NaN)
    // Start in microseconds since the epoch, status, duration in microseconds.
    const rows = readFileSync(log, 'utf8')
      .trimEnd()
      .split('\n')
      .map((line) => line.split('\t').map(Number))
      .map(([start, status, us]) => ({ end: start! + us!, status: status!, us: us! }))
      .toSorted((a, b) => a.end - b.end)
    if (rows.length < requests / 2)
      throw new Error(`h2load did ${rows.length} of ${requests} requests:\n${out}`)
    const counted = rows.slice(Math.floor(rows.length / 5))
    const seconds = (counted.at(-1)!.end - counted[0]!.end) / 1e6
    const times = counted.map(({ us }) => us / 1_000).sort((a, b) => a - b)
    const percentile = (p: number): number =>
      times[Math.min(times.length - 1, Math.floor(times.length * p))]!
    const rps = (counted.length - 1) / seconds
    return {
      rps,
      p50: percentile(0.5),
      p99: percentile(0.99),
      p999: percentile(0.999),
      mbps: (rps * bytes) / rows.length / 1e6,
      failed: requests - rows.filter(({ status }) => status >= 200 && status < 300).length,
    }
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}
