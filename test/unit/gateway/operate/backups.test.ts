/** Nightly backups: the real broker makes and reads them, a web server keeps them. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { connect } from 'node:net'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { generateX25519Identity, identityToRecipient } from 'age-encryption'
import { restore } from '../../../../src/broker/archive.ts'
import { createBroker } from '../../../../src/broker/server.ts'
import { Settings } from '../../../../src/broker/settings.ts'
import { defaults, serialize } from '../../../../src/config/config.ts'
import { Backups } from '../../../../src/gateway/operate/backups.ts'
import type { BackupState } from '../../../../src/gateway/operate/backups.ts'
import { pino } from 'pino'
import { Problems } from '../../../../src/gateway/shared/problems.ts'

const day = 86_400_000
const directories: string[] = []
after(() => {
  for (const directory of directories) rmSync(directory, { recursive: true, force: true })
})

/** A device with a broker, and a server that keeps what it is given. */
async function device() {
  const directory = mkdtempSync(join(tmpdir(), 'gh-backups-'))
  directories.push(directory)
  const [boot, config, data, state] = ['efi', 'config', 'lib', 'state'].map((name) => {
    mkdirSync(join(directory, name))
    return join(directory, name)
  }) as [string, string, string, string]
  const identity = await generateX25519Identity()
  const recipient = await identityToRecipient(identity)
  writeFileSync(
    join(config, 'gatehouse.toml'),
    serialize({ ...defaults(), backup: { recipient, to: 'http://nas.example/' } }),
  )
  mkdirSync(join(data, 'node-red'))
  writeFileSync(join(data, 'node-red/flows.json'), '[{"id":"meter in the cellar"}]')
  const system = { systemctl: async () => '', stream: () => assert.fail('nothing is streamed') }
  const paths = { boot, config, data, problem: join(directory, 'problem'), admin: 'none' }
  const say = (): void => {}
  const broker = await createBroker({
    ...{ paths, system, say, uploads: join(directory, 'uploads') },
    settings: new Settings({ paths, system, say, showCode: async () => {} }),
  })
  const socket = join(directory, 'broker.sock')
  await broker.listen({ path: socket })

  const files = new Map<string, Buffer>()
  let refuses: number | undefined
  let spoils = false
  const server = createServer((request, response) => {
    const name = request.url!
    void (async () => {
      const pieces: Buffer[] = []
      for await (const piece of request) pieces.push(piece as Buffer)
      if (refuses !== undefined) response.statusCode = refuses
      else if (request.method === 'PUT') files.set(name, Buffer.concat(pieces))
      else if (spoils) {
        const spoiled = Buffer.from(files.get(name)!)
        spoiled[spoiled.length - 20]! ^= 1
        return response.end(spoiled)
      } else return response.end(files.get(name)!)
      return response.end()
    })()
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  after(async () => {
    await broker.close()
    server.close()
  })
  const log = pino({ level: 'silent' })
  const problems = new Problems(log)
  const make = (): Backups => {
    const made = new Backups({
      ...{ state, problems, broker: socket, log },
      name: () => 'gatehouse.tail.ts.net',
      dial: async (host, wanted) => {
        assert.equal(host, 'nas.tail.ts.net')
        const conn = connect(wanted, '127.0.0.1')
        await once(conn, 'connect')
        return conn
      },
    })
    made.configure({ recipient, to: `http://nas.tail.ts.net:${port}/gatehouse` })
    return made
  }
  return {
    ...{ make, files, problems, identity, directory, broker, state },
    server: (how: { refuses?: number; spoils?: boolean }) => {
      refuses = how.refuses
      spoils = how.spoils === true
    },
  }
}

/** Waits for what look() has begun. */
async function settled(backups: Backups): Promise<BackupState> {
  while (backups.show().busy) await new Promise((resolve) => setTimeout(resolve, 20))
  return backups.show()
}

test('one is made, kept by the peer, read back, and restored with the secret key elsewhere', async () => {
  const { make, files, identity, problems, directory, state } = await device()
  const backups = make()
  await backups.look()
  const { last, failure, nightly } = await settled(backups)
  assert.equal(failure?.message, undefined)
  assert.ok(nightly)
  assert.match(last!.name, /^gatehouse-(?:sun|mon|tue|wed|thu|fri|sat)\.age$/)
  assert.equal(last!.entries, 2)
  const kept = files.get(`/gatehouse/${last!.name}`)!
  assert.equal(kept.length, last!.size)
  assert.ok(!kept.includes('meter in the cellar'))
  const file = join(directory, 'kept.age')
  writeFileSync(file, kept)
  const other = join(directory, 'other')
  mkdirSync(other)
  await assert.rejects(
    restore(other, file, await generateX25519Identity()),
    /cannot be decrypted.*\n?/,
  )
  assert.deepEqual(await restore(other, file, ` ${identity.toLowerCase()}\n`), ['node-red'])
  assert.match(readFileSync(join(other, 'node-red/flows.json'), 'utf8'), /meter in the cellar/)
  assert.equal(problems.get('backup'), undefined)
  // Not again before the next night; and a gateway that starts anew knows of it.
  const again = make()
  await again.look()
  assert.deepEqual((await settled(again)).last, last)
  assert.ok(existsSync(join(state, 'backup.json')))
  await again.look(Date.now() + 1.1 * day)
  const next = (await settled(again)).last!
  assert.ok(next.at > last!.at)
})

test('what cannot be kept or read back is a problem that grows with the age of the last one', async () => {
  const { make, problems, server } = await device()
  const backups = make()
  server({ refuses: 507 })
  await assert.rejects(backups.run(), { code: 'GH_BACKUP_FAILED', message: /answered with 507/ })
  assert.equal(problems.get('backup')!.severity, 'info')
  server({ spoils: true })
  await assert.rejects(backups.run(), { code: 'GH_BACKUP_UNREAD' })
  assert.match(backups.show().failure!.message, /cannot be read/)
  server({})
  await backups.run()
  assert.equal(problems.get('backup'), undefined)
  server({ refuses: 403 })
  const at = Date.parse(backups.show().last!.at)
  await backups.look(at + 1.6 * day)
  await settled(backups)
  await backups.look(at + 1.6 * day)
  assert.equal(problems.get('backup')!.code, 'GH_BACKUP_LATE')
  assert.equal(problems.get('backup')!.severity, 'warning')
  await backups.look(at + 8 * day)
  assert.equal(problems.get('backup')!.severity, 'error')
  await settled(backups)
  backups.configure({ recipient: 'age1x' })
  await backups.look()
  assert.equal(problems.get('backup')!.code, 'GH_BACKUP_HALF')
  backups.configure({})
  await backups.look()
  assert.equal(problems.get('backup'), undefined)
})

test('the gateway cannot say whom one is for, and a rehearsal tells no more than how much is in it', async () => {
  const { broker } = await device()
  const evil = await identityToRecipient(await generateX25519Identity())
  const post = async (url: string, payload: string | object | Buffer, type = 'application/json') =>
    await broker.inject({ ...{ method: 'POST', url, payload }, headers: { 'content-type': type } })
  const asked = await post('/v1/backup/scheduled', { by: 'a@b', recipient: evil })
  assert.equal(asked.statusCode, 400)
  const none = await post('/v1/backup/rehearse', Buffer.from('x'), 'application/octet-stream')
  assert.equal(none.json().error.code, 'GH_BACKUP_UNREAD')
  const made = await post('/v1/backup/scheduled', { by: 'a@b' })
  const read = await post('/v1/backup/rehearse', made.rawPayload, 'application/octet-stream')
  assert.deepEqual(read.json(), { entries: 2 })
  // One that is whole and of this device, but not the last.
  const older = await post('/v1/backup/scheduled', { by: 'a@b' })
  await post('/v1/backup/scheduled', { by: 'a@b' })
  const stale = await post('/v1/backup/rehearse', older.rawPayload, 'application/octet-stream')
  assert.equal(stale.statusCode, 422)
  assert.doesNotMatch(stale.body, /AGE-SECRET/)
})
