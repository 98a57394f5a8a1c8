import assert from 'node:assert/strict'
import { test } from 'node:test'
import { mostPeers, peersOf } from '../../../src/config/peers.ts'
import { peersScript, targets } from '../../../src/firewall/apply.ts'
import { matching, namedEntries } from '../../../src/firewall/names/list.ts'
import { parseIngress } from '../../../src/config/ingress.ts'
import { nodeRedDropIn } from '../../../src/provision/node-red-unit.ts'
import { defaults } from '../../../src/config/config.ts'

const list = [
  '192.168.1.10:1883',
  'nas.tail1.ts.net:22',
  'tag:broker:1883',
  'nas.tail1.ts.net:80',
  'svc:mqtt:1883',
  'NAS.tail1.ts.net:80',
]

test('a device has an address of this machine to itself, and each entry a port of the gateway', () => {
  assert.deepEqual(
    peersOf(list).map(({ name, port, address, local }) => [name, port, address, local]),
    [
      ['nas.tail1.ts.net', 22, '127.77.0.1', 42_000],
      ['broker.tag.ts.net', 1883, '127.77.0.2', 42_001],
      ['nas.tail1.ts.net', 80, '127.77.0.1', 42_002],
      ['mqtt.*.ts.net', 1883, '127.77.0.3', 42_003],
    ],
  )
  const many = Array.from({ length: 300 }, (_, i) => `n${i}.tail1.ts.net:80`)
  assert.equal(peersOf(many).length, mostPeers)
})

test('names of the tailnet are answered where they are listed, by wildcards never', () => {
  const entries = namedEntries(targets([...list, 'internet:443', '*.example.org:443']))
  const of = (name: string): unknown[] => matching(entries, name).map(({ standIn }) => standIn)
  assert.deepEqual(of('nas.tail1.ts.net'), ['127.77.0.1', '127.77.0.1'])
  assert.deepEqual(of('mqtt.tail1.ts.net'), ['127.77.0.3'])
  assert.deepEqual(of('broker.tag.ts.net'), ['127.77.0.2'])
  for (const name of ['x.tail1.ts.net', 'mqtt.a.tail1.ts.net', 'mqtt.ts.net', 'ts.net', 'a.ts.net'])
    assert.deepEqual(of(name), [], name)
})

test('without such an entry nothing translates addresses, and what did is taken away', () => {
  assert.equal(peersScript([], false), '')
  assert.match(peersScript([], true), /delete chain inet gatehouse node-red-peers/)
  const script = peersScript(peersOf(list), false)
  assert.match(script, /ip daddr 127\.77\.0\.1 tcp dport 80 dnat ip to 127\.77\.0\.1:42002/)
  assert.doesNotMatch(script, /delete/)
})

test("the gateway's ports are no flow's, and the unit lets Node-RED send to the addresses alone where there is one", () => {
  for (const text of ['42000/tcp from lan', '41900-42010/tcp from lan', '42063/udp from lan'])
    assert.ok('wrong' in parseIngress(text), text)
  assert.ok('ingress' in parseIngress('42064/tcp from lan'))
  const unit = (allow: string[]): string =>
    nodeRedDropIn({ ...defaults().node_red, allow }, '/var/lib/gatehouse-config')
  assert.match(unit(list), /^IPAddressAllow=127\.77\.0\.0\/24$/m)
  assert.doesNotMatch(unit(['192.168.1.10:1883']), /127\.77/)
})
