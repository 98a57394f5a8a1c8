/** Attacks by somebody who runs programs as the gateway's user. */
import assert from 'node:assert/strict'
import { text } from 'node:stream/consumers'
import { eventually, joined, settings } from '../../vm/appliance.ts'
import { breakIn, inUnit } from '../shell.ts'
import {
  address,
  attempts,
  held,
  lab,
  lan,
  machine,
  name,
  noteAll,
  owner,
  pidOf,
  stranger,
} from './support.ts'

/** In its sandbox: others' files, root, its own unit. */
export async function asGateway(): Promise<void> {
  const from = 'gateway'
  const account = (await machine.run('find /var/lib/gatehouse-certs -type f')).stdout
    .trim()
    .split('\n')
  const all = [
    '/run/gatehouse-provision/authkey',
    '/var/lib/gatehouse-config/credential-secret',
    '/efi/gatehouse.toml',
    '/etc/shadow',
    '/run/gatehouse-provision/channel',
    ...account,
    '/var/lib/node-red/flows.json',
  ]
  const victim = await pidOf('node-red')
  const script = [
    await breakIn('read', { secrets: all, victim, sockets: ['/run/gatehouse-admin.sock'] }),
    await breakIn('syscalls', { victim: 1 }),
    await breakIn('programs', { unit: 'gatehouse.service' }),
    await breakIn('listen', { udp: 5353 }),
    await breakIn('write', {
      home: '/var/lib/gatehouse',
      places: [
        '/var/lib/node-red',
        '/var/lib/gatehouse-tls',
        '/var/lib/gatehouse-certs',
        '/run/node-red',
        '/usr/lib/gatehouse',
      ],
    }),
  ].join('\n')
  const run = await machine.run(
    inUnit('gatehouse.service', script, { settings: ['ReadWritePaths=/var/lib/gatehouse'] }),
    { timeout: 240 },
  )
  assert.ok(noteAll(from, run.stdout) > 50, run.stdout + run.stderr)
  held(from)
}

/** With an [[app]] and a [[forward]]: their targets, and nothing else. */
export async function targets(): Promise<void> {
  const from = 'gateway, targets'
  const there = lab.exec(lan, [
    process.execPath,
    '-e',
    `const net = require('node:net'), http = require('node:http');
    const servers = [[2222, net], [2223, net], [3000, http], [3001, http]].map(([port, kind]) => new Promise((up) => kind.createServer(kind === net ? (s) => { s.on('error', () => {}).end('hello'); } : (asked, answer) => { answer.end('an app ' + asked.url); }).listen(port, '::', up)));
    Promise.all(servers).then(() => console.log('up'));`,
  ])
  await new Promise((up) => there.stdout!.once('data', up))
  const everything = [
    `${stranger}/2222`,
    `${stranger}/2223`,
    `${stranger}/3000`,
    `${stranger}/3001`,
    '10.77.0.1/53',
    `${address}/2022`,
  ]
  /** Of {@link everything}, what a user can connect to. */
  const reached = async (user: string): Promise<string[]> =>
    (
      await machine.run(
        `for to in ${everything.join(' ')}; do timeout 6 bash -c "exec 3<>/dev/tcp/$to && ` +
          'echo reached $to" 2>/dev/null & done; wait',
        { user },
      )
    ).stdout
      .split('\n')
      .flatMap((line) => /^reached (.*)/.exec(line)?.[1] ?? [])
      .sort()
  const early = await reached('gatehouse')
  attempts.note(from, 'targets that are not configured yet', early.join(', '), early.length === 0)
  const before = await pidOf('gatehouse')
  const toml = Buffer.from(
    `${settings(lab)}[[app]]\npath = "/beside/"\nupstreams = ["http://${stranger}:3000"]\n` +
      `[[forward]]\nport = 2022\ntarget = "${stranger}:2222"\n`,
  ).toString('base64')
  const { code, stdout, stderr } = await machine.run(
    `mount -o remount,rw /efi; echo ${toml} | base64 -d >/efi/gatehouse.toml; mount -o ` +
      'remount,ro /efi; gatehouse reload',
    { timeout: 120 },
  )
  assert.deepEqual([code, /^In force: .*app.*forward/m.test(stdout)], [0, true], stdout + stderr)
  // The rules are written by a unit that hears of the new settings.
  const answer = await eventually('the app is reached', 200, async () => {
    const got = await owner.fetch(`https://${name}/beside/page`)
    if (got.status === 200) return got.body.toString()
    throw new Error(`it answers ${got.status}`)
  })
  attempts.note(from, '(allowed) an app in the network', answer, answer === 'an app /beside/page')
  const stream = await owner.dial((await joined(lab)).addresses[0]!, 2022)
  const said = await text(stream)
  attempts.note(from, '(allowed) a forward into the network', said, said === 'hello')
  assert.equal(await pidOf('gatehouse'), before, 'without a restart')
  const got = await reached('gatehouse')
  attempts.note(
    from,
    'their targets, other ports of that machine, another machine, its own forward',
    got.join(', '),
    got.join() === `${stranger}/2222,${stranger}/3000`,
  )
  const others = await reached('node-red')
  attempts.note(from, 'the same as node-red', others.join(', '), others.length === 0)
  there.kill()
  held(from)
}
