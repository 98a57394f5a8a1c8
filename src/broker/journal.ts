import { createInterface } from 'node:readline'
import { Readable } from 'node:stream'
import type { System } from './system.ts'

/** Units whose lines may be read through the broker. */
export const journalUnits = [
  'gatehouse',
  'node-red',
  'gatehouse-broker',
  'gatehouse-certs',
  'gatehouse-alerts@watch',
  'gatehouse-firewall',
  'gatehouse-names',
  'gatehouse-learn',
  'gatehouse-provision',
  'gatehouse-report',
  'gatehouse-update',
  'gatehouse-update-install',
  'gatehouse-trial',
  'gatehouse-extension@*',
] as const

/** What to read. */
export interface JournalQuery {
  /** Default: all of {@link journalUnits}. */
  unit?: (typeof journalUnits)[number]
  /** Lines of this severity and worse, as syslog counts: 3 errors, 4 warnings, 6 all but debug. */
  priority?: number
  /** How many of the newest, 1 to 5000; default 200. */
  lines?: number
  /** Go on with what comes. Default: false. */
  follow?: boolean
}

/** One line of the journal. */
export interface JournalLine {
  /** RFC 3339. */
  at: string
  unit: string
  priority: number
  text: string
}

/**
 * Lines of the journal as NDJSON, oldest first. They are chosen by the unit that systemd knows of
 * (`_SYSTEMD_UNIT`), never by a name that a process gives itself, and stripped of control
 * characters.
 */
export function journal(
  system: System,
  { unit, priority = 6, lines = 200, follow = false }: JournalQuery,
): Readable {
  const child = system.stream('journalctl', [
    ...['--quiet', '--output=json', '--output-fields=MESSAGE,PRIORITY,_SYSTEMD_UNIT'],
    ...(unit === undefined ? journalUnits : [unit]).map((name) => `--unit=${name}.service`),
    `--priority=${priority}`,
    `--lines=${lines}`,
    ...(follow ? ['--follow'] : []),
  ])
  async function* read(): AsyncGenerator<string> {
    try {
      for await (const line of createInterface({ input: child.stdout!, crlfDelay: Infinity })) {
        const read = journalLine(line)
        if (read !== undefined) yield `${JSON.stringify(read)}\n`
      }
    } finally {
      child.kill()
    }
  }
  return Readable.from(read()).on('close', () => {
    child.kill()
  })
}

/** One line of `journalctl -o json` (systemd.journal-fields(7)); undefined when it is not one. */
export function journalLine(line: string): JournalLine | undefined {
  let fields: Record<string, unknown>
  try {
    fields = JSON.parse(line) as Record<string, unknown>
  } catch {
    return undefined
  }
  const { MESSAGE, PRIORITY, _SYSTEMD_UNIT: unit, __REALTIME_TIMESTAMP: time } = fields
  // A message with bytes that are not text comes as a list of them.
  const text = Array.isArray(MESSAGE) ? Buffer.from(MESSAGE as number[]).toString() : MESSAGE
  if (typeof text !== 'string') return undefined
  return {
    at: new Date(Number(time) / 1000).toISOString(),
    unit: (typeof unit === 'string' ? unit : '').replace(/\.service$/, ''),
    priority: Number(PRIORITY ?? 6),
    // oxlint-disable-next-line eslint/no-control-regex -- what a terminal would obey
    text: text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]+/g, ' ').slice(0, 8_192),
  }
}
