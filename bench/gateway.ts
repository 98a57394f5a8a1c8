/**
 * The gateway beside Caddy, nginx and HAProxy: the same certificate, TLS with keep-alive on
 * loopback, the same origin on a unix socket (nginx for HTTP, ws for WebSockets, stock Node-RED for
 * the editor), turn about, in one run and one network namespace. Of the rounds the better one
 * counts.
 *
 *   cached 8 KiB of script that may be used again for an hour (Cache-Control: public); requests a
 *   second uncached 1 KiB of JSON that may not be stored big 10 MB bodies, uncached, 4 connections;
 *   MB a second ws messages a second there and back, 64 connections ws_rss MB (10^6 bytes)
 *   resident, all processes of the proxy, with 1,000 idle WebSockets; beside it Node.js alone
 *   (bench/floor.ts) editor stock Node-RED's editor over a line of 20 Mbit/s and 10 ms each way,
 *   empty browser cache; ms and bytes tailnet uncached over the tailnet, 64 connections: ours on
 *   wasm tsnet to Go's ReverseProxy on native tsnet (bench/tailnet.ts); tailnet_big its 10 MB bodies,
 *   tailnet_p99 likewise; with --kernel the same by the kernel's data path, as kernel_tailnet…
 *
 * RESULT: ratios ours / Caddy; cached, uncached (requests a second) and p99 (uncached) at 64
 * connections. JSON and plot have all of it.
 *
 * Usage: make bench-gateway (BENCH_FLAGS='--scale 1 --rounds 2 --only gatehouse,caddy --skip
 * editor,tailnet'; '--kernel', and '--tailnet-alone' for these figures and no others). Needs root. Not a test: the figures are of the machine, whose cores the load,
 * the proxy and the origin share.
 */
import { build } from 'esbuild'
import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { Authority } from '../test/unit/support/authority.ts'
import { h2load } from './h2load.ts'
import type { Load } from './h2load.ts'
import { common } from '../tools/options.ts'
import { ratioPlot } from './plot.ts'
import type { Row } from './plot.ts'
import { accepts, memory } from './proc.ts'
import { measureTailnet } from './tailnet.ts'
import type { TailnetResult } from './tailnet.ts'

const { values: options } = parseArgs({
  options: {
    scale: { type: 'string', default: '1' },
    rounds: { type: 'string', default: '2' },
    only: { type: 'string', default: 'gatehouse,caddy,nginx,haproxy' },
    skip: { type: 'string', default: '' },
    out: { type: 'string', default: 'out/bench' },
    kernel: { type: 'boolean', default: false },
    'tailnet-alone': { type: 'boolean', default: false },
  },
})
const scale = Number(options.scale)
const rounds = Number(options.rounds)
const skip = new Set(options.skip.split(','))
const root = path.resolve(import.meta.dirname, '..')
const name = 'gatehouse.tail.ts.net'
const directory = mkdtempSync(path.join(os.tmpdir(), 'gh-bench-'))
chmodSync(directory, 0o755)
const at = (...parts: string[]): string => path.join(directory, ...parts)
const children = new Set<ChildProcess>()

function start(
  command: string,
  args: string[],
  env: NodeJS.ProcessEnv = process.env,
): ChildProcess {
  const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'inherit'], env, cwd: root })
  children.add(child)
  child.once('exit', () => children.delete(child))
  child.stdout!.resume()
  return child
}

async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const ended = new Promise((resolve) => child.once('exit', resolve))
  child.kill('SIGTERM')
  const hard = setTimeout(() => child.kill('SIGKILL'), 5_000)
  await ended
  clearTimeout(hard)
}

/** A process and all below it. */
function family(pid: number): number[] {
  const parents = readdirSync('/proc')
    .filter((entry) => /^\d+$/.test(entry))
    .flatMap((entry) => {
      try {
        return [
          [
            Number(entry),
            Number(
              readFileSync(`/proc/${entry}/stat`, 'utf8')
                .replace(/^.*\) /, '')
                .split(' ')[1],
            ),
          ] as const,
        ]
      } catch {
        return []
      }
    })
  const found = [pid]
  for (const one of found)
    found.push(...parents.filter(([, parent]) => parent === one).map(([child]) => child))
  return found
}

// One certificate for all.
const authority = new Authority()
const pem = at('site.pem')
writeFileSync(pem, authority.issue(name))
const [chain, key] = [at('chain.pem'), at('key.pem')]
const text = readFileSync(pem, 'utf8')
writeFileSync(chain, text.slice(0, text.indexOf('-----BEGIN PRIVATE')))
writeFileSync(key, text.slice(text.indexOf('-----BEGIN PRIVATE')))

const origins = { http: at('origin.sock'), ws: at('ws.sock'), editor: at('editor.sock') }
type Origin = keyof typeof origins

/** Flags of Node.js that the image runs the gateway with. */
const flags = /^(?:\w+=\S+ )?exec \/usr\/bin\/node (.*) \/usr\/lib/m
  .exec(readFileSync(path.join(root, 'overlays/usr/bin/gatehouse'), 'utf8'))![1]!
  .split(' ')

/**
 * Each proxy as its manual would have it for this task, access log off (ours: on); answers the
 * process to measure.
 */
const proxies: Record<string, (origin: Origin, port: number) => ChildProcess> = {
  gatehouse: (origin, port) => {
    mkdirSync(at('gatehouse'), { recursive: true })
    return start(process.execPath, [
      ...flags,
      at('loopback.mjs'),
      String(port),
      origins[origin],
      pem,
      at('gatehouse'),
    ])
  },
  // Not a proxy to compare with: what of the memory is Node.js's own.
  node: (origin, port) =>
    start(process.execPath, [...flags, at('floor.mjs'), String(port), origins[origin], pem]),
  caddy: (origin, port) => {
    writeFileSync(
      at('Caddyfile'),
      '{\n admin off\n persist_config off\n log {\n  output discard\n }\n auto_https off\n ' +
        `servers {\n  protocols h1 h2\n }\n}\nhttps://${name}:${port} {\n bind 127.0.0.1\n tls ` +
        `${chain} ${key}\n reverse_proxy unix/${origins[origin]}\n}\n`,
    )
    return start(
      path.join(root, 'out/bin/caddy'),
      ['run', '--config', at('Caddyfile'), '--adapter', 'caddyfile'],
      { ...process.env, HOME: directory, XDG_DATA_HOME: directory, XDG_CONFIG_HOME: directory },
    )
  },
  nginx: (origin, port) => {
    writeFileSync(
      at('nginx.conf'),
      `user root; daemon off; worker_processes auto; pid ${at('nginx.pid')}; error_log ${at('nginx.log')} crit; worker_rlimit_nofile 8192;
events { worker_connections 4096; }
http { access_log off; proxy_temp_path ${at('pt')}; client_body_temp_path ${at('cb')}; fastcgi_temp_path ${at('f')}; uwsgi_temp_path ${at('u')}; scgi_temp_path ${at('s')};
map $http_upgrade $c { default upgrade; '' ''; }
upstream o { server unix:${origins[origin]}; keepalive 64; }
server { listen 127.0.0.1:${port} ssl http2 backlog=4096; keepalive_requests 1000000; ssl_certificate ${chain}; ssl_certificate_key ${key};
location / { proxy_pass http://o; proxy_http_version 1.1; proxy_set_header Connection $c; proxy_set_header Upgrade $http_upgrade; proxy_set_header Host $host; proxy_buffers 16 64k; proxy_buffer_size 64k; } } }\n`,
    )
    return start('/usr/sbin/nginx', ['-c', at('nginx.conf'), '-p', directory])
  },
  haproxy: (origin, port) => {
    writeFileSync(
      at('haproxy.cfg'),
      'global\n maxconn 4096\ndefaults\n mode http\n timeout connect 5s\n timeout client ' +
        '60s\n timeout server 60s\n timeout tunnel 1h\n option http-keep-alive\n http-reuse ' +
        `always\nfrontend f\n bind 127.0.0.1:${port} ssl crt ${pem} alpn h2,http/1.1\n ` +
        `default_backend o\nbackend o\n server s unix@${origins[origin]}\n`,
    )
    return start('/usr/sbin/haproxy', ['-f', at('haproxy.cfg'), '-db'])
  },
}

const here = (port: number, file: string): [string, string[]] => [
  // As peers ask for it: the gateway takes no other port for its own.
  `https://${name}${file}`,
  [`--connect-to=127.0.0.1:${port}`],
]

async function output(args: string[]): Promise<string> {
  const child = start(process.execPath, ['--disable-warning=ExperimentalWarning', ...args])
  let out = ''
  child.stdout!.setEncoding('utf8').on('data', (piece: string) => {
    out += piece
  })
  const code = await new Promise((resolve) => child.once('close', resolve))
  if (code !== 0) throw new Error(`${args.join(' ')} ended with ${String(code)}`)
  return out
}

interface Result {
  cached: Record<number, Load>
  uncached: Record<number, Load>
  big: Load
  ws: number
  wsRss: number
  editor?: { ms: number; bytes: number; requests: number }
}

const wanted = options.only.split(',')
const results: Record<string, Result> = Object.fromEntries(
  wanted.map((proxy) => [proxy, { cached: {}, uncached: {} } as Result]),
)
/** MB with 1,000 idle WebSockets on Node.js alone: bench/floor.ts. */
let floor = Number.NaN
const say = (proxy: string, what: string, value: string): void => {
  console.log(`${proxy.padEnd(10)} ${what.padEnd(16)} ${value}`)
}

/**
 * Starts all proxies before an origin, has them measured turn about, so that what else the machine
 * does meets all of them, and ends them.
 */
async function turnAbout(
  origin: Origin,
  which: string[],
  measure: (proxy: string, port: number, child: ChildProcess) => Promise<void> | void,
  times = rounds,
): Promise<void> {
  const started = await Promise.all(
    which.map(async (proxy, i) => {
      const port = 8443 + i
      const child = proxies[proxy]!(origin, port)
      await accepts({ port, host: '127.0.0.1' })
      return { proxy, port, child }
    }),
  )
  for (let i = 0; i < times; i++)
    for (const { proxy, port, child } of started) await measure(proxy, port, child)
  await Promise.all(
    started.map(async ({ child }) => {
      await stop(child)
    }),
  )
}

/** The better one: others on the machine only take away. */
const better = (one: Load | undefined, other: Load): Load =>
  one === undefined || other.rps > one.rps ? other : one

async function measureAll(): Promise<void> {
  const loads = [
    ...(['cached', 'uncached'] as const).flatMap((kind) =>
      [1, 64, 1000].map((connections) => ({ kind, connections })),
    ),
    { kind: 'big' as const, connections: 4 },
  ]
  // Some seconds each.
  const requests = { cached: scale * 20_000, uncached: scale * 20_000, big: scale * 300 }
  const files = { cached: '/cached.js', uncached: '/uncached.json', big: '/big.bin' }
  for (const { kind, connections } of loads) {
    await turnAbout('http', wanted, (proxy, port) => {
      const result = results[proxy]!
      const [target, how] = here(port, files[kind])
      const load = h2load(target, connections, requests[kind] * (connections === 1 ? 0.25 : 1), how)
      say(
        proxy,
        `${kind} c=${connections}`,
        `${load.rps.toFixed(0)} req/s, p50 ${load.p50.toFixed(2)} p99 ${load.p99.toFixed(2)} ` +
          `p999 ${load.p999.toFixed(2)} ms, ${load.mbps.toFixed(0)} ` +
          `MB/s${load.failed > 0 ? `, ${load.failed} FAILED` : ''}`,
      )
      if (kind === 'big') result.big = better(result.big, load)
      else result[kind][connections] = better(result[kind][connections], load)
    })
  }
  await turnAbout('ws', wanted, async (proxy, port) => {
    const rate = Number(await output(['bench/websocket.ts', 'echo', String(port), '64']))
    results[proxy]!.ws = Math.max(results[proxy]!.ws ?? 0, rate)
    say(proxy, 'ws', `${rate.toFixed(0)} messages/s`)
  })
  // In fresh processes: what the loads left behind is not the WebSockets'.
  await turnAbout(
    'ws',
    [...wanted, 'node'],
    async (proxy, port, child) => {
      const before = family(child.pid!).reduce((sum, pid) => sum + memory(pid).rss, 0)
      const idle = start(process.execPath, ['bench/websocket.ts', 'idle', String(port), '1000'])
      await new Promise<void>((resolve, reject) => {
        idle.stdout!.once('data', () => resolve())
        idle.once('exit', () => reject(new Error('the idle WebSockets ended')))
      })
      await sleep(3_000)
      const rss = family(child.pid!).reduce((sum, pid) => sum + memory(pid).rss, 0)
      if (proxy === 'node') floor = rss
      else results[proxy]!.wsRss = rss
      idle.stdin!.end()
      say(proxy, '1,000 idle ws', `${rss.toFixed(0)} MB, ${before.toFixed(0)} MB before`)
      await stop(idle)
    },
    1,
  )
  if (skip.has('editor')) return
  await turnAbout(
    'editor',
    wanted.filter((proxy) => proxy === 'gatehouse' || proxy === 'caddy'),
    async (proxy, port) => {
      const loaded = JSON.parse(
        await output(['bench/editor.ts', String(port), '3']),
      ) as NonNullable<Result['editor']>
      if (loaded.ms < (results[proxy]!.editor?.ms ?? Infinity)) results[proxy]!.editor = loaded
      say(
        proxy,
        'editor',
        `${loaded.ms.toFixed(0)} ms, ${(loaded.bytes / 1e6).toFixed(2)} MB, ${loaded.requests} requests`,
      )
    },
  )
}

try {
  // As the image ships it: Node.js reading TypeScript takes memory of its own.
  for (const file of ['loopback', 'floor'])
    await build({
      ...common,
      splitting: true,
      entryPoints: [path.join(root, `bench/${file}.ts`)],
      outdir: directory,
      outExtension: { '.js': '.mjs' },
    })
  mkdirSync(at('www'))
  writeFileSync(
    at('www/cached.js'),
    'export const gatehouse = "keep";\n'.repeat(256).slice(0, 8192),
  )
  writeFileSync(at('www/uncached.json'), JSON.stringify({ keep: 'x'.repeat(1008) }))
  writeFileSync(at('www/big.bin'), Buffer.alloc(10_000_000, 7))
  writeFileSync(
    at('origin.conf'),
    `user root; daemon off; worker_processes 1; pid ${at('origin.pid')}; error_log ${at('origin.log')} crit; worker_rlimit_nofile 8192;
events { worker_connections 4096; }
http { access_log off; sendfile on; keepalive_requests 100000000; types { application/json json; text/javascript js; application/octet-stream bin; }
client_body_temp_path ${at('ocb')}; proxy_temp_path ${at('opt')}; fastcgi_temp_path ${at('of')}; uwsgi_temp_path ${at('ou')}; scgi_temp_path ${at('os')}; open_file_cache max=10;
server { listen unix:${origins.http} backlog=4096; root ${at('www')}; location = /cached.js { add_header Cache-Control "public, max-age=3600"; } location / { add_header Cache-Control no-store; } } }\n`,
  )
  start('/usr/sbin/nginx', ['-c', at('origin.conf'), '-p', directory])
  start(process.execPath, ['bench/echo.ts', origins.ws])
  await accepts({ path: origins.http })
  await accepts({ path: origins.ws })
  if (!skip.has('editor')) {
    const nodeRed = path.join(root, 'out/cache/node-red/node_modules/node-red/red.js')
    if (!existsSync(nodeRed))
      throw new Error(`${nodeRed} is missing: make bench-gateway fetches it`)
    mkdirSync(at('node-red'))
    writeFileSync(
      at('node-red/settings.js'),
      `module.exports = { uiPort: ${JSON.stringify(origins.editor)}, credentialSecret: ` +
        `'bench', telemetry: { enabled: false }, logging: { console: { level: 'error' } } }\n`,
    )
    start(process.execPath, [
      nodeRed,
      '--userDir',
      at('node-red'),
      '--settings',
      at('node-red/settings.js'),
    ])
    await accepts({ path: origins.editor })
  }

  if (!options['tailnet-alone']) await measureAll()
  const tailnet = skip.has('tailnet')
    ? undefined
    : await measureTailnet({
        origin: origins.http,
        requests: scale * 10_000,
        kernel: options.kernel,
        say: (line) => console.log(line),
      })
  const overTailnet = {
    tailnet: tailnet?.ours.small ?? Number.NaN,
    tailnet_big: tailnet?.ours.big ?? Number.NaN,
    tailnet_p99: tailnet?.ours.p99 ?? Number.NaN,
    ...(tailnet?.kernel && {
      kernel_tailnet: tailnet.kernel.small,
      kernel_tailnet_big: tailnet.kernel.big,
      kernel_tailnet_p99: tailnet.kernel.p99,
    }),
  }
  mkdirSync(path.join(root, options.out), { recursive: true })
  if (options['tailnet-alone']) {
    writeFileSync(
      path.join(root, options.out, 'gateway-tailnet.json'),
      `${JSON.stringify({ at: new Date().toISOString(), machine: { cpu: os.cpus()[0]?.model, cores: os.cpus().length, node: process.version }, scale, tailnet }, null, 2)}\n`,
    )
    console.log(resultLine(overTailnet))
  } else compare(tailnet, overTailnet)
} finally {
  await Promise.all([...children].map(stop))
  authority.close()
  rmSync(directory, { recursive: true, force: true })
}

function resultLine(figures: Record<string, number>): string {
  const shown = Object.entries(figures).map(
    ([figure, value]) => `${figure}=${value.toFixed(figure === 'ws_rss_mb' ? 0 : 2)}`,
  )
  return `RESULT ${shown.join(' ')}`
}

/** Writes JSON and plot, and prints the ratios. */
function compare(tailnet: TailnetResult | undefined, overTailnet: Record<string, number>): void {
  const { gatehouse: ours, caddy } = results
  if (ours === undefined || caddy === undefined)
    throw new Error('nothing to compare: measure gatehouse and caddy')
  const ratio = (of: (result: Result) => number): number => of(ours) / of(caddy)
  const figures = {
    cached: ratio((result) => result.cached[64]!.rps),
    uncached: ratio((result) => result.uncached[64]!.rps),
    p99: ratio((result) => result.uncached[64]!.p99),
    editor_time: ratio((result) => result.editor?.ms ?? Number.NaN),
    editor_bytes: ratio((result) => result.editor?.bytes ?? Number.NaN),
    ws_rss_mb: ours.wsRss,
    ...overTailnet,
  }
  writeFileSync(
    path.join(root, options.out, 'gateway.json'),
    `${JSON.stringify({ at: new Date().toISOString(), machine: { cpu: os.cpus()[0]?.model, cores: os.cpus().length, node: process.version }, scale, rounds, results, floor, tailnet, figures }, null, 2)}\n`,
  )
  const spread = (
    label: string,
    note: string,
    values: number[],
    goodIs: Row['goodIs'],
    goal?: number,
  ): Row => {
    const sorted = values.toSorted((a, b) => a - b)
    return {
      label,
      note,
      min: sorted[0]!,
      median: sorted[Math.floor(sorted.length / 2)]!,
      max: sorted.at(-1)!,
      goodIs,
      ...(goal === undefined ? {} : { goal }),
    }
  }
  const each = (of: (result: Result, connections: number) => number): number[] =>
    [1, 64, 1000].map((connections) => ratio((result) => of(result, connections)))
  writeFileSync(
    path.join(root, options.out, 'gateway.svg'),
    ratioPlot(
      'The gateway beside Caddy',
      'ours / Caddy 2.11, TLS on loopback; over 1, 64 and 1,000 connections; dashed: the goal',
      [
        spread(
          'cached',
          'requests a second',
          each((result, c) => result.cached[c]!.rps),
          'more',
          1,
        ),
        spread(
          'uncached',
          'requests a second',
          each((result, c) => result.uncached[c]!.rps),
          'more',
          0.5,
        ),
        spread(
          'p99',
          'uncached, ms',
          each((result, c) => result.uncached[c]!.p99),
          'less',
          2,
        ),
        spread('10 MB bodies', 'bytes a second', [ratio((result) => result.big.mbps)], 'more'),
        spread('WebSockets', 'messages a second', [ratio((result) => result.ws)], 'more'),
        spread('memory', '1,000 idle WebSockets', [ratio((result) => result.wsRss)], 'less'),
        ...(ours.editor === undefined
          ? []
          : [
              spread('editor, time', '20 Mbit/s, 20 ms', [figures.editor_time], 'less', 0.5),
              spread('editor, bytes', 'over the line', [figures.editor_bytes], 'less', 0.5),
            ]),
        ...(tailnet === undefined
          ? []
          : [spread('tailnet', 'to Go, native tsnet; requests/s', [tailnet.ours.small], 'more')]),
      ],
      [0.1, 0.25, 0.5, 1, 2, 4],
    ),
  )
  console.log(resultLine(figures))
}
