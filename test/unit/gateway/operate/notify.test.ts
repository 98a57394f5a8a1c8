import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { pino } from 'pino'
import type { Logger } from '../../../../src/gateway/shared/log.ts'
import { Notifier } from '../../../../src/gateway/operate/notify.ts'
import { NotifySocket } from '../../support/notify.ts'

async function until(what: string, condition: () => boolean, seconds = 20): Promise<void> {
  for (const end = Date.now() + seconds * 1000; !condition(); await sleep(20))
    if (Date.now() > end) throw new Error(`never: ${what}`)
}

const quiet = pino({ enabled: false })

/** libsystemd asks the process's own environment where to send to. */
function notifierOn(socket: NotifySocket, log: Logger, env: NodeJS.ProcessEnv = {}): Notifier {
  process.env.NOTIFY_SOCKET = socket.path
  return new Notifier(log, { env: { NOTIFY_SOCKET: socket.path, ...env } })
}

test('systemd is told everything in order, and the same status once', async () => {
  await using socket = await NotifySocket.open()
  const notifier = notifierOn(socket, quiet)
  notifier.ready()
  for (const line of ['one', 'one', 'three\nlines']) notifier.status(line)
  await until('ready', () => socket.with('STATUS=three').length === 1)
  assert.deepEqual(socket.messages, [['READY=1'], ['STATUS=one'], ['STATUS=three lines']])
  const before = process.hrtime.bigint() / 1000n
  notifier.reloading()
  notifier.ready()
  notifier.stopping()
  await until('stopping', () => socket.with('STOPPING=1').length === 1)
  assert.deepEqual(
    socket.messages.slice(3).map((message) => message[0]),
    ['RELOADING=1', 'READY=1', 'STOPPING=1'],
  )
  const usec = BigInt(socket.with('MONOTONIC_USEC=')[0]![1]!.split('=')[1]!)
  assert.ok(usec >= before && usec <= process.hrtime.bigint() / 1000n)
})

test('the watchdog hears of a process that is alive, and not of one whose parts do not answer', async () => {
  await using socket = await NotifySocket.open()
  const lines: string[] = []
  const log = pino(
    {},
    {
      write: (line: string) => {
        lines.push(line)
      },
    },
  )
  const notifier = notifierOn(socket, log, {
    WATCHDOG_USEC: '400000',
    WATCHDOG_PID: String(process.pid),
  })
  let alive: () => Promise<boolean> = async () => true
  notifier.watch(async () => await alive())
  await until('two signs of life', () => socket.with('WATCHDOG=1').length >= 2)
  alive = async () => await new Promise(() => {})
  await until('the log', () => lines.some((line) => line.includes('GH_WATCHDOG')))
  await sleep(400)
  const count = socket.with('WATCHDOG=1').length
  await sleep(800)
  assert.equal(socket.with('WATCHDOG=1').length, count)
  alive = async () => true
  await until('signs of life again', () => socket.with('WATCHDOG=1').length > count)
  notifier.stopping()
})

test('outside systemd nothing is sent, and a watchdog of another process is none of ours', () => {
  const interval = (env: NodeJS.ProcessEnv): number | undefined =>
    new Notifier(quiet, { env }).watchdogInterval
  assert.equal(interval({}), undefined)
  assert.equal(interval({ WATCHDOG_USEC: '1000000', WATCHDOG_PID: '1' }), undefined)
  assert.equal(interval({ WATCHDOG_USEC: '180000000' }), 180_000)
})

test('without libsystemd the gateway runs, and says once that systemd is not told', async () => {
  await using socket = await NotifySocket.open()
  const lines: string[] = []
  const log = pino({}, { write: (line: string) => void lines.push(line) })
  const env = { NOTIFY_SOCKET: socket.path }
  const notifier = new Notifier(log, { env, library: 'libnothing.so.0' })
  notifier.ready()
  notifier.status('one')
  assert.equal(lines.length, 1)
  assert.match(lines[0]!, /GH_NOTIFY.*libsystemd/)
  assert.deepEqual(socket.messages, [])
})

test('gatehouse serve as systemd sees it: ready, reloading and ready again, stopping', async () => {
  await using socket = await NotifySocket.open()
  const directory = mkdtempSync(join(tmpdir(), 'gh-serve-'))
  // Wrong, so that the gateway comes up and joins nothing.
  writeFileSync(join(directory, 'gatehouse.toml'), '[tailnet]\nhostname = 5\n')
  const child = spawn(
    process.execPath,
    [
      '--disable-warning=ExperimentalWarning',
      join(import.meta.dirname, '../../../../src/main.ts'),
      'serve',
    ],
    {
      env: {
        ...process.env,
        NOTIFY_SOCKET: socket.path,
        GATEHOUSE_CONFIG_DIR: directory,
        GATEHOUSE_TLS_DIR: directory,
        RUNTIME_DIRECTORY: directory,
        STATE_DIRECTORY: directory,
        GATEHOUSE_PROBLEM_FILE: join(directory, 'problem'),
        GATEHOUSE_ADMIN_SOCKET: join(directory, 'admin.sock'),
        GATEHOUSE_CERTS_SOCKET: join(directory, 'certs.sock'),
        GATEHOUSE_NODE_RED_SOCKET: join(directory, 'red.sock'),
      },
      stdio: 'ignore',
    },
  )
  const gone = once(child, 'exit')
  try {
    await until('ready', () => socket.with('READY=1').length === 1)
    await until('the status says what is wrong', () =>
      socket.with('STATUS=').some((message) => message.join().includes('hostname must be text')),
    )
    child.kill('SIGHUP')
    await until('reloaded', () => socket.with('READY=1').length === 2)
    const order = socket.messages
      .map((message) => message[0]!.replace(/=.*/, ''))
      .filter((name) => name !== 'STATUS')
    assert.deepEqual(order, ['READY', 'RELOADING', 'READY'])
    child.kill('SIGTERM')
    assert.deepEqual(await gone, [0, null])
    assert.equal(socket.with('STOPPING=1').length, 1)
  } finally {
    child.kill('SIGKILL')
    rmSync(directory, { recursive: true, force: true })
  }
})
