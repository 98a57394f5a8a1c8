/**
 * The whole chain on the booted image: tailnet, certificate, gateway, Node-RED, firewall; over a
 * reboot; and what a person sees when something is wrong. One machine for all of it, on the amd64
 * twin: booting is what takes the time.
 */
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { after, before, test } from 'node:test'
import tls from 'node:tls'
import { WebSocket } from 'ws'
import { Lab, type LabClient } from '../lab/lab.ts'
import {
  bootAppliance,
  editor,
  eventually,
  joined,
  settings,
  statusOf,
  tried,
} from './appliance.ts'
import type { Machine } from './machine.ts'

let lab: Lab
let client: LabClient
let machine: Machine
let name: string
const address = (): Promise<string> =>
  eventually('a DHCP lease', 300, async () => (await lab.leases())[0]?.ip)

before(async () => {
  lab = await Lab.start({ name: 'chain' })
  client = await lab.client('laptop')
  await lab.host('stranger', '10.77.0.60')
  machine = await bootAppliance(lab, tried)
  name = (await joined(lab)).name
  await editor(client, name)
})

after(async () => {
  await machine?.destroy()
  await lab?.stop()
})

/** A TLS connection to the appliance through the tailnet. */
async function connect(): Promise<tls.TLSSocket> {
  const socket = await client.dial(name, 443)
  const secure = tls.connect({ socket, servername: name, ca: await readFile(lab.ready.acmeRoots) })
  await new Promise((resolve, reject) =>
    secure.once('secureConnect', resolve).once('error', reject),
  )
  return secure
}

test('a native client gets the editor over a direct path, with a verified certificate', async () => {
  const page = await client.fetch(`https://${name}/`)
  assert.equal(page.status, 200)
  assert.match(page.body.toString(), /<title>Node-RED/)
  assert.deepEqual(page.tls?.dnsNames, [name])
  assert.equal(page.tls?.verified, true)
  const pong = await client.pingDirect((await joined(lab)).addresses[0]!)
  assert.equal(pong.endpoint, `${await address()}:41641`)
})

test('it has joined the control server by its name over https, as the Linux device that it is', async () => {
  assert.equal(lab.ready.controlURL, 'https://control.lab.test')
  const asked = (await lab.queries()).filter((q) => q.name === 'control.lab.test')
  assert.ok(
    asked.some((q) => q.type === 'A' && q.rcode === 'NOERROR'),
    JSON.stringify(asked),
  )
  const { hostinfo } = await joined(lab)
  const { OS, Distro, App, Package } = hostinfo ?? {}
  assert.deepEqual([OS, Distro, App, Package], ['linux', 'debian', 'gatehouse', 'tsnet'])
  assert.match(String(hostinfo?.['OSVersion']), /^\d+\.\d+/)
})

test('http goes to https', async () => {
  const answer = await client.fetch(`http://${name}/red/?a=1`)
  assert.equal(answer.status, 308)
  assert.deepEqual(answer.headers['Location'], [`https://${name}/red/?a=1`])
})

test("the editor's WebSocket works through the gateway", async () => {
  const secure = await connect()
  const ws = new WebSocket(`wss://${name}/comms`, { createConnection: () => secure })
  const first = await new Promise<string>((resolve, reject) => {
    ws.on('message', (data) => resolve(String(data)))
    ws.on('open', () => ws.send('{"subscribe":"notification/#"}'))
    ws.on('error', reject)
  })
  ws.terminate()
  assert.match(first, /notification|hb/)
})

test('no unit has failed, each component is its own user', async () => {
  const { stdout } = await machine.run(
    'systemctl --failed --no-legend --plain; for u in gatehouse node-red; do stat -c %U ' +
      '"/proc/$(systemctl show -P MainPID $u)"; done',
  )
  assert.deepEqual(stdout.trim().split(/\s+/), ['gatehouse', 'node-red'])
})

test("the console's API answers, also what it asks of the part that is root", async () => {
  const ask = async (path: string): Promise<any> => {
    const { status, body } = await client.fetch(`https://${name}:10000/api/v1/${path}`, {
      timeout: 120_000,
    })
    assert.equal(status, 200, `${path}: ${body.toString()}`)
    return JSON.parse(body.toString())
  }
  assert.ok((await ask('me')).rights.includes('manage'))
  assert.match((await ask('settings')).text, /control_url = "https:\/\/control\.lab\.test"/)
  const { checks } = await ask('doctor')
  const skipped = checks.filter(({ name, result }: any) => name === 'system' && result === 'skip')
  assert.deepEqual(skipped, [])
  const { stdout } = await machine.run('systemctl show -P NRestarts gatehouse-broker')
  assert.equal(stdout.trim(), '0')
})

test('the auth key has left the card, and the card and the console say what to open', async () => {
  await eventually(
    'the key is gone from card and configuration',
    300,
    async () =>
      (
        await machine.run(
          '! grep -s tskey /efi/gatehouse.toml /run/gatehouse-provision/authkey && findmnt -no OPTIONS /efi',
        )
      ).stdout.startsWith('ro,') || undefined,
  )
  await eventually(
    'the card says what to open',
    200,
    async () =>
      (await machine.run('cat /efi/gatehouse-status.txt')).stdout.includes(`https://${name}/`) ||
      undefined,
  )
  await machine.waitFor(new RegExp(`https://${name}/`))
})

test("nobody can read another's secrets", async () => {
  const secrets = {
    '/var/lib/gatehouse/tailscaled.state': ['gatehouse-certs', 'node-red'],
    '/run/gatehouse-provision/authkey': ['gatehouse', 'gatehouse-certs', 'node-red'],
    '/var/lib/gatehouse-certs': ['gatehouse', 'node-red'],
    [`/var/lib/gatehouse-tls/${name}.pem`]: ['node-red'],
    '/var/lib/node-red': ['gatehouse', 'gatehouse-certs'],
    '/run/gatehouse-admin.sock': ['gatehouse', 'gatehouse-certs', 'node-red'],
    '/efi/gatehouse.toml': ['gatehouse', 'gatehouse-certs', 'node-red'],
  }
  for (const [file, users] of Object.entries(secrets)) {
    assert.equal((await machine.run(`test -e ${file}`)).code, 0, `${file} exists`)
    for (const user of users) {
      const { code, stderr } = await machine.run(
        `if [ -d ${file} ]; then ls ${file}; else head -c1 ${file} >/dev/null; fi`,
        { user },
      )
      assert.notEqual(code, 0, `${user} can read ${file}`)
      assert.match(stderr, /Permission denied/)
    }
  }
  const journal = await machine.run(
    'journalctl -b --no-pager; cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr "\\0" "\\n"',
    { timeout: 180 },
  )
  assert.ok(
    !journal.stdout.includes(lab.ready.authKey.slice(0, 24)),
    'the auth key is in no log and no process list',
  )
})

test('Node-RED can reach nobody', async () => {
  const probe = `const net = require('node:net'), dgram = require('node:dgram');
    const tries = [['10.77.0.2', 80], ['10.77.0.4', 443], ['10.77.0.60', 22], ['127.0.0.1', 80], ['127.0.0.53', 53], ['1.1.1.1', 443]];
    Promise.all(tries.map(([host, port]) => new Promise((done) => {
      const s = net.connect({ host, port }); setTimeout(() => done('silent'), 2500);
      s.on('connect', () => done('REACHED ' + host)).on('error', (e) => done(e.code));
    }))).then((r) => { console.log(r.join(' ')); process.exit(0); });`
  const script = `eval(Buffer.from('${Buffer.from(probe).toString('base64')}', 'base64').toString())`
  const { stdout, stderr } = await machine.run(`node -e "${script}"`, {
    user: 'node-red',
    timeout: 90,
  })
  assert.notEqual(stdout.trim(), '', stderr)
  assert.doesNotMatch(stdout, /REACHED/)
  const counters = await machine.run('nft -j list counters')
  const dropped = (
    JSON.parse(counters.stdout).nftables as { counter?: { name: string; packets: number } }[]
  ).find((c) => c.counter?.name === 'dropped-out-node-red')
  assert.ok(dropped!.counter!.packets > 0, 'the firewall counted the tries')
})

test('systemd knows how the gateway is: reload drops nothing, and the watchdog hears of it', async () => {
  const secure = await connect()
  const ws = new WebSocket(`wss://${name}/comms`, { createConnection: () => secure })
  await new Promise((resolve, reject) => ws.once('open', resolve).once('error', reject))
  const before = (await machine.run('systemctl show -P MainPID gatehouse')).stdout
  const { code, stderr } = await machine.run('systemctl reload gatehouse && gatehouse reload', {
    timeout: 120,
  })
  assert.equal(code, 0, stderr)
  const shown = (
    await machine.run(
      // Why it was started again, if it was, is behind it.
      'systemctl show -p Type,ActiveState,MainPID,NRestarts,StatusText,WatchdogUSec gatehouse; ' +
        'journalctl -b -q -o cat --no-pager -u gatehouse | head -60',
    )
  ).stdout
  for (const line of [
    `MainPID=${before.trim()}`,
    'ActiveState=active',
    'Type=notify-reload',
    'NRestarts=0',
    'WatchdogUSec=3min',
  ])
    assert.ok(shown.split('\n').includes(line), shown)
  assert.match(shown, /^StatusText=.*serving https/m)
  assert.equal(ws.readyState, WebSocket.OPEN)
  ws.terminate()
})

test('gatehouse doctor goes through the whole chain and finds nothing broken', async () => {
  const { code, stdout, stderr } = await machine.run('gatehouse doctor --json', { timeout: 120 })
  const checks = JSON.parse(stdout) as { name: string; result: string; found: string }[]
  // Whether the clock is set yet is the machine's luck; that it can be asked is not.
  assert.deepEqual(
    checks.filter((check) => check.result !== 'ok' && check.name !== 'clock'),
    [],
    stderr,
  )
  assert.equal(code, 0)
  for (const check of [
    'clock',
    'disk',
    'firewall',
    'services',
    'control server',
    'certificate',
    'Node-RED',
    'login',
    'access',
  ])
    assert.ok(
      checks.some(({ name }) => name === check),
      check,
    )
})

test('a flow deployed through the gateway answers, and survives a reboot with name, address and certificate', async (t) => {
  const flows = [
    { id: 'f6f2187d.f17ca8', type: 'tab', label: 'Flow 1' },
    {
      id: 'in',
      type: 'http in',
      z: 'f6f2187d.f17ca8',
      url: '/hello',
      method: 'get',
      wires: [['fn']],
    },
    {
      id: 'fn',
      type: 'template',
      z: 'f6f2187d.f17ca8',
      template: 'the keep says hello',
      wires: [['out']],
    },
    {
      id: 'out',
      type: 'http response',
      z: 'f6f2187d.f17ca8',
      statusCode: '',
      headers: {},
      wires: [],
    },
  ]
  const deployed = await client.fetch(`https://${name}/flows`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'node-red-deployment-type': 'full' },
    body: JSON.stringify(flows),
  })
  assert.equal(deployed.status, 204)
  const hello = async (): Promise<string | undefined> => {
    const answer = await client.fetch(`https://${name}/app/hello`)
    return answer.status === 200 ? answer.body.toString() : undefined
  }
  assert.equal(await eventually('the flow answers', 30, hello), 'the keep says hello')
  const node = await joined(lab)
  const serial = async (): Promise<string> =>
    (
      await machine.run(
        `openssl x509 -noout -serial -in /var/lib/gatehouse-tls/${name}.pem || sha256sum ` +
          `/var/lib/gatehouse-tls/${name}.pem`,
      )
    ).stdout
  const certificate = await serial()

  const begun = performance.now()
  await machine.reboot({ timeout: 400 })
  assert.equal(
    await eventually('the flow answers after the reboot', 300, hello),
    'the keep says hello',
  )
  t.diagnostic(
    `flow answers ${((performance.now() - begun) / 1000).toFixed(0)} s after the reboot began`,
  )
  const again = (await lab.nodes()).filter((n) => n.hostname === 'gatehouse')
  assert.deepEqual(
    again.map((n) => [n.name, n.addresses]),
    [[node.name, node.addresses]],
  )
  assert.equal(await serial(), certificate)
})

test('the certificate and its key are one file, for root and the gateway alone', async () => {
  const { stdout } = await machine.run(
    `stat -c '%U:%G %a' /var/lib/gatehouse-tls/${name}.pem /var/lib/gatehouse-tls`,
  )
  assert.deepEqual(stdout.trim().split('\n'), [
    'gatehouse-certs:gatehouse 640',
    'gatehouse-certs:gatehouse 2750',
  ])
})

/**
 * As a person does: the file is written anew, and the appliance started again (here without the
 * rest of the machine).
 */
async function withSettings(toml: string | null, forget = false): Promise<void> {
  const file = Buffer.from(toml ?? '').toString('base64')
  const { code, stderr } = await machine.run(
    // What still runs of a report asked the gateway before: nobody takes the key off that is written.
    `systemctl stop gatehouse
    until (set -C; echo $$ >/run/gatehouse-card.lock) 2>/dev/null; do sleep 0.2; done # as src/base/card.ts has it
    mount -o remount,rw /efi
    ${toml === null ? 'rm -f /efi/gatehouse.toml' : `echo ${file} | base64 -d > /efi/gatehouse.toml`}
    mount -o remount,ro /efi; rm /run/gatehouse-card.lock
    ${forget ? 'rm -rf /var/lib/gatehouse/*' : ''}
    systemctl restart gatehouse-provision && systemctl restart gatehouse`,
    { timeout: 180 },
  )
  assert.equal(code, 0, stderr)
}

/** The problem of this code, from `gatehouse status`; its line stands in the journal, once. */
async function problem(
  code: RegExp,
  seconds = 120,
): Promise<{ message: string; cure: string; code: string }> {
  // Both in one look: what is wrong can be said otherwise a moment later (a key that was refused, then
  // the server that is asked again).
  const found = await eventually(
    `a problem ${code} and its cure in the table`,
    seconds,
    async () => {
      const { problems, tailnet } = await statusOf(machine)
      const one = problems.find((p: { code: string }) => code.test(p.code))
      if (one === undefined)
        throw new Error(`there is ${JSON.stringify(problems)}, tailnet ${JSON.stringify(tailnet)}`)
      const table = await machine.run('gatehouse status', { timeout: 120 })
      assert.equal(table.code, 1)
      assert.ok(
        table.stdout.replaceAll(/\s+/g, ' ').includes(one.cure.replaceAll(/\s+/g, ' ')),
        `the table says what to do: ${table.stdout}`,
      )
      return one
    },
  )
  assert.ok(found.message.length > 0 && found.cure.length > 0)
  const restarts = await machine.run('systemctl show -P NRestarts gatehouse')
  const journal = 'journalctl -b -q --no-pager -o short-monotonic -u gatehouse -n 60'
  assert.equal(
    restarts.stdout.trim(),
    '0',
    `nothing crashed: ${restarts.stdout.trim() === '0' ? '' : (await machine.run(journal)).stdout}`,
  )
  return found
}

test('Node-RED down: a page that says so, and it is back by itself', async () => {
  await machine.run('systemctl stop node-red', { timeout: 120 })
  const page = await client.fetch(`https://${name}/`)
  assert.equal(page.status, 502)
  assert.match(page.body.toString(), /Node-RED/)
  await problem(/UPSTREAM/)
  await machine.run('systemctl start node-red', { timeout: 120 })
  await editor(client, name)
})

test('a malformed gatehouse.toml: the last good settings stay in force, and the mistake is named', async () => {
  await withSettings('[tailnet]\nhostnam = "attic"\n')
  const { message, cure } = await problem(/CONFIG/)
  assert.match(message + cure, /hostnam\b/)
  assert.match(message + cure, /hostname/)
  await editor(client, name)
})

test(
  'no gatehouse.toml: the last good settings stay in force',
  // A minute and more; that a malformed one is not taken is tried above, and this in a unit test.
  { skip: process.env['GATEHOUSE_LONG'] === '1' ? false : 'takes a minute: make test-long' },
  async () => {
    await withSettings(null)
    await problem(/CONFIG/)
    await editor(client, name)
  },
)

test('the control server cannot be reached: serving goes on from what is known, and status says so', async () => {
  await withSettings(settings(lab))
  await editor(client, name)
  await lab.stopControl()
  await machine.run('systemctl restart gatehouse', { timeout: 120 })
  await problem(/TAILNET|CONTROL/, 240)
  await lab.startControl()
  await editor(client, name)
})

test("a wrong auth key: the control server's words, and what to do; a right one afterwards works", async () => {
  await withSettings(settings(lab, { authKey: lab.ready.wrongAuthKey }), true)
  const { message, cure } = await problem(/AUTH|KEY/, 240)
  assert.match(`${message} ${cure}`, /auth_key/)
  assert.ok(!message.includes(lab.ready.wrongAuthKey))
  await withSettings(settings(lab))
  const node = await eventually('the appliance joins anew', 300, async () =>
    (await lab.nodes()).find((n) => n.hostname === 'gatehouse' && n.name !== name),
  )
  await editor(client, node.name)
})

test('no auth key: the login URL is on the console with its QR code, in the file on the card, and logging in there is enough', async () => {
  await withSettings(settings(lab, { authKey: null }), true)
  const url = (await eventually(
    'a login URL',
    240,
    async () => (await statusOf(machine))['tailnet'].loginURL,
  )) as string
  await eventually(
    'it is on the card',
    300,
    async () =>
      (await machine.run('cat /efi/gatehouse-status.txt')).stdout.includes(url) || undefined,
  )
  const at = await machine.waitFor(new RegExp(url.replaceAll(/[.?/]/g, '\\$&')))
  assert.match(at.input.slice(at.index, at.index + 2000), /[▀▄█]{10}/)
  const before = new Set((await lab.nodes()).map((n) => n.name))
  await lab.completeLogin(url)
  const node = await eventually('it joins', 300, async () =>
    (await lab.nodes()).find((n) => n.hostname === 'gatehouse' && !before.has(n.name)),
  )
  await editor(client, node.name)
})

test('nothing left the lab', async () => {
  assert.equal(await lab.leaked(), 0)
})
