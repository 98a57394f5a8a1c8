/** What the kernel counts of a process: proc(5). */
import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'

const ticks = Number(execFileSync('getconf', ['CLK_TCK'], { encoding: 'utf8' }))

/** MB (10^6 bytes) resident now and at most since {@link resetPeak}. */
export function memory(pid: number): { rss: number; peak: number } {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8')
  const mb = (name: string): number =>
    (Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(status)![1]) * 1024) / 1e6
  return { rss: mb('VmRSS'), peak: mb('VmHWM') }
}

export function resetPeak(pid: number): void {
  writeFileSync(`/proc/${pid}/clear_refs`, '5')
}

/** Seconds of CPU, user and system, of all threads; or of the main one, which runs JavaScript. */
export function cpuSeconds(pid: number, threads: 'all' | 'main' = 'all'): number {
  const of = threads === 'all' ? `${pid}` : `${pid}/task/${pid}`
  const fields = readFileSync(`/proc/${of}/stat`, 'utf8')
    .replace(/^.*\) /, '')
    .split(' ')
  return (Number(fields[11]) + Number(fields[12])) / ticks
}
