/**
 * Makes the one file of an extension: signs what image/extension has built.
 *
 *     node tools/extension.ts pack RECIPE ARCH WORK FILE
 *
 * RECIPE is image/extensions/NAME/extension.json; WORK holds `image.root.raw`, `image.verity.raw`,
 * systemd-repart's `partitions.json`, and `version`. Prints what was made, with its size.
 *
 * Environment: GATEHOUSE_KEYS (default keys/): the key that updates are signed with.
 */
import { createHash } from 'node:crypto'
import { readFile, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { context, largestExtension, magic, readHead } from '../src/update/extension.ts'
import type { Manifest } from '../src/update/extension.ts'
import { signature, signingKey } from './signing.ts'

/** What a recipe says (docs/extensions.md). */
interface Recipe extends Pick<Manifest, 'name' | 'title' | 'command' | 'ports' | 'jit'> {
  package: string
  packages: string[]
  files: string[]
}

/**
 * An extension's file.
 *
 * @param privateKey PEM file of the key that signs updates
 */
export function extension(
  manifest: Omit<Manifest, 'root' | 'verity'>,
  parts: { root: Buffer; verity: Buffer },
  privateKey: string,
): Buffer {
  const piece = (data: Buffer): Manifest['root'] => ({
    size: data.length,
    sha256: createHash('sha256').update(data).digest('hex'),
  })
  const whole: Manifest = { ...manifest, root: piece(parts.root), verity: piece(parts.verity) }
  const text = JSON.stringify(whole)
  const signed = signature(privateKey, Buffer.from(context + text)).toString('base64')
  return Buffer.concat([Buffer.from(`${magic}\n${signed}\n${text}\n`), parts.root, parts.verity])
}

async function pack(recipe: string, arch: string, work: string, file: string): Promise<void> {
  const { name, title, command, ports, jit } = JSON.parse(await readFile(recipe, 'utf8')) as Recipe
  const partitions = JSON.parse(await readFile(join(work, 'partitions.json'), 'utf8')) as Array<{
    roothash?: string
  }>
  const rootHash = partitions.find(({ roothash }) => roothash !== undefined)?.roothash
  if (rootHash === undefined) throw new Error('extension: systemd-repart tells no root hash')
  const version = (await readFile(join(work, 'version'), 'utf8')).trim()
  const [root, verity] = await Promise.all(
    ['root', 'verity'].map(async (part) => await readFile(join(work, `image.${part}.raw`))),
  )
  const key = signingKey(process.env.GATEHOUSE_KEYS ?? join(import.meta.dirname, '../keys'))
  const data = extension(
    {
      ...{ name, title, version, arch, command, ports, rootHash },
      ...(jit === true ? { jit } : {}),
    },
    { root: root!, verity: verity! },
    key.privateKey,
  )
  // As a device reads it: what it would refuse is better told here.
  readHead(data, basename(file), await readFile(key.publicKey, 'utf8'))
  if (data.length > largestExtension)
    throw new Error(`extension: ${data.length} bytes, and ${largestExtension} are the most`)
  await writeFile(file, data)
  console.log(
    `RESULT extension=${basename(file)} version=${version} mb=${(data.length / 1e6).toFixed(1)} roothash=${rootHash.slice(0, 16)}`,
  )
}

if (import.meta.main) {
  const [what, ...rest] = process.argv.slice(2)
  if (what === 'pack' && rest.length === 4)
    await pack(...(rest as [string, string, string, string]))
  else {
    console.error('usage: extension.ts pack RECIPE ARCH WORK FILE')
    process.exitCode = 2
  }
}
