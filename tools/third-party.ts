/**
 * The licences of what the program is made of: what is linked into tsnet.wasm
 * (src/tsnet/third-party.ts), then npm's packages, whose text the bundle does not carry, and Node.js.
 * Node-RED's packages have theirs beside them in the image, Debian's in /usr/share/doc.
 *
 * Usage: node tools/third-party.ts APP     APP: out/app, with THIRD_PARTY.txt of the module; adds to it,
 * and puts it where the console serves it.
 */
import { readFile, readdir, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { brotliCompressSync, constants } from 'node:zlib'

const root = path.join(import.meta.dirname, '..')

/** One package of a lock file, and where it lies. */
interface Entry {
  version?: string
  dev?: boolean
  optional?: boolean
  link?: boolean
  license?: string
}

/** A package's licence: its own file, or what its package.json says where it has none. */
async function licence(folder: string, said: string | undefined): Promise<string> {
  const names = (await readdir(folder)).filter((name) =>
    /^(?:licen[cs]e|copying|notice)(?:[.-].*)?$/i.test(name),
  )
  if (names.length === 0) {
    if (said === undefined) throw new Error(`third-party: ${folder} has no licence`)
    return `(It comes without a text; its package.json says: ${said})`
  }
  const texts: string[] = []
  for (const name of names.toSorted())
    texts.push((await readFile(path.join(folder, name), 'utf8')).replaceAll('\r', '').trim())
  return texts.join('\n\n')
}

/** Adds npm's packages of the program to the text. */
export async function withPackages(modules: string, checkout = root): Promise<string> {
  const { packages } = JSON.parse(
    await readFile(path.join(checkout, 'package-lock.json'), 'utf8'),
  ) as { packages: Record<string, Entry> }
  const cpu = process.arch === 'arm64' ? 'arm64' : 'x64'
  // One text for all that share it, as most of the MIT's do not: names of authors are in them.
  const shared = new Map<string, string[]>()
  for (const [where, entry] of Object.entries(packages)) {
    const node = where === `node_modules/node-linux-${cpu}`
    if (!where.includes('node_modules/') || entry.link === true || entry.dev === true) continue
    if (entry.optional === true && !node) continue
    const name = node
      ? `Node.js ${entry.version}`
      : `${where.slice(where.lastIndexOf('node_modules/') + 13)} ${entry.version}`
    const text = await licence(path.join(checkout, where), entry.license)
    shared.set(text, [...(shared.get(text) ?? []), name])
  }
  const rule = '='.repeat(80)
  return [
    modules.trimEnd(),
    '',
    'The program is made with the following, each under its own licence.',
    ...[...shared].flatMap(([text, who]) => ['', rule, ...who.toSorted(), rule, '', text]),
    '',
  ].join('\n')
}

if (import.meta.main) {
  const [app] = process.argv.slice(2)
  if (app === undefined) {
    console.error('usage: third-party.ts APP')
    process.exitCode = 2
  } else {
    const file = path.join(app, 'THIRD_PARTY.txt')
    const text = await withPackages(await readFile(file, 'utf8'))
    await writeFile(file, text)
    const served = path.join(app, 'console/third-party.txt')
    await writeFile(served, text)
    await writeFile(
      `${served}.br`,
      brotliCompressSync(text, { params: { [constants.BROTLI_PARAM_QUALITY]: 11 } }),
    )
  }
}
