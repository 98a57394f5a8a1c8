import { pino } from 'pino'
import type { Logger } from 'pino'

export type { Logger } from 'pino'

/** pino level to syslog priority (sd-daemon(3)). */
const priorities: Record<number, number> = { 10: 7, 20: 7, 30: 6, 40: 4, 50: 3, 60: 2 }

/**
 * The gateway's log: pino, one JSON object a line on standard output. Under systemd each line
 * starts with its priority (`<4>`), so that `journalctl -p warning` finds it, and carries no time,
 * which the journal has already.
 *
 * @param env GATEHOUSE_LOG_LEVEL: pino level, default `info`
 */
export function createLog(env: NodeJS.ProcessEnv = process.env): Logger {
  const journal = env.JOURNAL_STREAM !== undefined
  const options = {
    level: env.GATEHOUSE_LOG_LEVEL ?? 'info',
    base: null,
    ...(journal ? { timestamp: false } : {}),
  }
  if (!journal) return pino(options, pino.destination({ dest: 1, sync: true }))
  const stdout = pino.destination({ dest: 1, sync: true })
  return pino(options, {
    // pino sets lastLevel on a destination that asks for metadata.
    [Symbol.for('pino.metadata')]: true,
    lastLevel: 30,
    write(line: string) {
      stdout.write(`<${priorities[this.lastLevel] ?? 6}>${line}`)
    },
  } as { write: (line: string) => void; lastLevel: number })
}
