/**
 * Makes what is published, in build/package: JavaScript, because Node.js strips no types below
 * node_modules, the worker and the module beside it, declarations. Then: npm publish
 * src/tsnet/build/package
 */
import { execFileSync } from 'node:child_process'
import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { build } from 'esbuild'

const here = import.meta.dirname
const out = path.resolve(process.argv[2] ?? path.join(here, 'build/package'))

rmSync(out, { recursive: true, force: true })
mkdirSync(out, { recursive: true })
await build({
  entryPoints: { index: path.join(here, 'index.ts'), 'tsnet-worker': path.join(here, 'worker.ts') },
  outdir: out,
  bundle: true,
  external: ['undici'],
  platform: 'node',
  format: 'esm',
  target: 'node26',
  logLevel: 'warning',
})
// A project of its own: the declarations are to need nothing of this repository's.
const project = path.join(out, 'tsconfig.json')
writeFileSync(
  project,
  JSON.stringify({
    extends: path.join(here, '../../tsconfig.json'),
    compilerOptions: {
      noEmit: false,
      declaration: true,
      emitDeclarationOnly: true,
      outDir: out,
      rootDir: here,
      types: ['node'],
      typeRoots: [path.join(here, '../../node_modules/@types')],
    },
    files: [path.join(here, 'index.ts'), path.join(here, 'webassembly.d.ts')],
    include: [],
  }),
)
execFileSync(
  process.execPath,
  [path.join(here, '../../node_modules/typescript/bin/tsc'), '-p', project],
  { stdio: 'inherit' },
)
rmSync(project)

const {
  private: _,
  scripts: __,
  ...manifest
} = JSON.parse(readFileSync(path.join(here, 'package.json'), 'utf8'))
writeFileSync(
  path.join(out, 'package.json'),
  `${JSON.stringify({ ...manifest, types: './index.d.ts', exports: { '.': { types: './index.d.ts', default: './index.js' } } }, null, 2)}\n`,
)
copyFileSync(path.join(here, 'build/tsnet.wasm'), path.join(out, 'tsnet.wasm'))
copyFileSync(path.join(here, 'README.md'), path.join(out, 'README.md'))
// The module is Tailscale's code for the most part.
copyFileSync(path.join(here, 'build/tailscale.com/LICENSE'), path.join(out, 'LICENSE.tailscale'))
