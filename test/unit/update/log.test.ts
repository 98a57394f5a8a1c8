/**
 * The log of releases (src/update/log.ts): what a device takes from a channel that has one, and what
 * it does not. A real web server on 127.0.0.1, real signatures, the real tool that publishes.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, beforeEach, test } from 'node:test'
import { signature, signingKey } from '../../../tools/signing.ts'
import { arch } from '../../../src/update/bundle.ts'
import { collect } from '../../../src/update/collect.ts'
import { appendRelease, parseLog } from '../../../src/update/log.ts'
import { updatePaths } from '../../../src/update/record.ts'
import { webSource } from '../../../src/update/source.ts'

const root = mkdtempSync(path.join(tmpdir(), 'gh-log-'))
const keys = path.join(root, 'keys')
const channel = path.join(root, 'channel')
const publish = path.resolve(import.meta.dirname, '../../../tools/channel.ts')
const server = createServer((req, res) => {
  try {
    res.end(readFileSync(path.join(channel, path.basename(req.url!))))
  } catch {
    res.writeHead(404).end()
  }
})
let url = ''
const paths = updatePaths({
  GATEHOUSE_UPDATE_DIR: path.join(root, 'downloads'),
  GATEHOUSE_SLOTS_DIR: path.join(root, 'slots'),
  GATEHOUSE_UPDATE_KEY: path.join(keys, 'update.pub'),
  GATEHOUSE_OS_RELEASE: path.join(root, 'os-release'),
})
before(async () => {
  mkdirSync(path.join(root, 'slots'))
  signingKey(keys)
  writeFileSync(paths.osRelease, 'IMAGE_VERSION="0.9"\n')
  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve)
  })
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
})
after(() => {
  server.close()
  server.closeAllConnections()
  rmSync(root, { recursive: true, force: true })
})
beforeEach(() => {
  for (const folder of [channel, paths.downloads]) rmSync(folder, { recursive: true, force: true })
})

/** Publishes a version with tools/channel.ts, as `make channel` does from what a build left. */
function release(version: string, of = arch, more: string[] = []): string {
  const update = path.join(root, 'update')
  rmSync(update, { recursive: true, force: true })
  mkdirSync(update)
  const id = 'aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee'
  for (const name of [
    `${version}_${of}.efi`,
    `${version}_${id}_${of}.root`,
    `${version}_${id}_${of}.verity`,
  ])
    writeFileSync(path.join(update, `gatehouse_${name}`), `${version} ${name}`)
  writeFileSync(
    path.join(update, 'SHA256SUMS'),
    `# changes since ${version}
`,
  )
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    ['--disable-warning=ExperimentalWarning', publish, channel, ...more, update],
    { encoding: 'utf8', env: { ...process.env, GATEHOUSE_KEYS: keys } },
  )
  assert.equal(status, 0, stderr)
  return stdout
}
const take = (force = false): ReturnType<typeof collect> =>
  collect(webSource(url), paths, { anyLog: force })
const log = path.join(channel, 'releases')
function sign(text: string): void {
  writeFileSync(log, text)
  writeFileSync(`${log}.sig`, signature(path.join(keys, 'update.key'), Buffer.from(text)))
}

test('a channel grows line by line, and what is in it is taken, with its changes', async () => {
  release('1.0')
  release('1.0', arch === 'amd64' ? 'arm64' : 'amd64')
  const bundle = await take()
  assert.equal(bundle?.version, '1.0')
  // Of both processors' lists, once.
  assert.deepEqual(bundle.changes, ['since 1.0'])
  release('1.1')
  assert.equal((await take())?.version, '1.1')
  assert.deepEqual(
    parseLog(readFileSync(log, 'utf8')).map(({ version }) => version),
    ['1.0', '1.0', '1.1'],
  )
})

test('the percentage is in the signed list, and publishing again does not lengthen the log', async () => {
  release('1.0', arch, ['--percentage', '10'])
  assert.equal((await take())?.percentage, 10)
  release('1.0', arch)
  assert.equal((await take())?.percentage, 100)
  assert.equal(parseLog(readFileSync(log, 'utf8')).length, 1)
})

test('another past is refused, though it is signed; a person may take it', async () => {
  release('1.0')
  await take()
  const was = readFileSync(log, 'utf8')
  // The one who has the key shows this device a log of its own.
  rmSync(channel, { recursive: true })
  release('0.95')
  release('2.0')
  await assert.rejects(take(), { code: 'GH_UPDATE_LOG', message: /another past/ })
  // Shortened.
  sign('')
  await assert.rejects(take(), { code: 'GH_UPDATE_LOG', message: /another past/ })
  // Gone.
  rmSync(log)
  await assert.rejects(take(), { code: 'GH_UPDATE_LOG', message: /no log of releases any more/ })
  assert.equal((await take(true))?.version, '2.0')
  assert.notEqual(was, '')
})

test('an update that is in no log is refused, and so is one with other files', async () => {
  release('1.0')
  const before = readFileSync(log)
  release('1.1')
  cpSync(log, path.join(root, 'later'))
  sign(before.toString())
  await assert.rejects(take(), { code: 'GH_UPDATE_LOG', message: /ends with 1\.0/ })
  sign(
    appendRelease(before.toString(), {
      date: '2026-11-27',
      arch,
      version: '1.1',
      sums: 'a'.repeat(64),
    }),
  )
  await assert.rejects(take(), { code: 'GH_UPDATE_LOG' })
  sign(readFileSync(path.join(root, 'later'), 'utf8'))
  assert.equal((await take())?.version, '1.1')
})

test('a line that was changed, or a signature of somebody else, is refused', async () => {
  release('1.0')
  release('1.1')
  const text = readFileSync(log, 'utf8')
  sign(text.replace('\t1.0\t', '\t1.9\t'))
  await assert.rejects(take(), { code: 'GH_UPDATE_LOG', message: /line 1/ })
  writeFileSync(log, text)
  await assert.rejects(take(), { code: 'GH_UPDATE_SIGNATURE' })
})
