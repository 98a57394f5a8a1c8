/**
 * Tries each part of the API, on whatever runtime runs it; runtimes.test.ts runs it beside a native
 * peer. It says `serving at IP` when its own servers can be asked, then, for a line on its input, tries
 * what it can ask of the peer, says what came of each as JSON, closes, and is to end by itself.
 *
 * Usage: runtime.mjs DIR NAME PEER CA PEM   (PEM: certificate and key of its own; TS_AUTHKEY, TS_CONTROL_URL)
 */
import { Buffer } from 'node:buffer'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import http from 'node:http'
import https from 'node:https'
import net from 'node:net'
import process from 'node:process'
import { buffer } from 'node:stream/consumers'
import { Server } from '@gatehouse/tsnet'

const [, , dir, hostname, peer, caFile, pemFile] = process.argv
const ca = readFileSync(caFile, 'utf8')
const server = new Server({
  dir,
  hostname,
  env: { TS_DEBUG_ACME_DIRECTORY_URL: process.env.ACME_DIRECTORY },
})
const results = {}
const equal = (got, wanted) => {
  if (got !== wanted) throw new Error(`${got}, not ${wanted}`)
}

/** Does one thing, and keeps what came of it. */
async function attempt(name, f, ms = 20_000) {
  let timer
  const late = new Promise((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`nothing within ${ms} ms`)), ms)
  })
  try {
    await Promise.race([f(), late])
    results[name] = 'works'
  } catch (err) {
    const { code, message } = err.cause ?? err
    results[name] = `${code ? `${code}: ` : ''}${message ?? err}`
  }
  clearTimeout(timer)
}

const self = await server.up()
const web = http.createServer(async (req, res) => {
  const { remoteAddress, remotePort } = req.socket
  const who = await server.whoIs(`${remoteAddress}:${remotePort}`).catch((err) => err)
  const name = who.node?.hostName ?? who.message
  res.end(`${req.method} ${req.url} ${name} ${(await buffer(req)).length}`)
})
await attempt('listen', async () => {
  const echo = await server.listen(7)
  echo.on('connection', (conn) => conn.on('error', () => {}).pipe(conn))
  const pages = await server.listen(80)
  pages.on('connection', (conn) => web.emit('connection', conn))
})
await attempt('listenTLS', async () => {
  const listener = await server.listenTLS(443)
  listener.on('connection', (socket) => web.emit('connection', socket))
})
await attempt('listenTLS, own certificate', async () => {
  const pem = readFileSync(pemFile, 'utf8')
  const listener = await server.listenTLS(8443, { tls: { cert: pem, key: pem } })
  listener.on('connection', (socket) => web.emit('connection', socket))
})
await attempt('listenPacket', async () => {
  const socket = await server.listenPacket(7)
  socket.on('message', (b, from) => socket.send(b, from.port, from.address))
})
console.log(`serving at ${self.tailscaleIPs[0]}`)
await once(process.stdin, 'data')
process.stdin.destroy()

const bytes = Buffer.alloc(1 << 20, 'gatehouse ')
await attempt('dial', async () => {
  const conn = await server.dial(peer, 7)
  conn.end(bytes)
  equal((await buffer(conn)).equals(bytes), true)
})
await attempt('errors', async () => {
  equal(await server.dial(peer, 9).catch((err) => err.code), 'TSNET_DIAL')
  equal(await server.dial('192.0.2.1', 9).catch((err) => err.code), 'TSNET_NO_PEER')
  const signal = AbortSignal.abort()
  equal(await server.status({ signal }).catch((err) => err.code), 'TSNET_ABORTED')
})
/** A page by an agent. */
const get = (module, url, options) =>
  new Promise((resolve, reject) => {
    module
      .get(url, options, (res) => buffer(res).then(String).then(resolve, reject))
      .on('error', reject)
  })
await attempt('httpAgent', async () => {
  const agent = server.httpAgent()
  equal(await get(http, `http://${peer}/`, { agent }), 'page')
  agent.destroy()
})
await attempt('httpsAgent', async () => {
  const agent = server.httpsAgent({ ca })
  equal(await get(https, `https://${peer}/`, { agent }), 'page')
  agent.destroy()
  // Nothing but a certificate that is trusted will do.
  const careful = server.httpsAgent()
  const refused = await get(https, `https://${peer}/`, { agent: careful }).catch(() => 'refused')
  careful.destroy()
  equal(refused, 'refused')
})
await attempt('fetch', async () => {
  equal(await (await server.fetch(`http://${peer}/`)).text(), 'page')
  const dispatcher = await server.dispatcher({ ca })
  equal(await (await server.fetch(`https://${peer}/`, { dispatcher })).text(), 'page')
  await dispatcher.close()
})
await attempt('dialPacket', async () => {
  const socket = await server.dialPacket(peer, 7)
  const answer = once(socket, 'message')
  socket.send('datagram')
  equal(String((await answer)[0]), 'datagram')
  socket.close()
})
await attempt('whoIs, resolve, status', async () => {
  const [ip] = await server.resolve(peer)
  equal((await server.whoIs(ip)).node.hostName, peer)
  equal(
    (await server.status()).peers.some((p) => p.hostName === peer),
    true,
  )
})
await attempt('localAPI', async () => {
  const answer = await server.localAPI('GET', '/localapi/v0/prefs')
  equal(answer.json().Hostname, hostname)
})
await attempt('certPair', async () => {
  const { cert, key } = await server.certPair(self.certDomains[0])
  equal(/BEGIN CERTIFICATE/.test(cert) && /PRIVATE KEY/.test(key), true)
})
await attempt('loopback', async () => {
  const { address, proxyCred, close } = await server.loopback()
  const [host, port] = address.split(':')
  const page = await get(http, `http://${peer}/`, {
    hostname: host,
    port,
    path: `http://${peer}/`,
    headers: { 'Proxy-Authorization': `Basic ${btoa(`tsnet:${proxyCred}`)}`, Connection: 'close' },
  })
  equal(page, 'page')
  const socket = net.connect(Number(port), host)
  socket.write(Buffer.from([5, 1, 2]))
  equal((await once(socket, 'data'))[0].toString('hex'), '0502')
  socket.destroy()
  await close()
})
await attempt('capturePcap', async () => {
  const capture = await server.capturePcap()
  equal((await once(capture, 'data'))[0].readUInt32LE(0), 0xa1b2c3d4)
  capture.destroy()
})
await attempt('watch', async () => {
  for await (const notice of server.watch()) {
    if (notice.type === 'state') {
      equal(notice.state, 'Running')
      break
    }
  }
})
await attempt('stats', async () => equal((await server.stats()).cipher, 'simd'))
await attempt('two Servers on one dir are refused', async () => {
  const second = new Server({ dir, hostname })
  const code = await second.start().then(
    () => 'not refused',
    (err) => err.code,
  )
  await second.close()
  equal(code, 'TSNET_STATE')
})
await attempt('close', async () => await server.close())
console.log(JSON.stringify(results))
