import { createServer } from 'node:http'
import type { Server } from 'node:http'
import { errorPage } from '../shared/pages.ts'
import { peerOf } from '../tailnet/peer.ts'

/** What port 80 of the node, or of a Service it hosts, needs to know; asked at each request. */
export interface RedirectState {
  /** Full name; undefined until it has joined. */
  name: (service?: string) => string | undefined
  /** Why HTTPS is not served yet; undefined when it is. */
  waiting: (service?: string) => { message: string; cure: string } | undefined
}

/**
 * Port 80: 308 (method and body kept, RFC 9110 §15.4.9) to https and the full name, which is the
 * one the certificate is for. Nothing is ever served here over plain HTTP but the reason why there
 * is no HTTPS yet. How long a connection may take is its caller's to say: Node looks at that only
 * on a server that listens.
 */
export function createRedirectServer(state: RedirectState): Server {
  const server = createServer((request, response) => {
    const { service } = peerOf(request.socket)
    const name = state.name(service)
    const waiting = state.waiting(service)
    request.resume()
    response.setHeader('cache-control', 'no-store')
    response.setHeader('connection', 'close')
    if (waiting !== undefined || name === undefined) {
      const { message, cure } = waiting ?? {
        message: 'The gateway has not joined its tailnet yet',
        cure: 'Try again in a minute',
      }
      response.writeHead(503, { 'content-type': 'text/html; charset=utf-8', 'retry-after': '10' })
      response.end(
        request.method === 'HEAD' ? undefined : errorPage(503, 'Not ready yet', message, cure),
      )
      return
    }
    // Only a path goes into the target: an absolute-form request target names a host of the
    // client's choosing.
    const path = request.url?.startsWith('/') === true ? request.url : '/'
    response.writeHead(308, {
      location: `https://${name}${path}`,
      'content-type': 'text/plain; charset=utf-8',
    })
    response.end(request.method === 'HEAD' ? undefined : `https://${name}${path}\n`)
  })
  server.on('clientError', (_err, socket) => {
    if (socket.writable) socket.end('HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n')
  })
  return server
}
