import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parseIngress } from '../../../src/config/ingress.ts'
import { ingressScript, ingresses } from '../../../src/firewall/ingress.ts'

test('listen: ports, protocol, from where', () => {
  assert.deepEqual(parseIngress('1883/tcp from 192.168.1.0/24'), {
    ingress: {
      text: '1883/tcp from 192.168.1.0/24',
      ports: [1883, 1883],
      protocol: 'tcp',
      from: { network: '192.168.1.0/24', family: 4 },
    },
  })
  for (const good of [
    '5000-5010/udp from lan',
    '1883/tcp from 10.0.0.7',
    '1883/tcp from fd00::/64',
  ])
    assert.ok('ingress' in parseIngress(good), good)
})

const bad: Array<[string, RegExp]> = [
  ['1883', /not a port, a protocol and from where/],
  ['1883/tcp', /from where/],
  ['1883/sctp from lan', /not a port, a protocol/],
  ['80/tcp from lan', /below 1024/],
  ['70000/tcp from lan', /65535/],
  ['5010-5000/tcp from lan', /the lower one first/],
  ['41641/udp from lan', /the gateway's/],
  ['41000-42000/tcp from lan', /port 41080 is the gateway's/],
  ['1883/tcp from 0.0.0.0/0', /not within a local network/],
  ['1883/tcp from 192.168.0.0/8', /not within a local network/],
  ['1883/tcp from 100.64.0.0/10', /not within a local network/],
  ['1883/tcp from 203.0.113.0/24', /not within a local network.*"lan"/],
  ['1883/tcp from nas', /not a network/],
  ['1883/tcp from 10.0.0.0/8/8', /not a network/],
  ['1883/tcp from lan; flush ruleset', /not a port, a protocol/],
]
for (const [text, expected] of bad)
  test(`listen: ${text} is refused, with what to write`, () => {
    const read = parseIngress(text)
    assert.ok('wrong' in read)
    assert.match(`${read.wrong.message} ${read.wrong.cure}`, expected)
  })

test('the rules: a source, a port, a mark by which answers go out', () => {
  const networks = [
    { network: '192.168.1.0/24', family: 4 as const },
    { network: 'fd00:0:0:0:0:0:0:0/64', family: 6 as const },
  ]
  const lines = ingressScript(ingresses(['1883/tcp from 192.168.1.7/25', '5683/udp from lan']), {
    networks,
  }).split('\n')
  assert.equal(lines.length, 1 + 3 + 5 + 1)
  assert.match(
    lines[1]!,
    /ip saddr \{ 192\.168\.1\.0\/25 \} tcp dport 1883 jump in-node-red-limits$/,
  )
  assert.match(lines[2]!, /tcp dport 1883 ct mark set 0x[23][0-9a-f]{7} accept comment/)
  assert.match(lines[3]!, /node-red-allow ct direction reply ct state established ct mark 0x[23]/)
  assert.match(lines[6]!, /ip6 saddr .* udp dport 5683 jump/)
})
