/** Attacks by somebody who has a shell as Node-RED: by way of the network. */
import assert from 'node:assert/strict'
import type { ChildProcess } from 'node:child_process'
import { setTimeout as sleep } from 'node:timers/promises'
import { editor, eventually, settings } from '../../vm/appliance.ts'
import { breakIn } from '../shell.ts'
import {
  address,
  asNodeRed,
  attempts,
  dropped,
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

/** What arrived at the stranger. */
let watch: { arrived: { protocol: string; port: number; from: string }[]; process: ChildProcess }

/** What its list names, and everything else. */
export async function network(): Promise<void> {
  // The stranger listens: what arrives there is the other end's word for it.
  const watcher = `const net = require('node:net'), dgram = require('node:dgram');
    const say = (protocol, port, from) => console.log(JSON.stringify({ protocol, port, from }));
    for (const port of [22, 81, 1883, 8080, 8081]) net.createServer((s) => { say('tcp', port, s.remoteAddress); s.on('error', () => {}); }).listen(port, '::');
    for (const port of [53, 81]) { const s = dgram.createSocket({ type: 'udp6' }); s.on('message', (m, r) => { say('udp', port, r.address); s.send('got it', r.port, r.address); }); s.bind(port, '::'); }
    console.log('up');`
  const child = lab.exec(lan, [process.execPath, '-e', watcher])
  watch = { arrived: [], process: child }
  await new Promise<void>((up) =>
    child.stdout!.setEncoding('utf8').on('data', (text: string) => {
      for (const line of text.split('\n').filter(Boolean)) {
        if (line === 'up') up()
        else watch.arrived.push(JSON.parse(line))
      }
    }),
  )
  await machine.run('systemctl start gatehouse-firewall', { timeout: 120 })
  const strangers6 = /inet6 (fe80[0-9a-f:]+)/.exec(
    (await lab.run(lan, ['ip', '-6', 'addr', 'show', 'dev', 'eth0'])).stdout,
  )?.[1]
  const own = (await machine.run('ls /sys/class/net | grep -v lo')).stdout.trim()
  const from = 'Node-RED'
  // The first question starts what answers them, which takes a slow machine longer than an attempt.
  await asNodeRed('for i in 1 2 3 4 5 6; do getent hosts broker.lab.test && break; done', 150)
  const allowed = [
    ['to what the list names', stranger, 8080],
    ['to a name on the list', 'broker.lab.test', 8081],
  ]
  noteAll(
    from,
    await asNodeRed(
      await breakIn('network', {
        patience: 4000,
        allowed,
        tcp: [
          ['to another port of a target on its list', stranger, 22],
          ['to the LAN', '10.77.0.1', 53],
          ['to the LAN', '10.77.0.2', 80],
          ['to the LAN', '10.77.0.4', 443],
          ['to the LAN by IPv6', `${strangers6}%${own}`, 81],
          ['to the internet', '1.1.1.1', 443],
          ['to the internet by IPv6', '2606:4700:4700::1111', 443],
          ['to the tailnet', (await owner.status()).ips[0], 80],
          ['to its own address', address, 80],
        ],
        udp: [
          ["to the LAN's DNS server", '10.77.0.1', 53],
          ["to this machine's resolver", '127.0.0.53', 53],
          ['to the LAN', stranger, 81],
          ['to the LAN by IPv6', `${strangers6}%${own}`, 81],
          ['to a DNS server in the internet', '1.1.1.1', 53],
        ],
        pings: [
          ['a target on its list, of which a port is allowed', stranger],
          ['the LAN', '10.77.0.1'],
          ['the LAN by IPv6', `${strangers6}%${own}`],
          ['the internet', '1.1.1.1'],
          ['the tailnet', (await owner.status()).ips[0]],
          ['itself', '127.0.0.1'],
        ],
        names: ['exfil.secret-data.lab.test', 'acme.lab.test'],
      }),
      150,
    ),
  )
  noteAll(from, await asNodeRed(await breakIn('listen', { udp: 41641 })))
  const wanted = watch.arrived.filter(({ port }) => port === 8080 || port === 8081)
  const unwanted = watch.arrived.filter(({ port }) => port !== 8080 && port !== 8081)
  attempts.note(
    from,
    'packets that arrived elsewhere on the LAN',
    JSON.stringify(unwanted),
    unwanted.length === 0,
  )
  assert.ok(wanted.length >= 2, 'what is allowed arrives')
  const asked = (await lab.queries()).filter((query) => query.name.includes('exfil'))
  attempts.note(
    from,
    'DNS tunnel: questions that reached a server',
    JSON.stringify(asked),
    asked.length === 0,
  )
  assert.ok((await dropped('out-node-red')) > 0, 'the firewall counted the tries')
  held(from)
}

/** The list is loaded again and again; its names lead elsewhere. */
export async function listChanges(): Promise<void> {
  const from = 'Node-RED, list changing'
  // Knocks on a port that is not on the list, as fast as it can, while the list is loaded again and
  // again.
  const knocking = asNodeRed(
    `node -e '
    const net = require("node:net"); let tried = 0; const end = Date.now() + 12000;
    const knock = () => { if (Date.now() > end) { console.log(tried + " tries"); process.exit(); } tried++;
      const s = net.connect({ host: "${stranger}", port: 1883 }).on("error", () => {}); setTimeout(() => { s.destroy(); knock(); }, 20); };
    for (let i = 0; i < 10; i++) knock();'`,
    60,
  )
  const reload = await machine.run(
    'for i in $(seq 3); do systemctl start gatehouse-firewall || exit 1; done; for i in ' +
      '$(seq 120); do printf "flush chain inet gatehouse node-red-allow\\nadd rule inet ' +
      'gatehouse node-red-allow ip daddr { 10.77.0.60 } tcp dport 8080 accept\\n" | nft -f - ' +
      '|| exit 1; done',
    { timeout: 120 },
  )
  assert.equal(reload.code, 0, reload.stderr)
  const tried = await knocking
  const got = watch.arrived.filter(({ port }) => port === 1883).length
  attempts.note(
    from,
    `123 reloads of the list; ${tried.trim().split('\n')[0]} to what is not on it`,
    `${got} got through`,
    got === 0 && Number.parseInt(tried, 10) > 100,
  )

  // DNS rebinding: the name now leads to this machine, the tailnet, the machine's own address; and
  // to one honest address.
  await lab.setHost(
    'broker.lab.test',
    '127.0.0.1',
    '100.100.100.100',
    '169.254.169.254',
    address,
    '10.77.0.61',
  )
  await machine.run(
    'resolvectl flush-caches; systemctl stop gatehouse-names; systemctl start gatehouse-firewall',
    { timeout: 120 },
  )
  const told = await asNodeRed(
    `node -e 'require("node:dns").lookup("broker.lab.test", { all: true }, (error, all) => ` +
      `console.log(error?.code ?? all.map(({ address }) => address).join()))'`,
  )
  // What it has told is written down within a second.
  await sleep(2_000)
  const { stdout: shown } = await machine.run(
    'gatehouse firewall; nft list sets table inet gatehouse | grep -A9 "set name-"',
    { timeout: 120 },
  )
  for (const refused of ['127.0.0.1', '100.100.100.100', '169.254.169.254', address]) {
    const followed = new RegExp(
      `elements = \\{[^}]*${refused.replaceAll('.', '\\.')}[ ,]`,
      'm',
    ).test(shown)
    attempts.note(
      from,
      `its name leads to ${refused} (DNS rebinding)`,
      /refused: .*/.exec(
        shown.split('\n').find((line) => line.includes(`refused: ${refused}`)) ?? '',
      )?.[0] ?? 'not refused',
      !followed && shown.includes(`refused: ${refused}`),
    )
  }
  assert.match(told, /^10\.77\.0\.61\n/, 'the honest address is followed')
  assert.match(shown, /elements = \{[^}]*10\.77\.0\.61 timeout/)
  assert.match(
    shown,
    /out-node-red +TCP 10\.77\.0\.\d+ → 10\.77\.0\.60 port/,
    `gatehouse firewall tells what was dropped lately: ${shown}`,
  )
  assert.match(
    (await machine.run('journalctl -u gatehouse-names -o cat')).stdout,
    /GH_FIREWALL_REBINDING/,
  )
  const unprivileged = await machine.run('gatehouse firewall', { user: 'node-red' })
  assert.deepEqual(
    [unprivileged.code, /only root.*GH_FIREWALL_ROOT/.test(unprivileged.stderr)],
    [1, true],
  )
  held(from)
}

/** Without a list there is no network. */
export async function listTakenAway(): Promise<void> {
  const victim = await pidOf('gatehouse')
  const file = Buffer.from(settings(lab)).toString('base64')
  const { code, stderr } = await machine.run(
    `mount -o remount,rw /efi; echo ${file} | base64 -d >/efi/gatehouse.toml; mount -o ` +
      'remount,ro /efi; systemctl restart gatehouse-provision',
    { timeout: 120 },
  )
  assert.equal(code, 0, stderr)
  await eventually('the list is empty and Node-RED has a network of its own', 300, async () => {
    const { stdout } = await machine.run(
      'nft list chain inet gatehouse node-red-allow; systemctl show -P PrivateNetwork ' +
        'node-red; p=$(systemctl show -P MainPID node-red); [ $p != 0 ] && [ "$(readlink ' +
        '/proc/$p/ns/net)" != "$(readlink /proc/1/ns/net)" ] && echo apart',
    )
    return !stdout.includes('accept') && /yes\napart/.test(stdout) ? true : undefined
  })
  await editor(owner, name)
  assert.equal(await pidOf('gatehouse'), victim)
  const links = await eventually(
    'the flow answers',
    200,
    async () => await asNodeRed("node -p 'JSON.stringify(os.networkInterfaces())'"),
  )
  attempts.note(
    'Node-RED, no list',
    'see a network device',
    links.replace(/\[0\]\s*$/, ''),
    /^\{("lo":.*)?\}$/m.test(links) && !links.includes(address),
  )
  held('Node-RED, no list')
}
