/** Extensions of gatehouse.toml: which are attached, as whom, and with what. */
import assert from 'node:assert/strict'
import { generateKeyPairSync } from 'node:crypto'
import { mkdir, mkdtemp, readFile, readdir, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, test } from 'node:test'
import { parseConfig } from '../../../src/config/config.ts'
import { readExtensions } from '../../../src/config/extensions.ts'
import {
  attachExtensions,
  chooseUsers,
  extensionDropIn,
  portsFit,
} from '../../../src/provision/extensions.ts'
import type { ExtensionPaths } from '../../../src/provision/extensions.ts'
import type { Manifest } from '../../../src/update/extension.ts'
import { extension } from '../../../tools/extension.ts'

let directory: string
let where: ExtensionPaths
const at = (...path: string[]): string => join(directory, ...path)
const paths = (): { boot: string; problem: string; units: string } => ({
  ...{ boot: at('boot'), problem: at('run/problem'), units: at('units') },
})

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'gh-attach-'))
  for (const folder of ['boot', 'run', 'units', 'downloads', 'data']) await mkdir(at(folder))
  const { privateKey, publicKey } = generateKeyPairSync('ed25519')
  await writeFile(at('key'), privateKey.export({ type: 'pkcs8', format: 'pem' }))
  where = {
    sources: [
      { folder: at('boot'), called: 'on the card' },
      { folder: at('downloads'), called: 'from updates.url' },
    ],
    ...{ kept: at('kept'), data: at('data'), arch: 'arm64' },
    key: publicKey.export({ type: 'spki', format: 'pem' }) as string,
  }
})

afterEach(async () => {
  await rm(directory, { recursive: true, force: true })
})

const manifest = {
  name: 'broker',
  title: 'A broker, 100 %',
  version: '2.0-1',
  arch: 'arm64',
  command: ['/usr/sbin/broker', '-c', '/etc/a $b "c" 100%'],
  ports: ['1883/tcp', '5683/udp'],
  rootHash: 'ab'.repeat(32),
}

async function put(folder: string, other: Partial<Manifest> = {}): Promise<Buffer> {
  const whole = { ...manifest, ...other }
  const data = extension(
    whole,
    { root: Buffer.from(`root of ${whole.version}`), verity: Buffer.from('tree') },
    at('key'),
  )
  await writeFile(at(folder, `${whole.name}-${whole.arch}.extension`), data)
  return data
}

const attach = async (toml: string): Promise<string[]> => {
  const config = parseConfig(toml, 'gatehouse.toml')
  const { wrong, notes } = await attachExtensions(config, paths(), where)
  return [...wrong.map(({ code }) => code), ...notes.filter((note) => !note.startsWith('ext'))]
}
const attached = async (): Promise<string[]> =>
  (await readExtensions(paths())).map(({ name, version, user }) => `${name} ${version} ${user}`)
const broker = '[[extension]]\nname = "broker"\n'

test('attached: unit, firewall and people are told; gone with its table', async () => {
  await put('boot')
  assert.deepEqual(await attach(`${broker}listen = ["1883/tcp from lan"]\nmemory_mib = 32\n`), [])
  assert.deepEqual(await attached(), ['broker 2.0-1 gatehouse-extension-a'])
  const unit = 'gatehouse-extension@broker.service.d'
  const text = await readFile(at('units', unit, '50-gatehouse.conf'), 'utf8')
  for (const line of [
    `RootImage=${at('kept/broker/root')}`,
    `RootVerity=${at('kept/broker/verity')}`,
    `RootHash=${manifest.rootHash}`,
    'ExecStart="/usr/sbin/broker" "-c" "/etc/a $$b \\"c\\" 100%%"',
    'Description=A broker, 100 %%',
    'User=gatehouse-extension-a',
    'MemoryMax=32M',
    'SocketBindAllow=tcp:1883',
    'SocketBindAllow=udp:5683',
    'IPAddressAllow=10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7',
  ])
    assert.ok(text.split('\n').includes(line), `${line}\n${text}`)
  assert.doesNotMatch(text, /MemoryDenyWriteExecute/)

  assert.deepEqual(await attach(''), [])
  assert.deepEqual(await attached(), [])
  assert.deepEqual([await readdir(at('units')), await readdir(at('kept'))], [[], []])
})

test('without its file, or with that of another processor, it is told so', async () => {
  assert.deepEqual(await attach(broker), ['GH_EXTENSION_MISSING'])
  await put('boot', { arch: 'amd64' })
  assert.deepEqual(await attach(broker), ['GH_EXTENSION_ARCH'])
  assert.deepEqual(await attached(), [])
  // It may be on its way: no problem, by which a change of settings would be taken back.
  await rm(at('boot/broker-amd64.extension'))
  const [note, ...more] = await attach(`[updates]\nurl = "https://updates.example"\n${broker}`)
  assert.match(note!, /broker-arm64\.extension is looked for at updates\.url/)
  assert.deepEqual(more, [])
})

test('one that is refused keeps no other off, and the one before goes on', async () => {
  await put('boot')
  await put('boot', { name: 'other', ports: ['2000/tcp'] })
  const both = `${broker}[[extension]]\nname = "other"\n`
  assert.deepEqual(await attach(both), [])
  const damaged = await put('boot', { version: '2.0-2' })
  damaged[damaged.length - 1]! ^= 1
  await writeFile(at('boot/broker-arm64.extension'), damaged)
  assert.deepEqual(await attach(both), ['GH_EXTENSION_DAMAGED'])
  assert.deepEqual(await attached(), [
    'broker 2.0-1 gatehouse-extension-a',
    'other 2.0-1 gatehouse-extension-b',
  ])
})

test('the newest counts, from card or downloads; taken off the card it stays', async () => {
  await put('boot', { version: '2.0.9-1' })
  assert.deepEqual(await attach(broker), [])
  await put('downloads', { version: '2.0.10-1' })
  assert.deepEqual(await attach(broker), [])
  assert.match((await attached())[0]!, /2\.0\.10-1/)
  assert.equal(await readFile(at('kept/broker/root'), 'utf8'), 'root of 2.0.10-1')
  for (const folder of ['boot', 'downloads']) await rm(at(folder, 'broker-arm64.extension'))
  assert.deepEqual(await attach(broker), [])
  assert.match((await attached())[0]!, /2\.0\.10-1/)
})

test("a damaged copy of the device's is mended from the card, else detached", async () => {
  await put('boot')
  await attach(broker)
  await writeFile(at('kept/broker/root'), 'worn')
  assert.deepEqual(await attach(broker), [])
  assert.equal(await readFile(at('kept/broker/root'), 'utf8'), 'root of 2.0-1')
  await rm(at('boot/broker-arm64.extension'))
  await writeFile(at('kept/broker/root'), 'worn')
  assert.deepEqual(await attach(broker), ['GH_EXTENSION_DAMAGED'])
  assert.deepEqual(await attached(), [])
})

test('another key is not believed, of what is kept neither', async () => {
  await put('boot')
  await attach(broker)
  const { publicKey } = generateKeyPairSync('ed25519')
  where.key = publicKey.export({ type: 'spki', format: 'pem' }) as string
  const codes = await attach(broker)
  assert.deepEqual(codes, ['GH_EXTENSION_SIGNATURE', 'GH_EXTENSION_SIGNATURE'])
  assert.deepEqual(await attached(), [])
})

test("files of the person's are handed over by systemd; without one of them it is off", async () => {
  await put('boot')
  await writeFile(at('boot/passwords'), 'alice:$7$…')
  const toml = `${broker}files = ["passwords", "more.conf"]\n`
  assert.deepEqual(await attach(toml), ['GH_EXTENSION_FILE'])
  assert.deepEqual(await attached(), [])
  await writeFile(at('boot/more.conf'), 'allow_anonymous false')
  assert.deepEqual(await attach(toml), [])
  const drop = at('units/gatehouse-extension@broker.service.d/50-gatehouse.conf')
  const text = await readFile(drop, 'utf8')
  assert.ok(text.includes(`LoadCredential=passwords:${at('kept/broker.files/passwords')}\n`))
  assert.doesNotMatch(text, /alice/)
  assert.equal((await stat(at('kept/broker.files/passwords'))).mode & 0o777, 0o600)
  // A change of what is in it starts it anew.
  await writeFile(at('boot/passwords'), 'bob:$7$…')
  await attach(toml)
  assert.notEqual(await readFile(drop, 'utf8'), text)
  await attach(broker)
  assert.deepEqual(await readdir(at('kept/broker.files')), [])
})

test('ports: only its own are given away, and nobody has them twice', () => {
  const fit = (listen: string[], nodeRed: string[] = [], others: string[] = []) =>
    portsFit(
      {
        written: { name: 'broker', listen, files: [], memoryMib: 64 },
        manifest: { ...manifest, root: { size: 1, sha256: '' }, verity: { size: 1, sha256: '' } },
      },
      [{ name: 'other', ports: others }],
      nodeRed,
    )?.message
  assert.equal(fit(['1883/tcp from lan', '5683/udp from 10.0.0.0/8']), undefined)
  assert.match(fit(['1884/tcp from lan'])!, /does not listen on what/)
  assert.match(fit(['1883-1884/tcp from lan'])!, /does not listen on what/)
  assert.match(fit(['1883/udp from lan'])!, /does not listen on what/)
  assert.match(fit([], ['1880-1890/tcp from lan'])!, /gives flows the port 1883\/tcp/)
  assert.equal(fit([], ['1880-1890/udp from lan']), undefined)
  assert.match(fit([], [], ['5683/udp'])!, /other and broker listen on the same port/)
})

test('an extension keeps its user, and gets none that another has stored as', () => {
  const choose = (names: string[], owners: Record<string, number>) =>
    Object.fromEntries(
      [...chooseUsers(names, new Map(Object.entries(owners)))].map(([name, user]) => [
        name,
        user.at(-1),
      ]),
    )
  assert.deepEqual(choose(['x', 'y'], {}), { x: 'a', y: 'b' })
  assert.deepEqual(choose(['x', 'y'], { y: 621 }), { x: 'b', y: 'a' })
  assert.deepEqual(choose(['x'], { gone: 621, x: 0 }), { x: 'b' })
  assert.deepEqual(choose(['x', 'y'], { x: 622, y: 622 }), { x: 'b', y: 'a' })
  assert.deepEqual(choose(['x'], { a: 621, b: 622, c: 623, d: 624 }), { x: 'a' })
})

test('what makes machine code may, where its manifest says so', () => {
  const pieces = { root: { size: 1, sha256: '' }, verity: { size: 1, sha256: '' } }
  const text = extensionDropIn(
    {
      written: { name: 'broker', listen: [], files: [], memoryMib: 64 },
      manifest: { ...manifest, ...pieces, jit: true },
      files: [],
    },
    'gatehouse-extension-c',
    '/kept/broker',
  )
  assert.match(text, /^MemoryDenyWriteExecute=no$/m)
  assert.doesNotMatch(text, /IPAddressAllow/)
})
