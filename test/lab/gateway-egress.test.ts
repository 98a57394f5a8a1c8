/**
 * Where the gateway may connect to for apps and forwards, by the kernel: the image's own ruleset in
 * a network namespace, `gatehouse firewall apply` in it, servers there and on the other end of a
 * cable.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import {
  asUser,
  cable,
  configureFirewall,
  firewall,
  inside,
  ruleset,
  run,
  users,
} from './ruleset.ts'

const [box, other] = [`gh-eg-box-${process.pid}`, `gh-eg-out-${process.pid}`]
const servers: ChildProcess[] = []
let directory: string
let ids: Map<string, string>

/** Starts a program in a namespace and waits for its first line. */
async function start(ns: string, program: string, uid?: string): Promise<ChildProcess> {
  const node = [process.execPath, '-e', program]
  const [command, ...argv] = inside(ns, ...(uid === undefined ? node : asUser(uid, ...node)))
  const child = spawn(command!, argv, { stdio: ['pipe', 'pipe', 'inherit'] })
  servers.push(child)
  await once(child.stdout!, 'data')
  return child
}
const echo = (
  ports: number[],
): string => `const net = require('node:net'); const ports = ${JSON.stringify(ports)};
  Promise.all(ports.map((port) => new Promise((up) => net.createServer((s) => { s.on('error', () => {}); s.write('hello '); s.pipe(s) }).listen({ host: '::', port }, up)))).then(() => console.log('up'))`

/** What a user gets of a list of targets: `hello`, `silence`, or the kernel's refusal. */
async function reach(user: string, ...targets: [string, number][]): Promise<string[]> {
  const program = `const net = require('node:net');
    const one = ([host, port]) => new Promise((done) => {
      const socket = net.connect({ host, port });
      socket.setTimeout(1500, () => done('silence')).on('error', (error) => done(error.code)).on('data', (data) => done(String(data).trim()));
    });
    Promise.all(${JSON.stringify(targets)}.map(one)).then((all) => { console.log(JSON.stringify(all)); process.exit(); });`
  return JSON.parse(
    await run(inside(box, ...asUser(ids.get(user)!, process.execPath, '-e', program))),
  ) as string[]
}

const configure = async (toml: string): Promise<void> => {
  await configureFirewall(box, directory, toml)
}

before(async () => {
  ids = await users()
  directory = await mkdtemp(path.join(tmpdir(), 'gh-egress-'))
  await writeFile(path.join(directory, 'hosts'), '')
  await cable([
    [box, '192.168.78.1/24'],
    [other, '192.168.78.2/24'],
  ])
  await run(inside(box, 'nft', '-f', '-'), await ruleset())
  await start(box, echo([3000, 3001]))
  await start(other, echo([80, 2222, 2223]))
})

after(async () => {
  for (const child of servers) child.kill()
  for (const ns of [box, other]) await run(['ip', 'netns', 'del', ns]).catch(() => {})
  await rm(directory, { recursive: true, force: true })
})

const targets: [string, number][] = [
  ['127.0.0.1', 3000],
  ['127.0.0.1', 3001],
  ['192.168.78.2', 2222],
  ['192.168.78.2', 2223],
  ['192.168.78.2', 80],
]

test('the rules the image ships: ports 80 and 443 elsewhere, and nothing of this machine', async () => {
  assert.deepEqual(await reach('gatehouse', ...targets), [
    'silence',
    'silence',
    'silence',
    'silence',
    'hello',
  ])
})

test('what gatehouse.toml names is reached by the gateway, and by nobody else', async () => {
  await configure(
    '[[app]]\npath = "/a/"\nupstreams = ["http://127.0.0.1:3000"]\n[[forward]]\nport = 22\n' +
      'target = "192.168.78.2:2222"\n',
  )
  assert.deepEqual(await reach('gatehouse', ...targets), [
    'hello',
    'silence',
    'hello',
    'silence',
    'hello',
  ])
  for (const user of ['node-red', 'gatehouse-certs', 'gatehouse-update'])
    assert.deepEqual(
      await reach(user, ['127.0.0.1', 3000], ['192.168.78.2', 2222]),
      ['silence', 'silence'],
      user,
    )
  const shown = await firewall(box, directory)
  assert.match(
    shown,
    /gatehouse: http:\/\/127\.0\.0\.1:3000\n {2}gatehouse: 192\.168\.78\.2:2222\n/,
  )
})

test('changed while it runs: a connection that is open stays, and at no moment is anything reached that is on neither list', async () => {
  const holder = await start(
    box,
    `const s = require('node:net').connect(2222, '192.168.78.2'); s.on('data', (d) => ` +
      `console.log(String(d))); process.stdin.on('data', (d) => s.write(d))`,
    ids.get('gatehouse'),
  )
  const kept = '[[app]]\npath = "/a/"\nupstreams = ["http://127.0.0.1:3000"]\n'
  let done = false
  const tries = (async () => {
    const seen: string[] = []
    while (!done)
      seen.push(
        ...(await reach(
          'gatehouse',
          ['127.0.0.1', 3000],
          ['127.0.0.1', 3001],
          ['192.168.78.2', 2223],
        )),
      )
    return seen
  })()
  for (let i = 0; i < 6; i++)
    await configure(
      i % 2 === 0 ? kept : `${kept}[[forward]]\nport = 22\ntarget = "192.168.78.2:2222"\n`,
    )
  await configure(kept)
  done = true
  const seen = await tries
  assert.ok(seen.length >= 3)
  for (const [i, got] of seen.entries()) assert.equal(got, i % 3 === 0 ? 'hello' : 'silence')
  assert.deepEqual(
    await reach('gatehouse', ['192.168.78.2', 2222]),
    ['silence'],
    'taken off the list',
  )
  holder.stdin!.write('still here')
  const [said] = (await once(holder.stdout!, 'data')) as [Buffer]
  assert.match(String(said), /still here/)
})

test('taken out, all of it is gone', async () => {
  await configure('')
  assert.deepEqual(await reach('gatehouse', ...targets), [
    'silence',
    'silence',
    'silence',
    'silence',
    'hello',
  ])
  assert.match(
    await run(inside(box, 'nft', 'list', 'chain', 'inet', 'gatehouse', 'gatehouse-allow')),
    /gatehouse-allow \{\s*\}/,
  )
})

test("the certificates' agent reaches the name server that is named, and nobody else does", async () => {
  const updates =
    '[certificates]\nmode = "acme"\nproof = "rfc2136"\nname = "gate.example.org"\ntsig_name = "k"\n'
  await configure(`${updates}dns_server = "192.168.78.2:2222"\n`)
  const both: [string, number][] = [
    ['192.168.78.2', 2222],
    ['192.168.78.2', 2223],
  ]
  assert.deepEqual(await reach('gatehouse-certs', ...both), ['hello', 'silence'])
  for (const user of ['gatehouse', 'node-red', 'gatehouse-update'])
    assert.deepEqual(await reach(user, ...both), ['silence', 'silence'], user)
  // An ACME authority on a port of its own; one of the device's own needs nobody.
  await configure('[certificates]\ndirectory = "https://192.168.78.2:2223/acme"\n')
  assert.deepEqual(await reach('gatehouse-certs', ...both), ['silence', 'hello'])
  await configure('[certificates]\nmode = "self"\n')
  assert.deepEqual(await reach('gatehouse-certs', ...both), ['silence', 'silence'])
})

test('a control server of one’s own on another port is reached by the gateway alone', async () => {
  await configure('[tailnet]\ncontrol_url = "http://192.168.78.2:2223"\n')
  assert.deepEqual(await reach('gatehouse', ['192.168.78.2', 2223], ['192.168.78.2', 2222]), [
    'hello',
    'silence',
  ])
  assert.deepEqual(await reach('gatehouse-certs', ['192.168.78.2', 2223]), ['silence'])
})
