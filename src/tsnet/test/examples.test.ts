/** The programs in examples/ run as they are, in the lab. */
import assert from 'node:assert/strict'
import type { ChildProcess } from 'node:child_process'
import { cp, mkdir, symlink } from 'node:fs/promises'
import type { Socket } from 'node:net'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { Lab, type LabClient } from '../../../test/lab/lab.ts'
import { eventually, unixServer } from './support.ts'

const root = path.resolve(import.meta.dirname, '../../..')
let lab: Lab
let peer: LabClient
let dir: string
let count = 0

before(async () => {
  lab = await Lab.start({ name: 'texa' })
  peer = await lab.client('peer')
  dir = path.join(lab.dir, 'project')
  await cp(path.join(root, 'src/tsnet/examples'), dir, { recursive: true })
  // The bindings from source, and Fastify: both lie in the repository's node_modules.
  await mkdir(path.join(dir, 'node_modules'))
  for (const name of ['@gatehouse', 'fastify'])
    await symlink(path.join(root, 'node_modules', name), path.join(dir, 'node_modules', name))
})
after(async () => await lab?.stop())

/** Runs an example in a host of its own; what it says, and what it complains of. */
async function run(...argv: string[]): Promise<{ child: ChildProcess; said: () => string[] }> {
  const ns = await lab.host(`e${++count}`, `10.77.0.${60 + count}`)
  const flag = '--disable-warning=ExperimentalWarning'
  const child = lab.exec(ns, [process.execPath, flag, ...argv], {
    cwd: dir,
    env: {
      TS_AUTHKEY: lab.ready.authKey,
      TS_CONTROL_URL: lab.ready.controlURL,
      NODE_EXTRA_CA_CERTS: lab.ready.authority,
    },
  })
  const said = ['', '']
  child.stdout!.on('data', (b: Buffer) => (said[0] += b.toString()))
  child.stderr!.on('data', (b: Buffer) => (said[1] += b.toString()))
  return { child, said: () => said }
}

const page = (url: string): Promise<string> =>
  eventually(
    url,
    async () => (await peer.fetch(url).catch(() => undefined))?.body.toString(),
    40_000,
  )

test('identity.mjs: who asks, and where', async () => {
  const { child, said } = await run('identity.mjs')
  assert.match(await page('http://who/'), /^User \d+, at peer\n$/)
  assert.deepEqual(said(), [`http://who.${lab.ready.suffix}/\n`, ''])
  child.kill()
})

test('fastify.mjs: a route, with who asks', async () => {
  const { child, said } = await run('fastify.mjs')
  const answer = JSON.parse(await page('http://api/hello/you')) as { hello: string; from: string }
  assert.equal(answer.hello, 'you')
  assert.match(answer.from, /@/)
  assert.equal(said()[1], '')
  child.kill()
})

test('database.mjs: questions and answers, and the process ends by itself', async () => {
  const values = new Map<string, string>()
  const socket = path.join(lab.dir, 'redis.sock')
  await unixServer(socket, (s: Socket) => {
    s.on('data', (b) => {
      const [, , command, , key, , value] = b.toString().split('\r\n')
      if (command === 'SET') values.set(key!, value!)
      const stored = values.get(key!) ?? ''
      if (command === 'GET') s.write(`$${stored.length}\r\n${stored}\r\n`)
      else s.write(command === 'PING' ? '+PONG\r\n' : '+OK\r\n')
    })
  })
  await peer.serve(6379, socket)
  const { child, said } = await run('database.mjs', 'peer')
  const code = await new Promise((resolve) => child.once('exit', resolve))
  assert.deepEqual([code, ...said()], [0, '+PONG\n+OK\n$16\r\nfrom the tailnet\n', ''])
})

test('nothing left the lab', async () => {
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
