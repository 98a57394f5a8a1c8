/**
 * Makes the reference of the package, as Markdown, from the doc comments of what index.ts exports.
 * What is exported and has no comment, and a link that leads nowhere, are errors.
 *
 * Usage: node src/tsnet/reference/make.ts TYPEDOC OUT   (TYPEDOC: where package.json is installed)
 * typedoc takes no TypeScript 7: it has one of its own beside it, in a folder of its own.
 */
import { execFileSync } from 'node:child_process'
import { readdirSync, readFileSync, rmSync } from 'node:fs'
import path from 'node:path'

const [, , typedoc = '', out = ''] = process.argv
const modules = path.resolve(typedoc, 'node_modules')
rmSync(out, { recursive: true, force: true })
execFileSync(
  process.execPath,
  [
    path.join(modules, 'typedoc/bin/typedoc'),
    ...['--options', path.join(import.meta.dirname, 'typedoc.json')],
    ...['--plugin', path.join(modules, 'typedoc-plugin-markdown/dist/index.js')],
    ...['--out', path.resolve(out)],
    ...['--logLevel', 'Warn'],
  ],
  { stdio: 'inherit' },
)
const pages = readdirSync(out)
const text = pages.map((name) => readFileSync(path.join(out, name), 'utf8')).join('')
const headings = text.match(/^#{2,4} .+/gm)?.length ?? 0
console.log(`reference: ${pages.join(', ')}: ${headings} headings, ${text.length >> 10} KiB`)
