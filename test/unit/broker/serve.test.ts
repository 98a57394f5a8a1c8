import assert from 'node:assert/strict'
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { exchange } from '../../../src/base/control-client.ts'
import { paths as defaults } from '../../../src/base/paths.ts'
import { runBroker } from '../../../src/broker/serve.ts'

const directory = mkdtempSync(join(tmpdir(), 'gh-serve-'))
after(() => {
  rmSync(directory, { recursive: true, force: true })
})

/** The broker as its unit starts it, on a card of its own. */
async function start(name: string, idle: number) {
  const boot = join(directory, name)
  mkdirSync(boot)
  writeFileSync(join(boot, 'gatehouse.toml'), '[tailnet]\nhostname = "shed"\n')
  const paths = {
    ...defaults({ GATEHOUSE_ADMIN_SOCKET: join(boot, 'admin.sock') }),
    ...{ boot, broker: join(boot, 'broker.sock'), problem: join(boot, 'problem') },
  }
  let code: number | undefined
  const ended = runBroker(paths, undefined, { idle }).then((is) => (code = is))
  for (let i = 0; i < 200 && !existsSync(paths.broker); i++) await sleep(20)
  return { socket: paths.broker, ended, code: () => code }
}

test('the broker starts, answers, and ends when nobody asks any more', async () => {
  const { socket, ended } = await start('idle', 400)
  const { status, text } = await exchange(socket, { method: 'GET', path: '/v1/settings' })
  assert.equal(status, 200, text)
  assert.match(text, /shed/)
  assert.equal(await ended, 0)
})

test('it stays while an answer is under way, also one that is broken off', async () => {
  const { socket, ended, code } = await start('busy', 300)
  // More than a body may be, slowly: under way until whoever sends it has gone.
  const asking = request({ socketPath: socket, method: 'POST', path: '/v1/settings/check' })
  asking.on('error', () => {})
  asking.setHeader('content-type', 'application/json')
  asking.write('{"text":')
  await sleep(900)
  assert.equal(code(), undefined)
  asking.destroy()
  assert.equal(await ended, 0)
})

test('at boot a card that cannot be written is no reason to leave a restore half done', async () => {
  const boot = join(directory, 'half')
  const data = join(directory, 'half-data')
  // Nothing can be put in its place, whoever asks.
  mkdirSync(join(boot, 'gatehouse.toml/in-the-way'), { recursive: true })
  mkdirSync(join(data, '.restore'), { recursive: true })
  mkdirSync(join(data, 'gatehouse-broker'))
  writeFileSync(
    join(data, 'gatehouse-broker/trial.json'),
    JSON.stringify({ before: '[tailnet]\n', tried: '[access]\n' }),
  )
  const paths = { ...defaults({}), boot, data }
  assert.equal(await runBroker(paths, 'recover'), 1)
  assert.equal(existsSync(join(data, '.restore')), false)
  rmSync(join(boot, 'gatehouse.toml'), { recursive: true })
  assert.equal(await runBroker(paths, 'recover'), 0)
})
