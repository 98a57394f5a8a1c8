/** A server that alerts are sent to, on the lab's segment. */
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { Server } from 'node:http'
import path from 'node:path'
import { text as readText } from 'node:stream/consumers'
import type { Lab } from './lab.ts'

/** A request that came. */
export interface Received {
  /** The server's name. */
  host: string
  path: string
  authorization: string | undefined
  /** JSON. */
  body: Record<string, string>
}

/**
 * Starts one, of plain http at port 8080, on a host of its own with this address and name.
 *
 * @param take is told what comes, and gives the status of the answer
 */
export async function receiver(
  lab: Lab,
  host: string,
  ip: string,
  name: string,
  take: (received: Received) => number,
): Promise<Server> {
  const ns = await lab.host(host, ip)
  await lab.setHost(name, ip)
  const socket = path.join(lab.dir, `${host}.sock`)
  const server = createServer((request, response) => {
    void readText(request).then((text) => {
      const { authorization } = request.headers
      const body = JSON.parse(text) as Record<string, string>
      response.writeHead(take({ host: name, path: request.url!, authorization, body })).end()
    })
  })
  server.listen(socket)
  await once(server, 'listening')
  const program = `const net = require('node:net')
    net.createServer((incoming) => {
      const outgoing = net.connect(${JSON.stringify(socket)})
      const end = () => { incoming.destroy(); outgoing.destroy() }
      incoming.on('error', end).on('close', end)
      outgoing.on('error', end).on('close', end)
      incoming.pipe(outgoing).pipe(incoming)
    }).listen(8080, () => console.log('up'))`
  const child = lab.exec(ns, [process.execPath, '-e', program])
  await once(child.stdout!, 'data')
  return server
}
