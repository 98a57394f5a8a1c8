// Run by npm in place of node-gyp (node-red-install.cjs): there is no compiler on the appliance, and
// node-gyp would look for one, and for Python, and say so in eighty lines.
'use strict'

console.error(
  'GH_NO_COMPILER: it would have to be compiled, and there is no compiler on this device',
)
process.exitCode = 1
