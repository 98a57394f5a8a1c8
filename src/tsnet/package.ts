/**
 * Makes what is published: JavaScript, because Node.js strips no types below node_modules, the
 * worker and the module (compressed) beside it, declarations, licences.
 *
 * Usage: node src/tsnet/package.ts [OUT]; default build/package. TSNET_ZSTD: level of the module's
 * compression, default 9; 19 is for what is published (a sixth smaller, half a minute).
 * GATEHOUSE_REPOSITORY, the https URL of the repository: the manifest names it, and the README's
 * links lead there.
 */
import { execFileSync } from 'node:child_process'
import {
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import zlib from 'node:zlib'
import { build } from 'esbuild'

const here = import.meta.dirname
const out = path.resolve(process.argv[2] ?? path.join(here, 'build/package'))
const repository = process.env.GATEHOUSE_REPOSITORY?.replace(/\/+$|\.git$/g, '')

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

/** The module, for as long as it has not changed: compressing it well takes long. */
function compressed(): Buffer {
  const wasm = path.join(here, 'build/tsnet.wasm')
  const level = Number(process.env.TSNET_ZSTD ?? 9)
  const kept = path.join(here, `build/tsnet.wasm.${level}.zst`)
  try {
    if (statSync(kept).mtimeMs > statSync(wasm).mtimeMs) return readFileSync(kept)
  } catch {
    // Not yet.
  }
  const params = {
    [zlib.constants.ZSTD_c_compressionLevel]: level,
    [zlib.constants.ZSTD_c_windowLog]: 25,
    [zlib.constants.ZSTD_c_enableLongDistanceMatching]: 1,
    [zlib.constants.ZSTD_c_checksumFlag]: 1,
  }
  const bytes = zlib.zstdCompressSync(readFileSync(wasm), { params })
  writeFileSync(kept, bytes)
  return bytes
}
writeFileSync(path.join(out, 'tsnet.wasm.zst'), compressed())

const {
  private: _,
  scripts: __,
  ...manifest
} = JSON.parse(readFileSync(path.join(here, 'package.json'), 'utf8'))
const files = [
  '*.js',
  '*.d.ts',
  'host/*.d.ts',
  'tsnet.wasm.zst',
  'API.md',
  'CHANGELOG.md',
  'UPSTREAM.md',
  'bench-tsnet.svg',
  'examples',
  'LICENSE.tailscale',
  'THIRD_PARTY.txt',
]
writeFileSync(
  path.join(out, 'package.json'),
  `${JSON.stringify(
    {
      ...manifest,
      ...(repository && {
        repository: { type: 'git', url: `git+${repository}.git`, directory: 'src/tsnet' },
        homepage: `${repository}/tree/main/src/tsnet#readme`,
        bugs: `${repository}/issues`,
      }),
      types: './index.d.ts',
      exports: {
        '.': { types: './index.d.ts', default: './index.js' },
        // For bundlers, which leave these two behind (the options `worker` and `wasm`).
        './tsnet-worker.js': './tsnet-worker.js',
        './tsnet.wasm.zst': './tsnet.wasm.zst',
        './package.json': './package.json',
      },
      files,
    },
    null,
    2,
  )}\n`,
)
// Links to files lead where they are: to the repository, or to what lies beside. What does neither
// stays as its text.
const readme = readFileSync(path.join(here, 'README.md'), 'utf8').replace(
  /\[([^\]]*)\]\((?!https?:|#)([^)]+)\)/g,
  (_all, text: string, target: string) => {
    const inRepository = path.posix.normalize(`src/tsnet/${target}`)
    const isImage = target.endsWith('.svg')
    if (repository)
      return `[${text}](${repository}/${isImage ? 'raw' : 'blob'}/main/${inRepository})`
    if (isImage) return `[${text}](${path.basename(target)})`
    return target.startsWith('../') ? text : `[${text}](${target.replace(/\.ts$/, '.d.ts')})`
  },
)
writeFileSync(path.join(out, 'README.md'), readme)
for (const [from, to] of [
  ['CHANGELOG.md', 'CHANGELOG.md'],
  ['UPSTREAM.md', 'UPSTREAM.md'],
  ['examples', 'examples'],
  ['../../LICENSE', 'LICENSE'],
  ['../../docs/bench-tsnet.svg', 'bench-tsnet.svg'],
  // The module is Tailscale's code for the most part.
  ['build/tailscale.com/LICENSE', 'LICENSE.tailscale'],
] as const)
  cpSync(path.join(here, from), path.join(out, to), { recursive: true })
// Where it has been made (`make docs-tsnet`; `make package` does it first).
const reference = path.join(here, 'build/reference/README.md')
if (existsSync(reference)) cpSync(reference, path.join(out, 'API.md'))
execFileSync(process.execPath, [
  '--disable-warning=ExperimentalWarning',
  path.join(here, 'third-party.ts'),
  path.join(out, 'THIRD_PARTY.txt'),
])
