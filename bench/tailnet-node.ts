/**
 * The gateway as it is, on the bindings, for bench/tailnet.ts. Argument: JSON, see {@link Options}.
 * Prints its name when it serves; ends with its input.
 */
import { join } from 'node:path'
import { Server } from '@gatehouse/tsnet'
import { subject } from './subject.ts'

export interface Options {
  dir: string
  hostname: string
  controlURL: string
  extraCAFile: string
  authKey: string
  origin: string
  pem: string
  name: string
}

const { dir, hostname, controlURL, extraCAFile, authKey, origin, pem, name } = JSON.parse(
  process.argv[2]!,
) as Options
const gateway = subject(dir, pem, name, origin, {
  onState: (line) => {
    if (line.startsWith('serving')) console.log(JSON.stringify({ name }))
  },
})
// The lab's users all own their nodes.
process.stdin
  .on('end', () => {
    void gateway.close(100).then(() => process.exit(0))
  })
  .resume()
await gateway.start()
await gateway.join({
  controlURL,
  hasAuthKey: true,
  create: () => new Server({ dir: join(dir, 'state'), hostname, controlURL, extraCAFile, authKey }),
})
