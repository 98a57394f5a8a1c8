import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parseEgress } from '../../../src/config/egress.ts'
import type { Egress } from '../../../src/config/egress.ts'
import { interfaces, isLocal, networkOf } from '../../../src/firewall/networks.ts'
import { matching, namedEntries } from '../../../src/firewall/names/list.ts'
import { answer, codes, readQuestion, types } from '../../../src/firewall/names/message.ts'
import { NoName, Resolver, validity } from '../../../src/firewall/names/resolver.ts'
import type { Found, ResolverOptions } from '../../../src/firewall/names/resolver.ts'
import { batched, openScript } from '../../../src/firewall/names/serve.ts'
import { generator } from '../support/random.ts'

const { grace } = validity

const egress = (text: string): Egress => {
  const entry = parseEgress(text)
  if (!('egress' in entry)) throw new Error(text)
  return entry.egress
}

/** A question as a resolver sends it. */
function question(name: string, type: number = types.A, id = 7): Buffer {
  const labels = name.split('.').map((label) => Buffer.from(label, 'latin1'))
  return Buffer.concat([
    Buffer.from([id >> 8, id & 255, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
    ...labels.flatMap((label) => [Buffer.of(label.length), label]),
    Buffer.from([0, 0, type, 0, 1]),
  ])
}

test('a question is read, and an answer is one that a resolver understands', () => {
  const read = readQuestion(question('Broker.Example.ORG'))!
  assert.deepEqual(
    [read.name, read.type, read.id, read.recursion],
    ['broker.example.org', 1, 7, true],
  )
  const reply = answer(read, codes.ok, ['203.0.113.5', '10.0.0.1'], 60)
  assert.equal(reply.readUInt16BE(2), 0x8180)
  assert.equal(reply.readUInt16BE(6), 2)
  assert.deepEqual([...reply.subarray(-4)], [10, 0, 0, 1])
  assert.equal(reply.readUInt32BE(reply.length - 10), 60)
  const six = answer(readQuestion(question('a.b', types.AAAA))!, codes.ok, ['2001:db8::1:2'], 60)
  assert.equal(six.subarray(-16).toString('hex'), '20010db8000000000000000000010002')
  const many = Array.from({ length: 100 }, (_, i) => `203.0.113.${i}`)
  const long = answer(readQuestion(question(`${'a.'.repeat(120)}b`))!, codes.ok, many)
  assert.ok(long.length <= 512, 'nobody has to ask again by TCP')
})

test('what is no question has no answer: pointers, answers, two questions, cut short, noise', () => {
  const good = question('a.example')
  const change = (at: number, value: number): Buffer => {
    const copy = Buffer.from(good)
    copy[at] = value
    return copy
  }
  for (const bad of [
    Buffer.alloc(0),
    Buffer.alloc(11),
    good.subarray(0, -1),
    change(2, 0x81), // an answer
    change(2, 0x29), // an update
    change(5, 2),
    change(7, 1),
    change(12, 0xc0), // a pointer
    change(good.length - 1, 3), // class CHAOS
    Buffer.concat([good.subarray(0, 12), Buffer.alloc(300, 1)]),
    Buffer.alloc(600),
  ])
    assert.equal(readQuestion(bad), undefined)
  const next = generator(20)
  for (let i = 0; i < 20_000; i++) {
    const noise = Buffer.from(good)
    for (let j = 0; j < 3; j++) noise[next(noise.length)] = next(256)
    const read = readQuestion(noise)
    if (read !== undefined) assert.ok(answer(read, codes.noName).length <= 512)
  }
})

test('which entry a name is on', () => {
  const entries = namedEntries(
    ['broker.example.org:1883', '*.example.org:443', '*.lan:80', '192.168.1.1:80', 'lan:1'].map(
      egress,
    ),
  )
  const on = (name: string): string[] => matching(entries, name).map(({ text }) => text)
  assert.deepEqual(on('broker.example.org'), ['broker.example.org:1883', '*.example.org:443'])
  assert.deepEqual(on('a.b.example.org'), ['*.example.org:443'])
  assert.deepEqual(on('nas.lan'), ['*.lan:80'])
  for (const name of [
    'example.org',
    'evilexample.org',
    'org',
    '',
    '.example.org',
    'a..example.org',
    'a b.example.org',
    '-a.example.org',
    'a.example.org.evil.example',
  ])
    assert.deepEqual(on(name), [], name)
  const all = namedEntries([egress('internet:443')])
  assert.equal(matching(all, 'anything.example').length, 1)
  for (const name of ['nas', 'printer.local', 'x.tail1.ts.net', 'a.localhost'])
    assert.deepEqual(matching(all, name), [], name)
})

/** A resolver over a table of names. */
function bench(
  list: string[],
  zone: Record<string, Found[] | Error>,
  more: Partial<ResolverOptions> = {},
) {
  const asked: string[] = []
  const opened: string[] = []
  const said: string[] = []
  let now = 0
  const resolver = new Resolver({
    entries: namedEntries(list.map(egress)),
    ask: async (name) => {
      asked.push(name)
      const found = zone[name] ?? new NoName(name)
      if (found instanceof Error) throw found
      return await Promise.resolve(found)
    },
    open: async (additions) => {
      await Promise.resolve()
      for (const { address, seconds } of additions) opened.push(`${address} ${seconds}`)
    },
    interfaces: () => ({
      addresses: ['192.168.1.2'],
      networks: [{ network: '2001:db8:1::/64', family: 6 }],
      ipv6: true,
    }),
    unlisted: () => undefined,
    say: (line) => said.push(line),
    now: () => now,
    ...more,
  })
  return {
    asked,
    opened,
    said,
    resolver,
    pass: (seconds: number): void => {
      now += seconds * 1000
    },
    /** Code and number of addresses. */
    ask: async (name: string, type: number = types.A): Promise<[number, number] | undefined> => {
      const reply = await resolver.reply(readQuestion(question(name, type))!)
      return reply === undefined ? undefined : [reply.readUInt16BE(2) & 15, reply.readUInt16BE(6)]
    },
  }
}

test('an answer opens the firewall first, for as long as it is valid and within bounds', async () => {
  const { ask, opened, asked, pass } = bench(['*.zone.example:443'], {
    'a.zone.example': [
      { address: '203.0.113.1', ttl: 300 },
      { address: '203.0.113.2', ttl: 200 },
    ],
    'short.zone.example': [{ address: '203.0.113.3', ttl: 0 }],
    'long.zone.example': [{ address: '203.0.113.4', ttl: 86_400 }],
  })
  assert.deepEqual(await ask('a.zone.example'), [0, 2])
  assert.deepEqual(opened, [`203.0.113.1 ${200 + grace}`, `203.0.113.2 ${200 + grace}`])
  assert.deepEqual(await ask('short.zone.example'), [0, 1])
  assert.deepEqual(await ask('long.zone.example'), [0, 1])
  assert.deepEqual(opened.slice(2), [
    `203.0.113.3 ${validity.floor + grace}`,
    `203.0.113.4 ${validity.ceiling + grace}`,
  ])
  await ask('a.zone.example')
  assert.equal(asked.length, 3, 'kept while it is valid')
  pass(201)
  await ask('a.zone.example')
  assert.equal(asked.length, 4)
  assert.deepEqual(
    opened.slice(-2),
    [`203.0.113.1 ${200 + grace}`, `203.0.113.2 ${200 + grace}`],
    'its time begins anew',
  )
})

test('a shorter answer does not take back what another has opened', async () => {
  const { ask, opened } = bench(['*.cdn.example:443'], {
    'a.cdn.example': [{ address: '203.0.113.1', ttl: 3000 }],
    'b.cdn.example': [{ address: '203.0.113.1', ttl: 30 }],
  })
  await ask('a.cdn.example')
  await ask('b.cdn.example')
  assert.deepEqual(opened, [`203.0.113.1 ${3000 + grace}`])
})

test('where names may lead: a name that a person wrote into the local network, a wildcard not', async () => {
  const inside = ['192.168.1.9', '10.1.1.1', '172.16.0.1']
  const found = [...inside, '203.0.113.1'].map((address) => ({ address, ttl: 60 }))
  const never = ['127.0.0.1', '192.168.1.2', '100.64.1.1', '169.254.1.1', '224.0.0.1', '0.0.0.0']
  const zone = {
    'nas.example.org': [...found, ...never.map((address) => ({ address, ttl: 60 }))],
    'a.wild.example': found,
    'a.lan': found,
    'v6.wild.example': ['fd00::1', '2001:db8:1::7', '2001:db8:2::7', '::ffff:10.0.0.1'].map(
      (address) => ({ address, ttl: 60 }),
    ),
  }
  const { ask, opened, said } = bench(['nas.example.org:1', '*.wild.example:1', '*.lan:1'], zone)
  assert.deepEqual(await ask('nas.example.org'), [0, 4])
  assert.equal(said.length, never.length)
  assert.deepEqual(await ask('a.wild.example'), [0, 1])
  assert.deepEqual(await ask('a.lan'), [0, 4])
  opened.length = 0
  assert.deepEqual(await ask('v6.wild.example', types.AAAA), [0, 1])
  assert.deepEqual(
    opened,
    [`2001:db8:2::7 ${60 + grace}`],
    'this network has public addresses of IPv6',
  )
})

test('other types, names that are not there, and a resolver that does not answer', async () => {
  const { ask, asked } = bench(['a.example:1', 'b.example:1', 'c.example:1'], {
    'a.example': [{ address: '203.0.113.1', ttl: 60 }],
    'c.example': new Error('no answer from the resolver (ETIMEOUT)'),
  })
  assert.deepEqual(await ask('a.example', 16), [0, 0])
  assert.deepEqual(asked, [])
  assert.deepEqual(await ask('b.example'), [3, 0])
  assert.deepEqual(await ask('b.example'), [3, 0])
  assert.equal(asked.length, 1)
  assert.deepEqual(await ask('c.example'), [2, 0])
  assert.deepEqual(await ask('unlisted.example'), [3, 0])
  assert.deepEqual(asked, ['b.example', 'c.example'])
})

test('an answer that the firewall does not take is not told', async () => {
  const { ask, said } = bench(
    ['a.example:1'],
    { 'a.example': [{ address: '203.0.113.1', ttl: 60 }] },
    {
      open: async () => await Promise.reject(new Error('no such set')),
    },
  )
  assert.deepEqual(await ask('a.example'), [2, 0])
  assert.match(said[0]!, /no such set/)
})

test('below a wildcard 40 new names at once, then 20 a minute; a written name is not held up', async () => {
  const zone = Object.fromEntries(
    Array.from({ length: 200 }, (_, i) => [
      `d${i}.wild.example`,
      [{ address: '203.0.113.1', ttl: 60 }],
    ]),
  )
  const { ask, asked, pass, said } = bench(['*.wild.example:1', 'a.example:1'], {
    ...zone,
    'a.example': [{ address: '203.0.113.2', ttl: 60 }],
  })
  for (let i = 0; i < 100; i++) await ask(`d${i}.wild.example`)
  assert.equal(asked.length, 40)
  assert.deepEqual(await ask('a.example'), [0, 1])
  assert.ok(said.length <= 10, 'nor is the journal filled')
  pass(60)
  for (let i = 100; i < 200; i++) await ask(`d${i}.wild.example`)
  assert.equal(asked.length, 40 + 1 + 20)
})

test('nft runs one at a time, with all that has come meanwhile; one that is refused is alone in it', async () => {
  const scripts: string[] = []
  const open = batched(async (script) => {
    scripts.push(script)
    await new Promise((done) => setTimeout(done, 5))
    if (script.includes('full')) throw new Error('no room')
  })
  const one = (set: string): ReturnType<typeof open> =>
    open([{ set, address: '203.0.113.1', seconds: 9.2 }])
  const results = await Promise.allSettled([one('a-4'), one('b-4'), one('full-4'), one('c-4')])
  assert.deepEqual(
    results.map(({ status }) => status),
    ['fulfilled', 'fulfilled', 'rejected', 'fulfilled'],
  )
  assert.deepEqual(scripts.length, 1 + 1 + 3)
  assert.match(
    openScript([{ set: 'a-4', address: '203.0.113.1', seconds: 9.2 }]),
    /^add element inet gatehouse a-4 \{ 203\.0\.113\.1 timeout 10s \}\ndelete /,
  )
})

test("this machine's networks", () => {
  assert.equal(networkOf('192.168.1.77/24'), '192.168.1.0/24')
  assert.equal(networkOf('10.1.2.3/9'), '10.0.0.0/9')
  assert.equal(networkOf('2001:db8:1:2:3::9/64'), '2001:db8:1:2:0:0:0:0/64')
  assert.equal(networkOf('fd00::1234/121'), 'fd00:0:0:0:0:0:0:1200/121')
  const one = (address: string, cidr: string, internal = false) => ({
    address,
    cidr,
    internal,
    netmask: '',
    mac: '',
    ...(address.includes(':')
      ? { family: 'IPv6' as const, scopeid: 0 }
      : { family: 'IPv4' as const }),
  })
  const found = interfaces({
    lo: [one('127.0.0.1', '127.0.0.1/8', true)],
    eth0: [
      one('192.168.1.7', '192.168.1.7/24'),
      one('fe80::1', 'fe80::1/64'),
      one('169.254.3.4', '169.254.3.4/16'),
    ],
  })
  assert.deepEqual(
    [found.networks, found.ipv6],
    [[{ network: '192.168.1.0/24', family: 4 }], false],
  )
  assert.equal(isLocal('10.3.4.5', []), true)
  assert.equal(isLocal('203.0.113.7', []), false)
})
