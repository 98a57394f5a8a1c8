/**
 * The origin of the WebSocket measures: sends back what it gets. Usage: node bench/echo.ts SOCKET
 */
import { createServer } from 'node:http'
import { WebSocketServer } from 'ws'

const server = createServer((_request, response) => response.end('ok'))
new WebSocketServer({ server, perMessageDeflate: false }).on('connection', (ws) => {
  ws.on('error', () => {})
  ws.on('message', (data, binary) => ws.send(data, { binary }))
})
server.listen(process.argv[2])
