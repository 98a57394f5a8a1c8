import { build } from 'esbuild'
import { createHash } from 'node:crypto'
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { brotliCompressSync, constants } from 'node:zlib'

const root = join(import.meta.dirname, '..')
const source = join(root, 'src/console')

/**
 * What gatehouse.toml.example says of each key, `table.name`: the comment above it, or above the
 * keys that follow each other. It is written for the people who fill in the form, too.
 */
export function explanations(example: string): Record<string, string> {
  const found: Record<string, string> = {}
  let table = ''
  let comment: string[] = []
  let used = false
  for (const line of example.split('\n')) {
    const header = /^#?\[\[?([a-z_]+)\]\]?\s*$/.exec(line)?.[1]
    const key = /^#?([a-z][a-z0-9_]*) = /.exec(line)?.[1]
    const words = /^# (.*)$/.exec(line)?.[1]
    if (header !== undefined) {
      table = header
      comment = []
    } else if (key !== undefined) {
      if (comment.length > 0) found[`${table}.${key}`] ??= comment.join(' ')
      used = true
    } else if (words !== undefined) {
      if (used) comment = []
      comment.push(words)
      used = false
    } else {
      comment = []
      used = false
    }
  }
  return found
}

/**
 * Bundles the web console into a folder, emptied first: index.html, and a script and a style sheet
 * with a hash of their content in their names, so that a browser may keep them for good. Each lies
 * there compressed too (`.br`): a Pi would take a third of a second for it at each start.
 */
export async function bundleConsole(out: string): Promise<void> {
  const example = await readFile(
    join(root, 'overlays/usr/share/gatehouse/gatehouse.toml.example'),
    'utf8',
  )
  const { outputFiles } = await build({
    entryPoints: { app: join(source, 'main.tsx'), style: join(source, 'style.css') },
    outdir: out,
    write: false,
    bundle: true,
    minify: true,
    format: 'esm',
    platform: 'browser',
    target: ['chrome120', 'firefox121', 'safari17'],
    tsconfig: join(source, 'tsconfig.json'),
    define: { GATEHOUSE_EXPLANATIONS: JSON.stringify(explanations(example)) },
    legalComments: 'none',
    logLevel: 'warning',
  })
  await rm(out, { recursive: true, force: true })
  await mkdir(out, { recursive: true })
  let page = await readFile(join(source, 'index.html'), 'utf8')
  const put = async (name: string, content: Uint8Array): Promise<void> => {
    await writeFile(join(out, name), content)
    await writeFile(
      join(out, `${name}.br`),
      brotliCompressSync(content, { params: { [constants.BROTLI_PARAM_QUALITY]: 11 } }),
    )
  }
  for (const { path, contents } of outputFiles) {
    const [, stem, kind] = /(\w+)\.(js|css)$/.exec(path)!
    const hash = createHash('sha256').update(contents).digest('hex').slice(0, 12)
    const name = `${stem}-${hash}.${kind}`
    page = page.replaceAll(`{{${stem}}}`, name)
    await put(name, contents)
  }
  await put('index.html', Buffer.from(page))
}
