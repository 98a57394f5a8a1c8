import type { BuildOptions } from 'esbuild'
import path from 'node:path'

/** How the program is bundled, whoever bundles it. */
export const common = {
  bundle: true,
  format: 'esm',
  platform: 'node',
  target: 'node26',
  legalComments: 'none',
  // V8 keeps the text that it has read, and two bytes for each character where one of them, in a
  // comment, is not Latin: 7 MB of the gateway's memory in the place of 2.4. Names stay as they are,
  // and lines short, for errors that are shown with theirs.
  minifyWhitespace: true,
  lineLimit: 120,
  logLevel: 'warning',
  alias: { undici: path.join(import.meta.dirname, 'undici.cjs') },
  // CommonJS dependencies call require and know __dirname; an ES module has neither.
  banner: {
    js: `import { createRequire as ghCreateRequire } from 'node:module';
const require = ghCreateRequire(import.meta.url), __filename = import.meta.filename, __dirname = import.meta.dirname;`,
  },
} satisfies BuildOptions
