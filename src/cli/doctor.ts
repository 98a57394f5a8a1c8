import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { asRoot, restartDevice } from '../base/cures.ts'
import { printable } from '../base/errors.ts'
import type { Paths } from '../base/paths.ts'
import { examineSystem, firstLine } from '../broker/checks.ts'
import type { Check } from '../broker/checks.ts'
import { examineStorage } from '../gateway/operate/storage.ts'
import { call, unreachable } from '../base/control-client.ts'
import { report } from './findings.ts'

const run = promisify(execFile)

/**
 * `gatehouse doctor`: looks at every link of the chain from clock to Node-RED, and says of each
 * that is broken what it is and what to do.
 *
 * @returns 0 nothing is broken, 1 something is, 2 the gateway cannot be reached (the rest is looked
 *   at all the same)
 */
export async function runDoctor(paths: Paths, { json }: { json: boolean }): Promise<number> {
  const checks = [...(await examineSystem(paths)), await disk(paths), await firewall()]
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
