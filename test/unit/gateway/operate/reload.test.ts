import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { test } from 'node:test'
import { WebSocket } from 'ws'
import { parseConfig } from '../../../../src/config/config.ts'
import { Bench, name } from '../../support/bench.ts'
import { alice } from '../../support/tailnet.ts'

async function reload(bench: Bench): Promise<{ code: number; stdout: string; stderr: string }> {
  const child = spawn(
    process.execPath,
    [join(import.meta.dirname, '../../../../src/main.ts'), 'reload'],
    {
      env: {
        ...process.env,
        GATEHOUSE_ADMIN_SOCKET: bench.admin,
        GATEHOUSE_CONFIG_DIR: '/nonexistent',
        GATEHOUSE_PROBLEM_FILE: join(bench.directory, 'problem'),
      },
    },
  )
  const [stdout, stderr, [code]] = await Promise.all([
    text(child.stdout),
    text(child.stderr),
    once(child, 'close') as Promise<[number]>,
  ])
  return { code, stdout, stderr }
}

test('a reload puts settings in force and drops nothing: no connection, no WebSocket, no answer under way (caddy #5471, #6420, #7222)', async () => {
  let toml = ''
  await using bench = await Bench.start({
    options: { load: async () => parseConfig(toml, 'gatehouse.toml') },
  })
  await bench.gateway.reloader.reload()
  bench.tailnet.peer = { ...alice, capMap: {} }
  toml = '[access]\nview = ["alice@example.com"]'
  assert.deepEqual(await reload(bench), { code: 0, stdout: 'In force: access.view.\n', stderr: '' })

  const socket = await bench.connect()
  const ws = new WebSocket(`wss://${name}/comms`, { createConnection: () => socket })
  await once(ws, 'open')
  const { promise: finish, resolve: go } = Promise.withResolvers<void>()
  bench.origin.handler = (request, response) => {
    if (request.url === '/') {
      response.end('plain')
      return
    }
    response.write('begun ')
    void finish.then(() => response.end('done'))
  }
  const download = await bench.send({ path: '/slow' })
  const kept = await bench.connect()
  assert.equal((await bench.fetch({ socket: kept })).status, 200)

  toml =
    '[access]\nview = ["alice@example.com", "bob@example.com"]\nuse = ["tag:sensor"]\n' +
    '[limits]\nheader_timeout = "20 s"\n[tailnet]\nhostname = "other"'
  assert.deepEqual(await reload(bench), {
    code: 0,
    stdout:
      'In force: access.view, access.use, limits.header_timeout.\n' +
      'Not yet: tailnet.hostname. For these, restart the device.\n',
    stderr: '',
  })
  assert.deepEqual(await reload(bench), { code: 0, stdout: 'Nothing has changed.\n', stderr: '' })
  go()
  assert.equal(await text(download), 'begun done')
  assert.equal((await bench.fetch({ socket: kept })).status, 200, 'the connection is the same')
  const echo = once(ws, 'message') as Promise<[Buffer]>
  ws.send('still here')
  assert.equal(String((await echo)[0]), 'still here')
  ws.terminate()
})

test('a configuration that is wrong is refused whole, the one before stays, and status says so until it is well', async () => {
  let toml = '[access]\nview = ["alice@example.com"]'
  await using bench = await Bench.start({
    options: { load: async () => parseConfig(toml, 'gatehouse.toml') },
  })
  await bench.gateway.reloader.reload()
  bench.tailnet.peer = { ...alice, capMap: {} }
  assert.equal((await bench.fetch()).status, 200)
  toml = '[access]\nview = []\nedit = ["alice smith"]'
  const { code, stdout, stderr } = await reload(bench)
  assert.deepEqual([code, stdout], [1, ''])
  assert.match(
    stderr,
    /^Refused: gatehouse\.toml line 3: an entry of edit, "alice smith", is neither a login name nor a tag\. The configuration before stays in force\.\n {2}→ Write the name/,
  )
  assert.equal((await bench.fetch()).status, 200)
  assert.equal((await bench.gateway.status()).problems[0]!.part, 'configuration')
  toml = '[access]\nview = ["alice@example.com"]'
  assert.equal((await reload(bench)).stdout, 'Nothing has changed.\n')
  assert.deepEqual((await bench.gateway.status()).problems, [])
})
