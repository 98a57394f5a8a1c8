/**
 * One agent at a time, whoever starts it and however the one before ended; and none but its own
 * user.
 */
import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { text } from 'node:stream/consumers'
import { after, test } from 'node:test'
import { lock } from '../../../src/certs/lock.ts'

const root = mkdtempSync(join(tmpdir(), 'gh-lock-'))
after(() => {
  rmSync(root, { recursive: true, force: true })
})

function machine(): { env: NodeJS.ProcessEnv; state: string; tls: string; socket: string } {
  const directory = mkdtempSync(join(root, 'm-'))
  const [state, tls, socket] = [
    join(directory, 'state'),
    join(directory, 'tls'),
    join(directory, 'certs.sock'),
  ]
  mkdirSync(state)
  mkdirSync(tls)
  writeFileSync(join(directory, 'gatehouse.toml'), '')
  return {
    env: {
      ...process.env,
      STATE_DIRECTORY: state,
      GATEHOUSE_TLS_DIR: tls,
      GATEHOUSE_CONFIG_DIR: directory,
      GATEHOUSE_CERTS_SOCKET: socket,
      GATEHOUSE_CERTS_WAIT: '60',
    },
    state,
    tls,
    socket,
  }
}

function agent(env: NodeJS.ProcessEnv): {
  child: ReturnType<typeof spawn>
  stderr: Promise<string>
  ended: Promise<[number | null]>
} {
  const child = spawn(
    process.execPath,
    [join(import.meta.dirname, '../../../src/main.ts'), 'certs'],
    {
      env,
      stdio: ['ignore', 'ignore', 'pipe'],
    },
  )
  return {
    child,
    stderr: text(child.stderr!),
    ended: once(child, 'close') as Promise<[number | null]>,
  }
}

test('a second agent says that one runs and leaves all as it is; one that was killed holds nobody up', async () => {
  const { env, state, tls, socket } = machine()
  // A gateway that is asked for names, and lets the agent wait: then it is at work.
  let asked = 0
  const gateway = createServer((_request, response) => {
    asked++
    response.setHeader('content-type', 'application/json').end('{"names":[]}')
  })
  await once(gateway.listen(socket), 'listening')
  const until = async (count: number): Promise<void> => {
    while (asked < count) await new Promise((resolve) => setTimeout(resolve, 20))
  }
  const first = agent(env)
  try {
    await until(1)
    const second = agent({ ...env, GATEHOUSE_CERTS_WAIT: '0' })
    assert.deepEqual(await second.ended, [1, null])
    assert.match(
      await second.stderr,
      /are being looked after already\. Wait until that run is done.*GH_CERTS_BUSY/,
    )
    assert.ok(!existsSync(join(tls, 'status.json')), "the record is the other run's")
    await assert.rejects(lock(state), { code: 'GH_CERTS_BUSY' })
    first.child.kill('SIGKILL')
    await first.ended
    const third = agent({ ...env, GATEHOUSE_CERTS_WAIT: '0' })
    await third.ended
    assert.match(await third.stderr, /there is no name to get a certificate for.*GH_CERTS_NAMES/)
    assert.ok(existsSync(join(tls, 'status.json')))
    assert.deepEqual(readdirSync(state), [], 'nothing of the lock is on the disk')
    const unlock = await lock(state)
    await assert.rejects(lock(state), { code: 'GH_CERTS_BUSY' })
    await unlock()
    await (
      await lock(state)
    )()
  } finally {
    first.child.kill('SIGKILL')
    gateway.closeAllConnections()
    gateway.close()
  }
})

test("agents of two machines' states do not hold each other up", async () => {
  const [one, other] = [await lock(machine().state), await lock(machine().state)]
  await one()
  await other()
})

test(
  "the lock can be taken by the state's own user alone, and by no name in the network namespace",
  { skip: process.getuid!() !== 0 && 'needs root to be another user' },
  async () => {
    const { state } = machine()
    for (const directory of [root, dirname(state)]) chmodSync(directory, 0o755)
    chmodSync(state, 0o700)
    chownSync(state, 602, 602)
    const sockets = (): string[] =>
      readFileSync('/proc/net/unix', 'utf8')
        .split('\n')
        .filter((line) => line.includes('gatehouse-certs'))
    const before = sockets()
    const unlock = await lock(state)
    assert.deepEqual(sockets(), before, 'no socket is the lock')
    await unlock()
    // As Node-RED's user: holding it would keep certificates from being renewed.
    const taken = spawnSync('flock', ['--nonblock', state, 'true'], {
      uid: 603,
      gid: 603,
      encoding: 'utf8',
    })
    assert.notEqual(taken.status, 0)
    assert.match(taken.stderr, /Permission denied/)
    await (
      await lock(state)
    )()
  },
)

test(
  'another user, root too, is refused and makes no file',
  { skip: process.getuid!() !== 0 && 'needs root to give the state away' },
  async () => {
    const { env, state, tls } = machine()
    chownSync(state, 602, 602)
    const { ended, stderr } = agent({ ...env, GATEHOUSE_CERTS_WAIT: '0' })
    assert.equal((await ended)[0], 1)
    assert.match(
      await stderr,
      /looked after by user number 602, not by this one\. Leave it to gatehouse-certs\.service, which runs every hour and when the names change \(GH_CERTS_USER\)/,
    )
    assert.deepEqual([readdirSync(state), readdirSync(tls)], [[], []])
  },
)
