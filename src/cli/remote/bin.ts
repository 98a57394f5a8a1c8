#!/usr/bin/env node
import { runRemote } from './run.ts'

/**
 * The program of the npm package (tools/cli.ts): the commands for a laptop alone, in JavaScript
 * that Node.js 20 runs.
 */
const code = await runRemote(process.argv.slice(2))
// What is still open, a log that is followed for one, does not keep it.
process.stdout.write('', () => {
  process.exit(code)
})
