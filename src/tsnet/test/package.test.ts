/**
 * The package as it is published: packed and installed by npm in an empty project, on a machine that
 * reaches the lab alone; used by the README's example, word for word, by TypeScript and by a bundler.
 * Its sizes, start and memory are printed.
 */
import { buildSync } from 'esbuild'
import assert from 'node:assert/strict'
import type { ChildProcess } from 'node:child_process'
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { mkdir, readdir, readFile, stat, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Lab, type LabClient } from '../../../test/lab/lab.ts'
import { drain, eventually } from './support.ts'

const tsnet = path.resolve(import.meta.dirname, '..')
const root = path.resolve(tsnet, '../..')
let lab: Lab
let ns: string
let peer: LabClient
/** The empty project. */
let dir: string
let installed: string
let example: string
const MB = (bytes: number): string => `${(bytes / 1e6).toFixed(1)} MB`

before(async () => {
  lab = await Lab.start({ name: 'tread' })
  peer = await lab.client('peer')
  ns = await lab.host('hello', '10.77.0.61')
  dir = path.join(lab.dir, 'project')
  installed = path.join(dir, 'node_modules/@gatehouse/tsnet')
  await mkdir(dir)
  example = /```js\n([^]*?)```/.exec(await readFile(path.join(tsnet, 'README.md'), 'utf8'))![1]!
})
after(async () => await lab?.stop())

/** All files below a directory, with their sizes. */
async function sizes(of: string): Promise<Map<string, number>> {
  const entries = await readdir(of, { recursive: true, withFileTypes: true })
  const files = entries.filter((e) => e.isFile()).map((e) => path.join(e.parentPath, e.name))
  return new Map(
    await Promise.all(
      files.map(async (f) => [path.relative(of, f), (await stat(f)).size] as [string, number]),
    ),
  )
}

/** Runs a program of the project in the lab. */
function start(...argv: string[]): { child: ChildProcess; said: () => string } {
  const child = lab.exec(ns, [process.execPath, ...argv], {
    cwd: dir,
    env: {
      TS_AUTHKEY: lab.ready.authKey,
      TS_CONTROL_URL: lab.ready.controlURL,
      NODE_EXTRA_CA_CERTS: lab.ready.authority,
    },
  })
  let stderr = ''
  child.stderr!.on('data', (b: Buffer) => (stderr += b.toString()))
  return { child, said: () => stderr }
}

/** What the example says to a peer. It ends the program. */
async function greeting(program: { child: ChildProcess; said: () => string }): Promise<string> {
  const stream = await eventually(
    'an answer',
    async () => await peer.dial('hello', 80).catch(() => undefined),
    40_000,
  ).catch((err) => {
    throw new Error(`${err.message}: ${program.said()}`)
  })
  const text = (await drain(stream)).toString()
  assert.equal(program.said(), '')
  return text
}

async function end(child: ChildProcess): Promise<void> {
  const gone = new Promise((resolve) => child.once('exit', resolve))
  child.kill()
  await gone
}

test('npm packs it, and installs it in an empty project', async (t) => {
  const built = path.join(lab.dir, 'package')
  execFileSync(process.execPath, [
    '--disable-warning=ExperimentalWarning',
    path.join(tsnet, 'package.ts'),
    built,
  ])
  await writeFile(path.join(dir, 'package.json'), '{ "name": "consumer", "version": "1.0.0" }\n')
  const npm = async (...args: string[]): Promise<string> => {
    const { code, stdout, stderr } = await lab.run(ns, [
      'env',
      `PATH=${path.dirname(process.execPath)}:${process.env.PATH}`,
      `HOME=${lab.dir}`,
      ...['sh', '-c', 'cd "$1" && shift && exec npm "$@" --offline', 'sh', dir, ...args],
    ])
    assert.equal(code, 0, stderr)
    return stdout
  }
  const [packed] = JSON.parse(
    await npm('pack', '--json', '--pack-destination', lab.dir, built),
  ) as [{ filename: string; size: number; unpackedSize: number }]
  const tarball = path.join(lab.dir, packed.filename)
  await npm('install', '--no-audit', '--no-fund', tarball)
  const files = await sizes(installed)
  t.diagnostic(
    `tarball ${MB((await stat(tarball)).size)}, installed ${MB(packed.unpackedSize)} in ` +
      `${files.size} files, of which the module ${MB(files.get('tsnet.wasm.zst')!)}`,
  )
  const expected = ['index.js', 'index.d.ts', 'tsnet-worker.js', 'tsnet.wasm.zst', 'package.json']
  const texts = ['README.md', 'CHANGELOG.md', 'LICENSE', 'LICENSE.tailscale', 'THIRD_PARTY.txt']
  for (const name of [...expected, ...texts]) assert.ok(files.get(name)! > 0, name)
  for (const name of files.keys())
    assert.match(
      name,
      /\.js$|^bench-tsnet\.svg$|^examples\/\w+\.mjs$|\.d\.ts$|^tsnet\.wasm\.zst$|^package\.json$|\.md$|^LICENSE|\.txt$/,
    )
  const manifest = JSON.parse(await readFile(path.join(installed, 'package.json'), 'utf8'))
  assert.equal(manifest.engines.node, '>=26.1')
  assert.equal(manifest.private, undefined)
  assert.equal(manifest.dependencies, undefined)
})

test('the licences of all that is in the module are there, and which files are changed', async () => {
  const text = await readFile(path.join(installed, 'THIRD_PARTY.txt'), 'utf8')
  for (const part of [
    /^Go 1\.\d+\.\d+ \(standard library and runtime\)$/m,
    /^tailscale\.com v1\./m,
    /^gvisor\.dev\/gvisor is changed in these files/m,
    /^ {2}pkg\/tcpip\/transport\/tcp\/snd\.go$/m,
    /Apache License\s+Version 2\.0/,
    /^github\.com\/tailscale\/wireguard-go is changed in these files/m,
    /Permission is hereby granted, free of charge/,
  ])
    assert.match(text, part)
  // Every module that the linker says is in it.
  const wasm = readFileSync(path.join(tsnet, 'build/tsnet.wasm')).toString('latin1')
  const linked = [...wasm.matchAll(/(?:^|\n)dep\t([^\t\n]+)\t(v[^\t\n]+)/g)]
  assert.ok(linked.length > 15, String(linked.length))
  for (const [, name, version] of linked) assert.ok(text.includes(`\n${name} ${version}\n`), name!)
})

test('the links of its README lead somewhere', async () => {
  const readme = await readFile(path.join(installed, 'README.md'), 'utf8')
  const targets = [...readme.matchAll(/\]\(([^)]+)\)/g)].map((m) => m[1]!)
  assert.ok(targets.length > 0)
  const headings = [...readme.matchAll(/^#+ (.+)$/gm)].map(
    ([, text]) =>
      `#${text!
        .toLowerCase()
        .replace(/[^\w -]/g, '')
        .replaceAll(' ', '-')}`,
  )
  for (const target of targets) {
    if (target.startsWith('#')) assert.ok(headings.includes(target), target)
    else if (!target.startsWith('https://'))
      assert.ok(existsSync(path.join(installed, target)), target)
  }
})

test('the reference made of the doc comments is in it, where it has been made', async (t) => {
  if (!existsSync(path.join(tsnet, 'build/reference')))
    return t.skip('make docs-tsnet, or make package, makes it')
  const api = await readFile(path.join(installed, 'API.md'), 'utf8')
  for (const heading of ['### Server', '##### listenTLS()', '### ServerOptions', '### TsnetError'])
    assert.ok(api.includes(`\n${heading}\n`), heading)
})

test('the example of the README runs', async (t) => {
  await writeFile(path.join(dir, 'hello.mjs'), example)
  const begun = performance.now()
  const program = start('hello.mjs')
  const text = await greeting(program)
  assert.match(text, new RegExp(`^Hello \\S+@\\S+, this is hello\\.${lab.ready.suffix}\n$`))
  t.diagnostic(
    `answers a peer ${((performance.now() - begun) / 1000).toFixed(1)} s after its start`,
  )
  await sleep(Math.max(0, 5000 - (performance.now() - begun))) // what starting left is given back
  const status = await readFile(`/proc/${program.child.pid}/status`, 'utf8')
  const [, resident] = /^VmRSS:\s+(\d+) kB/m.exec(status)!
  t.diagnostic(`resident ${MB(Number(resident) * 1024)}`)
  await end(program.child)
})

/** Bundles the example with esbuild, as a consumer does. */
function bundle(outfile: string, source: string): void {
  buildSync({
    absWorkingDir: dir,
    entryPoints: [source],
    bundle: true,
    platform: 'node',
    format: 'esm',
    external: ['undici'],
    outfile,
    logLevel: 'warning',
  })
}

test('a bundle of esbuild finds worker and module in node_modules', async () => {
  bundle('dist/hello.mjs', 'hello.mjs')
  const program = start('dist/hello.mjs')
  assert.match(await greeting(program), /^Hello /)
  await end(program.child)
})

test('a bundle elsewhere: by the options, and without them one clear error', async () => {
  const elsewhere = path.join(lab.dir, 'elsewhere')
  await mkdir(elsewhere)
  await writeFile(
    path.join(dir, 'placed.mjs'),
    example.replace(
      "hostname: 'hello',",
      `hostname: 'hello', wasm: process.argv[2], worker: new URL('file://' + process.argv[3]),`,
    ),
  )
  const files = ['tsnet.wasm.zst', 'tsnet-worker.js'].map((name) => path.join(installed, name))
  bundle(path.join(elsewhere, 'placed.mjs'), 'placed.mjs')
  const program = start(path.join(elsewhere, 'placed.mjs'), ...files)
  assert.match(await greeting(program), /^Hello /)
  await end(program.child)
  bundle(path.join(elsewhere, 'hello.mjs'), 'hello.mjs')
  const { stderr } = spawnSync(process.execPath, [path.join(elsewhere, 'hello.mjs')], {
    cwd: lab.dir,
    encoding: 'utf8',
  })
  assert.match(stderr, /TSNET_OPTIONS/)
  assert.match(stderr, /tsnet-worker\.js is neither beside .* give its place as the option worker/)
})

test('a Node.js without JSPI gets one clear error at import', async (t) => {
  const older = execFileSync('which', ['-a', 'node'], {
    encoding: 'utf8',
    env: { ...process.env, PATH: `${process.env.PATH}:/usr/bin` },
  })
    .split('\n')
    .filter(Boolean)
    .find(
      (node) =>
        Number(/^v(\d+)/.exec(execFileSync(node, ['--version'], { encoding: 'utf8' }))![1]) < 25,
    )
  if (!older) return t.skip('there is no Node.js below 25 on the PATH')
  await writeFile(
    path.join(dir, 'import.mjs'),
    "await import('@gatehouse/tsnet').then(() => console.log('imported'), (e) => " +
      'console.log(e.name, e.code, e.message));\n',
  )
  const { stdout, stderr } = spawnSync(older, ['import.mjs'], { cwd: dir, encoding: 'utf8' })
  assert.match(
    stdout,
    /^TsnetError TSNET_NODE_VERSION .*JSPI, which Node\.js v\d+\.\d+\.\d+ lacks: use Node\.js 26\.1 or later\n$/,
    stderr,
  )
  t.diagnostic(stdout.trim())
})

test('its types are complete', async () => {
  await writeFile(
    path.join(dir, 'use.ts'),
    `import { Server, TsnetError, type Status, type Conn, type TLSListener } from '@gatehouse/tsnet';
const server = new Server({ dir: 'x' });
export const forgetful = new Server({ memory: true, verbose: 1 });
export const up: Promise<Status> = server.up({ signal: AbortSignal.timeout(1) });
export const conn: Promise<Conn> = server.dial('a', 1);
export const secure: Promise<TLSListener> = server.listenTLS(443);
export const prefs: Promise<{ Hostname: string }> = server.localAPI('GET', '/localapi/v0/prefs').then((a) => a.json<{ Hostname: string }>());
// @ts-expect-error: dir is required
new Server({});
export const code: 'TSNET_AUTH' | undefined = new TsnetError('TSNET_AUTH', '').code === 'TSNET_AUTH' ? 'TSNET_AUTH' : undefined;
`,
  )
  await writeFile(
    path.join(dir, 'tsconfig.json'),
    JSON.stringify({
      compilerOptions: {
        strict: true,
        noEmit: true,
        module: 'nodenext',
        target: 'esnext',
        types: ['node'],
        typeRoots: [path.join(root, 'node_modules/@types')],
      },
      files: ['use.ts'],
    }),
  )
  try {
    execFileSync(process.execPath, [path.join(root, 'node_modules/typescript/bin/tsc'), '-p', dir])
  } catch (err) {
    assert.fail(String((err as { stdout: Buffer }).stdout))
  }
})

test('nothing left the lab', async () => {
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
