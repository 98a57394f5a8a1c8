import type { BuildOptions } from 'esbuild'
import path from 'node:path'

/** How the program is bundled, whoever bundles it. */
export const common = {
  bundle: true,
  format: 'esm',
  platform: 'node',
  target: 'node26',
  legalComments: 'none',
  logLevel: 'warning',
  alias: { undici: path.join(import.meta.dirname, 'undici.cjs') },
  // CommonJS dependencies call require and know __dirname; an ES module has neither.
  banner: {
    js: `import { createRequire as ghCreateRequire } from 'node:module';
const require = ghCreateRequire(import.meta.url), __filename = import.meta.filename, __dirname = import.meta.dirname;`,
  },
} satisfies BuildOptions
