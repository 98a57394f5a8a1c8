import { restartDevice } from '../../base/cures.ts'
import { GatehouseError, reason } from '../../base/errors.ts'
import { tomlName } from '../../config/schema.ts'
import type { Config } from '../../config/schema.ts'
import type { Logger } from '../shared/log.ts'
import type { Problems } from '../shared/problems.ts'

/**
 * Tables, and single keys, that the running gateway takes over. What other units read
 * (certificates, Node-RED, firewall) is theirs to take.
 */
const live: ReadonlySet<string> = new Set([
  'access',
  'limits',
  'cache',
  'app',
  'forward',
  'local_network',
  'certificates',
  'backup',
  'node_red.allow_origins',
  'node_red.allow',
])

/** Options of {@link Reloader}. */
export interface ReloaderOptions {
  log: Logger
  problems: Problems
  /** Reads the provisioned configuration. Rejects with GatehouseError when it is wrong. */
  load: () => Promise<Config>
  /** Puts one in force. Called with what `load` gave, all of it right. */
  apply: (config: Config) => void
}

/** Changes the configuration of a gateway that runs: all of it or nothing, one reload at a time. */
export class Reloader {
  #options: ReloaderOptions
  #current: Config | undefined
  #busy: Promise<unknown> = Promise.resolve()

  constructor(options: ReloaderOptions) {
    this.#options = options
  }

  /**
   * Reads the configuration anew and puts it in force.
   *
   * @throws GatehouseError when it is wrong; the one before stays, and the problem is in the status
   */
  async reload(): Promise<Reloaded> {
    const turn = this.#busy.then(async () => await this.#reload())
    this.#busy = turn.catch(() => {})
    return await turn
  }

  async #reload(): Promise<Reloaded> {
    const { log, problems, load, apply } = this.#options
    let next: Config
    try {
      next = await load()
    } catch (err) {
      const error =
        err instanceof GatehouseError
          ? err
          : new GatehouseError(
              'GH_CONFIG_READ',
              `the configuration cannot be read: ${reason(err)}`,
              restartDevice,
              { cause: err },
            )
      problems.set('configuration', error, 'error')
      throw error
    }
    const keys = this.#current === undefined ? [] : differences(this.#current, next)
    apply(next)
    this.#current = next
    problems.clear('configuration', 'the configuration is valid again')
    const changed = keys.filter((key) => live.has(key.split('.', 1)[0]!) || live.has(key))
    const restart = keys.filter((key) => !changed.includes(key))
    if (keys.length > 0)
      log.info(
        { changed, restart },
        `configuration reloaded${changed.length === 0 ? '' : `, in force: ${changed.join(', ')}`}${restart.length === 0 ? '' : `, after a restart: ${restart.join(', ')}`}`,
      )
    return { changed, restart }
  }
}

/** Keys whose values differ, as in the file: `access.view`. A list of tables counts as one key. */
function differences(a: Config, b: Config): string[] {
  return Object.keys(b).flatMap((table) => {
    const [before, after] = [a[table as keyof Config], b[table as keyof Config]] as [
      Record<string, unknown>,
      Record<string, unknown>,
    ]
    if (Array.isArray(after)) return JSON.stringify(before) === JSON.stringify(after) ? [] : [table]
    return Object.keys(after)
      .filter((key) => JSON.stringify(before[key]) !== JSON.stringify(after[key]))
      .map((key) => `${table}.${tomlName(key)}`)
  })
}

/** What a reload did, as keys of gatehouse.toml. */
export interface Reloaded {
  /** In force now. */
  changed: string[]
  /** Changed in the file, in force after a restart. */
  restart: string[]
}
