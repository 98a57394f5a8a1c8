/**
 * Bundles the program for the image: out/app/gatehouse.js and tsnet-worker.js, and beside them a
 * chunk for what each command alone needs. A few files, because an SD card reads one of a megabyte
 * much faster than a thousand small ones; not one file, because `provision` is on the way of every
 * boot and would parse the whole gateway (0.20 s instead of 0.06 s, and that on a fast machine).
 * The web console is in out/app/console (console.ts), and the laptop's command line (cli.ts).
 *
 * Usage: node tools/bundle.ts [OUT]; default out/app, emptied first. SOURCE_DATE_EPOCH
 * (seconds) sets the build date, default now.
 */
import { build } from 'esbuild'
import { readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { packCli } from './cli.ts'
import { bundleConsole } from './console.ts'
import { common } from './options.ts'

const root = join(import.meta.dirname, '..')
const out = process.argv[2] ?? join(root, 'out/app')
const { version } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8')) as {
  version: string
}
const epoch = process.env.SOURCE_DATE_EPOCH
const builtAt = epoch === undefined ? Date.now() : Number(epoch) * 1000

await rm(out, { recursive: true, force: true })
await build({
  entryPoints: {
    gatehouse: join(root, 'src/main.ts'),
    'tsnet-worker': join(root, 'src/tsnet/worker.ts'),
  },
  outdir: out,
  ...common,
  splitting: true,
  define: { GATEHOUSE_VERSION: JSON.stringify(version), GATEHOUSE_BUILT_AT: String(builtAt) },
})
await bundleConsole(join(out, 'console'))
await packCli(join(out, 'console'), builtAt)
console.log(`program: ${out}`)
