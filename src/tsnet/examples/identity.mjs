// An HTTP service that knows who asks: `curl http://who/` from another machine of the tailnet.
//   TS_AUTHKEY=tskey-auth-… node identity.mjs
import http from 'node:http'
import { Server } from '@gatehouse/tsnet'

const server = new Server({ dir: './who-state', hostname: 'who' })
server.on('loginURL', (url) => console.log(`To add this node to your tailnet, open ${url}`))
const status = await server.up()

const web = http.createServer(async (req, res) => {
  const { node, user } = await server.whoIs(`${req.socket.remoteAddress}:${req.socket.remotePort}`)
  res.setHeader('Content-Type', 'text/plain; charset=utf-8')
  res.end(`${user?.displayName ?? 'Nobody in person'}, at ${node.hostName}\n`)
})
const listener = await server.listen(80)
listener.on('connection', (conn) => web.emit('connection', conn))
console.log(`http://${status.self.dnsName}/`)
