// A Fastify server on the tailnet: `npm install fastify @gatehouse/tsnet`.
//   TS_AUTHKEY=tskey-auth-… node fastify.mjs
import fastify from 'fastify'
import { Server } from '@gatehouse/tsnet'

const server = new Server({ dir: './api-state', hostname: 'api' })
await server.up()

const app = fastify()
// Who asks, for every route.
app.decorateRequest('peer', null)
app.addHook('onRequest', async (request) => {
  const { remoteAddress, remotePort } = request.socket
  request.peer = await server.whoIs(`${remoteAddress}:${remotePort}`)
})
app.get('/hello/:name', async (request) => ({
  hello: request.params.name,
  from: request.peer.user?.loginName ?? request.peer.node.tags,
}))
await app.ready()

// In place of app.listen(): Fastify's HTTP server gets the connections of the tailnet.
const listener = await server.listen(80)
listener.on('connection', (conn) => app.server.emit('connection', conn))
