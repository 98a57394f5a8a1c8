import { build } from 'esbuild'
import { createHash } from 'node:crypto'
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { brotliCompressSync, constants } from 'node:zlib'

const source = join(import.meta.dirname, '../src/console')

/**
 * Bundles the web console into a folder, emptied first: index.html, and a script and a style sheet
 * with a hash of their content in their names, so that a browser may keep them for good. Each lies
 * there compressed too (`.br`): a Pi would take a third of a second for it at each start.
 */
export async function bundleConsole(out: string): Promise<void> {
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
