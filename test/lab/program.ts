/**
 * The same program twice: on the bindings (bench/node.ts) and natively compiled (load.go), each in
 * a namespace of its own. What the one does, the other is the measure of.
 */
import type { ChildProcess } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import path from 'node:path'
import readline from 'node:readline'
import type { Lab } from './lab.ts'

/**
 * On the bindings; on them with the kernel's TCP by a tun device; or natively compiled tsnet.
 */
export type Kind = 'wasm' | 'tun' | 'native'

/** How a {@link Program} is started. */
export interface ProgramOptions {
  /** Default: the kind. */
  hostname?: string
  /** Default: the lab's. */
  controlURL?: string
  /** The program on the bindings (wasm, tun). Default: bench/node.ts, from source. */
  script?: string
  /** More options of the bindings' Server. */
  server?: Record<string, unknown>
  /** More environment. */
  env?: Record<string, string>
  /** How long it may take to join, in ms. Default 60 000. */
  timeout?: number
}

let count = 0

/** A program in the tailnet that echoes (port 7), counts what it gets (9) and sends (19). */
export class Program {
  readonly kind: Kind
  readonly child: ChildProcess
  /** Its IPv4 address in the tailnet. */
  readonly ip: string
  /** From the start of the process until it was in the tailnet. */
  readonly joinedMs: number
  /** Of which the module took so many to be loaded; natively 0. */
  readonly loadedMs: number

  private constructor(
    kind: Kind,
    child: ChildProcess,
    ip: string,
    joinedMs: number,
    loadedMs: number,
  ) {
    this.kind = kind
    this.child = child
    this.ip = ip
    this.joinedMs = joinedMs
    this.loadedMs = loadedMs
  }

  /** Starts one; resolves when it is in the tailnet, rejects with what it said when it ends. */
  static async start(
    lab: Lab,
    ns: string,
    kind: Kind,
    options: ProgramOptions = {},
  ): Promise<Program> {
    const { hostname = kind, controlURL = lab.ready.controlURL, timeout = 60_000 } = options
    const dir = path.join(lab.dir, `program-${++count}`)
    const { authKey, authority } = lab.ready
    const keyFile = path.join(lab.dir, 'program-authkey')
    await writeFile(keyFile, authKey, { mode: 0o600 })
    const native = [
      ...[lab.bin, 'load-node', '--dir', dir, '--control', controlURL],
      ...['--hostname', hostname, '--authkey-file', keyFile],
    ]
    const wasm = [
      process.execPath,
      '--disable-warning=ExperimentalWarning',
      options.script ?? path.resolve(import.meta.dirname, '../../bench/node.ts'),
      JSON.stringify({
        ...{ dir, hostname, controlURL, authKey, extraCAFile: authority },
        ...(kind === 'tun' && { tun: 'program0' }),
        ...options.server,
      }),
    ]
    const begun = performance.now()
    const child = lab.exec(ns, kind === 'native' ? native : wasm, {
      stdio: ['pipe', 'pipe', 'pipe'],
      env: { ...process.env, SSL_CERT_FILE: authority, ...options.env },
    })
    let said = ''
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      said = (said + text).slice(-4000)
    })
    const first = await new Promise<string>((resolve, reject) => {
      const late = setTimeout(() => {
        child.kill('SIGKILL')
        reject(new Error(`the ${kind} program has not joined within ${timeout} ms: ${said}`))
      }, timeout)
      readline.createInterface({ input: child.stdout! }).once('line', (line) => {
        clearTimeout(late)
        resolve(line)
      })
      child.once('exit', (code) => {
        clearTimeout(late)
        reject(new Error(`the ${kind} program ended early (code ${code}): ${said}`))
      })
    })
    const { ips, loadedMs = 0 } = JSON.parse(first) as { ips: string[]; loadedMs?: number }
    return new Program(kind, child, ips[0]!, performance.now() - begun, loadedMs)
  }

  get pid(): number {
    return this.child.pid!
  }

  /** Ends it. */
  async end(): Promise<void> {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return
    const gone = new Promise((resolve) => this.child.once('exit', resolve))
    this.child.stdin!.end()
    const late = setTimeout(() => this.child.kill('SIGKILL'), 10_000)
    await gone
    clearTimeout(late)
  }
}
