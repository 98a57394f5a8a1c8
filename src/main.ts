#!/usr/bin/env node
import { paths } from './base/paths.ts'
import { GatehouseError, reason } from './base/errors.ts'
import { version } from './base/version.ts'

const usage = `Usage: gatehouse COMMAND
       gatehouse --host NAME COMMAND   of another device, through the tailnet: gatehouse --host NAME help

  serve            run the gateway (gatehouse.service)
  certs            get or renew certificates (gatehouse-certs.service)
  provision        take gatehouse.toml from the boot partition (gatehouse-provision.service)
  broker           what the console needs as root (gatehouse-broker.service)
  room [--full]    set how many files Node-RED may have; --full: some more, so that its editor can save (node-red.service)
  report           put how things are on consoles and card; take a used auth key off it (gatehouse-report.service)
  backup FILE      one encrypted file of flows, identity, certificates and settings (as root)
  restore FILE     put it in place of what is there (as root)
  reset --yes      forget everything, as if new: flows, identity, certificates, settings (as root)
  update [--force] [usb | FOLDER]
                   install what updates.url offers, or the update on the USB stick or in FOLDER, and start it; as root
  update-fetch, update-stick, update-install, trial, trial-good
                   the steps of an update (units gatehouse-update*, gatehouse-stick@, gatehouse-trial)
  status [--json]  show how things are, and what to do about what is wrong;
                   exit code 0: all is well, 1: something is wrong, 2: the gateway does not answer
  doctor [--json]  check every link from the clock to Node-RED, name cause and cure (as root);
                   exit code 0: nothing is broken, 1: something is, 2: the gateway does not answer
  reload           put a changed gatehouse.toml in force; no connection is dropped (as root)
  metrics          print what the gateway counts, for Prometheus
  firewall         show what is allowed, to whom, and what was dropped lately (as root)
  firewall apply   put the lists of targets in force (gatehouse-firewall.service)
  cache purge      forget the answers that are kept to be used again
  version          print the version

Reference: docs/architecture.md
`

/** Arguments of the commands that have any. */
const taken: Record<string, RegExp> = {
  status: /^--json$/,
  doctor: /^--json$/,
  broker: /^recover$/,
  cache: /^purge$/,
  firewall: /^apply$/,
  backup: /^[^-]/,
  restore: /^[^-]/,
  room: /^--full$/,
  reset: /^--yes$/,
  update: /^(?:--force|[^-].*)$/,
  'update-stick': /^[^-]|^$/,
}

/** Commands load only what they need: start-up time counts on an SD card. */
async function main(args: string[]): Promise<number> {
  // `--host NAME` is of a device elsewhere: each of its commands goes through that device's API.
  if (args.some((arg) => arg === '--host' || arg.startsWith('--host=')))
    return await (await import('./cli/remote/run.ts')).runRemote(args)
  const [command, ...rest] = args
  const extra = rest.filter((arg) => !(taken[command ?? '']?.test(arg) ?? false))
  if (extra.length > 0) {
    process.stderr.write(
      `gatehouse ${command}: unexpected ${JSON.stringify(extra[0])}. See gatehouse help\n`,
    )
    return 64
  }
  switch (command) {
    case 'serve': {
      const begun = await (await import('./gateway/tailnet/early-start.ts')).beginTailnet(paths())
      return await (await import('./gateway/serve.ts')).runServe(paths(), begun)
    }
    case 'certs':
      return await (await import('./certs/run.ts')).runCerts(paths())
    case 'provision':
      return await (await import('./provision/provision.ts')).runProvision(paths())
    case 'room':
      return await (await import('./provision/room.ts')).runRoom({ full: rest.includes('--full') })
    case 'report':
      return await (await import('./cli/report.ts')).runReport(paths())
    case 'broker':
      return await (await import('./broker/serve.ts')).runBroker(paths(), rest[0])
    case 'backup':
    case 'restore':
      return await (await import('./cli/backup.ts')).runBackup(command, rest[0])
    case 'reset':
      return await (await import('./cli/reset.ts')).runReset({ yes: rest.includes('--yes') })
    case 'update':
      return await (
        await import('./cli/update.ts')
      ).runUpdate(paths(), {
        from: rest.find((arg) => arg !== '--force'),
        force: rest.includes('--force'),
      })
    case 'update-fetch':
      return await (await import('./update/fetch.ts')).runFetch(paths())
    case 'update-stick':
      return await (await import('./update/stick.ts')).runStick(paths(), rest)
    case 'update-install':
      return await (await import('./update/install.ts')).runInstall(paths())
    case 'trial':
      return await (await import('./update/trial.ts')).runTrial(paths())
    case 'trial-good':
      return await (await import('./update/trial.ts')).runTrialGood(paths())
    case 'status':
      return await (
        await import('./cli/status.ts')
      ).runStatus(paths(), { json: rest.includes('--json') })
    case 'doctor':
      return await (
        await import('./cli/doctor.ts')
      ).runDoctor(paths(), { json: rest.includes('--json') })
    case 'reload':
      return await (await import('./cli/reload.ts')).runReload(paths())
    case 'metrics':
      return await (await import('./cli/metrics.ts')).runMetrics(paths())
    case 'firewall':
      return rest.includes('apply')
        ? await (await import('./firewall/apply.ts')).runApply(paths())
        : await (await import('./firewall/show.ts')).runShow(paths())
    case 'cache':
      if (rest[0] === 'purge') return await (await import('./cli/cache.ts')).runPurge(paths())
      process.stderr.write('Usage: gatehouse cache purge\n')
      return 64
    case 'version':
    case '--version':
      process.stdout.write(`${version}\n`)
      return 0
    case 'help':
    case '--help':
    case '-h':
      process.stdout.write(usage)
      return 0
    default:
      process.stderr.write(
        command === undefined
          ? usage
          : `gatehouse: no command ${JSON.stringify(command)}\n\n${usage}`,
      )
      return 64
  }
}

try {
  process.exit(await main(process.argv.slice(2)))
} catch (err) {
  process.stderr.write(`gatehouse: ${err instanceof GatehouseError ? err.line : reason(err)}\n`)
  process.exit(1)
}
