import assert from 'node:assert/strict'
import { test } from 'node:test'
import { refusedIn, shownOf } from '../../../src/firewall/drop-log.ts'

/** A line of `journalctl -k -o json`, as nftables' log statement makes it. */
const line = (seconds: number, rest: string, reason = 'out-node-red'): string =>
  JSON.stringify({
    __REALTIME_TIMESTAMP: String(seconds * 1_000_000),
    MESSAGE: `gatehouse-drop ${reason}: IN= OUT=eth0 ${rest} UID=603 GID=603`,
  })
const tcp = (to: string, port: number): string =>
  `SRC=192.168.1.5 DST=${to} LEN=60 TOS=0x00 PREC=0x00 TTL=64 ID=1 DF PROTO=TCP SPT=40000 ` +
  `DPT=${port} WINDOW=64240 RES=0x00 SYN URGP=0`

test('one for each target, the latest first, with what would allow it', () => {
  const found = refusedIn([
    line(10, tcp('192.168.1.10', 1883)),
    line(20, tcp('192.168.1.11', 443)),
    line(30, tcp('192.168.1.10', 1883)),
    line(40, tcp('192.168.1.10', 1883), 'out'),
    line(
      25,
      'SRC=fd00::1 DST=fd00:0000:0000:0000:0000:0000:0000:0010 LEN=48 PROTO=UDP SPT=1 DPT=502',
    ),
    'not JSON, gatehouse-drop out-node-red: x',
    line(50, 'SRC=192.168.1.5 DST=192.168.1.9 LEN=84 PROTO=ICMP TYPE=13 CODE=0'),
    line(
      51,
      'SRC=192.168.1.5 DST=192.168.1.9 LEN=84 PROTO=ICMP TYPE=8 CODE=0',
      'out-node-red-ping',
    ),
  ])
  assert.deepEqual(
    found.map(({ entry, times, last }) => [entry, times, last]),
    [
      ['[fd00::10]:502/udp', 1, '1970-01-01T00:00:25.000Z'],
      ['192.168.1.10:1883', 2, '1970-01-01T00:00:30.000Z'],
      ['192.168.1.11:443', 1, '1970-01-01T00:00:20.000Z'],
    ],
  )
})

test('a ping, by IPv4 and IPv6, has no port and an entry of its own', () => {
  const found = refusedIn([
    line(10, 'SRC=192.168.1.5 DST=192.168.1.9 LEN=84 PROTO=ICMP TYPE=8 CODE=0 ID=7 SEQ=1'),
    line(
      20,
      'SRC=fd00::1 DST=fd00:0000:0000:0000:0000:0000:0000:0010 LEN=104 PROTO=ICMPv6 TYPE=128 CODE=0',
    ),
    line(30, 'SRC=192.168.1.5 DST=224.0.0.1 LEN=84 PROTO=ICMP TYPE=8 CODE=0 ID=7 SEQ=1'),
  ])
  assert.deepEqual(
    found.map(({ host, port, protocol, entry }) => [host, port, protocol, entry]),
    [
      ['224.0.0.1', undefined, 'icmp', undefined],
      ['fd00::10', undefined, 'icmp', '[fd00::10]:ping'],
      ['192.168.1.9', undefined, 'icmp', '192.168.1.9:ping'],
    ],
  )
})

test('what was learned is shown by name: a port, a ping, and no name alone', () => {
  const last = '2026-11-26T11:58:20.000Z'
  assert.deepEqual(
    shownOf([
      { name: 'a.example.org', port: 80, protocol: 'tcp', times: 1, last },
      { name: 'b.example.org', protocol: 'icmp', times: 2, last },
      { name: 'c.example.org', times: 3, last },
    ]).map(({ entry }) => entry),
    ['a.example.org:80', 'b.example.org:ping'],
  )
})

test('a name is said where gatehouse.toml has it', () => {
  const names = { 'broker.example.org': { addresses: { '203.0.113.7': 1 }, refused: {} } }
  const [found] = refusedIn([line(1, tcp('203.0.113.7', 8883))], names)
  assert.deepEqual(
    [found!.host, found!.address, found!.entry],
    ['broker.example.org', '203.0.113.7', 'broker.example.org:8883'],
  )
})

test('what may never be allowed has no entry, and the list is bounded', () => {
  const [own] = refusedIn([line(1, tcp('127.0.0.1', 1880))])
  assert.equal(own!.entry, undefined)
  assert.equal(refusedIn([line(1, tcp('100.101.102.103', 22))])[0]!.entry, undefined)
  const many = Array.from({ length: 300 }, (_, n) => line(n, tcp('192.168.1.10', n + 1)))
  const found = refusedIn(many)
  assert.equal(found.length, 100)
  assert.equal(found[0]!.port, 300)
})
