/**
 * What `make image` leaves for publishing: checksums, signature, package list, SBOM, Imager's
 * manifest, the update's files.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { createHash, createPublicKey, verify } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { mkdtemp, readFile, readdir, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { pipeline } from 'node:stream/promises'
import { createZstdDecompress } from 'node:zlib'

const root = path.resolve(import.meta.dirname, '../..')
const out = path.join(root, 'out')

async function sha256(file: string, unpack = false): Promise<string> {
  const hash = createHash('sha256')
  if (unpack) await pipeline(createReadStream(file), createZstdDecompress(), hash)
  else await pipeline(createReadStream(file), hash)
  return hash.digest('hex')
}

/** The sums by name, after the signature and every file named have been checked. */
async function checked(sums: string): Promise<Map<string, string>> {
  const text = await readFile(sums)
  const key = createPublicKey(
    await readFile(
      path.join(process.env['GATEHOUSE_KEYS'] ?? path.join(root, 'keys'), 'update.pub'),
    ),
  )
  assert.equal(verify(null, text, key, await readFile(`${sums}.sig`)), true, `${sums}.sig`)
  const listed = new Map(
    text
      .toString()
      .trim()
      .split('\n')
      .map((line) => line.split('  ').toReversed() as [string, string]),
  )
  for (const [name, sum] of listed)
    assert.equal(await sha256(path.join(path.dirname(sums), name)), sum, name)
  return listed
}

for (const arch of ['amd64', 'arm64'] as const) {
  test(`${arch}: sums and signature are right, the packed image is the image, and it is no larger than 250 MB`, async () => {
    const listed = await checked(path.join(out, `gatehouse-${arch}.SHA256SUMS`))
    assert.equal(listed.size, 5)
    const zst = path.join(out, `gatehouse-${arch}.img.zst`)
    assert.equal(await sha256(zst, true), listed.get(`gatehouse-${arch}.img`))
    assert.ok((await stat(zst)).size <= 250e6)
    const {
      os_list: [entry],
    } = JSON.parse(await readFile(path.join(out, `gatehouse-${arch}.imager.json`), 'utf8'))
    assert.equal(entry.extract_sha256, listed.get(`gatehouse-${arch}.img`))
    assert.equal(entry.extract_size, (await stat(path.join(out, `gatehouse-${arch}.img`))).size)
    assert.equal(entry.image_download_size, (await stat(zst)).size)
    assert.equal(entry.init_format, 'cloudinit')
  })

  test(`${arch}: the SBOM names the kernel, systemd, Node.js, Node-RED, Fastify and Tailscale, each with its version`, async () => {
    const document = JSON.parse(
      await readFile(path.join(out, `gatehouse-${arch}.spdx.json`), 'utf8'),
    )
    assert.equal(document.spdxVersion, 'SPDX-2.3')
    const purls: string[] = document.packages.flatMap(
      (p: { externalRefs?: { referenceLocator: string }[] }) =>
        p.externalRefs?.map((r) => r.referenceLocator) ?? [],
    )
    for (const wanted of [
      /^pkg:deb\/debian\/linux-image-6\./,
      /^pkg:deb\/debian\/systemd@257/,
      /^pkg:npm\/node-linux-(x64|arm64)@26\./,
      /^pkg:npm\/node-red@5\./,
      /^pkg:npm\/fastify@5\./,
      /^pkg:golang\/tailscale\.com@v1\./,
      /^pkg:golang\/stdlib@1\./,
    ]) {
      assert.equal(purls.filter((p) => wanted.test(p)).length, 1, String(wanted))
    }
    const ids = document.packages.map((p: { SPDXID: string }) => p.SPDXID)
    assert.equal(new Set(ids).size, ids.length)
    const lines = (await readFile(path.join(out, `gatehouse-${arch}.packages.txt`), 'utf8'))
      .trim()
      .split('\n')
    assert.equal(lines.length, purls.length)
  })

  test(`${arch}: the update has kernel image, root and hash tree of one version, signed`, async () => {
    const folder = path.join(out, `update-${arch}`)
    const listed = await checked(path.join(folder, 'SHA256SUMS'))
    const names = [...listed.keys()].toSorted()
    const version = names
      .map((n) => new RegExp(`^gatehouse_(.+)_${arch}\\.efi$`).exec(n)?.[1])
      .find((v) => v !== undefined)
    // Root and hash tree bear the two halves of the root hash, which the kernel image names.
    const kernel = (await readFile(path.join(folder, `gatehouse_${version}_${arch}.efi`))).toString(
      'latin1',
    )
    const hash = /\broothash=([0-9a-f]{64})\b/.exec(kernel)![1]!
    const [rootId, treeId] = [hash.slice(0, 32), hash.slice(32)].map((half) =>
      half.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5'),
    )
    assert.deepEqual(
      names,
      [
        `${version}_${arch}.efi`,
        `${version}_${rootId}_${arch}.root`,
        `${version}_${treeId}_${arch}.verity`,
      ]
        .map((n) => `gatehouse_${n}`)
        .toSorted(),
    )
    assert.deepEqual(
      (await readdir(folder)).toSorted(),
      ['SHA256SUMS', 'SHA256SUMS.sig', ...names].toSorted(),
    )
  })
}

test("PROFILE=raspios: Raspberry Pi's kernel instead of Debian's, from the archive that is named; as far as mkosi reads its configuration", async (t) => {
  const folder = await mkdtemp(path.join(tmpdir(), 'raspios-'))
  t.after(() => rm(folder, { recursive: true }))
  await writeFile(path.join(folder, 'raspberrypi.gpg'), 'a key')
  const build = (
    env: Record<string, string>,
  ): { status: number | null; stdout: string; stderr: string } =>
    spawnSync(path.join(root, 'image/build'), ['arm64'], {
      encoding: 'utf8',
      env: { ...process.env, GATEHOUSE_SUMMARY: '1', ...env },
    })
  const settings = {
    GATEHOUSE_PROFILE: 'raspios',
    GATEHOUSE_RASPIOS_ARCHIVE: 'http://raspios.invalid/debian',
    GATEHOUSE_RASPIOS_KEYRING: path.join(folder, 'raspberrypi.gpg'),
  }
  const raspios = build(settings)
  assert.equal(raspios.status, 0, raspios.stderr)
  assert.match(raspios.stdout, /Profiles: raspios/)
  assert.match(raspios.stdout, /linux-image-rpi-v8/)
  assert.doesNotMatch(raspios.stdout, /linux-image-arm64/)
  const sources = await readFile(
    path.join(out, 'cache/apt-raspios/etc/apt/sources.list.d/mkosi.sources'),
    'utf8',
  )
  assert.match(
    sources,
    /^URIs: http:\/\/raspios\.invalid\/debian\nSuites: trixie\nComponents: main\nSigned-By: \/usr\/share\/keyrings\/gatehouse-raspios\.gpg$/m,
  )
  assert.match(
    await readFile(
      path.join(out, 'cache/apt-raspios/etc/apt/preferences.d/gatehouse-raspios'),
      'utf8',
    ),
    /^Package: \*\nPin: release o=Raspberry Pi Foundation\nPin-Priority: 1$/m,
  )
  const debian = build({})
  assert.match(debian.stdout, /linux-image-arm64/)
  assert.doesNotMatch(debian.stdout, /linux-image-rpi|raspios/)
  assert.match(
    build({ GATEHOUSE_PROFILE: 'raspios' }).stderr,
    /PROFILE=raspios needs GATEHOUSE_RASPIOS_ARCHIVE/,
  )
})
