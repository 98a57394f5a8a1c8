/** A node with the bindings, in a namespace of the lab, driven from the test. */
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { createServer, type Server as NetServer, type Socket } from 'node:net'
import path from 'node:path'
import readline from 'node:readline'
import type { Duplex } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Lab } from '../../../test/lab/lab.ts'
import type { ServerOptions, Status } from '../index.ts'
import type { Kit } from './node.ts'

export { pattern } from './node.ts'

let count = 0

/** Those whose process runs: what their connections hold is printed when a test times out. */
const running = new Set<WasmNode>()

/**
 * Prints what each connection of every node holds, on stderr: for a test that is about to fail
 * because something does not come. A node that does not answer within 5 s is said to.
 */
export async function printConnections(why: string): Promise<void> {
  for (const node of running) {
    const name = node.options.hostname
    try {
      const late = sleep(5000, undefined, { ref: false }).then(() =>
        Promise.reject(new Error('no answer within 5 s')),
      )
      const list = await Promise.race([node.run((k) => k.server?.debugConnections() ?? []), late])
      console.error(`${why}: ${name}: ${list.length} connections`)
      for (const c of list) console.error(`  ${JSON.stringify(c)}`)
    } catch (err) {
      console.error(`${why}: ${name}: ${(err as Error).message}`)
    }
  }
}

// A file that takes too long is ended by the runner, which says its limit: shortly before that.
const limit = Number(process.env.GATEHOUSE_TEST_LIMIT)
if (limit > 0) setTimeout(() => void printConnections('the time is over'), limit - 15_000).unref()

/** A store cannot go over: functions run over there make their own. */
type Options = Omit<ServerOptions, 'store' | 'idToken'> & { dir: string; idToken?: string }

export interface NodeOptions extends Partial<Options> {
  /** Namespace, when not one of its own. */
  ns?: string
  /** Flags of Node's own. */
  flags?: string[]
  /** Environment of the process. */
  processEnv?: Record<string, string>
}

/** A process with the bindings. */
export class WasmNode {
  readonly ns: string
  /** Address on the segment, when the namespace is its own. */
  readonly ip: string
  readonly options: Options
  readonly child: ChildProcess
  /** Set once {@link up} has resolved. */
  status!: Status
  stderr = ''
  readonly exited: Promise<number | NodeJS.Signals>
  readonly #waiting = new Map<
    number,
    { resolve: (v: unknown) => void; reject: (e: Error) => void }
  >()
  #nextId = 1

  private constructor(
    lab: Lab,
    ns: string,
    ip: string,
    { flags = [], processEnv, ...options }: NodeOptions,
  ) {
    delete options.ns
    this.ns = ns
    this.ip = ip
    this.options = {
      dir: path.join(lab.dir, `wasm-${++count}`),
      hostname: 'wasm',
      authKey: lab.ready.authKey,
      controlURL: lab.ready.controlURL,
      ...options,
    }
    this.child = lab.exec(
      ns,
      [
        process.execPath,
        '--disable-warning=ExperimentalWarning',
        ...flags,
        path.join(import.meta.dirname, 'node.ts'),
        'run',
      ],
      {
        env: {
          PATH: process.env.PATH,
          NODE_EXTRA_CA_CERTS: lab.ready.authority,
          // A file of tests may be run with each (streams-node.test.ts).
          ...(process.env.TSNET_NETWORK && { TSNET_NETWORK: process.env.TSNET_NETWORK }),
          ...processEnv,
        },
      },
    )
    this.child.stderr!.on('data', (b: Buffer) => (this.stderr += b.toString()))
    readline.createInterface({ input: this.child.stdout! }).on('line', (line) => {
      const { id, result, error } = JSON.parse(line)
      const w = this.#waiting.get(id)
      this.#waiting.delete(id)
      if (error) w?.reject(Object.assign(new Error(error.message), error))
      else w?.resolve(result)
    })
    running.add(this)
    this.exited = new Promise((resolve) => {
      this.child.once('exit', (code, signal) => {
        running.delete(this)
        resolve(code ?? signal!)
        for (const w of this.#waiting.values())
          w.reject(new Error(`the process ended (${code ?? signal}): ${this.stderr}`))
      })
    })
  }

  /** A process without a Server yet. */
  static async process(lab: Lab, options: NodeOptions = {}): Promise<WasmNode> {
    if (options.ns) return new WasmNode(lab, options.ns, '', options)
    const n = 60 + ++count
    const ip = `10.77.0.${n}`
    return new WasmNode(lab, await lab.host(`w${n}`, ip), ip, options)
  }

  /** A process whose Server is in the tailnet. */
  static async up(lab: Lab, options: NodeOptions = {}): Promise<WasmNode> {
    const node = await WasmNode.process(lab, options)
    await node.up()
    return node
  }

  /** Makes the kit's Server. */
  async make(options: Partial<Options> = {}): Promise<void> {
    await this.run(
      (k, o) => {
        k.server = new k.Server(o)
        k.events.length = 0
        for (const name of ['state', 'loginURL', 'message'] as const)
          k.server.on(name, (v) => k.events.push([name, v]))
        k.server.on('error', (err) => k.events.push(['error', `${err.code} ${err.message}`]))
        k.server.on('close', () => k.events.push(['close', '']))
      },
      { ...this.options, ...options },
    )
  }

  /** Makes the kit's Server and waits until it is in the tailnet. */
  async up(options: Partial<Options> = {}): Promise<Status> {
    await this.make(options)
    return (this.status = await this.run((k) => k.server.up()))
  }

  /** IPv4 and IPv6 address in the tailnet. */
  get addresses(): [string, string] {
    return this.status.tailscaleIPs as [string, string]
  }

  /**
   * Runs a function over there. It sees the kit and its arguments alone, nothing of where it is
   * written.
   */
  async run<A extends unknown[], R>(
    f: (kit: Kit, ...args: A) => R | Promise<R>,
    ...args: A
  ): Promise<Awaited<R>> {
    if (this.child.exitCode !== null || this.child.signalCode !== null)
      throw new Error(`the process has ended: ${this.stderr}`)
    const id = this.#nextId++
    const done = new Promise<unknown>((resolve, reject) =>
      this.#waiting.set(id, { resolve, reject }),
    )
    this.child.stdin!.write(`${JSON.stringify({ id, source: f.toString(), args })}\n`)
    return (await done) as Awaited<R>
  }

  /** Runs a function that must fail, and gives the error's code and message. */
  async fails<A extends unknown[]>(
    f: (kit: Kit, ...args: A) => unknown,
    ...args: A
  ): Promise<{ code: string; message: string }> {
    try {
      await this.run(f, ...args)
    } catch (err) {
      const { code, message, name } = err as Error & { code: string }
      return { code: code ?? name, message }
    }
    throw new Error('it ought to have failed')
  }

  /** Descriptors open in the process now. */
  async descriptors(): Promise<number> {
    return await this.run((k) => k.fs.readdirSync('/proc/self/fd').length)
  }

  /**
   * Closes stdin: with the Server closed too, nothing keeps the process alive. Resolves with how it
   * ended; kills it after `timeout` ms.
   */
  async end(timeout = 10_000): Promise<number | NodeJS.Signals> {
    this.child.stdin!.end()
    const timer = setTimeout(() => this.child.kill('SIGKILL'), timeout)
    const how = await this.exited
    clearTimeout(timer)
    return how
  }
}

/** A server of the test's own on a unix socket, for LabClient.serve. */
export async function unixServer(
  file: string,
  onSocket: (socket: Socket) => void,
): Promise<NetServer> {
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => {}) // a test that wants to know adds its own
    onSocket(socket)
  })
  server.listen(file)
  await once(server, 'listening')
  server.unref()
  return server
}

/**
 * All bytes until the end. Not by iteration, which destroys a stream whose other half is still
 * open.
 */
export async function drain(stream: Duplex): Promise<Buffer> {
  const parts: Buffer[] = []
  // It may be over already: both events come once.
  if (stream.errored) throw stream.errored
  if (stream.readableEnded) return Buffer.alloc(0)
  stream.on('data', (part: Buffer) => parts.push(part)).resume()
  await new Promise<void>((resolve, reject) => stream.once('end', resolve).once('error', reject))
  return Buffer.concat(parts)
}

/** Waits until `probe` gives something true. `timeout` in ms. */
export async function eventually<T>(
  what: string,
  probe: () => Promise<T | undefined | false> | T | undefined | false,
  timeout = 10_000,
): Promise<T> {
  for (const deadline = Date.now() + timeout; ;) {
    const value = await probe()
    if (value) return value
    if (Date.now() > deadline) {
      await printConnections(what)
      throw new Error(`not within ${timeout} ms: ${what}`)
    }
    await sleep(50)
  }
}
