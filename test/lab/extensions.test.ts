/**
 * Ports of extensions, by the kernel: the image's own ruleset in a network namespace, a server in it
 * as an extension's user, and whoever may and may not reach it.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type { AttachedExtension } from '../../src/config/extensions.ts'
import { asUser, cable, configureFirewall, inside, ruleset, run, users } from './ruleset.ts'

const [box, other] = [`gh-ex-box-${process.pid}`, `gh-ex-out-${process.pid}`]
const [address, near, far] = ['192.168.82.1', '192.168.82.2', '192.168.82.200']
const children: ChildProcess[] = []
let directory: string
let ids: Map<string, string>

const broker: AttachedExtension = {
  name: 'mosquitto',
  title: 'a broker',
  version: '1',
  user: 'gatehouse-extension-a',
  ports: ['1883/tcp'],
  listen: [],
}

async function start(ns: string, argv: string[]): Promise<ChildProcess> {
  const [command, ...rest] = inside(ns, ...argv)
  const child = spawn(command!, rest, { stdio: ['pipe', 'pipe', 'inherit'] })
  children.push(child)
  await once(child.stdout!, 'data')
  return child
}

async function configure(
  attached: AttachedExtension[],
  { allow = [], more = '' }: { allow?: string[]; more?: string } = {},
): Promise<void> {
  await writeFile(path.join(directory, 'extensions.json'), JSON.stringify(attached))
  const toml = `[node_red]\nallow = ${JSON.stringify(allow)}\n${more}`
  await configureFirewall(box, directory, toml)
}

/** What a TCP connection comes to: `hello`, an error's code, or silence. */
const reach = (host: string, port: number, from?: string): string =>
  `const s = require('node:net').connect({ host: '${host}', port: ${port}${from === undefined ? '' : `, localAddress: '${from}'`} });
   s.setTimeout(700, () => { console.log('silence'); process.exit() }).on('error', (e) => { console.log(e.code); process.exit() })
    .on('data', () => { console.log('hello'); process.exit() })`

/** As a user of the device, or from the other end of the cable. */
async function as(user: string, host: string, port: number): Promise<string> {
  const argv = asUser(ids.get(user)!, process.execPath, '-e', reach(host, port))
  return (await run(inside(box, ...argv))).trim()
}
const outside = async (port: number, from: string): Promise<string> =>
  (await run(inside(other, process.execPath, '-e', reach(address, port, from)))).trim()

before(async () => {
  ids = await users()
  directory = await mkdtemp(path.join(tmpdir(), 'gh-extensions-'))
  await cable([
    [box, `${address}/24`],
    [other, `${near}/24`, `${far}/24`],
  ])
  await run(inside(box, 'nft', '-f', '-'), await ruleset())
  const server = (ports: number[]): string =>
    `const ports = ${JSON.stringify(ports)}; let up = 0; for (const port of ports)
     require('node:net').createServer((s) => { s.on('error', () => {}); s.write('hello'); s.pipe(s) })
      .listen(port, '0.0.0.0', () => { if (++up === ports.length) console.log('up') })`
  // The second port stands for one that an extension is not to have.
  await start(box, [
    ...asUser(ids.get('gatehouse-extension-a')!, process.execPath, '-e', server([1883, 1884])),
  ])
  await start(other, [process.execPath, '-e', server([22, 53])])
})

after(async () => {
  for (const child of children) child.kill()
  for (const ns of [box, other]) await run(['ip', 'netns', 'del', ns]).catch(() => {})
  await rm(directory, { recursive: true, force: true })
})

test('attached, and on no list: nobody reaches it', async () => {
  await configure([broker])
  assert.deepEqual(
    [
      await outside(1883, near),
      await as('node-red', '127.0.0.1', 1883),
      await as('gatehouse', '127.0.0.1', 1883),
      await as('gatehouse-certs', '127.0.0.1', 1883),
    ],
    ['silence', 'silence', 'silence', 'silence'],
  )
})

test('Node-RED by its list, the tailnet by a forward, the local network by listen', async () => {
  await configure([{ ...broker, listen: ['1883/tcp from 192.168.82.0/25'] }], {
    allow: ['extension:mosquitto'],
    more: '[[forward]]\nport = 1883\ntarget = "127.0.0.1:1883"\n',
  })
  assert.deepEqual(
    [
      await as('node-red', '127.0.0.1', 1883),
      await as('gatehouse', '127.0.0.1', 1883),
      await outside(1883, near),
    ],
    ['hello', 'hello', 'hello'],
  )
  assert.deepEqual(
    [
      await as('node-red', '127.0.0.1', 1884),
      await as('node-red', address, 1883),
      await as('gatehouse', '127.0.0.1', 1884),
      await as('gatehouse-update', '127.0.0.1', 1883),
      await outside(1883, far),
      await outside(1884, near),
    ],
    ['silence', 'silence', 'silence', 'silence', 'silence', 'silence'],
  )
})

test('it calls nobody of itself, its own users and ports on this machine included', async () => {
  await configure([{ ...broker, listen: ['1883/tcp from lan'] }], {
    allow: ['extension:mosquitto'],
  })
  for (const user of ['gatehouse-extension-a', 'gatehouse-extension-d'])
    assert.deepEqual(
      [
        await as(user, near, 22),
        await as(user, near, 53),
        await as(user, '127.0.0.1', 1883),
        await as(user, '127.0.0.53', 53),
      ],
      ['silence', 'silence', 'silence', 'silence'],
    )
})

test('what is taken off a list ends at once; what is not attached has no rule', async () => {
  await configure([{ ...broker, listen: ['1883/tcp from lan'] }])
  const holder = await start(other, [
    process.execPath,
    '-e',
    `const s = require('node:net').connect({ host: '${address}', port: 1883, localAddress: ` +
      `'${near}' }); s.on('data', (d) => console.log(String(d))); process.stdin.on('data', (d) ` +
      '=> s.write(d))',
  ])
  holder.stdin!.write('one')
  await once(holder.stdout!, 'data')
  await configure([broker])
  holder.stdin!.write('two')
  const after = await Promise.race([
    once(holder.stdout!, 'data').then(() => 'an answer'),
    sleep(1_500).then(() => 'silence'),
  ])
  assert.equal(after, 'silence')
  await configure([], { allow: ['extension:mosquitto'] })
  assert.equal(await as('node-red', '127.0.0.1', 1883), 'silence')
  const shown = await run(inside(box, 'nft', 'list', 'chain', 'inet', 'gatehouse', 'in-extensions'))
  assert.doesNotMatch(shown, /1883/)
})
