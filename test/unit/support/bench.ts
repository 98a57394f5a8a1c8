import { randomBytes } from 'node:crypto'
import { EventEmitter, once } from 'node:events'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { Agent, request as httpRequest } from 'node:http'
import type { IncomingMessage, RequestOptions } from 'node:http'
import { connect as connectHTTP2 } from 'node:http2'
import type { ClientHttp2Session, ClientSessionOptions } from 'node:http2'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import type { Readable } from 'node:stream'
import { connect as tlsConnect } from 'node:tls'
import type { TLSSocket } from 'node:tls'
import { pino } from 'pino'
import { defaults } from '../../../src/config/config.ts'
import { authorityOf, originOf } from '../../../src/config/ports.ts'
import type { Config } from '../../../src/config/config.ts'
import { Gateway } from '../../../src/gateway/gateway.ts'
import type { GatewayOptions } from '../../../src/gateway/gateway.ts'
import type { NodeOptions } from '../../../src/gateway/tailnet/node.ts'
import { Authority } from './authority.ts'
import { Origin } from './origin.ts'
import { LoopbackTailnet } from './tailnet.ts'

export const name = 'gatehouse.tail.ts.net'

/** One log line as pino wrote it. */
export type Line = { level: number; msg: string; code?: string } & Record<string, unknown>

/** Everything around a gateway, in a temporary directory. */
export class Bench extends EventEmitter implements AsyncDisposable {
  readonly directory: string = mkdtempSync(join(tmpdir(), 'gh-unit-'))
  readonly tls: string = mkdtempSync(join(this.directory, 'tls-'))
  readonly runtime: string = join(this.directory, 'run')
  readonly admin: string = join(this.directory, 'admin.sock')
  readonly certs: string = join(this.directory, 'certs.sock')
  readonly authority: Authority = new Authority()
  readonly tailnet: LoopbackTailnet = new LoopbackTailnet()
  readonly origin: Origin = new Origin()
  readonly channelKey: Buffer = randomBytes(32)
  readonly lines: Line[] = []
  readonly states: string[] = []
  readonly fatal: Error[] = []
  gateway!: Gateway

  /** A gateway that serves, unless told otherwise. */
  static async start({
    certificate = true,
    origin = true,
    options = {},
    node = {},
    before,
  }: {
    certificate?: boolean
    origin?: boolean
    options?: Partial<GatewayOptions>
    node?: Partial<Omit<NodeOptions, 'problems' | 'log'>>
    before?: (bench: Bench) => void
  } = {}): Promise<Bench> {
    const bench = new Bench()
    if (origin) await bench.origin.listen()
    if (certificate) bench.putCertificate()
    before?.(bench)
    bench.gateway = new Gateway({
      version: 'test',
      log: pino(
        { level: 'debug', base: null },
        {
          write: (line: string) => {
            bench.lines.push(JSON.parse(line) as Line)
            bench.emit('line')
          },
        },
      ),
      tls: bench.tls,
      runtime: bench.runtime,
      nodeRed: bench.origin.socket,
      channelKey: bench.channelKey,
      // What stands in for Node-RED tells flows from editor by nothing.
      editorRoot: '/',
      admin: { path: bench.admin },
      certs: { path: bench.certs },
      onState: (line) => {
        bench.states.push(line)
      },
      onFatal: (err) => {
        bench.fatal.push(err)
      },
      ...options,
    })
    await bench.gateway.start()
    const joined = bench.gateway.join({
      create: () => bench.tailnet,
      controlURL: undefined,
      hasAuthKey: true,
      timing: { retry: [20, 40], patience: 100, poll: 20 },
      ...node,
    })
    if (bench.tailnet.startError === undefined) await joined
    if (certificate && bench.tailnet.upError === undefined)
      await bench.until(
        () =>
          bench.log('serving').length > 0 &&
          [8_443, 10_000].every((port) => existsSync(bench.tailnet.path(port))),
      )
    return bench
  }

  /** A gateway that serves, with these limits and the defaults of the others. */
  static async limited(
    limits: Partial<Config['limits']>,
    how: Parameters<typeof Bench.start>[0] = {},
  ): Promise<Bench> {
    const bench = await Bench.start(how)
    bench.gateway.configure({ ...defaults(), limits: { ...defaults().limits, ...limits } })
    return bench
  }

  /** How often a limit held something back, by its metric. */
  async hits(limit: string): Promise<number> {
    return Number(
      new RegExp(`gatehouse_limited_total\\{limit="${limit}"\\} (\\d+)`).exec(
        await this.gateway.metrics.registry.metrics(),
      )?.[1] ?? 0,
    )
  }

  putCertificate(pem: string = this.authority.issue(name), file: string = `${name}.pem`): void {
    writeFileSync(join(this.tls, file), pem)
  }

  /** Log lines whose message contains a text. */
  log(part: string): Line[] {
    return this.lines.filter((line) => line.msg.includes(part))
  }

  /** Waits for something to become true, at most 10 s. */
  async until(condition: () => boolean | Promise<boolean>): Promise<void> {
    const end = Date.now() + 10_000
    while (!(await condition())) {
      if (Date.now() > end)
        throw new Error(
          `never became true: ${condition.toString()}\n${this.lines.map((line) => JSON.stringify(line)).join('\n')}`,
        )
      await new Promise((resolve) => setTimeout(resolve, 10))
    }
  }

  /**
   * A TLS connection of the peer, to the node or to a Service (`svc:name-443`), which trusts the
   * authority and checks the name.
   */
  async connect(
    port: number | string = 443,
    servername: string = name,
    protocols: string[] = ['http/1.1'],
  ): Promise<TLSSocket> {
    const socket = tlsConnect({
      socket: this.tailnet.connect(port),
      servername,
      ca: this.authority.certificate,
      ALPNProtocols: protocols,
    })
    await once(socket, 'secureConnect')
    return socket
  }

  /** A connection of the peer over HTTP/2. */
  async session(options: ClientSessionOptions = {}, port = 443): Promise<ClientHttp2Session> {
    const socket = await this.connect(port, name, ['h2', 'http/1.1'])
    if (socket.alpnProtocol !== 'h2')
      throw new Error(`the gateway chose ${String(socket.alpnProtocol)}`)
    const session = connectHTTP2(originOf(name, port), {
      ...options,
      createConnection: () => socket,
    })
    // Told by what becomes of the requests.
    session.on('error', () => {})
    return session
  }

  /**
   * Bytes as they are, over a connection of their own: what came back until the gateway closed it,
   * or until `quiet` milliseconds after the last byte.
   */
  async raw(bytes: string | Buffer, quiet = 150): Promise<string> {
    const socket = await this.connect()
    let answer = ''
    const { promise, resolve } = Promise.withResolvers<void>()
    let timer = setTimeout(resolve, 5_000)
    socket.setEncoding('latin1').on('data', (piece: string) => {
      answer += piece
      clearTimeout(timer)
      timer = setTimeout(resolve, quiet)
    })
    socket.on('error', () => {})
    socket.once('close', resolve)
    socket.write(typeof bytes === 'string' ? Buffer.from(bytes, 'latin1') : bytes)
    await promise
    clearTimeout(timer)
    socket.destroy()
    return answer
  }

  /**
   * One request over a connection of its own (or the given one), to 443 or another `port` of the
   * node's name; the body is not read yet.
   */
  async send(
    options: RequestOptions & {
      body?: string | Buffer | Readable
      socket?: TLSSocket
      port?: number
    } = {},
  ): Promise<IncomingMessage> {
    const { body, socket: given, port = 443, ...rest } = options
    const socket = given ?? (await this.connect(port))
    const how: RequestOptions =
      given === undefined ? { createConnection: () => socket } : { agent: agentOf(given) }
    const request = httpRequest({
      ...how,
      path: '/',
      ...rest,
      headers: { host: authorityOf(name, port), ...(rest.headers as Record<string, string>) },
    })
    const answer = once(request, 'response') as Promise<[IncomingMessage]>
    if (body === undefined || typeof body === 'string' || Buffer.isBuffer(body)) request.end(body)
    else body.pipe(request)
    return (await answer)[0]
  }

  /** One request and its whole answer. */
  async fetch(
    options: Parameters<Bench['send']>[0] = {},
  ): Promise<{ status: number; headers: IncomingMessage['headers']; text: string }> {
    const response = await this.send(options)
    return { status: response.statusCode!, headers: response.headers, text: await text(response) }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.gateway?.close(500)
    await this.origin.close()
    await this.tailnet.close()
    this.tailnet.remove()
    this.authority.close()
    rmSync(this.directory, { recursive: true, force: true })
  }
}

const agents = new WeakMap<TLSSocket, Agent>()

/** An agent that knows one connection, and keeps it. */
function agentOf(socket: TLSSocket): Agent {
  let agent = agents.get(socket)
  if (agent === undefined) {
    agent = new Agent({ keepAlive: true, maxSockets: 1 })
    agent.createConnection = () => socket
    agents.set(socket, agent)
  }
  return agent
}
