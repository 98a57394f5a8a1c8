/** Where the worker's program and the module are. */
import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { TsnetError } from './errors.ts'
import type { ServerOptions } from './types.ts'

/** This code, or what a bundler has made of it; of a bundle as CommonJS not known. */
const here = import.meta.url as string | undefined
// From source the worker is TypeScript, and the module lies where build.sh puts it.
const fromSource = here?.endsWith('.ts') ?? false
const names = {
  worker: fromSource ? ['./worker.ts'] : ['./tsnet-worker.js'],
  wasm: fromSource ? ['./build/tsnet.wasm'] : ['./tsnet.wasm.zst', './tsnet.wasm'],
}

/** The path of a file that is given as such or as a URL. */
const file = (name: string | URL): string =>
  name instanceof URL || name.startsWith('file:') ? fileURLToPath(name) : path.resolve(name)

/** Beside this code, or in the package that is installed where this code is. */
function find(what: 'worker' | 'wasm'): string {
  for (const name of names[what]) {
    const beside = here && new URL(name, here)
    if (beside && existsSync(beside)) return fileURLToPath(beside)
  }
  try {
    const require = createRequire(here ?? path.join(process.cwd(), 'x.js'))
    return require.resolve(`@gatehouse/tsnet/${path.basename(names[what][0]!)}`)
  } catch {
    throw new TsnetError(
      'TSNET_OPTIONS',
      `${path.basename(names[what][0]!)} is neither beside the program nor in an installed ` +
        `package @gatehouse/tsnet: copy it there, or give its place as the option ${what}`,
    )
  }
}

/** Both, as the options say. Throws TSNET_OPTIONS where one is not to be found. */
export function places(options: Pick<ServerOptions, 'worker' | 'wasm'>): {
  worker: string
  wasm: string
} {
  const of = (what: 'worker' | 'wasm'): string => {
    const given = options[what]
    if (!given) return find(what)
    const at = file(given)
    if (!existsSync(at)) throw new TsnetError('TSNET_OPTIONS', `${what}: there is no file ${at}`)
    return at
  }
  return { worker: of('worker'), wasm: of('wasm') }
}
