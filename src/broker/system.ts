import { execFile, spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { promisify } from 'node:util'
import { GatehouseError, reason } from '../base/errors.ts'

/**
 * What the broker does to the system, in one place, so that tests can stand in for it. Programs are
 * started with lists of arguments, never by a shell.
 */
export interface System {
  /** `systemctl` with these arguments. Rejects with what it said. */
  systemctl: (...args: string[]) => Promise<string>
  /** A program that goes on and prints, journalctl for one. */
  stream: (program: string, args: string[]) => ChildProcess
}

const run = promisify(execFile)

/** The real one. */
export const system: System = {
  systemctl: async (...args) => {
    try {
      return (await run('systemctl', args, { timeout: 300_000 })).stdout
    } catch (err) {
      const said = (err as { stderr?: string }).stderr?.trim() ?? ''
      throw new GatehouseError(
        'GH_BROKER_SYSTEMD',
        `systemd refuses ${args.join(' ')}: ${said === '' ? reason(err) : said}`,
        'Try again; if it stays so, restart the device (page Device)',
        { cause: err },
      )
    }
  },
  stream: (program, args) => spawn(program, args, { stdio: ['ignore', 'pipe', 'ignore'] }),
}
