import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { reason } from '../base/errors.ts'
import { writeFileAtomic } from '../base/files.ts'
import { channelsOf } from './send.ts'
import type { Alert, AlertSettings, Channel } from './send.ts'

/** What the gateway says is wrong: problems.json in the alerts' directory. */
export interface Wrong {
  /** The device's name in the tailnet. */
  device: string
  problems: Array<Omit<Alert, 'event' | 'device'>>
}

/** A problem that has been told, or is being told, to whom. */
interface Told {
  alert: Alert
  channels: Channel[]
  /** Milliseconds since the epoch: not seen since. */
  gone?: number
  /** Those who know that it is over. */
  over?: Channel[]
}

/** Options of {@link watch}. */
export interface WatchOptions {
  /** Where the gateway writes problems.json. */
  directory: string
  /** What was told is kept here, in told.json: also over a restart, nothing is told twice. */
  state: string
  settings: AlertSettings
  /** Sends one (send.ts). */
  send: (channel: Channel, alert: Alert) => Promise<void>
  /** One line for the journal. */
  say: (line: string) => void
}

/** Milliseconds in which nothing may have changed, at the end. */
const settle = 300

/** Milliseconds between looks. */
const look = 5_000

/** For how long a problem must be away to be over, where it need not last that long. Milliseconds. */
const calm = 60_000

/** What passes by itself must last so many times longer. */
const patience = 12

/**
 * Tells what lasts, and what is over. Ends as soon as there is nothing to wait for: whatever the
 * gateway writes next has systemd start it again (gatehouse-alerts.path).
 *
 * @returns whether all there was to tell is told
 */
export async function watch(options: WatchOptions): Promise<boolean> {
  const { settings, say } = options
  const channels = channelsOf(settings)
  const file = join(options.state, 'told.json')
  const told = await readTold(file)
  for (;;) {
    const before = await readProblems(options.directory)
    const wrong = parseWrong(before)
    // Half a sentence, or no gateway: nothing is known, so nothing has changed.
    if (wrong === undefined) return true
    const now = Date.now()
    let waiting = false
    let failed = false
    let changed = false
    const deliver = async (to: Channel[], alert: Alert): Promise<void> => {
      for (const channel of channels) {
        if (to.includes(channel)) continue
        try {
          await options.send(channel, alert)
          to.push(channel)
          changed = true
          say(`told by ${channel}: ${alert.event} ${alert.code}`)
        } catch (err) {
          failed = true
          say(`${alert.event} ${alert.code} cannot be told by ${channel}: ${reason(err)}`)
        }
      }
    }
    const seen = new Set<string>()
    for (const problem of wrong.problems) {
      const key = `${problem.part} ${problem.code}`
      seen.add(key)
      const known = told.get(key)
      if (known === undefined) {
        const after = settings.after * (problem.severity === 'info' ? patience : 1)
        if (now - Date.parse(problem.since) < after) {
          waiting = true
          continue
        }
      }
      const alert: Alert = { event: 'problem', device: wrong.device, ...problem }
      const entry = known ?? { alert, channels: [] }
      if (entry.gone !== undefined) changed = true
      delete entry.gone
      told.set(key, entry)
      await deliver(entry.channels, entry.alert)
    }
    for (const [key, entry] of told) {
      if (seen.has(key)) continue
      if (entry.gone === undefined) changed = true
      entry.gone ??= now
      if (now - entry.gone < Math.min(calm, settings.after)) {
        waiting = true
        continue
      }
      // Who was never told of it need not know that it is over.
      entry.over ??= channels.filter((channel) => !entry.channels.includes(channel))
      await deliver(entry.over, { ...entry.alert, event: 'over' })
      if (channels.every((channel) => entry.over!.includes(channel))) {
        told.delete(key)
        changed = true
      }
    }
    if (changed) await writeFileAtomic(file, JSON.stringify([...told]), 0o600)
    if (failed) return false
    if (!waiting) {
      // What is written while this ends, systemd does not see (path_enter_running(), src/core/path.c).
      await sleep(settle)
      if ((await readProblems(options.directory)) === before) return true
      continue
    }
    await sleep(Math.min(look, Math.max(settings.after, 500)))
  }
}

async function readTold(file: string): Promise<Map<string, Told>> {
  try {
    return new Map(JSON.parse(await readFile(file, 'utf8')) as Array<[string, Told]>)
  } catch {
    return new Map()
  }
}

async function readProblems(directory: string): Promise<string> {
  return await readFile(join(directory, 'problems.json'), 'utf8').catch(() => '')
}

/**
 * Undefined when it is not there, or not what a gateway writes. Each word of it is bounded: the
 * gateway is a door that may be broken in.
 */
function parseWrong(text: string): Wrong | undefined {
  try {
    const { device, problems } = JSON.parse(text) as Wrong
    const words = (value: unknown): string => String(value).slice(0, 1_000)
    return {
      device: words(device),
      problems: problems.slice(0, 50).map(({ part, code, message, cure, since, severity }) => ({
        ...{ part: words(part), code: words(code), message: words(message), cure: words(cure) },
        ...{ since: words(since), severity: words(severity) },
      })),
    }
  } catch {
    return undefined
  }
}
