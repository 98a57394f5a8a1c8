import type { IncomingMessage, ServerResponse } from 'node:http'
import { GatehouseError } from '../../base/errors.ts'
import { sendError } from '../shared/pages.ts'
import { plugin } from '../shared/plugin.ts'

/**
 * Expect: 100-continue (RFC 9110 §10.1.1): a peer that waits before it sends a body is told to go
 * on when the request may pass, and not before. Who is refused keeps the body; the connection then
 * ends, since neither side can know whether the other counts it as sent.
 */
export const expectation = plugin<object>('expectation', async (app) => {
  const waiting = new WeakSet<object>()
  // Without a listener Node says 100 to everyone, and 417 to any other expectation.
  for (const event of ['checkContinue', 'checkExpectation'])
    app.server.on(event, (request: IncomingMessage, response: ServerResponse) => {
      app.routing(request, response)
    })

  app.addHook('onRequest', (request, reply, done) => {
    const { expect } = request.headers
    // It means nothing in HTTP/1.0, nor in a WebSocket's handshake, which has no body.
    if (
      expect !== undefined &&
      expect !== '' &&
      request.raw.httpVersion !== '1.0' &&
      request.headers.upgrade === undefined
    ) {
      if (expect.toLowerCase() !== '100-continue') {
        void sendError(
          request,
          reply,
          417,
          'Expectation failed',
          new GatehouseError(
            'GH_EXPECT',
            'The gateway does not know what the request expects',
            'Leave Expect out, or write Expect: 100-continue',
          ),
        )
        return
      }
      waiting.add(request.raw)
    }
    done()
  })
  app.addHook('preParsing', (request, reply, payload, done) => {
    if (waiting.delete(request.raw)) reply.raw.writeContinue()
    done(null, payload)
  })
  app.addHook('onSend', (request, reply, payload, done) => {
    if (waiting.has(request.raw)) reply.raw.shouldKeepAlive = false
    done(null, payload)
  })
})
