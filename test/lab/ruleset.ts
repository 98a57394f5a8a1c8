/**
 * The image's own ruleset in a network namespace of a test's making, for what only the kernel can
 * tell.
 */
import { execFile } from 'node:child_process'
import { readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'

const overlays = path.resolve(import.meta.dirname, '../../overlays')

/** Runs a command; rejects with what it said when it fails. */
export function run(argv: string[], input?: string): Promise<string> {
  return new Promise((done, fail) => {
    const child = execFile(argv[0]!, argv.slice(1), (error, stdout, stderr) =>
      error ? fail(new Error(`${argv.join(' ')}: ${stderr}`)) : done(stdout),
    )
    child.stdin?.end(input)
  })
}

/** A command in a namespace. */
export const inside = (ns: string, ...argv: string[]): string[] => [
  'ip',
  'netns',
  'exec',
  ns,
  ...argv,
]

/** A command as one of the image's users, by number, without its groups. */
export const asUser = (uid: string, ...argv: string[]): string[] => [
  ...['setpriv', `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups'],
  ...argv,
]

/**
 * `gatehouse firewall …` in a namespace, on the settings and files of a directory, as
 * gatehouse-firewall.service runs it with `apply`. What it prints.
 */
export async function firewall(ns: string, directory: string, ...argv: string[]): Promise<string> {
  const own = [`GATEHOUSE_CONFIG_DIR=${directory}`, `GATEHOUSE_FIREWALL_DIR=${directory}`]
  const main = path.resolve(import.meta.dirname, '../../src/main.ts')
  const program = [process.execPath, '--disable-warning=ExperimentalWarning', main]
  return await run(inside(ns, 'env', ...own, ...program, 'firewall', ...argv))
}

/** Writes gatehouse.toml there, and puts it in force. */
export async function configureFirewall(
  ns: string,
  directory: string,
  toml: string,
): Promise<void> {
  await writeFile(path.join(directory, 'gatehouse.toml'), toml)
  await firewall(ns, directory, 'apply')
}

/** Two namespaces of the names given, with a cable between their eth0; addresses with prefixes. */
export async function cable(
  ends: readonly [readonly [string, ...string[]], readonly [string, ...string[]]],
): Promise<void> {
  const [[one], [other]] = ends
  for (const [ns] of ends) await run(['ip', 'netns', 'add', ns])
  const pair = ['type', 'veth', 'peer', 'name', 'eth0', 'netns', other]
  await run(['ip', '-n', one, 'link', 'add', 'eth0', ...pair])
  for (const [ns, ...addresses] of ends) {
    for (const address of addresses)
      await run(['ip', '-n', ns, 'addr', 'add', address, 'dev', 'eth0'])
    for (const link of ['lo', 'eth0']) await run(['ip', '-n', ns, 'link', 'set', link, 'up'])
  }
}

/** Users of the image by number: this machine does not have them. */
export async function users(): Promise<Map<string, string>> {
  const own = [
    ...(await readFile(path.join(overlays, 'usr/lib/sysusers.d/gatehouse.conf'), 'utf8')).matchAll(
      /^u\s+(\S+)\s+(\d+)/gm,
    ),
  ].map(([, name, id]): [string, string] => [name!, id!])
  return new Map([
    ...own,
    ['systemd-network', '998'],
    ['systemd-resolve', '997'],
    ['systemd-timesync', '996'],
  ])
}

/** The ruleset, with users by number. */
export async function ruleset(): Promise<string> {
  const numbers = await users()
  const byNumber = (names: string): string =>
    names.replaceAll(/[a-z][a-z-]*/g, (name) => numbers.get(name) ?? name)
  return (await readFile(path.join(overlays, 'etc/nftables.conf'), 'utf8')).replaceAll(
    /skuid (\{[^}]*\}|[a-z-]+)/g,
    (_, names: string) => `skuid ${byNumber(names)}`,
  )
}
