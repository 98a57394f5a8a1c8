/**
 * Imported before all else: a Node.js that cannot run the module says so in one error, at import.
 */
import { TsnetError } from './errors.ts'

if (!('Suspending' in WebAssembly)) {
  throw new TsnetError(
    'TSNET_NODE_VERSION',
    `@gatehouse/tsnet needs WebAssembly JSPI, which Node.js ${process.version} lacks: ` +
      'use Node.js 26.1 or later',
  )
}
