/** Extensions from where updates come from: what is fetched, and handed to root. */
import assert from 'node:assert/strict'
import { generateKeyPairSync } from 'node:crypto'
import { mkdir, mkdtemp, readFile, readdir, rm, symlink, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, beforeEach, test } from 'node:test'
import { fetchExtensions } from '../../../src/update/extension-fetch.ts'
import { bringExtensions } from '../../../src/update/install.ts'
import { webSource } from '../../../src/update/source.ts'
import { extension } from '../../../tools/extension.ts'

let directory: string
let server: Server
let publicKey: string
let sent = 0
/** What the web server has, by name. */
const files = new Map<string, Buffer>()
const root = Buffer.alloc(40_000_000, 'root')

const made = (version: string): Buffer =>
  extension(
    {
      ...{ name: 'broker', title: 'A broker', version, arch: 'amd64' },
      ...{ command: ['/usr/sbin/broker'], ports: ['1883/tcp'], rootHash: 'ab'.repeat(32) },
    },
    { root, verity: Buffer.from('tree') },
    join(directory, 'key'),
  )

before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'gh-fetch-'))
  const pair = generateKeyPairSync('ed25519')
  await writeFile(join(directory, 'key'), pair.privateKey.export({ type: 'pkcs8', format: 'pem' }))
  publicKey = pair.publicKey.export({ type: 'spki', format: 'pem' }) as string
  server = createServer((request, response) => {
    const data = files.get(request.url!.slice(1))
    if (data === undefined) return response.writeHead(404).end()
    // In pieces, the first of them shorter than the manifest.
    let at = 0
    const next = (): void => {
      if (at >= data.length) return void response.end()
      const piece = data.subarray(at, (at += at === 0 ? 100 : 65_536))
      sent += piece.length
      if (response.write(piece)) setImmediate(next)
      else response.once('drain', next)
    }
    next()
  })
  await new Promise<void>((up) => server.listen(0, '127.0.0.1', up))
})

beforeEach(async () => {
  files.clear()
  sent = 0
  for (const folder of ['downloads', 'extensions'])
    await rm(join(directory, folder), { recursive: true, force: true })
})

after(async () => {
  server.closeAllConnections()
  server.close()
  await rm(directory, { recursive: true, force: true })
})

const fetching = async (has?: string): Promise<{ fetched: string[]; failed: string[] }> =>
  await fetchExtensions(webSource(`http://127.0.0.1:${(server.address() as AddressInfo).port}`), {
    names: ['broker', 'elsewhere'],
    attached: new Map(has === undefined ? [] : [['broker', has]]),
    ...{ arch: 'amd64', publicKey, downloads: join(directory, 'downloads') },
  })
const downloaded = async (): Promise<string[]> =>
  await readdir(join(directory, 'downloads')).catch(() => [])

test('what is named and newer is fetched whole, and root takes it from there', async () => {
  const data = made('2.0.10-1')
  files.set('broker-amd64.extension', data)
  assert.deepEqual(await fetching('2.0.9-1'), {
    fetched: ['broker 2.0.10-1 is downloaded'],
    failed: [],
  })
  assert.deepEqual(await readFile(join(directory, 'downloads/broker-amd64.extension')), data)
  const to = join(directory, 'extensions')
  assert.equal(await bringExtensions(join(directory, 'downloads'), to), 1)
  assert.deepEqual(await readFile(join(to, '.incoming/broker-amd64.extension')), data)
  assert.deepEqual(await downloaded(), [])
})

test('of what is not newer, the beginning alone is fetched', async () => {
  files.set('broker-amd64.extension', made('2.0.9-1'))
  assert.deepEqual(await fetching('2.0.9-1'), { fetched: [], failed: [] })
  assert.deepEqual(await downloaded(), [])
  assert.ok(sent < 20_000_000, `${sent} bytes`)
})

test('what is foreign, too long or cut short is not kept, and told', async () => {
  const data = made('2.0-1')
  const told = async (bad: Buffer): Promise<string> => {
    files.set('broker-amd64.extension', bad)
    const { fetched, failed } = await fetching()
    assert.deepEqual([fetched, failed.length], [[], 1])
    assert.ok(!(await downloaded()).includes('broker-amd64.extension'))
    return failed[0]!
  }
  const foreign = Buffer.from(data)
  foreign[data.indexOf('2.0-1') + 4]! ^= 1
  assert.match(await told(foreign), /not signed with the key.*GH_EXTENSION_SIGNATURE/)
  assert.match(await told(Buffer.concat([data, data])), /GH_EXTENSION_DAMAGED/)
  assert.match(await told(data.subarray(0, -1)), /GH_EXTENSION_DAMAGED/)
  assert.match(await told(Buffer.from('<html>')), /is not an extension/)
  files.clear()
  assert.deepEqual(await fetching(), { fetched: [], failed: [] })
})

test("root follows no link of the downloader's, and takes no other name", async () => {
  const downloads = join(directory, 'downloads')
  await mkdir(join(downloads, 'b-amd64.extension'), { recursive: true })
  await symlink('/etc/passwd', join(downloads, 'a-amd64.extension'))
  for (const name of ['SHA256SUMS', '..-amd64.extension', 'broker-amd64.extension.part'])
    await writeFile(join(downloads, name), '')
  const to = join(directory, 'extensions')
  assert.equal(await bringExtensions(downloads, to), 0)
  assert.deepEqual(await readdir(to).catch(() => []), [])
  assert.ok(!(await downloaded()).includes('a-amd64.extension'))
})
