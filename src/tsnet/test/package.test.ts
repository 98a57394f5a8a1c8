/** The package as it is published, used by the README's example, word for word. */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { Lab } from '../../../test/lab/lab.ts'
import { drain, eventually } from './support.ts'

const tsnet = path.resolve(import.meta.dirname, '..')
let lab: Lab
let dir: string

before(async () => {
  lab = await Lab.start({ name: 'tread' })
  dir = path.join(lab.dir, 'project')
  const installed = path.join(dir, 'node_modules/@gatehouse/tsnet')
  await mkdir(installed, { recursive: true })
  execFileSync(process.execPath, [
    '--disable-warning=ExperimentalWarning',
    path.join(tsnet, 'package.ts'),
    installed,
  ])
})
after(async () => await lab?.stop())

test('the example of the README runs', async () => {
  const readme = await readFile(path.join(tsnet, 'README.md'), 'utf8')
  const [, example] = /```js\n([^]*?)```/.exec(readme)!
  await writeFile(path.join(dir, 'hello.mjs'), example!)
  const peer = await lab.client('peer')
  const ns = await lab.host('hello', '10.77.0.61')
  const child = lab.exec(ns, [process.execPath, 'hello.mjs'], {
    cwd: dir,
    env: {
      TS_AUTHKEY: lab.ready.authKey,
      TS_CONTROL_URL: lab.ready.controlURL,
      NODE_EXTRA_CA_CERTS: lab.ready.authority,
    },
  })
  let stderr = ''
  child.stderr!.on('data', (b: Buffer) => (stderr += b.toString()))
  const stream = await eventually(
    'an answer',
    async () => await peer.dial('hello', 80).catch(() => undefined),
    20_000,
  ).catch((err) => {
    throw new Error(`${err.message}: ${stderr}`)
  })
  assert.match(
    (await drain(stream)).toString(),
    new RegExp(`^Hello \\S+@\\S+, this is hello\\.${lab.ready.suffix}\n$`),
  )
  assert.equal(stderr, '')
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
        Number(/^v(\d+)/.exec(execFileSync(node, ['--version'], { encoding: 'utf8' }))?.[1]) < 25,
    )
  if (!older) return t.skip('there is no Node.js below 25 on the PATH')
  await writeFile(
    path.join(dir, 'import.mjs'),
    "await import('@gatehouse/tsnet').then(() => console.log('imported'), (e) => console.log(e.name, e.code, e.message));\n",
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
    `import { Server, TsnetError, type Status, type Conn } from '@gatehouse/tsnet';
const server = new Server({ dir: 'x' });
export const up: Promise<Status> = server.up({ signal: AbortSignal.timeout(1) });
export const conn: Promise<Conn> = server.dial('a', 1);
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
        typeRoots: [path.resolve(tsnet, '../../node_modules/@types')],
      },
      files: ['use.ts'],
    }),
  )
  try {
    execFileSync(process.execPath, [
      path.resolve(tsnet, '../../node_modules/typescript/bin/tsc'),
      '-p',
      dir,
    ])
  } catch (err) {
    assert.fail(String((err as { stdout: Buffer }).stdout))
  }
})

test('nothing left the lab', async () => {
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
