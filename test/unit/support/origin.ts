import { createServer } from 'node:http'
import type { IncomingMessage, RequestListener, Server } from 'node:http'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { WebSocketServer } from 'ws'

/** What stands in for Node-RED: a real HTTP and WebSocket server on a unix socket. */
export class Origin {
  readonly directory: string = mkdtempSync(join(tmpdir(), 'gh-origin-'))
  readonly socket: string = join(this.directory, 'http.sock')
  readonly server: Server
  readonly requests: IncomingMessage[] = []
  /** Answers requests; default: JSON of what was asked. */
  handler: RequestListener = (request, response) => {
    response.setHeader('content-type', 'application/json')
    response.end(
      JSON.stringify({
        method: request.method,
        url: request.url,
        headers: request.headers,
        rawHeaders: request.rawHeaders,
      }),
    )
  }

  readonly sockets: WebSocketServer

  constructor() {
    this.server = createServer({ requestTimeout: 0 }, (request, response) => {
      this.requests.push(request)
      this.handler(request, response)
    })
    this.sockets = new WebSocketServer({
      noServer: true,
      // The last one offered, so that choosing the first on the way would show.
      handleProtocols: (protocols) => [...protocols].at(-1) ?? false,
    })
    this.server.on('upgrade', (request, socket, head) => {
      this.requests.push(request)
      if (request.url === '/refused') {
        socket.end(
          'HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\nX-Why: no\r\nConnection: close\r\n\r\nno\n',
        )
        return
      }
      this.sockets.handleUpgrade(request, socket, head, (ws) => {
        // ws closes a connection that breaks the protocol; that is all there is to do.
        ws.on('error', () => {})
        ws.send(JSON.stringify(request.headers))
        ws.on('message', (data, binary) => ws.send(data, { binary }))
      })
    })
  }

  async listen(): Promise<this> {
    await new Promise<void>((resolve) => this.server.listen(this.socket, resolve))
    return this
  }

  async stop(): Promise<void> {
    for (const ws of this.sockets.clients) ws.terminate()
    this.server.closeAllConnections()
    await new Promise((resolve) => this.server.close(resolve))
  }

  async close(): Promise<void> {
    if (this.server.listening) await this.stop()
    rmSync(this.directory, { recursive: true, force: true })
  }
}
