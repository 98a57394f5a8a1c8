import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { restartDevice } from '../base/cures.ts'
import { GatehouseError, printable, reason } from '../base/errors.ts'
import type { Paths } from '../base/paths.ts'
import { readApplied } from './apply.ts'
import type { Applied, Caller, Entry } from './apply.ts'
import { readTold } from './names/serve.ts'
import type { Told } from './names/resolver.ts'

const run = promisify(execFile)

/** One object of `nft -j list ruleset` (libnftables-json(5)), as far as it is read here. */
interface NftObject {
  rule?: { chain: string; comment?: string; expr: Array<Record<string, unknown>> }
  counter?: { name: string; comment?: string; packets: number; bytes: number }
}

/** A dropped packet as the kernel logged it. */
export interface Drop {
  /** When, ISO 8601. */
  at: string
  /** The counter it went to, without `dropped-`. */
  why: string
  /** `TCP 10.0.0.5 → 10.0.0.9:22`. */
  what: string
}

/** The parts of the firewall a person asks about. */
export interface Overview {
  in: string[]
  out: string[]
  dropped: Array<{ name: string; comment: string; packets: number }>
}

/**
 * Reads the ruleset: what has a comment and ends in accept (or redirect) is allowed; each reason to
 * drop has a counter.
 */
export function overview(objects: NftObject[]): Overview {
  const allowed = (chains: (chain: string) => boolean): string[] =>
    objects.flatMap(({ rule }) =>
      rule?.comment !== undefined &&
      chains(rule.chain) &&
      rule.expr.some((expr) => 'accept' in expr || 'redirect' in expr || 'dnat' in expr)
        ? [rule.comment]
        : [],
    )
  return {
    in: allowed((chain) => chain.startsWith('in') || chain.startsWith('redirect')),
    // Node-RED's list is told with its names, from what was applied.
    out: allowed((chain) => chain.startsWith('out')),
    dropped: objects.flatMap(({ counter }) =>
      counter === undefined
        ? []
        : [{ name: counter.name, comment: counter.comment ?? '', packets: counter.packets }],
    ),
  }
}

/** The dropped packets in `journalctl -k -o json`, the latest last. */
export function drops(journal: string): Drop[] {
  return journal.split('\n').flatMap((line) => {
    if (!line.includes('gatehouse-drop ')) return []
    const { MESSAGE, __REALTIME_TIMESTAMP } = JSON.parse(line) as {
      MESSAGE: unknown
      __REALTIME_TIMESTAMP: string
    }
    const parts =
      typeof MESSAGE === 'string' ? /^gatehouse-drop ([a-z-]+): (.*)$/.exec(MESSAGE) : null
    if (parts === null) return []
    const field = (name: string): string | undefined =>
      new RegExp(`(?:^| )${name}=(\\S+)`).exec(parts[2]!)?.[1]
    const port = field('DPT')
    const uid = field('UID')
    return [
      {
        at: new Date(Number(__REALTIME_TIMESTAMP) / 1000).toISOString(),
        why: parts[1]!,
        what:
          `${field('PROTO') ?? '?'} ${field('SRC') ?? '?'} → ` +
          `${field('DST') ?? '?'}${port === undefined ? '' : ` port ${port}`}${uid === undefined ? '' : `, user ${uid}`}`,
      },
    ]
  })
}

/** All of it as text for a person. */
export function render(
  rules: Overview,
  applied: Applied | undefined,
  recent: Drop[],
  told: Record<string, Told> = {},
): string {
  const lines = [
    'Allowed in:',
    ...rules.in.map((text) => `  ${text}`),
    '',
    'Allowed out, by user:',
    ...rules.out.map((text) => `  ${text}`),
  ]
  const list = (caller: Caller, entries: readonly Entry[]): void => {
    for (const { text, addresses, refused, problem, pattern } of entries) {
      if (pattern !== undefined) {
        lines.push(`  ${caller}: ${text}`)
        for (const [name, answer] of Object.entries(told).filter(
          ([, { entry }]) => entry === text,
        )) {
          const to = answer.addresses.length === 0 ? '' : ` = ${answer.addresses.join(', ')}`
          lines.push(`    ${name}${to}${answer.problem === undefined ? '' : `: ${answer.problem}`}`)
          for (const [address, why] of Object.entries(answer.refused))
            lines.push(`    refused: ${address}, ${why}`)
        }
        continue
      }
      // An entry that is an address itself needs no other.
      const same = addresses.length === 1 && text.includes(addresses[0]!)
      const found = same ? '' : ` = ${addresses.join(', ')}`
      lines.push(`  ${caller}: ${text}${addresses.length === 0 ? '  NOT NOW' : found}`)
      for (const [address, why] of Object.entries(refused))
        lines.push(`    refused: ${address}, ${why}`)
      if (problem !== undefined) lines.push(`    ${problem}`)
    }
  }
  list('gatehouse', applied?.gateway ?? [])
  list('gatehouse-certs', applied?.certs ?? [])
  list('gatehouse-alerts', applied?.alerts ?? [])
  if (applied === undefined || applied.entries.length === 0)
    lines.push('  node-red: nobody ([node_red] allow in gatehouse.toml is empty)')
  else list('node-red', applied.entries)
  if (
    applied !== undefined &&
    (applied.entries.length > 0 || (applied.gateway ?? applied.certs) !== undefined)
  ) {
    lines.push(`  (names looked up at ${applied.at.slice(0, 19).replace('T', ' ')} UTC)`)
  }
  lines.push('', 'Dropped since the rules were loaded, packets:')
  for (const { name, comment, packets } of rules.dropped)
    lines.push(
      `  ${String(packets).padStart(8)}  ${name.replace(/^dropped-/, '').padEnd(15)} ${comment}`,
    )
  lines.push('', 'Dropped lately (a few a minute of each kind are noted):')
  if (recent.length === 0) lines.push('  nothing')
  for (const { at, why, what } of recent.slice(-15))
    lines.push(`  ${at.slice(0, 19).replace('T', ' ')} UTC  ${why.padEnd(15)} ${what}`)
  return `${lines.join('\n')}\n`
}

/** `gatehouse firewall`. The kernel shows its rules to root alone. */
export async function runShow(paths: Paths): Promise<number> {
  if (process.geteuid?.() !== 0)
    throw new GatehouseError(
      'GH_FIREWALL_ROOT',
      "only root may see the firewall's rules",
      'Run it as root',
    )
  let objects: NftObject[]
  try {
    objects = (
      JSON.parse(
        (await run('nft', ['-j', 'list', 'table', 'inet', 'gatehouse'], { maxBuffer: 1 << 26 }))
          .stdout,
      ) as { nftables: NftObject[] }
    ).nftables
  } catch (err) {
    throw new GatehouseError(
      'GH_FIREWALL_ABSENT',
      `the firewall's rules are not loaded: ${reason(err)}`,
      `Without them the network stays down. ${restartDevice}`,
      { cause: err },
    )
  }
  const journal = await run(
    'journalctl',
    ['-k', '-b', '-q', '-n', '2000', '-o', 'json', '--output-fields=MESSAGE'],
    { maxBuffer: 1 << 26 },
  ).catch(() => ({ stdout: '' }))
  process.stdout.write(
    printable(
      render(
        overview(objects),
        await readApplied(paths.firewall),
        drops(journal.stdout),
        await readTold(paths.firewall),
      ),
    ),
  )
  return 0
}
