/** Licences in the SBOM (tools/sbom.ts) and in THIRD_PARTY.txt (tools/third-party.ts). */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { debianLicences, licenceOf, namedLicences } from '../../../tools/sbom.ts'
import { withPackages } from '../../../tools/third-party.ts'

const root = path.resolve(import.meta.dirname, '../../..')
const rule = '='.repeat(80)

test('a text is known by what it says, also where it holds several', () => {
  const own = readFileSync(path.join(root, 'LICENSE'), 'utf8')
  assert.equal(licenceOf(own), 'BSD-3-Clause')
  const mit = readFileSync(path.join(root, 'node_modules/fastify/LICENSE'), 'utf8')
  assert.equal(licenceOf(mit), 'MIT')
  assert.equal(licenceOf(`${own}\n\n${mit}`), 'BSD-3-Clause AND MIT')
  assert.equal(licenceOf('All rights reserved.'), undefined)
  assert.deepEqual(
    [...namedLicences(['x', rule, 'a.org/b v1', 'a.org/c v2', rule, '', mit, ''].join('\n'))],
    [
      ['a.org/b v1', 'MIT'],
      ['a.org/c v2', 'MIT'],
    ],
  )
})

test('Debian’s names are said in words', () => {
  const dep5 = 'Format: x\n\nFiles: *\nLicense: GPL-2+\n text\n\nFiles: a\nLicense: Expat\n'
  assert.deepEqual(debianLicences(dep5), {
    licenceNote: "Debian's copyright file names: Expat, GPL-2+",
  })
  assert.match(debianLicences('It may be used by all.').licenceNote!, /in words/)
  assert.deepEqual(debianLicences(''), {})
})

test('the text has every package that is shipped, Node.js, and none that only builds', async () => {
  const text = await withPackages('of the module\n')
  const { dependencies } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8')) as {
    dependencies: Record<string, string>
  }
  assert.match(text, /^of the module\n/)
  for (const [name, version] of Object.entries(dependencies))
    if (!name.startsWith('@gatehouse/')) assert.ok(text.includes(`\n${name} ${version}\n`), name)
  assert.match(text, /\nNode\.js 26\.\d+\.\d+\n/)
  assert.doesNotMatch(text, /\n(?:typescript|esbuild|prettier) \d/)
})
