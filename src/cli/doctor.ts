import { execFile } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { promisify } from 'node:util'
import { asRoot, restartDevice } from '../base/cures.ts'
import { printable, reason } from '../base/errors.ts'
import type { Paths } from '../base/paths.ts'
import { builtAt } from '../base/version.ts'
import type { Check } from '../gateway/operate/doctor.ts'
import { examineStorage } from '../gateway/operate/storage.ts'
import { call, unreachable } from '../base/control-client.ts'

const run = promisify(execFile)

/**
 * `gatehouse doctor`: looks at every link of the chain from clock to Node-RED, and says of each
 * that is broken what it is and what to do.
 *
 * @returns 0 nothing is broken, 1 something is, 2 the gateway cannot be reached (the rest is looked
 *   at all the same)
 */
export async function runDoctor(paths: Paths, { json }: { json: boolean }): Promise<number> {
  const checks = [
    await configuration(paths),
    await clock(),
    await disk(paths),
    await firewall(),
    await resolver(),
    ...(await units()),
  ]
  let reached = true
  try {
    const { status, body } = await call(paths.admin, 'GET', '/v1/doctor', undefined, 60_000)
    if (status !== 200) throw new Error(`it answers ${status}`)
    checks.push(...(body as Check[]))
  } catch (err) {
    const { message, cure } = unreachable(err, paths.admin)
    checks.push({ name: 'gateway', result: 'fail', found: `it cannot be asked: ${message}`, cure })
    reached = false
  }
  process.stdout.write(
    json
      ? `${JSON.stringify(checks, undefined, 2)}
`
      : printable(report(checks)),
  )
  if (!reached) return 2
  return checks.some(({ result }) => result === 'fail') ? 1 : 0
}

/** The findings for a person. */
export function report(checks: Check[]): string {
  const marks = { ok: 'ok  ', warn: 'WARN', fail: 'FAIL', skip: '-   ' }
  const width = Math.max(...checks.map(({ name }) => name.length))
  const lines = checks.flatMap(({ name, result, found, cure }) => [
    `${marks[result]} ${name.padEnd(width)}  ${found}`,
    ...(cure === undefined
      ? []
      : cure
          .split('\n')
          .map((line, index) => `     ${' '.repeat(width)}  ${index === 0 ? '→ ' : '  '}${line}`)),
  ])
  const bad = checks.filter(({ result }) => result === 'fail' || result === 'warn').length
  return `${lines.join('\n')}\n\n${bad === 0 ? 'Nothing is wrong.' : `${bad} of ${checks.length} need attention.`}\n`
}

async function configuration(paths: Paths): Promise<Check> {
  const problem = (await readFile(paths.problem, 'utf8').catch(() => '')).trim()
  return problem === ''
    ? { name: 'configuration', result: 'ok', found: 'gatehouse.toml was taken over' }
    : {
        name: 'configuration',
        result: 'fail',
        found: problem,
        cure: "Change gatehouse.toml on the card's first partition, then run gatehouse reload or restart the device",
      }
}

async function clock(): Promise<Check> {
  const now = new Date()
  const cure =
    'Check the network and that it lets NTP (UDP port 123) out: timedatectl timesync-status'
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

async function disk(paths: Paths): Promise<Check> {
  for (const place of [paths.tls, '/var']) {
    try {
      const { found, problem } = await examineStorage(place)
      if (problem === undefined) return { name: 'disk', result: 'ok', found }
      return {
        name: 'disk',
        result: problem.severity === 'error' ? 'fail' : 'warn',
        found: `${problem.error.message} (${found})`,
        cure: problem.error.cure,
      }
    } catch {
      continue
    }
  }
  return { name: 'disk', result: 'skip', found: '/var cannot be looked at' }
}

async function firewall(): Promise<Check> {
  try {
    const { stdout } = await run('nft', ['-j', 'list', 'ruleset'], {
      timeout: 10_000,
      maxBuffer: 16 * 2 ** 20,
    })
    const chains = (
      JSON.parse(stdout) as {
        nftables: Array<{ chain?: { hook?: string; policy?: string; table: string } }>
      }
    ).nftables.flatMap(({ chain }) => (chain?.hook === undefined ? [] : [chain]))
    const open = (['input', 'forward', 'output'] as const).filter(
      (hook) => !chains.some((chain) => chain.hook === hook && chain.policy === 'drop'),
    )
    if (open.length === 0)
      return {
        name: 'firewall',
        result: 'ok',
        found: 'input, forward and output drop what is not allowed',
      }
    return {
      name: 'firewall',
      result: 'fail',
      found: `no chain drops by default for ${open.join(', ')}`,
      cure: `${restartDevice}. If it stays so, write the image to the card again`,
    }
  } catch (err) {
    return {
      name: 'firewall',
      result: 'skip',
      found: `it cannot be looked at: ${firstLine(err)}`,
      cure: asRoot,
    }
  }
}

async function resolver(): Promise<Check> {
  try {
    const { stdout } = await run('resolvectl', ['dns'], { timeout: 10_000 })
    const servers = stdout
      .split('\n')
      .flatMap((line) =>
        line
          .slice(line.indexOf(':') + 1)
          .trim()
          .split(/\s+/),
      )
      .filter((server) => server !== '')
    if (servers.length > 0)
      return { name: 'resolver', result: 'ok', found: `asks ${servers.join(', ')}` }
    return {
      name: 'resolver',
      result: 'fail',
      found: 'the network names no DNS server, so no name can be looked up',
      cure: "Have the router's DHCP name one, such as its own address (DNS server, option 6), and restart the device",
    }
  } catch (err) {
    return {
      name: 'resolver',
      result: 'skip',
      found: `systemd-resolved cannot be asked: ${firstLine(err)}`,
    }
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
        cure: `Look at journalctl -u ${failed[0]}`,
      },
    ]
  } catch (err) {
    return [
      { name: 'services', result: 'skip', found: `systemd cannot be asked: ${firstLine(err)}` },
    ]
  }
}

function firstLine(err: unknown): string {
  const { code, stderr } = err as { code?: unknown; stderr?: string }
  return code === 'ENOENT'
    ? 'the program for it is not there'
    : (stderr?.trim() || reason(err)).split('\n', 1)[0]!
}
