/** Processes in network namespaces: started, waited for, and ended with the lab. */
import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process'

/** How a process ended, with all it wrote. */
export interface Result {
  code: number | null
  stdout: string
  stderr: string
}

/** How long a process may take to end after SIGTERM, in milliseconds. */
const endGrace = 5_000

/** Ends a process: SIGTERM, and SIGKILL when that was not enough. */
export async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return
  const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()))
  child.kill('SIGTERM')
  const timer = setTimeout(() => child.kill('SIGKILL'), endGrace)
  await gone
  clearTimeout(timer)
}

/** The end of a process, with all it wrote. */
export function exited(child: ChildProcess): Promise<Result> {
  const out: Buffer[] = []
  const err: Buffer[] = []
  child.stdout?.on('data', (b: Buffer) => out.push(b))
  child.stderr?.on('data', (b: Buffer) => err.push(b))
  const ended = new Promise<Result>((resolve, reject) => {
    child.once('error', (error: NodeJS.ErrnoException) => {
      reject(error.code === 'ENOENT' ? new Error(`${child.spawnfile} is not installed`) : error)
    })
    child.once('close', (code) =>
      resolve({
        code,
        stdout: Buffer.concat(out).toString(),
        stderr: Buffer.concat(err).toString(),
      }),
    )
  })
  ended.catch(() => {}) // whoever waits gets it; nobody need wait
  return ended
}

/** The result, if the process ended well; throws what it said, if not. */
export function must(result: Result, what: string): Result {
  if (result.code !== 0)
    throw new Error(`${what}: ${result.stderr.trim() || `code ${result.code}`}`)
  return result
}

/** What a lab has started. */
export class Processes {
  readonly #children = new Set<ChildProcess>()

  /**
   * Starts a program in a namespace (by its name). It dies with this
   * process (PDEATHSIG), and with {@link endAll}. Its pid is the program's own: neither `setpriv`
   * nor `ip netns exec` forks.
   */
  exec(ns: string, argv: string[], options: SpawnOptions = {}): ChildProcess {
    const child = spawn(
      'setpriv',
      ['--pdeathsig', 'KILL', '--', 'ip', 'netns', 'exec', ns, ...argv],
      {
        stdio: ['pipe', 'pipe', 'pipe'],
        ...options,
      },
    )
    this.#children.add(child)
    child.once('exit', () => this.#children.delete(child))
    child.once('error', () => this.#children.delete(child))
    child.stdin?.on('error', () => {}) // EPIPE when it has ended: its exit says so
    return child
  }

  /** Runs a program in a namespace to its end. Rejects only if it cannot be started. */
  async run(ns: string, argv: string[], input?: string): Promise<Result> {
    const child = this.exec(ns, argv)
    const result = exited(child)
    child.stdin?.end(input)
    return await result
  }

  /** Runs a program outside of all namespaces to its end. */
  protected async outside(argv: string[], input?: string): Promise<Result> {
    const child = spawn(argv[0]!, argv.slice(1), { stdio: ['pipe', 'pipe', 'pipe'] })
    child.stdin.on('error', () => {})
    child.stdin.end(input)
    return await exited(child)
  }

  /** Runs a program in a namespace; throws what it said unless it ended well. */
  async within(ns: string, ...argv: string[]): Promise<string> {
    return must(await this.run(ns, argv), argv.join(' ')).stdout
  }

  /** Puts rules in force in a namespace (nft(8), a script). */
  async nft(ns: string, script: string): Promise<void> {
    must(await this.run(ns, ['nft', '-f', '-'], script), 'nft')
  }

  protected async endAll(): Promise<void> {
    await Promise.all([...this.#children].map((child) => end(child)))
  }
}
