#!/usr/bin/env node
import { parseArgs } from 'node:util'
import { paths } from './base/paths.ts'
import { GatehouseError, reason } from './base/errors.ts'
import { version } from './base/version.ts'

const usage = `Usage: gatehouse COMMAND
       gatehouse --host NAME COMMAND   of another device, through the tailnet: gatehouse --host NAME help

  serve            run the gateway (gatehouse.service)
  certs            get or renew certificates (gatehouse-certs.service)
  provision        take gatehouse.toml from the boot partition (gatehouse-provision.service)
  broker           what the console needs as root (gatehouse-broker.service)
  alerts watch | test
                   tell people what is wrong (gatehouse-alerts@.service)
  room [--full]    set how many files Node-RED may have; --full: some more, so that its editor can save (node-red.service)
  report           put how things are on consoles and card; take a used auth key off it (gatehouse-report.service)
  backup FILE      one encrypted file of flows, identity, certificates and settings (as root)
  restore FILE     put it in place of what is there (as root)
  reset --yes      forget everything, as if new: flows, identity, certificates, settings (as root)
  update [--force] [usb | FOLDER]
                   install what updates.url offers, or the update on the USB stick or in FOLDER, and start it; as root
  update-fetch, update-stick, update-install, trial
                   the steps of an update (units gatehouse-update*, gatehouse-stick@, gatehouse-trial)
  status [--json]  show how things are, and what to do about what is wrong;
                   exit code 0: all is well, 1: something is wrong, 2: the gateway does not answer
  doctor [--json]  check every link from the clock to Node-RED, name cause and cure (as root);
                   exit code 0: nothing is broken, 1: something is, 2: the gateway does not answer
  reload           put a changed gatehouse.toml in force; no connection is dropped (as root)
  metrics          print what the gateway counts, for Prometheus
  firewall         show what is allowed, to whom, and what was dropped lately (as root)
  firewall apply   put the lists of targets in force (gatehouse-firewall.service)
  firewall refused print what Node-RED wanted and may not, as JSON (as root)
  firewall learn   for ten minutes, write that down with the names that flows ask for (gatehouse-learn.service)
  firewall names   answer Node-RED's questions for the names on its list (gatehouse-names.service)
  cache purge      forget the answers that are kept to be used again
  version          print the version

Reference: docs/architecture.md
`

/** Options and words of the commands that have any. */
const taken: Record<string, { flags?: string[]; words?: RegExp }> = {
  status: { flags: ['json'] },
  doctor: { flags: ['json'] },
  alerts: { words: /^(?:watch|test)$/ },
  broker: { words: /^recover$/ },
  cache: { words: /^purge$/ },
  firewall: { words: /^(?:apply|names|learn|refused)$/ },
  backup: { words: /./ },
  restore: { words: /./ },
  room: { flags: ['full'] },
  reset: { flags: ['yes'] },
  update: { flags: ['force'], words: /./ },
  // The type is empty when the stick has no file system.
  'update-stick': { words: /^/ },
}

/** What follows a command. Throws an Error that says what is wrong with it. */
function parse(command: string, args: string[]): { flags: Set<string>; words: string[] } {
  const { flags = [], words } = taken[command] ?? {}
  const { values, positionals } = parseArgs({
    args,
    options: Object.fromEntries(flags.map((flag) => [flag, { type: 'boolean' as const }])),
    allowPositionals: true,
  })
  const extra = positionals.find((word) => words?.test(word) !== true)
  if (extra !== undefined) throw new Error(`Unexpected ${JSON.stringify(extra)}`)
  return { flags: new Set(Object.keys(values)), words: positionals }
}

/** Commands load only what they need: start-up time counts on an SD card. */
async function main(args: string[]): Promise<number> {
  // `--host NAME` is of a device elsewhere: each of its commands goes through that device's API.
  if (args.some((arg) => arg === '--host' || arg.startsWith('--host=')))
    return await (await import('./cli/remote/run.ts')).runRemote(args)
  const [command, ...rest] = args
  let flags: Set<string>
  let words: string[]
  try {
    ;({ flags, words } = parse(command ?? '', rest))
  } catch (err) {
    // Of Node's own advice, how to pass words that begin with a hyphen, nothing has use.
    process.stderr.write(
      `gatehouse ${command}: ${reason(err).split('. ')[0]}. See gatehouse help\n`,
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
      return await (await import('./provision/room.ts')).runRoom({ full: flags.has('full') })
    case 'report':
      return await (await import('./cli/report.ts')).runReport(paths())
    case 'broker':
      return await (await import('./broker/serve.ts')).runBroker(paths(), words[0])
    case 'alerts':
      return await (await import('./alerts/run.ts')).runAlerts(paths(), words[0])
    case 'backup':
    case 'restore':
      return await (await import('./cli/backup.ts')).runBackup(command, words[0])
    case 'reset':
      return await (await import('./cli/reset.ts')).runReset({ yes: flags.has('yes') })
    case 'update':
      return await (
        await import('./cli/update.ts')
      ).runUpdate(paths(), {
        from: words[0],
        force: flags.has('force'),
      })
    case 'update-fetch':
      return await (await import('./update/fetch.ts')).runFetch(paths())
    case 'update-stick':
      return await (await import('./update/stick.ts')).runStick(paths(), words)
    case 'update-install':
      return await (await import('./update/install.ts')).runInstall(paths())
    case 'trial':
      return await (await import('./update/trial.ts')).runTrial(paths())
    case 'status':
      return await (await import('./cli/status.ts')).runStatus(paths(), { json: flags.has('json') })
    case 'doctor':
      return await (await import('./cli/doctor.ts')).runDoctor(paths(), { json: flags.has('json') })
    case 'reload':
      return await (await import('./cli/reload.ts')).runReload(paths())
    case 'metrics':
      return await (await import('./cli/metrics.ts')).runMetrics(paths())
    case 'firewall':
      if (words.includes('names'))
        return await (await import('./firewall/names/serve.ts')).runNames(paths())
      if (words.includes('learn'))
        return await (await import('./firewall/refused.ts')).runLearn(paths())
      if (words.includes('refused'))
        return await (await import('./firewall/refused.ts')).runRefused(paths())
      return words.includes('apply')
        ? await (await import('./firewall/apply.ts')).runApply(paths())
        : await (await import('./firewall/show.ts')).runShow(paths())
    case 'cache':
      if (words[0] === 'purge') return await (await import('./cli/cache.ts')).runPurge(paths())
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
