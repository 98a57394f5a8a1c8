/**
 * Bundles the program for the image: out/app/gatehouse.js, and tsnet-worker.js beside it. One file per entry point, because an SD
 * card reads one file of a megabyte much faster than a thousand small ones.
 *
 * Usage: node src/build/bundle.ts [OUT]; default out/app. SOURCE_DATE_EPOCH (seconds) sets the build date, default now.
 */
import { build } from 'esbuild'
import type { BuildOptions } from 'esbuild'
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'

const root = join(import.meta.dirname, '../..')
const out = process.argv[2] ?? join(root, 'out/app')
const { version } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8')) as { version: string }
const epoch = process.env.SOURCE_DATE_EPOCH
const builtAt = epoch === undefined ? Date.now() : Number(epoch) * 1000

const options: BuildOptions = {
  bundle: true,
  format: 'esm',
  platform: 'node',
  target: 'node26',
  legalComments: 'none',
  logLevel: 'warning',
  // CommonJS dependencies call require and know __dirname; an ES module has neither.
  banner: {
    js: `import { createRequire as ghCreateRequire } from 'node:module';
const require = ghCreateRequire(import.meta.url), __filename = import.meta.filename, __dirname = import.meta.dirname;`,
  },
  define: { GATEHOUSE_VERSION: JSON.stringify(version), GATEHOUSE_BUILT_AT: String(builtAt) },
}

const tsnet = existsSync(join(root, 'src/tsnet/index.ts'))
await build({
  ...options,
  entryPoints: [join(root, 'src/main.ts')],
  outfile: join(out, 'gatehouse.js'),
  // Without the bindings everything but `serve` works.
  ...(tsnet ? {} : { external: ['@gatehouse/tsnet'] }),
})
console.log(`${join(out, 'gatehouse.js')}${tsnet ? '' : ' (without the tsnet bindings: src/tsnet/index.ts does not exist yet)'}`)

const worker = join(root, 'src/tsnet/worker.ts')
if (existsSync(worker)) {
  await build({ ...options, entryPoints: [worker], outfile: join(out, 'tsnet-worker.js') })
  console.log(join(out, 'tsnet-worker.js'))
} else {
  console.log('tsnet-worker.js skipped: src/tsnet/worker.ts does not exist yet')
}
