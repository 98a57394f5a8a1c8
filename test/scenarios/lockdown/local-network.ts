/** Attacks from the local network. */
import assert from 'node:assert/strict'
import path from 'node:path'
import { editor, eventually, settings } from '../../vm/appliance.ts'
import {
  address,
  attempts,
  dropped,
  flood,
  held,
  lab,
  lan,
  linkLocal,
  machine,
  name,
  overheard,
  overheardWhat,
  owner,
  pidOf,
  scan,
  served,
} from './support.ts'

/** Every port, TCP and UDP, IPv4 and IPv6. */
export async function scans(): Promise<void> {
  held('LAN, booting')
  for (const [family, target] of [
    ['IPv4', address],
    ['IPv6 link-local', linkLocal],
  ] as const) {
    for (const [kind, what] of [
      ['tcp', 'TCP (SYN)'],
      ['ports', 'UDP'],
    ] as const) {
      const [before, earlier] = [await dropped('in'), await overheard()]
      // What an emulated card loses of one round it sees in another.
      let counted = 0
      let rounds = 0
      for (; counted < 64_000 && rounds < 4; rounds++) {
        const sent = await flood(kind, target, 65535)
        assert.ok(sent > 65_000, `${sent} packets went out`)
        counted = (await dropped('in')) - before
      }
      assert.ok(counted >= 64_000, `the firewall has seen and dropped them: ${counted}`)
      const heard = (await overheard()) - earlier
      attempts.note(
        'LAN',
        `${what} scan, ${family}, 65535 ports (rounds: ${rounds}; ${counted} seen and dropped)`,
        heard === 0
          ? 'no answer, no ICMP error'
          : `${heard} packets back: ${await overheardWhat()}`,
        heard === 0,
      )
    }
  }
  const ping = await lab.run(lan, ['ping', '-c', '2', '-W', '2', address]).catch(() => undefined)
  if (ping)
    attempts.note('LAN', 'ping', ping.code === 0 ? 'it answers' : 'no answer', ping.code !== 0)
  held('LAN')
  // What is sent is answered where something is: the lab's control server has an open port, and
  // closed ones.
  const { stdout: captured } = await lab.run(lan, [
    'sh',
    '-c',
    `nft 'add table inet control; add counter inet control answers; add chain inet control ` +
      'input { type filter hook input priority 0; }; add rule inet control input ip saddr ' +
      `10.77.0.2 tcp sport 1-100 tcp flags & (syn | ack | rst) != 0 counter name answers'; ` +
      `${process.execPath} --disable-warning=ExperimentalWarning ` +
      `${path.join(import.meta.dirname, '../flood.ts')} tcp 10.77.0.2 100 >/dev/null; sleep 1; ` +
      'nft -j list counter inet control answers; nft delete table inet control',
  ])
  assert.ok(
    (JSON.parse(captured).nftables as { counter?: { packets: number } }[]).find(
      (object) => object.counter,
    )!.counter!.packets >= 100,
    captured,
  )
  assert.deepEqual((await scan('10.77.0.2', 80, 80)).answered, [{ port: 80, how: 'accepted' }])
  assert.equal((await scan('10.77.0.2', 81, 81)).answered[0]?.how, 'ECONNREFUSED')
}

/** Floods and malformed packets. */
export async function floods(): Promise<void> {
  for (const [kind, what, count, counter, target] of [
    ['syn', 'SYN flood, 10,000 from forged addresses', 10_000, 'in', address],
    ['udp', 'connection flood: 3,000 new flows to the WireGuard port', 3_000, 'in-rate', address],
    ['malformed', '6,000 malformed packets, IPv4', 6_000, 'in-invalid', address],
    ['malformed', '4,000 malformed packets, IPv6 link-local', 4_000, 'in', linkLocal],
  ] as const) {
    const before = await dropped(counter)
    const [sent, ms] = await Promise.all([flood(kind, target, count), served()])
    const counted = (await dropped(counter)) - before
    assert.ok(
      sent > count / 2 && counted > 0,
      `${what}: ${sent} sent, ${counted} counted as ${counter}`,
    )
    attempts.note(
      'LAN',
      what,
      `page served meanwhile in ${Math.round(ms)} ms; ${counted} dropped as ${counter}`,
      true,
    )
  }
  const kernel = await machine.run(
    'journalctl -k -b -q -p err --no-pager | tail -5; journalctl -k -b -q -o cat --no-pager | grep -c gatehouse-drop',
  )
  const [logged = '', ...errors] = kernel.stdout.trim().split('\n').reverse()
  attempts.note(
    'LAN',
    'fill the log with dropped packets',
    `${logged} lines`,
    Number(logged) > 0 && Number(logged) < 600,
  )
  assert.deepEqual(
    errors.filter((line) => /oops|BUG|panic|overflow/i.test(line)),
    [],
  )
  held('LAN')
}

/** With [local_network] listen: what is open then, and to whom. */
export async function listener(): Promise<void> {
  const from = 'LAN, listener on'
  const before = await pidOf('gatehouse')
  const toml = Buffer.from(
    `${settings(lab)}[local_network]\nlisten = true\nrights = ["use"]\n`,
  ).toString('base64')
  const { code, stderr } = await machine.run(
    `mount -o remount,rw /efi; echo ${toml} | base64 -d >/efi/gatehouse.toml; mount -o ` +
      'remount,ro /efi; systemctl restart gatehouse-provision',
    { timeout: 120 },
  )
  assert.equal(code, 0, stderr)
  const roots = lab.ready.acmeRoots
  const ask = async (requests: [method: string, path: string][]): Promise<string[]> =>
    JSON.parse(
      (
        await lab.run(lan, [
          process.execPath,
          '-e',
          `
    const https = require('node:https'), ca = require('node:fs').readFileSync(${JSON.stringify(roots)});
    const ask = ([method, path]) => new Promise((done) => https.request({ host: '${address}', servername: '${name}', headers: { host: '${name}', 'tailscale-user-login': 'owner@example.com' }, ca, method, path, timeout: 20000 },
      (answer) => { answer.resume(); done('HTTP ' + answer.statusCode); }).on('error', (error) => done(error.code)).on('timeout', () => done('silence')).end());
    Promise.all(${JSON.stringify(requests)}.map(ask)).then((all) => { console.log(JSON.stringify(all)); process.exit(); });`,
        ])
      ).stdout,
    )
  // Until it has joined again it knows of no name that is its own, and answers 421 to all. A busy
  // machine takes minutes to emulate that.
  await eventually('the gateway is started anew', 300, async () => {
    const pid = await pidOf('gatehouse')
    return pid !== before && pid !== 0 ? true : undefined
  })
  await editor(owner, name, 400)
  await eventually(
    'it answers on the local network, by its name and its certificate',
    200,
    async () => {
      const [got = 'nothing'] = await ask([['GET', '/app/shell']])
      if (/^HTTP (?!421)/.test(got)) return true
      throw new Error(`it got ${got}`)
    },
  )
  const tries: [string, string][] = [
    ['POST', '/app/shell'],
    ['GET', '/'],
    ['GET', '/flows'],
    ['POST', '/flows'],
    ['GET', '/.gatehouse/status'],
  ]
  for (const [i, got] of (await ask(tries)).entries())
    attempts.note(
      from,
      `${i === 0 ? '(allowed) ' : ''}${tries[i]!.join(' ')}, with forged identity`,
      got,
      got === (i === 0 ? 'HTTP 200' : 'HTTP 403'),
    )
  const open = (
    await Promise.all(
      [
        [80, 80],
        [443, 443],
        [8443, 8443],
        [41080, 41080],
        [41443, 41443],
        [48443, 48443],
        [22, 22],
        [1880, 1880],
      ].map(async ([first, last]) => (await scan(address, first!, last!)).answered),
    )
  ).flat()
  attempts.note(
    from,
    'ports 22, 80, 443, 1880, 8443, and those the gateway has for the firewall',
    open.map(({ port, how }) => `${port} ${how}`).join(', '),
    open.map(({ port }) => port).join() === '80,443,8443',
  )
  // One machine there takes what it can get.
  const crowd = async (): Promise<number> =>
    Number(
      (
        await lab.run(lan, [
          process.execPath,
          '-e',
          `let open = 0; for (let i = 0; i < 300; i++)
    require('node:net').connect(443, '${address}').on('connect', () => { open++; }).on('error', () => {}); setTimeout(() => { console.log(open); process.exit(); }, 8000);`,
        ])
      ).stdout,
    )
  const [held300, ms] = await Promise.all([crowd(), served()])
  attempts.note(
    from,
    'connection flood: 300 at once to port 443',
    `${held300} connected; the tailnet served meanwhile in ${Math.round(ms)} ms`,
    held300 > 0 && held300 <= 64,
  )
  const { stdout: shown } = await machine.run('gatehouse status; gatehouse firewall', {
    timeout: 120,
  })
  assert.match(shown, /WARNING: anybody on the local network may use, without login/)
  assert.match(shown, /local network: TCP 443, from everybody there/)
  held(from)
}
