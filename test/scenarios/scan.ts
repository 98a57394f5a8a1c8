/**
 * Connects to every TCP port of an address and prints, as JSON, those that answered in any way:
 * accepted or refused. A closed firewall answers nothing, so each try ends by its own time-out.
 *
 * Usage: node scan.ts ADDRESS [FIRST] [LAST]   (default 1 65535)
 */
import net from 'node:net'

const [address, first = '1', last = '65535'] = process.argv.slice(2)
if (!address || !net.isIP(address.replace(/%.*/, ''))) {
  console.error('usage: scan.ts ADDRESS [FIRST] [LAST]')
  process.exit(2)
}
/** A second SYN goes out after 1 s: a lost packet does not make a port look shut. */
const patience = 1500
const answered: { port: number; how: string }[] = []
let tried = 0
let next = Number(first)

async function worker(): Promise<void> {
  while (next <= Number(last)) {
    const port = next++
    const how = await new Promise<string | undefined>((resolve) => {
      const socket = net.connect({ host: address!, port })
      const late = setTimeout(() => done(undefined), patience)
      const done = (result: string | undefined): void => {
        clearTimeout(late)
        socket.destroy()
        resolve(result)
      }
      socket.on('connect', () => done('accepted'))
      socket.on('error', (err: NodeJS.ErrnoException) => done(err.code))
    })
    tried++
    if (how !== undefined) answered.push({ port, how })
  }
}
await Promise.all(Array.from({ length: 2048 }, worker))
console.log(JSON.stringify({ tried, answered }))
