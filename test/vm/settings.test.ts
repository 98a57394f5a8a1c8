/**
 * Settings changed from the tailnet on the booted image: what would cut the device off is taken back
 * by itself, each wrong value alone and all of them in one change; and what is set there is in force
 * in units and firewall.
 */
import assert from 'node:assert/strict'
import type { Server } from 'node:http'
import { after, before, test } from 'node:test'
import { Lab, type LabClient } from '../lab/lab.ts'
import { receiver } from '../lab/receiver.ts'
import type { Received } from '../lab/receiver.ts'
import { Attempts } from '../scenarios/attempts.ts'
import { deployShell, shell } from '../scenarios/shell.ts'
import { bootAppliance, editor, eventually, joined, tried } from './appliance.ts'
import type { Machine } from './machine.ts'

let lab: Lab
let client: LabClient
let machine: Machine
let name: string
let server: Server
const got: Received[] = []
const skip =
  process.env['GATEHOUSE_LONG'] === '1' ? false : 'takes fifteen minutes: GATEHOUSE_LONG=1'

before(async () => {
  if (skip !== false) return
  lab = await Lab.start({ name: 'settings' })
  client = await lab.client('laptop')
  server = await receiver(lab, 'receiver', '10.77.0.90', 'hooks.lab.test', (alert) => {
    got.push(alert)
    return 200
  })
  machine = await bootAppliance(lab, tried)
  // On a machine with much else to do the boot alone takes minutes.
  name = (
    await joined(lab, 'gatehouse', 600).catch(async (err: unknown) => {
      throw new Error((await machine.console()).slice(-4_000), { cause: err })
    })
  ).name
  await editor(client, name)
})

after(async () => {
  server?.close()
  await machine?.destroy()
  await lab?.stop()
})

type Answer = Record<string, any>

/** A call of the device's API. */
async function call(method: string, path: string, body?: object): Promise<Answer> {
  const answer = await client.fetch(`https://${name}:10000/api/v1/${path}`, {
    ...{ method, timeout: 120_000 },
    ...(body === undefined
      ? {}
      : { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }),
  })
  return { status: answer.status, ...(JSON.parse(answer.body.toString()) as Answer) }
}

const card = async (): Promise<string> => (await machine.run('cat /efi/gatehouse.toml')).stdout

/** Has a change tried, with the code from the screen where it is wanted. */
async function tryChange(change: (text: string) => string): Promise<Answer> {
  const { text, digest } = await call('GET', 'settings')
  const next = { text: change(text as string), digest }
  const first = await call('POST', 'settings/try', next).catch((err: Error) => ({
    status: 0,
    error: { code: err.message },
  }))
  if ((first as Answer)['error']?.code !== 'GH_SETTINGS_CODE') return first
  const pattern = /the code for a change of settings is (\d{6})/g
  const code = await eventually(
    'the screen shows a code',
    30,
    async () => [...(await machine.console()).matchAll(pattern)].at(-1)?.[1],
  )
  // What starts the gateway anew takes the answer with it.
  return await call('POST', 'settings/try', { ...next, code }).catch(() => ({ status: 0 }))
}

test(
  'the doctor knows clock, resolver and services, through gateway and broker',
  { skip },
  async () => {
    const { checks } = await call('GET', 'doctor')
    const results = Object.fromEntries(
      (checks as Array<{ name: string; result: string; found: string }>).map((check) => [
        check.name,
        check,
      ]),
    )
    for (const part of ['configuration', 'resolver', 'services', 'control server', 'Node-RED'])
      assert.equal(results[part]?.result, 'ok', JSON.stringify(results[part]))
    assert.notEqual(results['clock']?.result, 'skip', JSON.stringify(results['clock']))
  },
)

test(
  'alerts that are set from the tailnet arrive, and nothing else is open',
  { skip },
  async () => {
    const tried = await tryChange(
      (text) => `${text}\n[alerts]\nwebhook = "http://hooks.lab.test:8080/secret"\nafter = "1 s"\n`,
    )
    assert.equal(tried['status'], 200, JSON.stringify(tried))
    assert.equal((await call('POST', 'settings/confirm', { id: tried['id'] }))['status'], 200)
    await eventually('one arrives', 60, async () => {
      const { results } = await call('POST', 'alerts/test', {})
      return results?.[0]?.ok === true ? true : undefined
    })
    assert.deepEqual([got.at(-1)!.path, got.at(-1)!.body['event']], ['/secret', 'test'])
    const leaked = await machine.run(
      'grep -rls hooks.lab.test:8080/secret /var /run /etc --exclude-dir=gatehouse-test; ' +
        'journalctl -b --no-pager | grep -c 8080/secret',
    )
    assert.equal(leaked.stdout.trim(), '/run/gatehouse-provision/alerts\n0')
    got.length = 0
    await machine.run('systemctl stop node-red')
    const told = await eventually('that Node-RED is down is told', 90, async () => got[0])
    assert.deepEqual([told.body['event'], told.body['code']], ['problem', 'GH_UPSTREAM_DOWN'])
    await machine.run('systemctl start node-red')
    await eventually('that it is over, too', 120, async () =>
      got.find(({ body }) => body['event'] === 'over'),
    )
    assert.equal((await machine.run('systemctl --failed --no-legend --plain')).stdout, '')
  },
)

test(
  'whoever owns the gateway gets nothing from the broker without the code on the screen',
  { skip },
  async () => {
    const attempts = new Attempts()
    const from = "the gateway's user"
    const { text, digest } = await call('GET', 'settings')
    const by = 'mallory@example.com'
    const change = (more: string, code?: string): object => ({
      ...{ by, digest, text: `${text}\n${more}` },
      ...(code === undefined ? {} : { code }),
    })
    const age = 'age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p'
    const other = String(text).replace(/control_url = ".*"/, 'control_url = "https://evil.example"')
    const tries: Array<[what: string, method: string, path: string, body: unknown, held: RegExp]> =
      [
        [
          'a login on the console',
          'POST',
          'settings/try',
          change('[console]\nlogin = true'),
          /GH_SETTINGS_CODE/,
        ],
        [
          'the same with a guess',
          'POST',
          'settings/try',
          change('[console]\nlogin = true', '000000'),
          /GH_SETTINGS_CODE/,
        ],
        [
          'another control server',
          'POST',
          'settings/try',
          { by, digest, text: other },
          /GH_SETTINGS_CODE/,
        ],
        [
          'updates from elsewhere',
          'POST',
          'settings/try',
          change('[updates]\nurl = "https://evil.example/"'),
          /GH_SETTINGS_CODE/,
        ],
        [
          'backups for another',
          'POST',
          'settings/try',
          change(`[backup]\nrecipient = "${age}"`),
          /GH_SETTINGS_CODE/,
        ],
        [
          'to confirm what is not on trial',
          'POST',
          'settings/confirm',
          { by, id: 'AAAAAAAAAAAA' },
          /GH_SETTINGS_NO_TRIAL/,
        ],
        [
          'a backup',
          'POST',
          'backup',
          { by, passphrase: 'correct horse battery' },
          /GH_SETTINGS_CODE/,
        ],
        ['a nightly one, for nobody', 'POST', 'backup/scheduled', { by }, /GH_BACKUP_RECIPIENT/],
        [
          'one for a key of its own',
          'POST',
          'backup/scheduled',
          { by, recipient: age },
          /GH_BROKER_REQUEST/,
        ],
        ['the version before', 'POST', 'update/back', { by }, /GH_UPDATE_BACK|not found/i],
        [
          'the log of all of the system',
          'GET',
          'journal?unit=systemd-journald',
          undefined,
          /GH_BROKER_REQUEST/,
        ],
        [
          'a file by its path',
          'GET',
          'journal?unit=..%2F..%2Fetc%2Fshadow',
          undefined,
          /GH_BROKER_REQUEST/,
        ],
        ['a program', 'POST', 'run', { by, program: '/bin/sh' }, /not found/i],
        [
          'a line of its own in the journal',
          'POST',
          'learn',
          { by: 'x\nroot: fine' },
          /GH_BROKER_REQUEST/,
        ],
        [
          'an argument more',
          'POST',
          'node-red/restart',
          { by, unit: 'sshd.service' },
          /GH_BROKER_REQUEST/,
        ],
      ]
    const asked = tries.map(([, method, path, body]) => ({ method, path: `/v1/${path}`, body }))
    const program = `const { request } = require('node:http');
      const ask = ({ method, path, body }) => new Promise((done) => {
        const out = request({ socketPath: '/run/gatehouse-broker.sock', method, path, headers: body === undefined ? {} : { 'content-type': 'application/json' } }, (answer) => {
          let text = ''; answer.on('data', (piece) => text += piece).on('end', () => done(text.slice(0, 400))) });
        out.on('error', (err) => done(err.code)); out.end(body === undefined ? undefined : JSON.stringify(body)) });
      (async () => { for (const one of ${JSON.stringify(asked)}) console.log(JSON.stringify(await ask(one))) })()`
    const encoded = Buffer.from(program).toString('base64')
    const asUser = async (user: string): Promise<string[]> =>
      (await machine.run(`echo ${encoded} | base64 -d | node -`, { user, timeout: 120 })).stdout
        .trim()
        .split('\n')
    const got = await asUser('gatehouse')
    assert.equal(got.length, tries.length, got.join('\n'))
    tries.forEach(([what, , , , held], i) => attempts.note(from, what, got[i]!, held.test(got[i]!)))
    for (const file of [
      ...['/efi/gatehouse.toml', '/var/lib/gatehouse-broker', '/var/lib/node-red/flows.json'],
      ...['/run/gatehouse-provision/authkey', '/run/gatehouse-provision/alerts', '/etc/shadow'],
    ]) {
      const read = await machine.run(`[ -d ${file} ] && ls ${file} || cat ${file}`, {
        user: 'gatehouse',
      })
      attempts.note(from, `to read ${file}`, read.stderr, read.code !== 0 && read.stdout === '')
    }
    const root = await machine.run('systemctl restart nftables', { user: 'gatehouse' })
    attempts.note(from, 'the firewall', root.stderr, root.code !== 0)
    const flows = await asUser('node-red')
    attempts.note(
      "Node-RED's user",
      'any verb',
      flows[0]!,
      flows.every((one) => one === '"EACCES"'),
    )
    console.log(String(attempts))
    assert.deepEqual([...attempts.through(from), ...attempts.through("Node-RED's user")], [])
    assert.equal((await call('GET', 'settings'))['text'], text)
  },
)

test("the screen's own console shows what the serial line shows", { skip }, async () => {
  const shown = (await machine.run('cat /dev/vcs1')).stdout
  assert.ok(shown.includes(name), JSON.stringify(shown))
})

test(
  'learning, where nothing is allowed: names with their ports, and nothing opens',
  { skip, timeout: 300_000 },
  async () => {
    await deployShell(client, name)
    const network = async (): Promise<string> =>
      (await machine.run('systemctl show -P PrivateNetwork node-red')).stdout.trim()
    assert.equal(await network(), 'yes')
    assert.equal((await call('POST', 'learn', {}))['status'], 200)
    await eventually('Node-RED is out of its private network', 60, async () =>
      (await network()) === 'no' ? true : undefined,
    )
    // Node-RED starts anew with it.
    const found = await eventually('what a flow wants is learned', 200, async () => {
      await shell(client, name, 'timeout 5 bash -c "</dev/tcp/api.cloud.example/443"', 30)
      const { refused } = await call('GET', 'refused')
      return (refused as Array<{ host: string; entry?: string }>).find(
        ({ entry }) => entry === 'api.cloud.example:443',
      )
    }).catch(async (err: unknown) => {
      const { stdout } = await machine.run(
        'cd /run/gatehouse-firewall; tail -n +1 *.json; nft list set inet gatehouse ' +
          'refused-4; ip route; systemctl show -p IPAddressDeny -p IPAddressAllow -p ' +
          'PrivateNetwork node-red; journalctl -q -u gatehouse-learn -u gatehouse-names -o cat ' +
          '-n 20',
      )
      throw new Error(stdout, { cause: err })
    })
    assert.equal(found.host, 'api.cloud.example')
    assert.ok((await call('GET', 'refused'))['learning'] !== undefined)
    assert.ok(!(await lab.queries()).some((query) => query.name.includes('api.cloud')))
    await machine.run('systemctl stop gatehouse-learn')
    await eventually('Node-RED has no network again', 60, async () =>
      (await network()) === 'yes' ? true : undefined,
    )
    assert.equal((await machine.run('systemctl --failed --no-legend --plain')).stdout, '')
    await editor(client, name)
  },
)

/** Each would keep the person out for good. */
const wrong: Record<string, (text: string) => string> = {
  'another control server': (text) =>
    text.replace(/control_url = ".*"/, 'control_url = "https://nowhere.lab.test"'),
  'an address of another network': (text) =>
    `${text}\n[network]\naddresses = ["10.99.0.5/24"]\ngateway = "10.99.0.1"\ndns = ["10.99.0.1"]\n`,
  'an access list without anybody who is there': (text) =>
    `${text}\n[access]\nmanage = ["nobody@example.com"]\nview = ["nobody@example.com"]\n`,
  'a proxy that is not there': (text) =>
    text.replace(/^(\[network\]\n|$(?![\s\S]))/m, (table) =>
      table === ''
        ? '\n[network]\nproxy = "http://10.77.0.250:3128"\n'
        : `${table}proxy = "http://10.77.0.250:3128"\n`,
    ),
  'WiFi with a wrong password': (text) =>
    `${text}\n[wifi]\nssid = "nowhere"\npassword = "wrong password"\ncountry = "DE"\n`,
  'a firewall that opens ports to the local network': (text) =>
    `${text}\n[node_red]\nlisten = ["1883/tcp from lan"]\nallow = ["lan:1883", "nowhere.lab.test:443"]\n`,
}
const changes = [
  ...Object.entries(wrong),
  [
    'all that would keep a person out, in one change',
    (text: string) => Object.values(wrong).reduce((so, change) => change(so), text),
  ] as const,
]

for (const [what, change] of changes)
  test(`${what}: the device is back by itself`, { skip, timeout: 400_000 }, async (t) => {
    const before = await card()
    const begun = performance.now()
    // Where the change cuts the connection, its answer comes when it has been taken back, or never.
    let answer: Answer | undefined
    const asked = tryChange(change).then((came) => (answer = came))
    await eventually('the change is on the card', 120, async () =>
      (await card()) === before ? undefined : true,
    ).catch((err: unknown) => {
      throw new Error(JSON.stringify(answer), { cause: err })
    })
    await eventually('the file is the one before', 120, async () =>
      (await card()) === before ? true : undefined,
    )
    const back = performance.now()
    await eventually('it answers, with all rights', 180, async () =>
      (await call('GET', 'settings'))['status'] === 200 ? true : undefined,
    )
    await editor(client, name)
    const seconds = (ms: number): string => (ms / 1000).toFixed(0)
    t.diagnostic(
      `taken back after ${seconds(back - begun)} s, answers ${seconds(performance.now() - back)} s later`,
    )
    assert.equal((await machine.run('ls /var/lib/gatehouse-broker/trial.json')).code, 2)
    await eventually('nothing of it is in force', 60, async () => {
      const left = await machine.run(
        'grep -l nowhere /var/lib/gatehouse-config/*; ls ' +
          '/run/systemd/network/*/50-gatehouse.conf; nft list ruleset | grep -w 1883',
      )
      return left.stdout === '' ? true : undefined
    })
    await asked
    const { entries } = await call('GET', 'audit')
    assert.ok((entries as Array<{ what: string }>).some((entry) => entry.what === 'settings.try'))
  })
