/**
 * How long the appliance's processes take to start on this machine, from the root that the image
 * holds, read anew from the disk each time: with the compiled code that is in it (image/compile.mjs)
 * and without (NODE_DISABLE_COMPILE_CACHE). The gateway until it answers, Node-RED until its flows
 * have started, and the shortest command. No systemd, no network: what Node.js takes, no more.
 *
 * Usage, as root: node bench/start.ts [--rounds N]
 * Needs out/mkosi/gatehouse-<arch>.root.raw of this machine's kind; leaves out/bench/start.json.
 */
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import http from 'node:http'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { cpuSeconds } from './proc.ts'

const { values } = parseArgs({
  options: { rounds: { type: 'string', default: '7' }, inside: { type: 'boolean' } },
})
const root = path.resolve(import.meta.dirname, '..')
const arch = process.arch === 'arm64' ? 'arm64' : 'amd64'
const image = path.join(root, `out/mkosi/gatehouse-${arch}.root.raw`)

if (values.inside !== true) {
  // Mounts and network of its own, gone with the process.
  const { status } = spawnSync(
    'unshare',
    ['--mount', '--net', process.execPath, ...process.argv.slice(1), '--inside'],
    { stdio: 'inherit' },
  )
  process.exit(status ?? 1)
}

interface Start {
  /** Seconds until it is there. */
  wall: number
  /** Seconds of CPU time of the thread that runs JavaScript until then. */
  cpu: number
}

const mount = await mkdtemp(path.join(tmpdir(), 'gatehouse-start-'))
const run = (command: string, ...args: string[]): void => void execFileSync(command, args)

/** The root with nothing of it in memory, and empty places to write. */
async function fresh(): Promise<void> {
  spawnSync('umount', ['--recursive', mount])
  run('dd', `if=${image}`, 'iflag=nocache', 'of=/dev/null', 'count=0', 'status=none')
  run('mount', '-t', 'erofs', '-o', 'ro,loop', image, mount)
  for (const place of ['var', 'run', 'tmp'])
    run('mount', '-t', 'tmpfs', 'tmpfs', path.join(mount, place))
  run('mount', '--bind', '/dev', path.join(mount, 'dev'))
  run('mount', '-t', 'proc', 'proc', path.join(mount, 'proc'))
  for (const folder of ['config', 'credentials', 'state', 'run', 'tls', 'user'])
    await mkdir(path.join(mount, 'tmp', folder), { recursive: true })
  const put = (file: string, text: string): Promise<void> =>
    writeFile(path.join(mount, 'tmp', file), text)
  await put('config/gatehouse.toml', '[tailnet]\n')
  await put('credentials/authkey', 'tskey-auth-none')
  await put('credentials/channel', `${'a'.repeat(64)}\n`)
  await put(
    'settings.js',
    'module.exports = { uiPort: "/tmp/http.sock", credentialSecret: "none", telemetry: { ' +
      'enabled: false, updateNotification: false } }',
  )
}

const environment = {
  PATH: '/usr/sbin:/usr/bin:/bin',
  NODE_ENV: 'production',
  GATEHOUSE_CONFIG_DIR: '/tmp/config',
  GATEHOUSE_PROBLEM_FILE: '/tmp/problem',
  GATEHOUSE_TLS_DIR: '/tmp/tls',
  GATEHOUSE_NODE_RED_SOCKET: '/tmp/http.sock',
  GATEHOUSE_ADMIN_SOCKET: '/tmp/admin.sock',
  GATEHOUSE_CERTS_SOCKET: '/tmp/certs.sock',
  STATE_DIRECTORY: '/tmp/state',
  RUNTIME_DIRECTORY: '/tmp/run',
  CREDENTIALS_DIRECTORY: '/tmp/credentials',
  NODE_COMPILE_CACHE: '/usr/lib/gatehouse/compiled',
}

const healthy = async (): Promise<boolean> =>
  await new Promise((resolve) => {
    const socketPath = path.join(mount, 'tmp/admin.sock')
    http
      .get({ socketPath, path: '/healthz' }, (answer) => {
        answer.resume()
        resolve(answer.statusCode === 200)
      })
      .on('error', () => {
        resolve(false)
      })
  })

/** What is started, and how it is seen that it has: by what it has printed, or otherwise. */
const subjects: Record<
  string,
  { command: string[]; there: (printed: string, ended: boolean) => boolean | Promise<boolean> }
> = {
  'gatehouse serve': { command: ['/usr/bin/gatehouse', 'serve'], there: healthy },
  'Node-RED': {
    command: [
      '/usr/bin/node',
      '--max-http-header-size=1114112',
      '/usr/lib/node-red/node_modules/node-red/red.js',
      '-s',
      '/tmp/settings.js',
      '-u',
      '/tmp/user',
    ],
    there: (printed) => printed.includes('Started flows'),
  },
  'gatehouse version': {
    command: ['/usr/bin/gatehouse', 'version'],
    there: (_, ended) => ended,
  },
}

async function start(name: string, compiled: boolean): Promise<Start> {
  await fresh()
  const { command, there } = subjects[name]!
  const began = performance.now()
  const child = spawn('chroot', [mount, ...command], {
    env: { ...environment, ...(compiled ? {} : { NODE_DISABLE_COMPILE_CACHE: '1' }) },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let printed = ''
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (text: string) => {
      printed += text
    })
  const { promise: gone, resolve } = Promise.withResolvers<void>()
  child.on('close', () => {
    resolve()
  })
  let cpu = 0
  for (;;) {
    const ended = child.exitCode !== null || child.signalCode !== null
    if (!ended) cpu = cpuSeconds(child.pid!, 'main')
    if (await there(printed, ended)) break
    if (ended || performance.now() - began > 120_000)
      throw new Error(`${name} has not started: ${printed.slice(-1000)}`)
    await sleep(5)
  }
  const wall = (performance.now() - began) / 1000
  child.kill('SIGKILL')
  await gone
  return { wall, cpu }
}

const median = (list: number[]): number =>
  list.toSorted((a, b) => a - b)[Math.floor(list.length / 2)]!
const result: Record<string, unknown> = { arch, rounds: Number(values.rounds) }
try {
  for (const name of Object.keys(subjects)) {
    const seen: Record<'compiled' | 'not', Start[]> = { compiled: [], not: [] }
    // By turns: what else the machine does is then the same for both.
    for (let i = 0; i < Number(values.rounds); i++)
      for (const kind of ['not', 'compiled'] as const)
        seen[kind].push(await start(name, kind === 'compiled'))
    const of = (kind: 'compiled' | 'not', what: keyof Start): number =>
      Number(median(seen[kind].map((one) => one[what])).toFixed(2))
    const line = {
      without: { wall: of('not', 'wall'), cpu: of('not', 'cpu') },
      compiled: { wall: of('compiled', 'wall'), cpu: of('compiled', 'cpu') },
    }
    result[name] = line
    console.log(
      `${name}: without ${line.without.wall} s (${line.without.cpu} of CPU time), with ` +
        `compiled code ${line.compiled.wall} s (${line.compiled.cpu})`,
    )
  }
} finally {
  spawnSync('umount', ['--recursive', mount])
  await rm(mount, { recursive: true, force: true })
}
await mkdir(path.join(root, 'out/bench'), { recursive: true })
await writeFile(
  path.join(root, 'out/bench/start.json'),
  `${JSON.stringify(result, undefined, 2)}\n`,
)
