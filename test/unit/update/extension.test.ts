/** An extension's file: what is believed of it, and what is not. */
import assert from 'node:assert/strict'
import { generateKeyPairSync } from 'node:crypto'
import { mkdir, mkdtemp, readFile, readdir, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import {
  checkKept,
  context,
  magic,
  readExtensionHead,
  readHead,
  takeExtension,
} from '../../../src/update/extension.ts'
import type { Manifest, Wanted } from '../../../src/update/extension.ts'
import { extension } from '../../../tools/extension.ts'
import { signature } from '../../../tools/signing.ts'

let directory: string
let wanted: Wanted
const key = (name: string): string => join(directory, `${name}.key`)
const parts = { root: Buffer.alloc(3_000_000, 'root'), verity: Buffer.alloc(70_000, 'tree') }
const manifest = {
  name: 'broker',
  title: 'A broker',
  version: '2.0-1',
  arch: 'amd64',
  command: ['/usr/sbin/broker', '-c', '/etc/broker.conf'],
  ports: ['1883/tcp'],
  rootHash: 'ab'.repeat(32),
}

before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'gh-extension-'))
  for (const name of ['own', 'foreign']) {
    const { privateKey, publicKey } = generateKeyPairSync('ed25519')
    await writeFile(key(name), privateKey.export({ type: 'pkcs8', format: 'pem' }))
    if (name === 'own')
      wanted = {
        ...{ name: 'broker', arch: 'amd64' },
        publicKey: publicKey.export({ type: 'spki', format: 'pem' }) as string,
      }
  }
})

after(async () => {
  await rm(directory, { recursive: true, force: true })
})

/** A file of this content, and a place to take it to. */
async function lies(data: Buffer): Promise<{ path: string; into: string }> {
  const folder = await mkdtemp(join(directory, 'case-'))
  await writeFile(join(folder, 'broker-amd64.extension'), data)
  return { path: join(folder, 'broker-amd64.extension'), into: join(folder, 'broker') }
}

/** A file whose manifest says something else, signed as it should be. */
const saying = (other: Partial<Manifest>): Buffer =>
  extension({ ...manifest, ...other }, parts, key('own'))

test('it is taken over whole, and found good again', async () => {
  const { path, into } = await lies(saying({}))
  const { rootHash, version } = await takeExtension(path, 'it', into, wanted)
  assert.deepEqual([rootHash, version], [manifest.rootHash, '2.0-1'])
  assert.deepEqual(await readFile(join(into, 'root')), parts.root)
  assert.deepEqual(await readFile(join(into, 'verity')), parts.verity)
  const { text } = await checkKept(into, wanted)
  assert.equal(text, (await readExtensionHead(path, 'it', wanted)).text)
})

test("another's signature is refused, and one of this key's for something else", () => {
  const code = { code: 'GH_EXTENSION_SIGNATURE' }
  const foreign = extension(manifest, parts, key('foreign'))
  assert.throws(() => readHead(foreign, 'it', wanted.publicKey), code)
  const good = saying({}).toString('latin1')
  const [, signed, text] = good.split('\n', 3)
  const made = (signature: string, manifest: string): Buffer =>
    Buffer.from(`${magic}\n${signature}\n${manifest}\nrest`, 'latin1')
  assert.equal(
    readHead(made(signed!, text!), 'it', wanted.publicKey).manifest.title,
    manifest.title,
  )
  for (const other of [
    made(signed!, text!.replace('2.0-1', '2.0-2')),
    made(signature(key('own'), Buffer.from(text!)).toString('base64'), text!),
    made('', text!),
    made(signature(key('own'), Buffer.from(context)).toString('base64'), text!),
  ])
    assert.throws(() => readHead(other, 'it', wanted.publicKey), code)
})

test('what is no extension, or of another form, is told so', () => {
  const read = (text: string) => () => readHead(Buffer.from(text), 'it', wanted.publicKey)
  const code = 'GH_EXTENSION_FORMAT'
  assert.throws(read(''), { code, message: /is not an extension/ })
  assert.throws(read('PK\u0003\u0004\n\n\n'), { code, message: /is not an extension/ })
  assert.throws(read(`${magic}\nAAAA`), { code, message: /is not an extension/ })
  assert.throws(read('gatehouse extension 2\n\n{}\n'), { code, message: /another version/ })
})

test('a manifest that would write more than its own lines into a unit is refused', () => {
  for (const other of [
    { command: ['/usr/sbin/broker', 'a\nExecStartPre=/bin/sh'] },
    { command: ['broker'] },
    { command: ['-+/usr/sbin/broker'] },
    { title: 'x\ny' },
    { name: '../x' },
    { ports: ['80/tcp'] },
    { ports: ['41641/udp'] },
    { ports: ['1883-1890/tcp'] },
    { rootHash: 'x' },
  ])
    assert.throws(
      () => readHead(saying(other), 'it', wanted.publicKey),
      { code: 'GH_EXTENSION_FORMAT' },
      JSON.stringify(other),
    )
})

test('the processor and the name must be those that are asked for', async () => {
  const arm = await lies(saying({ arch: 'arm64' }))
  await assert.rejects(takeExtension(arm.path, 'it', arm.into, wanted), {
    code: 'GH_EXTENSION_ARCH',
    message: 'it is for arm64, and this device is amd64',
    cure: /broker-amd64\.extension: make extension NAME=broker ARCH=amd64/,
  })
  const other = await lies(saying({ name: 'other' }))
  await assert.rejects(takeExtension(other.path, 'it', other.into, wanted), {
    code: 'GH_EXTENSION_FORMAT',
    message: 'it holds other',
  })
})

test('damaged, cut short or with more behind it, it changes nothing', async () => {
  const good = saying({})
  const flipped = Buffer.from(good)
  flipped[good.length - 1_000_000]! ^= 1
  for (const bad of [
    flipped,
    good.subarray(0, -1),
    good.subarray(0, 900),
    Buffer.concat([good, good]),
  ]) {
    const { path, into } = await lies(bad)
    await mkdir(into)
    await writeFile(join(into, 'root'), 'from before')
    await assert.rejects(takeExtension(path, 'it', into, wanted), { code: 'GH_EXTENSION_DAMAGED' })
    assert.equal(await readFile(join(into, 'root'), 'utf8'), 'from before')
    assert.deepEqual(await readdir(join(into, '..')), ['broker', 'broker-amd64.extension'])
  }
})

test("the device's own copy is read whole before it is used again", async () => {
  const { path, into } = await lies(saying({}))
  await takeExtension(path, 'it', into, wanted)
  await rm(join(into, 'verity'))
  await assert.rejects(checkKept(into, wanted), { code: 'GH_EXTENSION_DAMAGED' })
  await writeFile(join(into, 'verity'), Buffer.concat([parts.verity, Buffer.from('more')]))
  await assert.rejects(checkKept(into, wanted), { code: 'GH_EXTENSION_DAMAGED' })
  await rm(into, { recursive: true })
  await assert.rejects(checkKept(into, wanted), { code: 'ENOENT' })
})

test('a link is not followed', async () => {
  const { path, into } = await lies(saying({}))
  await symlink(path, `${path}.link`)
  await assert.rejects(takeExtension(`${path}.link`, 'it', into, wanted), /link/)
})
