import { execFile } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { promisify } from 'node:util'
import { reason } from '../base/errors.ts'
import type { Paths } from '../base/paths.ts'
import { builtAt } from '../base/version.ts'

/** One link of the chain from a peer's browser to Node-RED. */
export interface Check {
  name: string
  /** `skip`: it could not be looked at, and `found` says why. */
  result: 'ok' | 'warn' | 'fail' | 'skip'
  found: string
  /** What to do; where there is something to do. */
  cure?: string
}

const run = promisify(execFile)

/**
 * What the system says of itself, to root: configuration, clock, resolver and services. The gateway
 * checks the rest (gateway/operate/doctor.ts).
 *
 * @param resolved the file in which systemd-resolved says whom it asks (systemd-resolved.service(8))
 */
export async function examineSystem(
  paths: Pick<Paths, 'problem'>,
  resolved = '/run/systemd/resolve/resolv.conf',
): Promise<Check[]> {
  return [await configuration(paths), await clock(), await resolver(resolved), ...(await units())]
}

async function configuration(paths: Pick<Paths, 'problem'>): Promise<Check> {
  const problem = (await readFile(paths.problem, 'utf8').catch(() => '')).trim()
  return problem === ''
    ? { name: 'configuration', result: 'ok', found: 'gatehouse.toml was taken over' }
    : {
        name: 'configuration',
        result: 'fail',
        found: problem,
        cure: "Correct it on the console's page Settings, or in gatehouse.toml on the card's first partition",
      }
}

async function clock(): Promise<Check> {
  const now = new Date()
  const cure = 'Check the network and that it lets NTP (UDP port 123) out'
  if (now < builtAt)
    return {
      name: 'clock',
      result: 'fail',
      found: `it says ${now.toISOString()}, which is before this program was built`,
      cure,
    }
  try {
    const { stdout } = await run('timedatectl', ['show', '--property=NTPSynchronized', '--value'], {
      timeout: 10_000,
    })
    if (stdout.trim() === 'yes')
      return { name: 'clock', result: 'ok', found: `set from the network, ${now.toISOString()}` }
    return {
      name: 'clock',
      result: 'warn',
      found: `not set from the network yet; it says ${now.toISOString()}`,
      cure,
    }
  } catch (err) {
    return {
      name: 'clock',
      result: 'skip',
      found: `it says ${now.toISOString()}; whether it is set from the network cannot be asked: ${firstLine(err)}`,
    }
  }
}

/**
 * What systemd-resolved asks, from the file that it keeps for programs that ask by themselves:
 * resolvectl wants to see the network's links, which the broker may not.
 */
async function resolver(file: string): Promise<Check> {
  const text = await readFile(file, 'utf8').catch((err: unknown) => err as Error)
  if (typeof text !== 'string')
    return {
      name: 'resolver',
      result: 'skip',
      found: `what systemd-resolved asks is not known: ${reason(text)}`,
    }
  const servers = [...text.matchAll(/^nameserver\s+(\S+)/gm)].map(([, server]) => server!)
  if (servers.length > 0)
    return { name: 'resolver', result: 'ok', found: `asks ${servers.join(', ')}` }
  return {
    name: 'resolver',
    result: 'fail',
    found: 'the network names no DNS server, so no name can be looked up',
    cure: "Have the router's DHCP name one, such as its own address (DNS server, option 6), and restart the device",
  }
}

async function units(): Promise<Check[]> {
  try {
    const { stdout } = await run(
      'systemctl',
      ['list-units', '--failed', '--plain', '--no-legend', '--no-pager'],
      { timeout: 10_000 },
    )
    const failed = stdout
      .split('\n')
      .map((line) => line.trim().split(/\s+/, 1)[0]!)
      .filter((name) => name !== '')
    if (failed.length === 0) return [{ name: 'services', result: 'ok', found: 'none has failed' }]
    return [
      {
        name: 'services',
        result: 'fail',
        found: `failed: ${failed.join(', ')}`,
        cure:
          'Look at what it says: page Logs of the console, or gatehouse logs; a restart of the ' +
          'device tries it again',
      },
    ]
  } catch (err) {
    return [
      { name: 'services', result: 'skip', found: `systemd cannot be asked: ${firstLine(err)}` },
    ]
  }
}

/** What a program that failed said first. */
export function firstLine(err: unknown): string {
  const { code, stderr } = err as { code?: unknown; stderr?: string }
  return code === 'ENOENT'
    ? 'the program for it is not there'
    : (stderr?.trim() || reason(err)).split('\n', 1)[0]!
}
