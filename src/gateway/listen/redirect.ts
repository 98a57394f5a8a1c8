import { createServer } from 'node:http'
import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import { errorPage } from '../shared/pages.ts'
import { peerOf } from '../tailnet/peer.ts'

/** What port 80 of the node, or of a Service it hosts, needs to know; asked at each request. */
export interface RedirectState {
  /** Full name; undefined until it has joined. */
  name: (service?: string) => string | undefined
  /** Why HTTPS is not served yet; undefined when it is. */
  waiting: (service?: string) => { message: string; cure: string } | undefined
  /**
   * PEM of the root certificate of the device's own authority; undefined when it has none. Default:
   * it has none.
   */
  authority?: () => Promise<string | undefined>
}

/** Where port 80 has the root certificate of the device's own authority. */
export const authorityPath = '/ca.crt'

/**
 * Port 80: 308 (method and body kept, RFC 9110 §15.4.9) to https and the full name, which is the
 * one the certificate is for. Nothing is ever served here over plain HTTP but the reason why there
 * is no HTTPS yet, and the root certificate of an authority of the device's own, which a
 * client must have before HTTPS is of use to it. How long a connection may take is its caller's to
 * say: Node looks at that only on a server that listens.
 */
export function createRedirectServer(state: RedirectState): Server {
  const answer = (request: IncomingMessage, response: ServerResponse): void => {
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
  }
  const server = createServer((request, response) => {
    if (state.authority === undefined || request.url !== authorityPath) {
      answer(request, response)
      return
    }
    state.authority().then(
      (pem) => {
        if (pem === undefined) {
          answer(request, response)
          return
        }
        request.resume()
        response.writeHead(200, {
          'content-type': 'application/x-x509-ca-cert',
          'content-disposition': 'attachment; filename="gatehouse-ca.crt"',
          'cache-control': 'no-store',
          'x-content-type-options': 'nosniff',
          connection: 'close',
        })
        response.end(request.method === 'HEAD' ? undefined : pem)
      },
      () => {
        answer(request, response)
      },
    )
  })
  server.on('clientError', (_err, socket) => {
    if (socket.writable) socket.end('HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n')
  })
  return server
}
