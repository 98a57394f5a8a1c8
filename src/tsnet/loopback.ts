/**
 * A proxy into the tailnet at 127.0.0.1, for programs that can use one: SOCKS5 (RFC 1928, with
 * username and password, RFC 1929), HTTP (CONNECT and whole URLs), and the LocalAPI, all at one
 * port and none without its password.
 */
import { randomBytes, timingSafeEqual } from 'node:crypto'
import { once } from 'node:events'
import http from 'node:http'
import net, { type AddressInfo, type Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import type { Conn } from './conn.ts'
import type { TsnetError } from './errors.ts'
import { splitHostPort } from './options.ts'
import type { LocalAnswer } from './local.ts'

/** Made by Server.loopback. */
export interface Loopback {
  /** `127.0.0.1:port`. */
  address: string
  /** The password of the proxy; its user is `tsnet`. */
  proxyCred: string
  /**
   * The password of the LocalAPI, at the same address: any user, and the header `Sec-Tailscale:
   * localapi`.
   */
  localAPICred: string
  /** Ends it, and the connections made by it. */
  close(): Promise<void>
}

/** What it needs of a Server. */
export interface Node {
  dial(host: string, port: number, options: { signal?: AbortSignal }): Promise<Conn>
  httpAgent(): http.Agent
  localAPI(method: string, path: string, body: Buffer): Promise<LocalAnswer>
}

/** How long a client may take for its greeting, in ms. */
const GREETING_MS = 10_000
/** The most of a request to the LocalAPI, in bytes. */
const MAX_BODY = 1 << 20

const USER = 'tsnet'

/** SOCKS5's replies (RFC 1928 section 6). */
const replies = { done: 0, failed: 1, hostUnreachable: 4, refused: 5, unsupported: 7 } as const

function same(a: string, b: string): boolean {
  const [x, y] = [Buffer.from(a), Buffer.from(b)]
  return x.length === y.length && timingSafeEqual(x, y)
}

/** Whether a header says this password (and this user, if there is one to say). */
function basic(header: string | undefined, password: string, user?: string): boolean {
  const text = Buffer.from(/^basic (.*)$/i.exec(header ?? '')?.[1] ?? '', 'base64').toString()
  const at = text.indexOf(':')
  if (at < 0) return false
  return same(text.slice(at + 1), password) && (user === undefined || text.slice(0, at) === user)
}

/** Reads so many bytes; rejects when they do not come. */
async function take(socket: Socket, n: number): Promise<Buffer> {
  for (;;) {
    if (n === 0) return Buffer.alloc(0)
    const part = socket.read(n) as Buffer | null
    if (part && part.length === n) return part
    if (part || socket.readableEnded || socket.destroyed) throw new Error('the client went away')
    await once(socket, 'readable')
  }
}

/** Joins two streams until both have ended; an error of either ends both. */
async function join(a: Duplex, b: Duplex): Promise<void> {
  await Promise.all([pipeline(a, b), pipeline(b, a)]).catch(() => {
    a.destroy()
    b.destroy()
  })
}

/** SOCKS5, the greeting included. */
async function socks(socket: Socket, node: Node, password: string): Promise<void> {
  const [, methods] = await take(socket, 2)
  const offered = await take(socket, methods!)
  if (!offered.includes(2)) {
    socket.end(Buffer.from([5, 0xff]))
    return
  }
  socket.write(Buffer.from([5, 2]))
  const [, userLength] = await take(socket, 2)
  const user = (await take(socket, userLength!)).toString()
  const [passwordLength] = await take(socket, 1)
  const given = (await take(socket, passwordLength!)).toString()
  if (user !== USER || !same(given, password)) {
    socket.end(Buffer.from([1, 1]))
    return
  }
  socket.write(Buffer.from([1, 0]))
  const [, command, , kind] = await take(socket, 4)
  const reply = (code: number): Buffer => Buffer.from([5, code, 0, 1, 0, 0, 0, 0, 0, 0])
  let host: string
  if (kind === 1) {
    host = (await take(socket, 4)).join('.')
  } else if (kind === 3) {
    const [length] = await take(socket, 1)
    host = (await take(socket, length!)).toString()
  } else if (kind === 4) {
    host = (await take(socket, 16)).toString('hex').replace(/(.{4})(?!$)/g, '$1:')
  } else {
    socket.end(reply(replies.unsupported))
    return
  }
  const port = (await take(socket, 2)).readUInt16BE()
  if (command !== 1) {
    socket.end(reply(replies.unsupported))
    return
  }
  const gone = new AbortController()
  socket.once('close', () => gone.abort())
  let conn: Conn
  try {
    conn = await node.dial(host, port, { signal: gone.signal })
  } catch (err) {
    const { code } = err as TsnetError
    if (!socket.destroyed)
      socket.end(reply(code === 'TSNET_NO_PEER' ? replies.hostUnreachable : replies.refused))
    return
  }
  socket.setTimeout(0)
  socket.write(reply(replies.done))
  await join(socket, conn)
}

/** Starts it. */
export async function listenLoopback(node: Node): Promise<Loopback> {
  const [proxyCred, localAPICred] = [0, 0].map(() => randomBytes(16).toString('hex')) as [
    string,
    string,
  ]
  const sockets = new Set<Duplex>()
  const agent = node.httpAgent()

  async function localAPI(req: http.IncomingMessage, res: http.ServerResponse): Promise<void> {
    if (!basic(req.headers.authorization, localAPICred)) {
      res.writeHead(401, { 'WWW-Authenticate': 'Basic realm="tsnet"' }).end()
      return
    }
    const parts: Buffer[] = []
    let size = 0
    for await (const part of req as AsyncIterable<Buffer>) {
      if ((size += part.length) > MAX_BODY) {
        res.writeHead(413).end()
        return
      }
      parts.push(part)
    }
    try {
      const { status, contentType, body } = await node.localAPI(
        req.method!,
        req.url!,
        Buffer.concat(parts),
      )
      res.writeHead(status, { ...(contentType && { 'Content-Type': contentType }) }).end(body)
    } catch (err) {
      const status = Number(/: (\d{3}) /.exec((err as Error).message)?.[1] ?? 502)
      res.writeHead(status, { 'Content-Type': 'text/plain' }).end((err as Error).message)
    }
  }

  /** True when the request may go on. */
  function mayProxy(req: http.IncomingMessage): boolean {
    return basic(req.headers['proxy-authorization'], proxyCred, USER)
  }
  const unauthorized = 'HTTP/1.1 407 Proxy Authentication Required\r\n'
  const challenge = 'Proxy-Authenticate: Basic realm="tsnet"'

  const web = http.createServer((req, res) => {
    if (req.headers['sec-tailscale'] === 'localapi') {
      void localAPI(req, res).catch(() => res.destroy())
      return
    }
    const url = URL.parse(req.url ?? '')
    if (!url || url.protocol !== 'http:') {
      res.writeHead(400).end('a proxy for http://… and CONNECT\n')
      return
    }
    if (!mayProxy(req)) {
      res.writeHead(407, { 'Proxy-Authenticate': 'Basic realm="tsnet"' }).end()
      return
    }
    const { 'proxy-authorization': _, 'proxy-connection': __, ...headers } = req.headers
    const out = http.request(url, { agent, method: req.method!, headers }, (answer) => {
      res.writeHead(answer.statusCode!, answer.headers)
      void pipeline(answer, res).catch(() => res.destroy())
    })
    out.on('error', (err) => {
      if (res.headersSent) res.destroy()
      else res.writeHead(502, { 'Content-Type': 'text/plain' }).end(`${err.message}\n`)
    })
    res.on('close', () => out.destroy())
    req.pipe(out)
  })
  web.on('connect', (req, socket: Socket, head: Buffer) => {
    if (!mayProxy(req)) {
      socket.end(`${unauthorized}${challenge}\r\n\r\n`)
      return
    }
    const [host, port] = splitHostPort(req.url ?? '')
    const gone = new AbortController()
    socket.on('error', () => {}).once('close', () => gone.abort())
    node.dial(host, port, { signal: gone.signal }).then(
      (conn) => {
        socket.write('HTTP/1.1 200 Connection established\r\n\r\n')
        if (head.length) conn.write(head)
        void join(socket, conn)
      },
      () => socket.end('HTTP/1.1 502 Bad Gateway\r\n\r\n'),
    )
  })

  const server = net.createServer({ allowHalfOpen: true }, (socket) => {
    sockets.add(socket)
    socket.on('error', () => {}).once('close', () => sockets.delete(socket))
    socket.setTimeout(GREETING_MS, () => socket.destroy())
    socket.once('readable', () => {
      const first = socket.read(1) as Buffer | null
      if (!first) return void socket.destroy()
      socket.unshift(first)
      if (first[0] === 5) {
        void socks(socket, node, proxyCred).catch(() => socket.destroy())
      } else {
        socket.setTimeout(0)
        socket.allowHalfOpen = false
        web.emit('connection', socket)
      }
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    address: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    proxyCred,
    localAPICred,
    close: async () => {
      for (const socket of sockets) socket.destroy()
      agent.destroy()
      await new Promise<void>((resolve) => server.close(() => resolve()))
    },
  }
}
