/** What a rebuild says has changed. Real .deb files, made by dpkg-deb. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { gzipSync } from 'node:zlib'
import { advisories, changes, report } from '../../../tools/changes.ts'

const root = mkdtempSync(join(tmpdir(), 'gh-changes-'))
after(() => {
  rmSync(root, { recursive: true, force: true })
})

const changelog = `openssl (3.5.7-1~deb13u3) trixie-security; urgency=medium

  * CVE-2026-20002 (timing side channel)
  * CVE-2026-1001 (double free). DSA-6001-1

 -- A Maintainer <a@example.org>  Fri, 13 Nov 2026 10:00:00 +0000

openssl (3.5.7-1~deb13u2) trixie-security; urgency=medium

  * Fix CVE-2025-9999

 -- A Maintainer <a@example.org>  Fri, 06 Nov 2026 10:00:00 +0000
`

test('packages new, gone and changed', () => {
  const before = 'deb\ta\t1\ndeb\tb\t1\nnpm\tc\t1\nnpm\tc\t2\n'
  const now = 'deb\ta\t2\nnpm\tc\t2\nnpm\tc\t1\ngolang\td\tv1\n'
  assert.deepEqual(changes(before, now), [
    { type: 'deb', name: 'a', before: '1', after: '2' },
    { type: 'deb', name: 'b', before: '1' },
    { type: 'golang', name: 'd', after: 'v1' },
  ])
  assert.deepEqual(changes(before, before), [])
  assert.throws(() => changes('no tabs', now), /is no line of a packages\.txt/)
})

test('a changelog names what is closed since the version before, and says when it cannot', () => {
  assert.deepEqual(advisories(changelog, '3.5.7-1~deb13u2+b1'), [
    'CVE-2026-1001',
    'CVE-2026-20002',
    'DSA-6001-1',
  ])
  assert.deepEqual(advisories(changelog, '3.5.7-1~deb13u3'), [])
  assert.equal(advisories(changelog, '3.4'), undefined)
})

test('the report reads the changelogs of the packages that were installed', async () => {
  const tree = join(root, 'tree')
  mkdirSync(join(tree, 'DEBIAN'), { recursive: true })
  mkdirSync(join(tree, 'usr/share/doc/openssl'), { recursive: true })
  writeFileSync(
    join(tree, 'DEBIAN/control'),
    'Package: openssl\nVersion: 3.5.7-1~deb13u3\nArchitecture: all\nMaintainer: a <a@example.org>\nDescription: x\n',
  )
  writeFileSync(join(tree, 'usr/share/doc/openssl/changelog.Debian.gz'), gzipSync(changelog))
  const built = spawnSync(
    'dpkg-deb',
    ['--build', '--root-owner-group', tree, join(root, 'openssl_3.5.7-1~deb13u3_amd64.deb')],
    { encoding: 'utf8' },
  )
  assert.equal(built.status, 0, built.stderr)
  const text = await report(
    'deb\topenssl\t3.5.7-1~deb13u2\ndeb\tudev\t1:1\n',
    'deb\topenssl\t3.5.7-1~deb13u3\ndeb\tudev\t1:2\n',
    root,
  )
  assert.match(
    text,
    /^ {2}deb openssl 3\.5\.7-1~deb13u2 → 3\.5\.7-1~deb13u3 {2}closes CVE-2026-1001, CVE-2026-20002, DSA-6001-1$/m,
  )
  assert.match(text, /^ {2}deb udev 1:1 → 1:2 {2}\(its changelog does not tell\)$/m)
  assert.match(
    text,
    /^2 packages have changed; advisories closed: CVE-2026-1001, CVE-2026-20002, DSA-6001-1\.$/m,
  )
  assert.equal(await report('deb\ta\t1\n', 'deb\ta\t1\n', root), 'No package has changed.\n')
})
