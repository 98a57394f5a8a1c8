import { readFileSync } from 'node:fs'
import { readFile, rename, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { GatehouseError, reason } from '../base/errors.ts'
import { loadConfig, readAuthKey, readChannelKey } from '../config/load.ts'
import { notesFile } from '../base/paths.ts'
import type { Paths } from '../base/paths.ts'
import { version } from '../base/version.ts'
import { tailnetOptions } from './tailnet/early-start.ts'
import type { Begun } from './tailnet/early-start.ts'
import { Gateway } from './gateway.ts'
import { createLog } from './shared/log.ts'
import { Notifier } from './operate/notify.ts'
import { systemdSockets } from '../base/sockets.ts'
import type { ListenSocket } from '../base/sockets.ts'

/**
 * `gatehouse serve`: runs until SIGTERM or SIGINT (exit code 0) or until the tailnet server dies
 * (1, and systemd starts it anew). Nothing else ends it: whatever is wrong is said and tried again.
 *
 * @param begun the tailnet server, which may have been started already
 */
export async function runServe(paths: Paths, begun: Begun): Promise<number> {
  const log = createLog()
  const notifier = new Notifier(log)
  const given = systemdSockets()
  const where = (name: string, path: string): ListenSocket => {
    const fd = given.get(name)
    return fd === undefined ? { path } : { fd }
  }
  let channelKey: Buffer | undefined
  try {
    channelKey = await readChannelKey(paths.credentials)
  } catch (err) {
    log.error({ code: 'GH_CHANNEL_KEY' }, reason(err))
  }
  const { promise: ended, resolve: end } = Promise.withResolvers<number>()
  let told = Promise.resolve()
  const authority = (file: string): string | undefined => {
    try {
      return readFileSync(join(paths.config, file), 'utf8')
    } catch (err) {
      log.error(
        { code: 'GH_CA_FILE' },
        `${file} cannot be read: ${reason(err)}. Put it beside gatehouse.toml and restart the device`,
      )
      return undefined
    }
  }
  const gateway = new Gateway({
    version,
    log,
    tls: paths.tls,
    state: paths.state('/var/lib/gatehouse'),
    broker: paths.broker,
    runtime: paths.runtime,
    nodeRed: paths.nodeRed,
    channelKey,
    authority,
    pages: paths.console,
    admin: where('admin', paths.admin),
    certs: where('certs', paths.certs),
    onState: (line) => {
      notifier.status(line)
      // gatehouse-report.path watches it. One after the other, the last one stays.
      told = told
        .then(async () => {
          await writeFile(join(paths.runtime, 'state'), `${line}\n`)
        })
        .catch((err: unknown) => {
          log.debug(`state: ${reason(err)}`)
        })
    },
    onProblems: (device, problems) => {
      // gatehouse-alerts.path watches it. Replaced, so that nobody reads half of it.
      told = told
        .then(async () => {
          const file = join(paths.alerts, 'problems.json')
          await writeFile(`${file}.new`, JSON.stringify({ device, problems }))
          await rename(`${file}.new`, file)
        })
        .catch((err: unknown) => {
          log.debug(`problems: ${reason(err)}`)
        })
    },
    onFatal: (err) => {
      if (err instanceof GatehouseError) {
        log.fatal({ code: err.code }, err.line)
        end(1)
        return
      }
      log.fatal(
        { code: 'GH_TAILNET_DIED' },
        `the tailnet node died: ${reason(err)}. The gateway restarts`,
      )
      end(1)
    },
    load: async () => await loadConfig(paths.config),
    configurationProblem: async () => {
      const text = await readFile(paths.problem, 'utf8').catch(() => '')
      return text.trim() === '' ? undefined : text.trim()
    },
    configurationNotes: async () => {
      const text = await readFile(notesFile(paths), 'utf8').catch(() => '')
      return text.split('\n').filter((line) => line !== '')
    },
  })
  gateway.metrics.watchProcess()
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.once(signal, () => {
      log.info(`${signal}: closing`)
      end(0)
    })
  }

  try {
    await gateway.start()
  } catch (err) {
    // No socket, no way to say anything but here.
    log.fatal(
      { code: 'GH_START' },
      `the gateway cannot start: ${reason(err)}. systemd starts it again; if it stays so, restart the device`,
    )
    return 1
  }
  notifier.ready()
  notifier.watch(async () => await gateway.alive())
  process.on('SIGHUP', () => {
    notifier.reloading()
    // A configuration that is refused is in status and log; the service goes on, so it is ready
    // again either way.
    gateway.reloader
      .reload()
      .catch(() => {})
      .finally(() => {
        notifier.ready()
      })
  })
  log.info({ version, node: process.version }, 'gatehouse is up')
  void joinTailnet(gateway, paths, begun, authority).catch((err: unknown) => {
    log.fatal({ code: 'GH_INTERNAL', err }, `the gateway failed: ${reason(err)}`)
    end(1)
  })

  const code = await ended
  notifier.status('closing')
  notifier.stopping()
  // What does not close by then is cut: systemd would only kill it later.
  const late = setTimeout(() => {
    log.warn('not closed within 10 s')
    process.exit(code)
  }, 10_000)
  await gateway.close()
  clearTimeout(late)
  return code
}

/** Waits for a configuration that is right, then joins. */
async function joinTailnet(
  gateway: Gateway,
  paths: Paths,
  begun: Begun,
  authority: (file: string) => string | undefined,
): Promise<void> {
  for (;;) {
    try {
      const authKey = await readAuthKey(paths.credentials)
      // Puts it in force, and is the measure of what a later reload changes.
      await gateway.reloader.reload()
      const config = await loadConfig(paths.config)
      await gateway.join({
        controlURL: config.tailnet.controlURL,
        controlAuthority:
          config.tailnet.caFile === undefined ? undefined : authority(config.tailnet.caFile),
        hasAuthKey: authKey !== undefined,
        stateFile: join(paths.state('/var/lib/gatehouse'), 'tailscaled.state'),
        tags: config.tailnet.tags,
        kernel: config.tailnet.dataPath === 'kernel',
        create: (kernel) => begun.take(tailnetOptions(paths, config, authKey, kernel)),
      })
      return
    } catch (err) {
      if (!(err instanceof GatehouseError)) throw err
      gateway.problems.set('configuration', err, 'error')
      await new Promise((resolve) => setTimeout(resolve, 5_000))
    }
  }
}
