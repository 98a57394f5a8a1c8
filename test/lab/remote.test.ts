/**
 * The command line from a laptop, as a person has it: installed by npm from the device itself, run
 * by the Node.js that the laptop has, in a tailnet client's namespace, to the real gateway and broker.
 */
import assert from 'node:assert/strict'
import { readFile, readdir, stat, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { bundleConsole } from '../../tools/console.ts'
import { packCli } from '../../tools/cli.ts'
import { eventually } from './appliance.ts'
import { reachable } from './browser.ts'
import { Lab } from './lab.ts'
import type { LabClient, Result } from './lab.ts'
import { startManaged } from './managed.ts'
import type { Managed } from './managed.ts'
import { must } from './processes.ts'

/** How long a change is on trial here. Milliseconds. */
const trialTime = 8_000

let lab: Lab
let device: Managed
let laptop: LabClient
let name: string
let home: string
let program: string

before(async () => {
  lab = await Lab.start({ name: 'remote' })
  home = path.join(lab.dir, 'home')
  const pages = path.join(lab.dir, 'console')
  await bundleConsole(pages)
  await packCli(pages, Date.UTC(2026, 0, 1))
  device = await startManaged(lab, { pages, trialTime, settings: '' })
  name = (await device.appliance.names())[0]!
  laptop = await lab.client('laptop')
  await eventually(
    'the gateway knows the client',
    60,
    async () => (await laptop.fetch(`https://${name}:10000/api/v1/me`)).status === 200,
  )
  await reachable(lab, laptop, name, 10_000)
})
after(async () => {
  await device?.broker.close()
  await device?.appliance.stop()
  await lab?.stop()
})

/** Runs a command beside the client, which trusts the lab's authority as the public ones. */
async function inside(argv: string[], input = '', env: string[] = []): Promise<Result> {
  const own = [`HOME=${home}`, `NODE_EXTRA_CA_CERTS=${lab.ready.acmeRoots}`, ...env]
  return await lab.run(laptop.ns, ['env', ...own, ...argv], input)
}

const gatehouse = async (args: string[], input = '', env: string[] = []): Promise<Result> =>
  await inside(['node', program, '--host', name, ...args], input, env)

/** The output of a command that must end well. */
async function well(...args: string[]): Promise<string> {
  return must(await gatehouse(args), args.join(' ')).stdout
}

test(
  'npm installs it from the device, and it needs nothing else',
  { timeout: 120_000 },
  async () => {
    const url = `https://${name}:10000/console/gatehouse-cli.tgz`
    const quiet = ['--no-audit', '--no-fund', '--no-update-notifier', '--fetch-retries=0']
    must(await inside(['npm', 'install', '--global', `--prefix=${home}`, ...quiet, url]), 'npm')
    program = path.join(home, 'lib/node_modules/@gatehouse/cli/gatehouse.js')
    assert.ok((await stat(path.join(home, 'bin/gatehouse'))).isFile())
    const said = await inside(['node', '--version'])
    console.log(`# the laptop's Node.js is ${said.stdout.trim()}`)
    assert.match((await inside([path.join(home, 'bin/gatehouse'), 'help'])).stdout, /--host NAME/)
  },
)

test('status, doctor and access say how things are, to people and programs', async () => {
  const status = await gatehouse(['status'])
  assert.equal(status.code, 0, status.stderr)
  assert.match(status.stdout, new RegExp(`Editor +https://${name}/`))
  assert.equal(JSON.parse(await well('status', '--json')).tailnet.name, name)
  const checks = JSON.parse((await gatehouse(['doctor', '--json'])).stdout) as { name: string }[]
  const found = checks.map((check) => check.name)
  for (const one of ['configuration', 'clock', 'control server', 'certificate', 'Node-RED'])
    assert.ok(found.includes(one), found.join())
  assert.match((await gatehouse(['doctor'])).stdout, /ok +Node-RED +answers in/)
  assert.match(await well('access', 'bob@example.com'), /may do nothing[^]*cap\/app/)
})

test('logs, and what comes next', { timeout: 60_000 }, async () => {
  const lines = (await well('logs', '-n', '20', '--unit', 'node-red')).trimEnd().split('\n')
  assert.equal(lines.length, 20)
  assert.match(lines[6]!, /^\S+Z node-red info: line 7 of the meter/)
  const child = lab.exec(laptop.ns, [
    ...['env', `NODE_EXTRA_CA_CERTS=${lab.ready.acmeRoots}`, 'node', program],
    ...['--host', name, 'logs', '-f', '--json'],
  ])
  let said = ''
  child.stdout!.setEncoding('utf8').on('data', (text: string) => {
    said += text
  })
  await eventually('lines that came later', 30, async () => said.includes('line 23 of'))
  child.kill()
  assert.equal(JSON.parse(said.split('\n')[0]!).unit, 'gatehouse')
})

test(
  'a setting is tried, confirmed over a new connection, and kept',
  { timeout: 60_000 },
  async () => {
    const before = await readFile(device.card, 'utf8')
    const set = await gatehouse(['set', 'node_red.timezone', 'Europe/Berlin'])
    assert.equal(set.code, 0, set.stderr)
    assert.match(
      set.stderr,
      /node_red\.timezone: not set → "Europe\/Berlin"\n[^]*in force and kept/,
    )
    const kept = `${before}\n[node_red]\ntimezone = "Europe/Berlin"\n`
    await sleep(trialTime + 2_000)
    assert.equal(await readFile(device.card, 'utf8'), kept)
    assert.equal(await well('get', 'node_red.timezone'), '"Europe/Berlin"\n')
    await well('set', 'access.use', 'bob@example.com', 'tag:sensor')
    assert.equal(await well('get', 'access.use'), '["bob@example.com", "tag:sensor"]\n')
    await well('unset', 'access.use')
    assert.deepEqual(JSON.parse(await well('get', 'access.use', '--json')), {
      key: 'access.use',
      value: '# not set',
    })
  },
)

test('what there is nothing to do for says so: renewal, nightly backup, update', async () => {
  for (const [args, code, said] of [
    [['renew'], 1, /the device's key does not end/],
    [['backup-now'], 1, /nobody is named whom backups are for[^]*\[backup\]/],
    [['update', 'look'], 0, /^Nothing newer\.\n$/],
    [['update', 'back', '--yes'], 1, /no version before that could be started/],
    [['update', 'sideways'], 64, /look or back/],
  ] as Array<[args: string[], code: number, said: RegExp]>) {
    const { code: got, stdout, stderr } = await gatehouse(args)
    assert.equal(got, code, `${args.join(' ')}: ${stdout}${stderr}`)
    assert.match(code === 0 ? stdout : stderr, said, args.join(' '))
  }
})

test('mistakes are named, with what to do', async () => {
  const cases: Array<[args: string[], code: number, said: RegExp]> = [
    [['set', 'node_red.timezone', 'Europe/Nowhere'], 1, /! line \d+: [^]*Nowhere[^]*→/],
    [['set', 'node_red.timezon', 'UTC'], 1, /no setting "node_red.timezon"[^]*timezone/],
    [['set', 'console.login', 'true'], 1, /would hand over the device[^]*--code/],
    [['set', 'node_red.timezone'], 64, /wants more/],
    [['state'], 64, /no command "state"/],
    [['logs', '--level', 'loud'], 64, /error, warning, info, debug/],
    [['reset', 'another'], 1, /not that of this device/],
    [['power-off'], 1, /--yes/],
  ]
  for (const [args, code, said] of cases) {
    const result = await gatehouse(args)
    assert.equal(result.code, code, `${args.join(' ')}: ${result.stderr}`)
    assert.match(result.stderr, said)
  }
  const json = await gatehouse(['reset', 'another', '--json'])
  assert.equal(JSON.parse(json.stdout).error.code, 'GH_RESET_NAME')
})

test(
  'what cuts this laptop off is said, and taken back by the device',
  { timeout: 90_000 },
  async () => {
    const before = await readFile(device.card, 'utf8')
    const { who } = JSON.parse(
      (await laptop.fetch(`https://${name}:10000/api/v1/me`)).body.toString(),
    ) as { who: string }
    // Named there, the owner may do what is said there, and no more.
    const set = await gatehouse(['set', 'access.view', who])
    assert.equal(set.code, 1, set.stderr)
    assert.match(set.stderr, /did not answer with the change in force[^]*GH_REMOTE_TAKEN_BACK/)
    await eventually('it is taken back', 30, async () => {
      return (await readFile(device.card, 'utf8')) === before
    })
    await eventually('it may again', 30, async () => (await gatehouse(['get'])).code === 0)
  },
)

test('what Node-RED was refused is told, and allowed', { timeout: 60_000 }, async () => {
  assert.match(await well('refused'), /^\S+Z {2}192\.168\.1\.10:1883 {2}1\n$/)
  const allow = await gatehouse(['allow', '192.168.1.10:1883'])
  assert.equal(allow.code, 0, allow.stderr)
  assert.equal(await well('get', 'node_red.allow'), '["192.168.1.10:1883"]\n')
  assert.ok('memory' in JSON.parse(await well('status', '--json')).board)
})

test('edit: in the editor of the person, mistakes first', { timeout: 60_000 }, async () => {
  const wrong = await gatehouse(['edit'], '', ['EDITOR=sed -i s,Europe/Berlin,Europe/Nowhere,'])
  assert.equal(wrong.code, 1)
  assert.match(wrong.stderr, /! line \d+: [^]*Nowhere/)
  const right = await gatehouse(['edit'], '', ['EDITOR=sed -i s,Europe/Berlin,Europe/Paris,'])
  assert.equal(right.code, 0, right.stderr)
  assert.match(await readFile(device.card, 'utf8'), /timezone = "Europe\/Paris"/)
})

test('what hands over the device wants the code from its screen', { timeout: 60_000 }, async () => {
  const code = await eventually('a code is shown', 30, async () => device.codes.at(-1))
  const set = await gatehouse(['set', 'console.login', 'true', '--code', code])
  assert.equal(set.code, 0, set.stderr)
  assert.match(await readFile(device.card, 'utf8'), /\[console\]\nlogin = true/)
})

test('a backup is made and put in place', { timeout: 120_000 }, async () => {
  const file = path.join(lab.dir, 'backup.age')
  const passphrase = 'correct horse battery staple\n'
  device.codes.length = 0
  assert.equal((await gatehouse(['backup', file], passphrase)).code, 1)
  const backup = await gatehouse(['backup', file, '--code', device.codes.at(-1)!], passphrase)
  assert.equal(backup.code, 0, backup.stderr)
  assert.equal((await readFile(file)).subarray(0, 21).toString(), 'age-encryption.org/v1')
  assert.equal((await stat(file)).mode & 0o777, 0o600)
  await writeFile(path.join(lab.dir, 'lib/node-red/flows.json'), '[1]')
  device.codes.length = 0
  assert.equal((await gatehouse(['restore', file], passphrase)).code, 1)
  const restore = await gatehouse(['restore', file, '--code', device.codes.at(-1)!], passphrase)
  assert.equal(restore.code, 0, restore.stderr)
  const flows = path.join(lab.dir, 'lib/node-red/flows.json')
  await eventually('the flows of the backup', 30, async () =>
    (await readFile(flows, 'utf8')) === '[]' ? true : undefined,
  )
  assert.deepEqual(
    (await readdir(lab.dir)).filter((one) => one.endsWith('.part')),
    [],
  )
})

test('restart, update, reboot and power-off reach systemd, and the audit log says who', async () => {
  await well('restart')
  await well('update')
  await well('reboot', '--no-wait')
  await well('power-off', '--yes')
  for (const call of [
    'restart node-red.service',
    'start gatehouse-update.service',
    '--no-block reboot',
    '--no-block poweroff',
  ])
    await eventually(call, 10, async () => device.systemd.includes(call))
  const audit = JSON.parse(await well('audit', '--json')) as { what: string }[]
  const whats = audit.map(({ what }) => what)
  for (const what of ['device.power-off', 'device.restart', 'update.check', 'backup', 'restore'])
    assert.ok(whats.includes(what), whats.join())
  assert.match(await well('devices'), /\S/)
})

test('a device that is not there is told from one whose name is another', async () => {
  const hosts = `/etc/netns/${laptop.ns}/hosts`
  await writeFile(hosts, `127.0.0.1 localhost ${name} other.example.org\n`)
  const away = await inside(['node', program, '--host', `${name}:9`, 'status'])
  assert.equal(away.code, 2, away.stderr)
  assert.match(away.stderr, /does not answer at port 9[^]*tailscale ping/)
  const other = await inside(['node', program, '--host', 'other.example.org', 'status'])
  assert.equal(other.code, 2, other.stderr)
  assert.match(other.stderr, new RegExp(`not for other.example.org but for ${name}`))
  const untrusted = await lab.run(laptop.ns, ['node', program, '--host', name, 'status'])
  assert.equal(untrusted.code, 2, untrusted.stderr)
  assert.match(untrusted.stderr, /is not trusted here[^]*--ca/)
  const trusted = ['--host', name, '--ca', lab.ready.acmeRoots, 'status']
  const well = await lab.run(laptop.ns, ['node', program, ...trusted])
  assert.equal(well.code, 0, well.stderr)
})

test('nothing left the lab', async () => {
  assert.deepEqual(await lab.leaks(), [])
  assert.equal(await lab.leaked(), 0)
})
