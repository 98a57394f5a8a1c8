/**
 * The image's own ruleset in a network namespace of a test's making, for what only the kernel can
 * tell.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'

const overlays = path.resolve(import.meta.dirname, '../../overlays')
const source = path.resolve(import.meta.dirname, '../../src')

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

const started: ChildProcess[] = []

/** Ends what {@link start} and {@link startResolver} have started: for a test's `after`. */
export function stopStarted(): void {
  for (const child of started) child.kill()
}

/**
 * Starts a program in a namespace, and waits for its first line on standard output; rejects when it
 * ends before. {@link stopStarted} ends it.
 */
export async function start(ns: string, argv: string[]): Promise<ChildProcess> {
  const [command, ...rest] = inside(ns, ...argv)
  const child = spawn(command!, rest, { stdio: ['pipe', 'pipe', 'inherit'] })
  started.push(child)
  await Promise.race([
    once(child.stdout!, 'data'),
    once(child, 'exit').then(([code]) => {
      throw new Error(`${argv.at(-1)}: ended with ${code}`)
    }),
  ])
  return child
}

/**
 * Starts the resolver in a namespace as gatehouse-names.service runs it, for the files of the
 * firewall in `directory`. `validity`: for how long an answer counts, in seconds, where a test waits
 * for the end of it; default as in the image.
 */
export async function startResolver(
  ns: string,
  directory: string,
  validity?: { floor: number; ceiling: number; grace: number },
): Promise<ChildProcess> {
  const user = (await users()).get('gatehouse-firewall')!
  const options = { socket: { address: '127.0.0.55', port: 53 }, ...(validity && { validity }) }
  return await start(ns, [
    ...asUser(user, '--inh-caps=+net_admin', '--ambient-caps=+net_admin', process.execPath),
    ...['--disable-warning=ExperimentalWarning', '--input-type=module', '-e'],
    `import { serveNames } from ${JSON.stringify(path.join(source, 'firewall/names/serve.ts'))};
     console.log('up');
     await serveNames(${JSON.stringify({ firewall: directory })}, ${JSON.stringify(options)})`,
  ])
}

/**
 * Runs the body of an async function as a user in a namespace, with what flows do with names: what
 * it returns, by JSON. It has `look(name, family)` (addresses with their `ttl`, or the code of the
 * error), `reach(host, port)` (the first word that a server says, `silence` or a code) and
 * `call(name, port)`, which is both. A question that the firewall drops is refused at once (EPERM),
 * which c-ares calls ECONNREFUSED. `wait`: milliseconds until it is silence.
 */
export async function asking<T>(ns: string, user: string, body: string, wait = 2_500): Promise<T> {
  const uid = (await users()).get(user)!
  const program = `
    const net = require('node:net'); const { Resolver } = require('node:dns').promises;
    const dns = new Resolver({ timeout: 1500, tries: 1 }); dns.setServers(['127.0.0.55']);
    const look = (name, family = 4) => dns['resolve' + family](name, { ttl: true }).then((all) => all, (error) => error.code);
    const reach = (host, port = 443) => new Promise((done) => {
      const socket = net.connect({ host, port });
      socket.setTimeout(${wait}, () => done('silence')).on('error', (error) => done(error.code)).on('data', (data) => { socket.destroy(); done(String(data).trim()); });
    });
    const call = async (name, port) => { const all = await look(name); return Array.isArray(all) && all.length > 0 ? await reach(all[0].address, port) : all; };
    (async () => { ${body} })().then((out) => { console.log(JSON.stringify(out)); process.exit(); });`
  return JSON.parse(await run(inside(ns, ...asUser(uid, process.execPath, '-e', program)))) as T
}

/**
 * `gatehouse firewall …` in a namespace, on the settings and files of a directory, as
 * gatehouse-firewall.service runs it with `apply`. What it prints.
 */
export async function firewall(ns: string, directory: string, ...argv: string[]): Promise<string> {
  const own = [
    `GATEHOUSE_CONFIG_DIR=${directory}`,
    `GATEHOUSE_FIREWALL_DIR=${directory}`,
    `GATEHOUSE_PROBLEM_FILE=${path.join(directory, 'problem')}`,
  ]
  const program = [
    ...[process.execPath, '--disable-warning=ExperimentalWarning'],
    path.join(source, 'main.ts'),
  ]
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

/**
 * The ruleset for a gateway that is root's: root has what the image gives to the user gatehouse.
 */
export async function rulesetForRoot(): Promise<string> {
  const gatehouse = new RegExp(`\\b${(await users()).get('gatehouse')!}\\b(?=[ ,}])`, 'g')
  return (await ruleset()).replaceAll(gatehouse, '0')
}
