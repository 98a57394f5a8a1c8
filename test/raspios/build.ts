/**
 * Builds PROFILE=raspios against the stand-in for Raspberry Pi's archive (archive.ts), which it makes
 * and serves on this machine: out/gatehouse-raspios-arm64.img, for image.test.ts. Of a version below
 * any other, so that no device takes it for an update.
 *
 * Usage: node test/raspios/build.ts   (as root, after `make app`: make test-raspios)
 */
import { execFileSync, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createReadStream } from 'node:fs'
import { mkdir, readFile, readdir, stat, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join, normalize, resolve } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { makeArchive } from './archive.ts'

const checkout = resolve(import.meta.dirname, '../..')
const into = join(checkout, 'out/cache/raspios')
const debs = join(into, 'debs')
/** The build keeps its tree as long as address and key of the archive are the same. */
const port = 18231

await mkdir(into, { recursive: true })
execFileSync(join(import.meta.dirname, 'fetch'), { stdio: 'inherit' })
const stamp = join(into, 'made-of')
const wanted = createHash('sha256')
  .update(await readFile(join(import.meta.dirname, 'archive.ts')))
  .update((await readdir(debs)).toSorted().join('\n'))
  .digest('hex')
if ((await readFile(stamp, 'utf8').catch(() => '')) !== wanted) {
  console.log("raspios: making the stand-in for Raspberry Pi's archive")
  await makeArchive(debs, into)
  await writeFile(stamp, wanted)
}

const server = createServer((request, response) => {
  const path = normalize(decodeURIComponent(new URL(request.url!, 'http://localhost').pathname))
  void serve(join(into, 'debian', path)).catch(() => {
    response.writeHead(404).end()
  })
  async function serve(file: string): Promise<void> {
    const { size } = await stat(file)
    response.writeHead(200, { 'content-length': size })
    await pipeline(createReadStream(file), response)
  }
})
server.listen(port, '127.0.0.1')
await once(server, 'listening').catch(async () => {
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
})
const build = spawn(join(checkout, 'image/build'), ['arm64'], {
  stdio: 'inherit',
  env: {
    ...process.env,
    GATEHOUSE_PROFILE: 'raspios',
    GATEHOUSE_RASPIOS_ARCHIVE: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    GATEHOUSE_RASPIOS_KEYRING: join(into, 'keyring.pgp'),
    GATEHOUSE_IMAGE_VERSION: '0.0.standin',
  },
})
const [status] = (await once(build, 'exit')) as [number | null]
server.close()
server.closeAllConnections()
process.exitCode = status ?? 1
