/** What the kernel counts of a process (proc(5)), and whether it has begun to serve. */
import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'

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

/**
 * Waits until something accepts connections, at most a minute.
 *
 * @throws Error when nothing did
 */
export async function accepts(
  where: { port: number; host: string } | { path: string },
): Promise<void> {
  for (const end = Date.now() + 60_000; Date.now() < end; await sleep(50)) {
    const { promise, resolve } = Promise.withResolvers<boolean>()
    const probe = connect(where, () => {
      probe.destroy()
      resolve(true)
    }).on('error', () => resolve(false))
    if (await promise) return
  }
  throw new Error(`nothing accepts connections at ${JSON.stringify(where)}`)
}
