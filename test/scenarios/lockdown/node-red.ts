/** Attacks by somebody who has a shell as Node-RED: in its sandbox, but for the network. */
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { editor, eventually, statusOf } from '../../vm/appliance.ts'
import { breakIn, deployShell } from '../shell.ts'
import {
  asNodeRed,
  attempts,
  held,
  lab,
  lan,
  machine,
  name,
  noteAll,
  owner,
  pidOf,
  served,
} from './support.ts'

const sockets = ['/run/gatehouse-admin.sock', '/run/gatehouse-certs.sock']
const files = [
  '/var/lib/gatehouse/tailscaled.state',
  '/run/gatehouse-provision/authkey',
  '/var/lib/gatehouse-config/credential-secret',
  '/efi/gatehouse.toml',
  '/etc/shadow',
  '/run/gatehouse-provision/channel',
]

/** Other parts' secrets, processes and sockets; system calls; programs; writing elsewhere. */
export async function secrets(): Promise<void> {
  await deployShell(owner, name)
  const who = await eventually(
    "the attacker's flow answers",
    200,
    async () => await asNodeRed('id -un; cat /proc/self/cgroup'),
  )
  assert.match(who, /^node-red\n.*node-red\.service/s, 'the attacker has a shell as Node-RED')
  const victim = await pidOf('gatehouse')
  const from = 'Node-RED'
  const account = (await machine.run('find /var/lib/gatehouse-certs -type f')).stdout
    .trim()
    .split('\n')
  assert.ok(
    account.some((file) => /account/.test(file)),
    `there is an ACME account: ${account.join(' ')}`,
  )
  const all = [...files, ...account, `/var/lib/gatehouse-tls/${name}.pem`]
  assert.equal((await machine.run(`ls ${all.join(' ')}`)).code, 0, 'what is to be stolen is there')
  noteAll(from, await asNodeRed(await breakIn('read', { secrets: all, victim, sockets })))
  noteAll(from, await asNodeRed(await breakIn('syscalls', { victim })))
  // The same by a program that it has brought itself, which runs in its own directory.
  const brought = (await breakIn('syscalls', { victim })).replace('| node ', '| ~/mine ')
  const rows = await asNodeRed(`cp /usr/bin/node ~/mine && ${brought}; rm ~/mine`)
  assert.ok(noteAll(`${from}, own program`, rows) > 15, rows)
  held(`${from}, own program`)
  noteAll(from, await asNodeRed(await breakIn('programs', { unit: 'node-red.service' })))
  noteAll(
    from,
    await asNodeRed(
      await breakIn('write', {
        home: '/var/lib/node-red',
        executes: true,
        places: [
          '/var/lib/gatehouse',
          '/var/lib/gatehouse-tls',
          '/run/gatehouse',
          '/run/gatehouse-firewall',
          '/usr/lib/node-red',
        ],
      }),
    ),
  )
  // Its own socket, where the editor is, with a header that says it is somebody.
  const { stdout: editorAt } = await machine.run(
    `node -p 'require("/usr/lib/gatehouse/node-red-auth.cjs").editorRoot(require("node:fs").readFileSync("/run/gatehouse-provision/channel"))'`,
  )
  const forged = await asNodeRed(
    `node -e 'require("node:http").get({ socketPath: "/run/node-red/http.sock", path: ` +
      `"${editorAt.trim()}flows", headers: { "tailscale-user-login": "owner@example.com", ` +
      `"x-forwarded-user": "owner" } }, (r) => { console.log(r.statusCode); process.exit() })'`,
  )
  attempts.note(
    from,
    "forge identity headers on Node-RED's own socket",
    forged.trim().split('\n')[0]!,
    /^40[13]/.test(forged),
  )
  assert.ok(attempts.count > 60, `${attempts.count} attempts so far`)
  assert.equal(await pidOf('gatehouse'), victim, 'the gateway is the same process')
  held(from)
}

/** The serial port that its settings name, and other devices. */
export async function hardware(): Promise<void> {
  const from = 'Node-RED'
  noteAll(
    from,
    await asNodeRed(await breakIn('devices', { given: '^/dev/ttyS\\d+$', wanted: ['/dev/ttyS1'] })),
  )
  await asNodeRed('echo out of the box >/dev/ttyS1')
  await eventually('what it writes there comes out of the port', 200, async () =>
    (await readFile(path.join(lab.dir, 'serial'), 'utf8')).includes('out of the box')
      ? true
      : undefined,
  )
  held(from)
}

/** The same without devices in its settings. */
export async function noDevices(): Promise<void> {
  noteAll(
    'Node-RED, no list',
    await asNodeRed(await breakIn('devices', { given: '^$', wanted: [] })),
  )
  held('Node-RED, no list')
}

/** A node from the registry that is named. */
export async function palette(): Promise<void> {
  const from = 'Node-RED'
  const shop = lab.exec(lan, [
    process.execPath,
    path.join(import.meta.dirname, '../registry.ts'),
    path.join(import.meta.dirname, '../../../node_modules/node-red-node-random'),
    '4873',
  ])
  let asked = ''
  await new Promise<void>((up) =>
    shop.stdout!.setEncoding('utf8').on('data', (text: string) => {
      asked += text
      if (/^up$/m.test(asked)) up()
    }),
  )
  const json = { 'content-type': 'application/json' }
  const installed = await owner.fetch(`https://${name}/nodes`, {
    method: 'POST',
    headers: json,
    body: '{"module":"node-red-node-random"}',
    timeout: 240_000,
  })
  assert.equal(installed.status, 200, `${installed.body.toString()}\n${asked}`)
  const { nodes } = JSON.parse(installed.body.toString()) as {
    nodes: { types: string[]; enabled: boolean; err?: string }[]
  }
  attempts.note(
    from,
    '(allowed) install a node',
    `${nodes[0]?.types.join()} after ${Math.round(installed.ms / 1000)} s`,
    nodes[0]?.enabled === true && nodes[0].err === undefined,
  )
  assert.match(asked, /^GET \/node-red-node-random\nGET \/-\/node-red-node-random-[\d.]+\.tgz$/m)
  const flow = [
    { id: 'ask', type: 'http in', url: '/three', method: 'get', wires: [['dice']] },
    {
      id: 'dice',
      type: 'random',
      low: '3',
      high: '3',
      inte: 'true',
      property: 'payload',
      wires: [['told']],
    },
    { id: 'told', type: 'http response', statusCode: '', headers: {}, wires: [] },
  ]
  const added = await owner.fetch(`https://${name}/flow`, {
    method: 'POST',
    headers: json,
    body: JSON.stringify({ label: 'Installed', nodes: flow }),
  })
  assert.equal(added.status, 200, added.body.toString())
  await eventually('the node that was installed is at work', 200, async () =>
    (await owner.fetch(`https://${name}/app/three`)).body.toString() === '3' ? true : undefined,
  )
  shop.kill()
  held(from)
}

/** Flows in git. */
export async function projects(): Promise<void> {
  const from = 'Node-RED'
  const json = { 'content-type': 'application/json' }
  const post = async (url: string, body: object): Promise<number> =>
    (
      await owner.fetch(`https://${name}${url}`, {
        method: 'POST',
        headers: json,
        body: JSON.stringify(body),
        timeout: 120_000,
      })
    ).status
  assert.equal(
    await post('/settings/user', { git: { user: { name: 'Owner', email: 'owner@example.com' } } }),
    204,
  )
  assert.equal(
    await post('/projects', {
      name: 'garden',
      summary: '',
      migrateFiles: true,
      files: { flow: 'flows.json', credentials: 'flows_cred.json' },
      credentialSecret: 'of this project',
    }),
    200,
  )
  const log = await eventually(
    'the flows go on, as a project',
    200,
    async () =>
      await asNodeRed(
        'cd /var/lib/node-red/projects/garden && git log --format="%an: %s" && git status --short',
      ),
  )
  attempts.note(
    from,
    '(allowed) keep flows in git',
    log,
    /^Owner: Create project\n\[0\]/m.test(log),
  )
  held(from)
}

/** Memory, processor, processes and disk, to their limits. */
export async function starvation(): Promise<void> {
  const from = 'Node-RED'
  const victim = await pidOf('gatehouse')
  const during = async (what: string, script: string, timeout = 60): Promise<string> => {
    const attack = asNodeRed(script, timeout).catch((error: Error) => `[${error.message}]`)
    await new Promise((done) => setTimeout(done, 3000))
    const ms = await served()
    const got = await attack
    attempts.note(
      from,
      `starve the gateway: ${what}`,
      `its page came in ${Math.round(ms)} ms meanwhile`,
      (await pidOf('gatehouse')) === victim,
    )
    return got
  }
  noteAll(from, await during('fork bomb', await breakIn('fork', {})))
  await during(
    'six busy loops',
    'for i in 1 2 3 4 5 6; do timeout 8 bash -c "while :; do :; done" & done; wait',
  )

  // The disk, to the last byte it may have. What the gateway and the certificates write has to find
  // room all the same.
  await during(
    'fill the disk',
    'cd /var/lib/node-red; i=0; for s in 512M 64M 8M 1M 64K 4K; do while fallocate -l $s ' +
      'fill.$i; do i=$((i+1)); done; done 2>&1 | tail -1',
  )
  const full = await asNodeRed('head -c 65536 /dev/zero >/var/lib/node-red/more')
  assert.match(full, /No space left|Disk quota exceeded/)
  for (const [user, file] of [
    ['gatehouse', '/var/lib/gatehouse/room'],
    ['gatehouse-certs', '/var/lib/gatehouse-certs/room'],
    ['root', '/var/lib/gatehouse-config/room'],
  ] as const) {
    const { code, stderr } = await machine.run(
      `head -c 1000000 /dev/zero >${file} && sync ${file}; code=$?; rm -f ${file}; exit $code`,
      { user },
    )
    attempts.note(
      from,
      `fill the disk so that ${user} cannot write`,
      code === 0 ? 'it can' : stderr,
      code === 0,
    )
  }
  await asNodeRed('rm -f /var/lib/node-red/fill.* /var/lib/node-red/more')

  // Read before: systemd stops the unit when the kernel has ended a part of it, and starts it anew.
  const limit =
    Number(
      (await machine.run('cat /sys/fs/cgroup/system.slice/node-red.service/memory.max')).stdout,
    ) /
    (1 << 20)
  const ended = async (): Promise<number> =>
    Number(
      (
        await machine.run(
          'journalctl -b -k --no-pager -o cat | grep -c "oom-kill:constraint=CONSTRAINT_MEMCG.*node-red.service"',
        )
      ).stdout,
    )
  const before = await ended()
  await during(
    'all memory',
    `timeout -k 1 40 bash -c "${(await breakIn('memory', {})).replaceAll(/["$`\\]/g, '\\$&')}"; echo ended $?`,
    90,
  )
  const times = (await ended()) - before
  attempts.note(
    from,
    'take all memory (2 GB)',
    `ended by the kernel ${times} times, at its limit of ${Math.round(limit)} MB`,
    times > 0 && limit > 0,
  )
  held(from)
  await editor(owner, name)
  assert.equal((await statusOf(machine))['tailnet'].state, 'Running')
}
