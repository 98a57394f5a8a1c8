import assert from 'node:assert/strict'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { namedEntries } from '../../../src/firewall/names/list.ts'
import { StandIns, askedFile, learnFile } from '../../../src/firewall/names/stand-ins.ts'
import { refusals } from '../../../src/firewall/refused.ts'
import { parseEgress } from '../../../src/config/egress.ts'

const now = Date.parse('2026-11-26T12:00:00Z')

test('what was dropped, with the names that lead there and when it was last', () => {
  const element = (
    address: string,
    protocol: string | number,
    port: number,
    ago: number,
    packets: number,
  ) => ({
    elem: {
      val: { concat: [address, protocol, port] as [string, string | number, number] },
      expires: 3600 - ago,
      counter: { packets },
    },
  })
  const told = { addresses: ['203.0.113.5'], refused: {}, entry: 'x', at: '' }
  const entry = parseEgress('listed.example.org:443')
  assert.ok('egress' in entry)
  const list = refusals(
    [
      {
        set: {
          name: 'refused-4',
          timeout: 3600,
          elem: [
            element('203.0.113.5', 'tcp', 8883, 60, 3),
            element('240.0.0.2', 'tcp', 443, 10, 7),
            element('240.0.0.3', 'udp', 123, 10, 7),
            // Without /etc/protocols, as in the image, nft says the number.
            element('192.168.1.9', 17, 5683, 30, 1),
            element('192.168.1.9', 132, 5683, 30, 1),
          ],
        },
      },
      { set: { name: 'refused-6', timeout: 3600 } },
      // Pings: an address alone.
      {
        set: {
          name: 'refused-ping-4',
          timeout: 3600,
          elem: ['192.168.1.9', '240.0.0.4', '240.0.0.5'].map((val, i) => ({
            elem: { val, expires: 3500 - i, counter: { packets: 2 } },
          })),
        },
      },
      { set: { name: 'rate-4', timeout: 60, elem: [element('203.0.113.9', 'tcp', 1, 0, 1)] } },
    ],
    {
      'api.example.org': { address: '240.0.0.2', times: 2, last: '2026-11-26T11:59:00.000Z' },
      'ping.example.org': { address: '240.0.0.4', times: 1, last: '2026-11-26T11:58:00.000Z' },
      'other.example.org': { times: 4, last: '2026-11-26T11:00:00.000Z' },
      'listed.example.org': { times: 4, last: '2026-11-26T11:00:00.000Z' },
    },
    { 'broker.example.org': told },
    namedEntries([entry.egress]),
    now,
  )
  assert.deepEqual(list, [
    {
      name: 'api.example.org',
      port: 443,
      protocol: 'tcp',
      times: 7,
      last: '2026-11-26T11:59:50.000Z',
    },
    {
      address: '192.168.1.9',
      port: 5683,
      protocol: 'udp',
      times: 1,
      last: '2026-11-26T11:59:30.000Z',
    },
    {
      name: 'broker.example.org',
      address: '203.0.113.5',
      port: 8883,
      protocol: 'tcp',
      times: 3,
      last: '2026-11-26T11:59:00.000Z',
    },
    { address: '192.168.1.9', protocol: 'icmp', times: 2, last: '2026-11-26T11:58:20.000Z' },
    { name: 'ping.example.org', protocol: 'icmp', times: 2, last: '2026-11-26T11:58:19.000Z' },
    { name: 'other.example.org', times: 4, last: '2026-11-26T11:00:00.000Z' },
  ])
})

test('a stand-in is given while the device learns, the same for the same name, and never past 200', async () => {
  const firewall = await mkdtemp(join(tmpdir(), 'gh-stand-ins-'))
  try {
    const names = new StandIns({ firewall })
    await names.refresh()
    assert.equal(names.of('a.example'), undefined)
    await writeFile(join(firewall, learnFile), JSON.stringify({ until: Date.now() + 60_000 }))
    await names.refresh()
    const first = names.of('a.example')
    assert.match(first!, /^240\.0\.\d+\.\d+$/)
    assert.equal(names.of('a.example'), first)
    assert.notEqual(names.of('b.example'), first)
    for (let i = 0; i < 500; i++) names.of(`n${i}.example`)
    await names.write()
    const written = JSON.parse(await readFile(join(firewall, askedFile), 'utf8')) as object
    assert.equal(Object.keys(written).length, 200)
    await rm(join(firewall, learnFile))
    await names.refresh()
    assert.equal(names.of('n499.example'), undefined, 'over: it is refused again')
  } finally {
    await rm(firewall, { recursive: true })
  }
})
