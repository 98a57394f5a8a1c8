import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parseConfig } from '../../../src/config/config.ts'
import { forbidden } from '../../../src/config/addresses.ts'
import { certsTargets } from '../../../src/firewall/certs-targets.ts'
import { gatewayTargets, unreachable } from '../../../src/firewall/gateway-targets.ts'
import { nodeRedScript, script, targets } from '../../../src/firewall/apply.ts'
import { parseEgress, presets } from '../../../src/config/egress.ts'
import type { Egress } from '../../../src/config/egress.ts'
import { setName } from '../../../src/firewall/names/list.ts'
import { grace, resolveNames } from '../../../src/firewall/resolve.ts'
import type { Known } from '../../../src/firewall/resolve.ts'
import { drops, overview, render } from '../../../src/firewall/show.ts'

const hostOf = (host: Egress['host']): string =>
  Object.values(host).find((value) => typeof value === 'string')!

const good: Array<[string, unknown]> = [
  [
    '192.168.1.10:1883/tcp',
    { host: { address: '192.168.1.10', family: 4 }, ports: [1883, 1883], protocol: 'tcp' },
  ],
  [
    '192.168.1.0/24:9000-9010/udp',
    { host: { address: '192.168.1.0/24', family: 4 }, ports: [9000, 9010], protocol: 'udp' },
  ],
  [
    '[fd00::10]:502',
    { host: { address: 'fd00::10', family: 6 }, ports: [502, 502], protocol: 'tcp' },
  ],
  ['*.Example.org:443', { host: { wildcard: 'example.org' }, ports: [443, 443], protocol: 'tcp' }],
  ['*.lan:80', { host: { wildcard: 'lan' }, ports: [80, 80], protocol: 'tcp' }],
  ['lan:5683/udp', { host: { zone: 'lan' }, ports: [5683, 5683], protocol: 'udp' }],
  ['internet:443', { host: { zone: 'internet' }, ports: [443, 443], protocol: 'tcp' }],
  [
    'NAS.tail0a1b2.ts.net:22',
    { host: { peer: { name: 'nas.tail0a1b2.ts.net' } }, ports: [22, 22], protocol: 'tcp' },
  ],
  [
    'tag:broker:1883',
    { host: { peer: { tag: 'tag:broker' } }, ports: [1883, 1883], protocol: 'tcp' },
  ],
  [
    'svc:mqtt:1883',
    { host: { peer: { service: 'svc:mqtt' } }, ports: [1883, 1883], protocol: 'tcp' },
  ],
  ['lan:ping', { host: { zone: 'lan' }, ports: [0, 0], protocol: 'icmp' }],
  ['internet:ping', { host: { zone: 'internet' }, ports: [0, 0], protocol: 'icmp' }],
  ['Nas.example.org:ping', { host: { name: 'nas.example.org' }, ports: [0, 0], protocol: 'icmp' }],
  ['*.example.org:ping', { host: { wildcard: 'example.org' }, ports: [0, 0], protocol: 'icmp' }],
  [
    '192.168.1.0/24:ping',
    { host: { address: '192.168.1.0/24', family: 4 }, ports: [0, 0], protocol: 'icmp' },
  ],
  [
    '[fd00::10]:ping',
    { host: { address: 'fd00::10', family: 6 }, ports: [0, 0], protocol: 'icmp' },
  ],
  [
    'Broker.Example.org.:8883',
    { host: { name: 'broker.example.org' }, ports: [8883, 8883], protocol: 'tcp' },
  ],
]
for (const [text, expected] of good) {
  test(`allow: ${text} is understood`, () => {
    assert.deepEqual(parseEgress(text), { egress: { text, ...(expected as object) } })
  })
}

const bad: Array<[string, RegExp]> = [
  ['palete', /no preset of this name/],
  ['home-asistant', /no preset of this name/],
  ['*.com:443', /whole top-level domain/],
  ['*:443', /whole top-level domain|whole first part/],
  ['a.*.example.org:443', /a whole first part/],
  ['*foo.example.org:443', /a whole first part/],
  ['*.tail0a1b2.ts.net:443', /every device of the tailnet.*tag:broker:1883/],
  ['*.ts.net:443', /every device of the tailnet/],
  ['*.foo.local:80', /mDNS/],
  ['https://example.org/x', /a URL, not a host and port.*"example\.org:443"/],
  ['fd00::1:80', /needs brackets/],
  ['example.org', /not a host and port/],
  ['example.org:70000', /from 1 to 65535/],
  ['example.org:5-4', /the lower one first/],
  ['example.org:80/sctp', /neither tcp nor udp/],
  ['1.2.3.4.5:80', /not an IPv4 address/],
  ['0.0.0.0/0:443', /as good as no list/],
  ['127.0.0.1:1880', /this machine itself/],
  ['localhost:1880', /this machine itself/],
  ['[::1]:80', /this machine itself/],
  ['[::ffff:127.0.0.1]:80', /this machine itself|in disguise/],
  ['169.254.169.254:80', /link-local/],
  ['100.101.102.103:22', /the tailnet.*full name in the tailnet/],
  ['tail0a1b2.ts.net:22', /not the name of a device/],
  ['a.b.tail0a1b2.ts.net:22', /not the name of a device/],
  ['a.tag.ts.net:22', /not the name of a device/],
  ['nas.tail0a1b2.ts.net:5683/udp', /only TCP/],
  ['nas.tail0a1b2.ts.net:80-81', /an entry for each port/],
  ['tag:Broker:1883', /not a tag/],
  ['svc:a.b:1883', /not a Service/],
  ['tag:broker', /not a host and port/],
  ['printer.local:631', /mDNS/],
  ['lan:ping/udp', /a ping has no protocol.*"lan:ping"/],
  ['lan:ping-5', /not a host and port.*"lan:ping" for pings/],
  ['lan:pong', /not a host and port/],
  ['fd00::10:ping', /needs brackets/],
  ['127.0.0.1:ping', /this machine itself/],
  ['localhost:ping', /this machine itself/],
  ['[::1]:ping', /this machine itself/],
  ['224.0.0.1:ping', /multicast/],
  ['[ff02::1]:ping', /multicast/],
  ['100.101.102.103:ping', /the tailnet/],
  ['[fe80::1]:ping', /link-local/],
  ['0.0.0.0/0:ping', /as good as no list/],
  ['printer.local:ping', /mDNS/],
  ['nas.tail0a1b2.ts.net:ping', /cannot be pinged.*"nas\.tail0a1b2\.ts\.net:443"/],
  ['tag:broker:ping', /cannot be pinged.*"tag:broker:443"/],
  ['svc:mqtt:ping', /cannot be pinged/],
  ['a b:80', /not a host name/],
  ['x" accept; flush ruleset; #:80', /not a host/],
]
for (const [text, expected] of bad) {
  test(`allow: ${text} is refused, with what to write`, () => {
    const read = parseEgress(text)
    assert.ok('wrong' in read)
    assert.match(`${read.wrong.message} ${read.wrong.cure}`, expected)
    assert.ok(read.wrong.cure.length > 0)
  })
}

test('a wrong entry is told with its line in gatehouse.toml', () => {
  assert.throws(
    () =>
      parseConfig(
        '[node_red]\nallow = ["192.168.1.10:1883", "127.0.0.1:1880"]\n',
        'gatehouse.toml',
      ),
    /gatehouse\.toml line 2: allow "127\.0\.0\.1:1880"/,
  )
  assert.deepEqual(parseConfig('', 'gatehouse.toml').node_red.allow, [])
})

test("the preset prebuilt stands for GitHub's releases, and what they lead to", () => {
  assert.deepEqual(
    targets(['prebuilt']).map(({ host, ports }) => [host, ports]),
    [
      'github.com',
      'codeload.github.com',
      'objects.githubusercontent.com',
      'release-assets.githubusercontent.com',
    ].map((name) => [{ name }, [443, 443]]),
  )
})

test('the preset palette stands for the registry that is set', () => {
  assert.deepEqual(targets(['palette'], 'https://npm.example.org'), [
    { text: 'palette', host: { name: 'npm.example.org' }, ports: [443, 443], protocol: 'tcp' },
  ])
  assert.deepEqual(targets(['palette'], 'http://[fd00::5]:4873/')[0]!.host, {
    address: 'fd00::5',
    family: 6,
  })
})

const addresses = (known: Record<string, Known>, name: string): string[] =>
  Object.keys(known[name]!.addresses)

test('a name that leads to this machine, the tailnet or the like is not followed (DNS rebinding)', async () => {
  const inside = [
    '127.0.0.1',
    '::1',
    '::ffff:10.0.0.1',
    '0.0.0.0',
    '169.254.169.254',
    'fe80::1',
    '100.64.0.1',
    'fd7a:115c:a1e0::1',
    '224.0.0.1',
    '192.168.1.7',
    '64:ff9b::7f00:1',
  ]
  const known = await resolveNames(
    ['evil.example'],
    {},
    async () => [...inside, '203.0.113.5'],
    0,
    ['192.168.1.7'],
  )
  assert.deepEqual(addresses(known, 'evil.example'), ['203.0.113.5'])
  assert.deepEqual(Object.keys(known['evil.example']!.refused).toSorted(), inside.toSorted())
  for (const address of ['10.0.0.1', '192.168.1.8', '203.0.113.5', 'fd00::1', '2001:db8::1'])
    assert.equal(forbidden(address, ['192.168.1.7']), undefined, address)
})

test("an address that is allowed and becomes this machine's own is taken back at once", async () => {
  const before = await resolveNames(['x.example'], {}, async () => ['192.168.1.7'], 0, [])
  assert.deepEqual(
    addresses(
      await resolveNames(['x.example'], before, async () => ['192.168.1.8'], 1, ['192.168.1.7']),
      'x.example',
    ),
    ['192.168.1.8'],
  )
})

test('addresses of the answer before stay for a while, without an answer all stay', async () => {
  let known = await resolveNames(['a.example'], {}, async () => ['203.0.113.1'], 0, [])
  known = await resolveNames(['a.example'], known, async () => ['203.0.113.2'], 1000, [])
  assert.deepEqual(addresses(known, 'a.example'), ['203.0.113.1', '203.0.113.2'])
  const failed = await resolveNames(
    ['a.example'],
    known,
    async () => {
      throw new Error('no answer')
    },
    10 * grace,
    [],
  )
  assert.deepEqual(
    [addresses(failed, 'a.example'), failed['a.example']!.problem],
    [['203.0.113.1', '203.0.113.2'], 'no answer'],
  )
  known = await resolveNames(['a.example'], failed, async () => ['203.0.113.3'], 10 * grace, [])
  assert.deepEqual(addresses(known, 'a.example'), ['203.0.113.3'])
  assert.deepEqual(
    Object.keys(await resolveNames([], known, async () => [], 0, [])),
    [],
    'a name off the list is forgotten',
  )
})

test('the script replaces the list in one transaction', () => {
  const [egress] = targets(['a.example:80-90/udp'])
  assert.equal(
    script('node-red', [{ egress: egress!, addresses: ['203.0.113.1', '2001:db8::1'] }]),
    'flush chain inet gatehouse node-red-allow\n' +
      'add rule inet gatehouse node-red-allow ip daddr { 203.0.113.1 } udp dport 80-90 ' +
      'accept comment "node-red: a.example:80-90/udp"\n' +
      'add rule inet gatehouse node-red-allow ip6 daddr { 2001:db8::1 } udp dport 80-90 ' +
      'accept comment "node-red: a.example:80-90/udp"\n',
  )
  assert.equal(
    script('node-red', [{ egress: egress!, addresses: [] }]),
    'flush chain inet gatehouse node-red-allow\n',
  )
})

const home = { networks: [{ network: '192.168.1.0/24', family: 4 as const }] }

test("Node-RED's script: a pair of sets for a name, the device's own network, and what is in no private one", () => {
  const list = targets(['*.example.org:443', 'lan:1883', 'internet:80', '10.0.0.1:5/udp'])
  const set = setName('*.example.org:443')
  const lines = nodeRedScript(list, home, ['name-00000000', set]).split('\n')
  const allowed = lines.filter((line) => line.startsWith('add rule inet gatehouse node-red-allow'))
  assert.deepEqual(lines.slice(0, 2), [
    `add set inet gatehouse ${set}-4 { type ipv4_addr; flags timeout; size 4096; }`,
    `add set inet gatehouse ${set}-6 { type ipv6_addr; flags timeout; size 4096; }`,
  ])
  assert.ok(
    lines.indexOf('delete set inet gatehouse name-00000000-4') >
      lines.indexOf('flush chain inet gatehouse node-red-allow'),
    'a set that is gone is removed when nothing names it any more',
  )
  assert.ok(!lines.includes(`delete set inet gatehouse ${set}-4`))
  assert.equal(allowed.length, 3 + 1 + 2 + 1)
  assert.match(
    allowed[0]!,
    /ct state established ct mark 0x[4-7][0-9a-f]{7} meta l4proto tcp accept$/,
  )
  assert.match(allowed[3]!, /ip daddr \{ 192\.168\.1\.0\/24 \} tcp dport 1883 accept/)
  for (const network of ['192.168.0.0/16', '127.0.0.0/8', '100.64.0.0/10', '169.254.0.0/16'])
    assert.ok(allowed[4]!.includes(network), `${network} is not the internet`)
  assert.doesNotMatch(allowed[4]!, /192\.168\.1\.0/, 'ranges that overlap are refused by nft')
  assert.ok(lines.some((line) => /node-red-names ip daddr 127\.0\.0\.55 udp dport 53/.test(line)))
  assert.ok(!nodeRedScript(targets(['lan:1883']), home).includes('127.0.0.55'))
})

test('pings: echo requests alone, by way of the chain that limits them, whoever they are for', () => {
  const list = targets(['*.example.org:ping', 'ping', 'internet:ping', '[fd00::1]:ping'])
  const set = setName('*.example.org:ping')
  const allowed = nodeRedScript(list, home)
    .split('\n')
    .filter((line) => line.startsWith('add rule inet gatehouse node-red-allow'))
    .map((line) => line.slice('add rule inet gatehouse node-red-allow '.length))
  const echo = { 4: 'icmp type echo-request', 6: 'icmpv6 type echo-request' }
  const go = 'goto node-red-ping'
  assert.equal(allowed.length, 4 + 1 + 2 + 1)
  assert.match(
    allowed[0]!,
    new RegExp(`^ct state established ct mark 0x[4-7][0-9a-f]{7} ${echo[4]} ${go}$`),
  )
  assert.match(
    allowed[1]!,
    new RegExp(`^ct state established ct mark 0x[4-7][0-9a-f]{7} ${echo[6]} ${go}$`),
  )
  for (const [i, family] of [[2, 4] as const, [3, 6] as const])
    assert.match(
      allowed[i]!,
      new RegExp(
        `^ip6? daddr @${set}-${family} ${echo[family]} ct mark set 0x\\w+ ${go} comment "node-red: \\*\\.example\\.org:ping"$`,
      ),
    )
  assert.equal(
    allowed[4],
    `ip daddr { 192.168.1.0/24 } ${echo[4]} ${go} comment "node-red: ping: lan:ping"`,
  )
  for (const [i, family] of [[5, 4] as const, [6, 6] as const]) {
    assert.match(allowed[i]!, new RegExp(`^ip6? daddr != \\{.*\\} ${echo[family]} ${go} `))
    assert.ok(allowed[i]!.includes(family === 4 ? '100.64.0.0/10' : 'fc00::/7'))
  }
  assert.match(allowed[7]!, new RegExp(`^ip6 daddr \\{ fd00::1 \\} ${echo[6]} ${go} `))
})

test('presets: each stands for entries that are understood', () => {
  for (const [preset, { targets: written }] of Object.entries(presets))
    if (preset !== 'palette') assert.equal(targets([preset]).length, written.length, preset)
  assert.deepEqual(
    targets(['telegram']).map(({ text, host }) => [text, host]),
    [['telegram: api.telegram.org:443', { name: 'api.telegram.org' }]],
  )
})

test("the gateway's targets are those of control_url, apps and forwards: each once, no unix sockets, nor what it may reach anyway", () => {
  const config = parseConfig(
    `
[tailnet]
control_url = "https://headscale.example.org:8443"
[[app]]
path = "/a/"
upstreams = ["http://127.0.0.1:3000", "https://nas.example.org:5001", "unix:/run/a.sock", "https://cloud.example.org"]
[[app]]
path = "/b/"
upstreams = ["http://[fd00::5]:8080", "http://127.0.0.1", "http://127.0.0.1:3000", "http://192.168.1.9:80"]
[[forward]]
port = 22
target = "127.0.0.1:22"
[[forward]]
port = 5432
target = "Db.example.org:5432"
[[forward]]
port = 8081
target = "localhost:8081"
[[forward]]
port = 23
target = "unix:/run/x.sock"
[[forward]]
sni = ["git.example.org"]
target = "192.168.1.20:443"
`,
    'f',
  )
  const seen = gatewayTargets(config).map(
    ({ host, ports, protocol }) => `${hostOf(host)} ${ports.join('-')}/${protocol}`,
  )
  assert.deepEqual(seen, [
    'headscale.example.org 8443-8443/tcp',
    '127.0.0.1 3000-3000/tcp',
    'nas.example.org 5001-5001/tcp',
    'fd00::5 8080-8080/tcp',
    '127.0.0.1 80-80/tcp',
    '127.0.0.1 22-22/tcp',
    'db.example.org 5432-5432/tcp',
    '127.0.0.1 8081-8081/tcp',
    '::1 8081-8081/tcp',
  ])
  assert.deepEqual(gatewayTargets(parseConfig('', 'f')), [])
  // On 443 the shipped rules let the gateway out anywhere.
  assert.deepEqual(
    gatewayTargets(parseConfig('[tailnet]\ncontrol_url = "https://headscale.example.org"', 'f')),
    [],
  )
  assert.deepEqual(
    gatewayTargets(parseConfig('[network]\nproxy = "http://proxy.example:3128"', 'f')).map(
      ({ host, ports }) => [host, ports],
    ),
    [[{ name: 'proxy.example' }, [3128, 3128]]],
  )
  const [, egress] = gatewayTargets(config)
  assert.equal(
    script('gatehouse', [{ egress: egress!, addresses: ['127.0.0.1'] }]),
    'flush chain inet gatehouse gatehouse-allow\n' +
      'add rule inet gatehouse gatehouse-allow ip daddr { 127.0.0.1 } tcp dport 3000 accept ' +
      'comment "gatehouse: http://127.0.0.1:3000"\n',
  )
  assert.deepEqual(['127.0.0.1', '::1', '192.168.1.9'].map(unreachable), [
    undefined,
    undefined,
    undefined,
  ])
  for (const address of [
    '100.64.0.9',
    '224.0.0.1',
    '169.254.169.254',
    '0.0.0.0',
    '::ffff:127.0.0.1',
  ])
    assert.equal(typeof unreachable(address), 'string', address)
})

test("gatehouse firewall reads rules, counters and the kernel's log", () => {
  const rules = overview([
    { rule: { chain: 'in', comment: 'DHCP answers', expr: [{ match: {} }, { accept: null }] } },
    { rule: { chain: 'in', expr: [{ goto: { target: 'drop-in' } }] } },
    { rule: { chain: 'out', comment: 'gatehouse: UDP', expr: [{ accept: null }] } },
    { rule: { chain: 'node-red-allow', comment: 'node-red: x', expr: [{ accept: null }] } },
    { counter: { name: 'dropped-in', comment: 'nothing listens', packets: 7, bytes: 400 } },
  ])
  assert.deepEqual(rules, {
    in: ['DHCP answers'],
    out: ['gatehouse: UDP'],
    dropped: [{ name: 'dropped-in', comment: 'nothing listens', packets: 7 }],
  })
  const recent = drops(
    [
      {
        MESSAGE:
          'gatehouse-drop out-node-red: IN= OUT=eth0 SRC=10.0.0.9 DST=1.1.1.1 LEN=60 ' +
          'PROTO=TCP SPT=4 DPT=443 UID=603 GID=603',
        __REALTIME_TIMESTAMP: '1795257848704000',
      },
      { MESSAGE: 'something else about gatehouse-drop ', __REALTIME_TIMESTAMP: '1795257848704000' },
    ]
      .map((line) => JSON.stringify(line))
      .join('\n'),
  )
  assert.deepEqual(
    recent.map(({ why, what }) => [why, what]),
    [['out-node-red', 'TCP 10.0.0.9 → 1.1.1.1 port 443, user 603']],
  )
  const text = render(
    rules,
    {
      at: '2026-11-21T10:00:00.000Z',
      entries: [
        {
          text: 'a.example:80',
          addresses: ['203.0.113.1'],
          refused: { '127.0.0.1': 'this machine itself' },
        },
      ],
      names: {},
    },
    recent,
  )
  for (const part of [
    /DHCP answers/,
    /node-red: a\.example:80 = 203\.0\.113\.1/,
    /refused: 127\.0\.0\.1, this machine itself/,
    /7 {2}in {14}nothing listens/,
    /TCP 10\.0\.0\.9 → 1\.1\.1\.1 port 443/,
  ])
    assert.match(text, part)
  assert.match(render(rules, undefined, []), /node-red: nobody/)
  assert.match(
    render(
      rules,
      {
        at: '2026-11-21T10:00:00.000Z',
        entries: [],
        gateway: [{ text: 'db.example.org:5432', addresses: ['10.0.0.3'], refused: {} }],
        names: {},
      },
      [],
    ),
    /gatehouse: db\.example\.org:5432 = 10\.0\.0\.3\n {2}node-red: nobody/,
  )
})

test("the certificates' agent: the named server alone, beside 443", () => {
  const targets = (toml: string): string[] =>
    certsTargets(parseConfig(`[certificates]\n${toml}`, 'f')).map(
      ({ host, ports, protocol }) => `${hostOf(host)} ${ports.join('-')}/${protocol}`,
    )
  const updates = 'mode = "acme"\nproof = "rfc2136"\nname = "a.example"\ntsig_name = "k"\n'
  assert.deepEqual(targets(''), [], "Let's Encrypt is on 443")
  assert.deepEqual(targets('directory = "https://ca.example:9000/acme"\n'), [
    'ca.example 9000-9000/tcp',
  ])
  assert.deepEqual(targets(`${updates}dns_server = "ns1.example.org"\n`), [
    'ns1.example.org 53-53/tcp',
  ])
  assert.deepEqual(targets(`${updates}dns_server = "[2001:db8::53]:5353"\n`), [
    '2001:db8::53 5353-5353/tcp',
  ])
  assert.deepEqual(targets(`${updates}dns_server = "192.168.1.1"\n`), ['192.168.1.1 53-53/tcp'])
  assert.deepEqual(
    targets('mode = "acme"\nproof = "acme-dns"\nname = "a.b"\nacme_dns = "http://auth.example"\n'),
    ['auth.example 80-80/tcp'],
  )
  for (const mode of ['self', 'files'])
    assert.deepEqual(
      targets(`mode = "${mode}"\n${mode === 'files' ? 'cert_file = "a.crt"\n' : ''}`),
      [],
    )
})
