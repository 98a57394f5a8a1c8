/**
 * The gateway as it is, on the bindings, for bench/tailnet.ts. Argument: JSON, see {@link Options}.
 * Prints its name when it serves; ends with its input.
 */
import { join } from 'node:path'
import { Server } from '@gatehouse/tsnet'
import { kernelPath } from '../src/config/data-path.ts'
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
  /** The kernel's data path, by its interface, which is there: [tailnet] data_path = "kernel". */
  kernel?: boolean
}

const {
  dir,
  hostname,
  controlURL,
  extraCAFile,
  authKey,
  origin,
  pem,
  name,
  kernel = false,
} = JSON.parse(process.argv[2]!) as Options
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
  kernel,
  create: (wanted) => {
    // A fall-back would be measured as what it is not.
    if (wanted !== kernel) throw new Error('there is no interface to measure')
    const tun = kernel ? { tun: kernelPath.interface } : {}
    return new Server({
      dir: join(dir, 'state'),
      hostname,
      controlURL,
      extraCAFile,
      authKey,
      ...tun,
    })
  },
})
