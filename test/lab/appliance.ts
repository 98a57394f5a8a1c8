/**
 * The appliance's processes without its image, in a namespace of the lab: `gatehouse serve` from
 * source, with the real bindings, a certificate from the lab's authority, and Node-RED as the image
 * has it with the overlay's adminAuth. Quicker than a virtual machine; what systemd, firewall and
 * image do is test/vm's business.
 */
import { type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { access, copyFile, mkdir, readFile, readdir, symlink, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { call } from '../../src/base/control-client.ts'
import type { GatewayStatus } from '../../src/gateway/operate/status.ts'
import { makeChannelKey } from '../../src/provision/channel.ts'
import type { Lab, Result } from './lab.ts'

const repository = path.resolve(import.meta.dirname, '../..')

/** Waits until `probe` gives something true. */
export async function eventually<T>(
  what: string,
  seconds: number,
  probe: () => Promise<T | undefined | false>,
): Promise<T> {
  let last: unknown
  for (const deadline = Date.now() + seconds * 1000; ; await sleep(100)) {
    try {
      const value = await probe()
      if (value) return value
    } catch (err) {
      last = err
    }
    if (Date.now() > deadline) throw new Error(`not within ${seconds} s: ${what}`, { cause: last })
  }
}

export interface ApplianceOptions {
  /** Of its namespace and directory. Default: appliance. */
  name?: string
  /** Address on the segment. Default 10.77.0.60. */
  ip?: string
  /** More of gatehouse.toml: whole tables. */
  settings?: string
  /** More of its table [tailnet]: lines. */
  tailnet?: string
  /** Done in its namespace before anything is started there. */
  before?: (ns: string) => Promise<void>
  /** More environment for the gateway. */
  env?: Record<string, string>
  /** What Node-RED starts with. Default: no flows. */
  flows?: readonly object[]
  /** A node_modules directory with nodes for Node-RED. Default: none but its own. */
  modules?: string
  /** Nodes may be installed, from this registry, as the image does it. Default: none may. */
  registry?: string
  /** Until when {@link Appliance.start} waits: HTTPS is served, or the node has joined. */
  until?: 'serving' | 'joined'
  /** Auth key. Default: the lab's. */
  authKey?: string
}

export class Appliance {
  readonly #lab: Lab
  readonly ns: string
  readonly dir: string
  readonly env: Record<string, string>
  readonly #tailnet: string
  #registry: string | undefined
  #gateway: ChildProcess | undefined
  #nodeRed: ChildProcess | undefined
  /** What the gateway logged. */
  log = ''

  private constructor(
    lab: Lab,
    ns: string,
    dir: string,
    env: Record<string, string>,
    tailnet: string,
  ) {
    this.#lab = lab
    this.#tailnet = tailnet
    this.ns = ns
    this.dir = dir
    this.env = env
  }

  /** Starts both and waits until HTTPS is served and Node-RED answers. */
  static async start(lab: Lab, options: ApplianceOptions = {}): Promise<Appliance> {
    const { name = 'appliance' } = options
    const dir = path.join(lab.dir, name)
    const ns = await lab.host(name, options.ip ?? '10.77.0.60')
    for (const sub of ['config', 'credentials', 'state', 'run', 'tls', 'certs', 'node-red', 'red'])
      await mkdir(path.join(dir, sub), { recursive: true, mode: 0o700 })
    const env = {
      GATEHOUSE_CONFIG_DIR: path.join(dir, 'config'),
      GATEHOUSE_PROBLEM_FILE: path.join(dir, 'problem'),
      GATEHOUSE_TLS_DIR: path.join(dir, 'tls'),
      GATEHOUSE_NODE_RED_SOCKET: path.join(dir, 'red', 'http.sock'),
      GATEHOUSE_ADMIN_SOCKET: path.join(dir, 'admin.sock'),
      GATEHOUSE_CERTS_SOCKET: path.join(dir, 'certs.sock'),
      STATE_DIRECTORY: path.join(dir, 'state'),
      RUNTIME_DIRECTORY: path.join(dir, 'run'),
      CREDENTIALS_DIRECTORY: path.join(dir, 'credentials'),
      ...options.env,
    }
    const appliance = new Appliance(lab, ns, dir, env, options.tailnet ?? '')
    await options.before?.(ns)
    await copyFile(lab.ready.authority, path.join(dir, 'config', 'authority.pem'))
    await appliance.configure(options.settings ?? '')
    const authKey = options.authKey ?? lab.ready.authKey
    await writeFile(path.join(dir, 'credentials', 'authkey'), authKey, { mode: 0o600 })
    await makeChannelKey(path.join(dir, 'credentials', 'channel'))
    if (options.flows !== undefined)
      await writeFile(path.join(dir, 'node-red', 'flows.json'), JSON.stringify(options.flows))
    if (options.modules !== undefined)
      await symlink(options.modules, path.join(dir, 'node-red', 'node_modules'))
    appliance.#registry = options.registry
    await appliance.startNodeRed()
    await appliance.startGateway()
    if (options.until === 'joined') {
      await eventually('the node has joined', 60, async () => {
        const { tailnet } = await appliance.status()
        return tailnet.name !== undefined
      })
      return appliance
    }
    const joined = await eventually('the gateway has a name', 60, async () => {
      const { tailnet } = await appliance.status()
      return tailnet.name !== undefined && (await appliance.names()).length > 0
    })
    if (joined && (await readdir(path.join(dir, 'tls'))).every((file) => !file.endsWith('.pem'))) {
      const { code, stdout, stderr } = await appliance.gatehouse(['certs'], {
        STATE_DIRECTORY: path.join(dir, 'certs'),
      })
      if (code !== 0) throw new Error(`gatehouse certs: ${stdout}${stderr}`)
    }
    await eventually(
      'HTTPS is served and Node-RED answers',
      60,
      async () => (await call(env.GATEHOUSE_ADMIN_SOCKET, 'GET', '/readyz')).status === 200,
    )
    return appliance
  }

  /** Writes the provisioned gatehouse.toml; the gateway takes it when it is started or told. */
  async configure(more: string): Promise<void> {
    await writeFile(
      path.join(this.dir, 'config', 'gatehouse.toml'),
      `[tailnet]\ncontrol_url = "${this.#lab.ready.controlURL}"\nca_file = "authority.pem"\n` +
        `${this.#tailnet}\n[certificates]\ndirectory = "${this.#lab.ready.acmeDirectory}"\nca_file = ` +
        `"authority.pem"\n${more}`,
    )
  }

  async startGateway(): Promise<void> {
    this.#gateway = this.#lab.exec(
      this.ns,
      [
        process.execPath,
        '--disable-warning=ExperimentalWarning',
        path.join(repository, 'src/main.ts'),
        'serve',
      ],
      { env: { ...process.env, ...this.env } },
    )
    for (const stream of [this.#gateway.stdout!, this.#gateway.stderr!])
      stream.setEncoding('utf8').on('data', (text: string) => {
        this.log += text
      })
    await eventually(
      'the gateway answers',
      60,
      async () =>
        (await call(this.env['GATEHOUSE_ADMIN_SOCKET']!, 'GET', '/healthz')).status === 200,
    ).catch((err: unknown) => {
      throw new Error(`the gateway said: ${this.log.slice(-4_000)}`, { cause: err })
    })
  }

  async stopGateway(signal: NodeJS.Signals = 'SIGTERM'): Promise<number | null> {
    const child = this.#gateway!
    if (child.exitCode === null && child.signalCode === null) {
      const gone = once(child, 'exit')
      child.kill(signal)
      await gone
    }
    return child.exitCode
  }

  /** Waits until the gateway has ended by itself; its exit code. */
  async ended(): Promise<number | null> {
    const child = this.#gateway!
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit')
    return child.exitCode
  }

  /** For signals. */
  get pid(): number {
    return this.#gateway!.pid!
  }

  async startNodeRed(): Promise<void> {
    const cache = path.join(
      repository,
      `out/cache/node-red-${process.arch}/node_modules/node-red/red.js`,
    )
    await access(cache).catch(() => {
      throw new Error(
        `${cache} is not there: run make image-${process.arch === 'arm64' ? 'arm64' : 'amd64'}, which fetches Node-RED`,
      )
    })
    const socket = this.env['GATEHOUSE_NODE_RED_SOCKET']!
    const settings = path.join(this.dir, 'node-red', 'settings.cjs')
    const installs = this.#registry !== undefined
    const bounds = path.join(repository, 'overlays/usr/lib/gatehouse/node-red-install.cjs')
    await writeFile(
      settings,
      `
      const auth = require(${JSON.stringify(path.join(repository, 'overlays/usr/lib/gatehouse/node-red-auth.cjs'))})
      const channel = require('node:fs').readFileSync(${JSON.stringify(path.join(this.dir, 'credentials', 'channel'))})
      require('node:fs').rmSync(${JSON.stringify(socket)}, { force: true })
      module.exports = {
        uiPort: ${JSON.stringify(socket)}, httpAdminRoot: auth.editorRoot(channel), httpNodeRoot: '/', httpNodeAuth: auth.beforeFlows(auth.editorRoot(channel)), credentialSecret: 'lab', flowFile: 'flows.json', telemetry: { enabled: false, updateNotification: false },
        adminAuth: auth(channel),
        editorTheme: { tours: false, palette: { catalogues: [] } },
        externalModules: { autoInstall: false, palette: { allowInstall: ${installs} } },
      }
      if (${installs}) require(${JSON.stringify(bounds)}).bound(require.main.require('@node-red/util').exec, { prebuilt: false })`,
    )
    this.#nodeRed = this.#lab.exec(
      this.ns,
      [process.execPath, cache, '-s', settings, '-u', path.join(this.dir, 'node-red')],
      {
        stdio: ['ignore', 'ignore', 'ignore'],
        env: {
          ...process.env,
          HOME: path.join(this.dir, 'node-red'),
          ...(installs && { npm_config_registry: this.#registry }),
        },
      },
    )
    await eventually('Node-RED listens', 120, async () => {
      await access(socket)
      return true
    })
  }

  async stopNodeRed(): Promise<void> {
    const child = this.#nodeRed!
    if (child.exitCode !== null || child.signalCode !== null) return
    const gone = once(child, 'exit')
    child.kill()
    // A node that does not let go holds it up.
    const late = setTimeout(() => child.kill('SIGKILL'), 20_000)
    await gone
    clearTimeout(late)
  }

  /** Runs a command of the program beside the gateway, with its paths. */
  async gatehouse(args: string[], env: Record<string, string> = {}): Promise<Result> {
    const variables = Object.entries({ ...this.env, ...env }).map(
      ([name, value]) => `${name}=${value}`,
    )
    return await this.#lab.run(this.ns, [
      'env',
      ...variables,
      process.execPath,
      path.join(repository, 'src/main.ts'),
      ...args,
    ])
  }

  async status(): Promise<GatewayStatus> {
    return (await call(this.env['GATEHOUSE_ADMIN_SOCKET']!, 'GET', '/v1/status'))
      .body as GatewayStatus
  }

  async names(): Promise<string[]> {
    return (
      (await call(this.env['GATEHOUSE_CERTS_SOCKET']!, 'GET', '/v1/names')).body as {
        names: string[]
      }
    ).names
  }

  /** Node-RED's flows as they are on its disk. */
  async flows(): Promise<unknown> {
    return JSON.parse(await readFile(path.join(this.dir, 'node-red', 'flows.json'), 'utf8'))
  }

  async stop(): Promise<void> {
    await this.stopGateway()
    await this.stopNodeRed()
  }
}
