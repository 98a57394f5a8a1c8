/**
 * The package on Bun and on Deno, and on Node.js for comparison, beside a native peer: what works,
 * and what each lacks, which is what the README says. `make test-runtimes` fetches the two; without
 * them the tests are skipped.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { cp, mkdir, readFile, symlink, writeFile } from 'node:fs/promises'
import http from 'node:http'
import https from 'node:https'
import path from 'node:path'
import { buffer } from 'node:stream/consumers'
import tls from 'node:tls'
import { execFileSync } from 'node:child_process'
import { after, before, test, type TestContext } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Lab, type LabClient } from '../../../test/lab/lab.ts'
import { Authority } from '../../../test/unit/support/authority.ts'
import { eventually, unixServer } from './support.ts'

const tsnet = path.resolve(import.meta.dirname, '..')
const root = path.resolve(tsnet, '../..')
const fetched = path.join(root, 'out/cache/runtimes/node_modules')
const cpu = process.arch === 'arm64' ? 'arm64' : 'x64'

/** The lock of a directory is by node:ffi, which is Node.js's alone. */
const LOCK = 'two Servers on one dir are refused'

interface Runtime {
  argv: string[]
  /** What does not work on it, and what comes of it. */
  lacks: Record<string, RegExp>
  /** What works one time and not the next. */
  unsteady?: string[]
}

const runtimes: Record<string, Runtime> = {
  node: { argv: [process.execPath], lacks: {} },
  deno: {
    argv: [path.join(fetched, `@deno/linux-${cpu}-glibc/deno`), 'run', '-A', '--no-remote'],
    lacks: { [LOCK]: /not refused/ },
    // Streams stand still at times, most of all those of TLS and those with much data.
    unsteady: [
      'dial',
      'loopback',
      'an HTTP server',
      'httpAgent',
      'httpsAgent',
      'fetch',
      'an HTTPS server',
      'an HTTPS server, own certificate',
    ],
  },
  bun: {
    argv: [path.join(fetched, `@oven/bun-linux-${cpu === 'x64' ? cpu : 'aarch64'}/bin/bun`)],
    lacks: { [LOCK]: /not refused/, fetch: /^TSNET_OPTIONS: .*httpAgent/ },
  },
}
const there = (name: string): boolean => existsSync(runtimes[name]!.argv[0]!)

/** How long a server on a runtime may take for its answer. */
const ASK_MS = 10_000

let lab: Lab
let peer: LabClient
let dir: string
let count = 0

before(async () => {
  if (!there('bun') && !there('deno')) return
  lab = await Lab.start({ name: 'trun' })
  peer = await lab.client('peer')
  dir = path.join(lab.dir, 'project')
  const installed = path.join(dir, 'node_modules/@gatehouse/tsnet')
  await mkdir(path.dirname(installed), { recursive: true })
  const flag = '--disable-warning=ExperimentalWarning'
  execFileSync(process.execPath, [flag, path.join(tsnet, 'package.ts'), installed])
  await symlink(path.join(root, 'node_modules/undici'), path.join(dir, 'node_modules/undici'))
  await cp(path.join(import.meta.dirname, 'runtime.mjs'), path.join(dir, 'runtime.mjs'))

  const authority = new Authority()
  after(() => authority.close())
  await writeFile(path.join(dir, 'ca.pem'), authority.certificate)
  await writeFile(path.join(dir, 'own.pem'), authority.issue('own'))
  await writeFile(path.join(dir, 'package.json'), '{ "name": "consumer", "version": "1.0.0" }')
  const pem = authority.issue('peer')
  const web = http.createServer((_req, res) => res.end('page'))
  const secure = https.createServer({ cert: pem, key: pem }, (_req, res) => res.end('page'))
  const socket = (name: string): string => path.join(lab.dir, `${name}.sock`)
  await unixServer(socket('echo'), (s) => s.pipe(s))
  await unixServer(socket('web'), (s) => web.emit('connection', s))
  await unixServer(socket('secure'), (s) => secure.emit('connection', s))
  await peer.serve(7, socket('echo'))
  await peer.serve(80, socket('web'))
  await peer.serve(443, socket('secure'))
  await peer.echoPackets(7)
})
after(async () => await lab?.stop())

/** What came of each part; what the peer asks of its servers is among it. */
async function attempt(t: TestContext, name: string): Promise<Record<string, string>> {
  const number = ++count
  const ns = await lab.host(name, `10.77.0.${60 + number}`)
  const begun = performance.now()
  const child = lab.exec(
    ns,
    [
      ...runtimes[name]!.argv,
      'runtime.mjs',
      path.join(lab.dir, `state-${name}`),
      name,
      'peer',
      path.join(dir, 'ca.pem'),
      path.join(dir, 'own.pem'),
    ],
    {
      cwd: dir,
      env: {
        HOME: path.join(lab.dir, `home-${name}`),
        TS_AUTHKEY: lab.ready.authKey,
        TS_CONTROL_URL: lab.ready.controlURL,
        ACME_DIRECTORY: lab.ready.acmeDirectory,
        NODE_EXTRA_CA_CERTS: lab.ready.authority,
        DENO_CERT: lab.ready.authority,
        NO_COLOR: '1',
      },
      stdio: ['pipe', 'pipe', 'pipe'],
    },
  )
  let [out, err] = ['', '']
  child.stdout!.on('data', (b: Buffer) => (out += b.toString()))
  child.stderr!.on('data', (b: Buffer) => (err += b.toString()))
  const gone = once(child, 'exit')
  try {
    await eventually('it serves', () => out.includes('serving') || child.exitCode !== null, 60_000)
    t.diagnostic(`serves ${((performance.now() - begun) / 1000).toFixed(1)} s after its start`)
    const asked: Record<string, string> = {}
    const ask = async (what: string, f: () => Promise<unknown>, wanted: string): Promise<void> => {
      const late = sleep(ASK_MS, `nothing within ${ASK_MS} ms`, { ref: false })
      const got = await Promise.race([f(), late]).catch((e) => String(e.message ?? e))
      asked[what] = got === wanted ? 'works' : `${String(got)}, not ${wanted}`
    }
    const domain = `${name}.${lab.ready.suffix}`
    const page = async (url: string): Promise<string> => (await peer.fetch(url)).body.toString()
    await ask('an HTTP server', () => page(`http://${domain}/x`), 'GET /x peer 0')
    await ask('an HTTPS server', () => page(`https://${domain}/x`), 'GET /x peer 0')
    const ip = /^serving at (\S+)$/m.exec(out)?.[1]
    await ask(
      'an HTTPS server, own certificate',
      async () => {
        const stream = await peer.dial(domain, 8443)
        const ca = await readFile(path.join(dir, 'ca.pem'), 'utf8')
        const secure = tls.connect({ socket: stream, servername: 'own', ca })
        secure.write('GET /x HTTP/1.1\r\nHost: own\r\nConnection: close\r\n\r\n')
        const answer = (await buffer(secure)).toString()
        return /GET \/x peer 0/.exec(answer)?.[0] ?? answer
      },
      'GET /x peer 0',
    )
    await ask(
      'a UDP server',
      async () => (await peer.askPacket(`${ip}:7`, Buffer.from('x'))).toString(),
      'x',
    )
    child.stdin!.write('go\n')
    await eventually('its results', () => /^\{.*\}$/m.test(out) || child.exitCode !== null, 300_000)
    const results = JSON.parse(/^\{.*\}$/m.exec(out)![0]) as Record<string, string>
    // Nothing keeps it alive after close().
    const [code] = await Promise.race([
      gone,
      new Promise<[string]>((r) => setTimeout(() => r(['still there']), 15_000).unref()),
    ])
    return { ...results, ...asked, 'ends by itself': code === 0 ? 'works' : String(code) }
  } catch (cause) {
    throw new Error(`${(cause as Error).message}: ${out} ${err}`, { cause })
  } finally {
    child.kill('SIGKILL')
    await gone
  }
}

for (const [name, { lacks, unsteady = [] }] of Object.entries(runtimes)) {
  test(`${name}: what works, and what it lacks`, async (t) => {
    if (!there('bun') && !there('deno'))
      return t.skip('neither Bun nor Deno is there: make test-runtimes')
    if (!there(name)) return t.skip(`${name} is not there: make test-runtimes`)
    const results = await attempt(t, name)
    const failed = Object.entries(results).filter(([, result]) => result !== 'works')
    for (const [part, result] of failed) t.diagnostic(`${part}: ${result}`)
    const always = failed.filter(([part]) => !unsteady.includes(part))
    assert.deepEqual(always.map(([part]) => part).sort(), Object.keys(lacks).sort())
    for (const [part, result] of always) assert.match(result, lacks[part]!)
  })
}

test('nothing left the lab', async (t) => {
  if (!lab) return t.skip('there was none')
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
