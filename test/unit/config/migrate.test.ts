/**
 * Settings and state over updates and fall-backs: old names of keys, and files that a later version
 * wrote.
 */
import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { ConfigError, defaults, parseConfig, serialize } from '../../../src/config/config.ts'
import { loadConfig } from '../../../src/config/load.ts'
import { migrate, moved } from '../../../src/config/migrate.ts'
import type { Moved } from '../../../src/config/migrate.ts'
import { schema, tomlName } from '../../../src/config/schema.ts'
import { Ledger } from '../../../src/certs/ledger.ts'
import { History, readRecord } from '../../../src/certs/record.ts'
import { provision } from '../../../src/provision/provision.ts'
import { readUpdateRecord, updateLine, updatePaths } from '../../../src/update/record.ts'

const root = mkdtempSync(join(tmpdir(), 'gh-migration-'))
after(() => {
  rmSync(root, { recursive: true, force: true })
})

/** As a later version might have it: of today's keys. */
const moves: Moved[] = [
  { from: 'tailnet.name', to: 'tailnet.hostname', why: 'it is a DNS label' },
  { from: 'net.wait_minutes', to: 'updates.place', convert: (value) => Number(value) * 10 },
  { from: 'certificates.key_bits', why: 'keys are elliptic curves' },
  { from: 'forward.to', to: 'forward.target' },
]
const read = (toml: string): { config: ReturnType<typeof parseConfig>; notes: string[] } => {
  const notes: string[] = []
  return {
    config: parseConfig(toml, 'gatehouse.toml', {
      moves,
      note: (text) => {
        notes.push(text)
      },
    }),
    notes,
  }
}

test('an old name of a key is understood, moved to its table, converted, and noted; one without effect is noted', () => {
  const { config, notes } = read(
    '[tailnet]\nname = "door"\n[net]\nwait_minutes = 3\n[certificates]\nkey_bits = 4096\n' +
      'email = "a@example.org"\n[[forward]]\nport = 22\nto = "10.0.0.1:22"\n',
  )
  assert.deepEqual(
    [
      config.tailnet.hostname,
      config.updates.place,
      config.certificates.email,
      config.forward[0]!.target,
    ],
    ['door', 30, 'a@example.org', '10.0.0.1:22'],
  )
  assert.deepEqual(notes, [
    'tailnet.name is called tailnet.hostname now: it is a DNS label; the old name goes on being understood',
    'net.wait_minutes is called updates.place now; the old name goes on being understood',
    'certificates.key_bits has no effect any more: keys are elliptic curves; the line may be removed',
    'forward.to is called forward.target now; the old name goes on being understood',
  ])
  assert.deepEqual(parseConfig(serialize(config), 'f'), config, 'what is kept has new names alone')
  assert.deepEqual(read('[tailnet]\nhostname = "door"\n').notes, [])
})

test('mistakes are found at the line of the old name; both names at once are one', () => {
  const wrong = (toml: string): ConfigError => {
    try {
      read(toml)
    } catch (err) {
      assert.ok(err instanceof ConfigError)
      return err
    }
    return assert.fail('accepted')
  }
  assert.match(
    wrong('[access]\n[tailnet]\n\nname = "NOT A NAME"\n').message,
    /line 4: hostname "NOT A NAME"/,
  )
  assert.match(
    wrong(
      '[[forward]]\nport = 22\ntarget = "10.0.0.1:22"\n[[forward]]\nport = 23\nto = "nonsense"\n',
    ).message,
    /line 6: /,
  )
  const both = wrong('[tailnet]\nhostname = "a"\nname = "b"\n')
  assert.match(
    both.line,
    /line 3: tailnet\.name is an old name of tailnet\.hostname, and both are there\. Remove tailnet\.name/,
  )
  assert.match(
    wrong('[net]\nwait_minutes = 3\nother = 1\n').message,
    /line 1: unknown table \[net\]/,
  )
})

test('the table of this version: each new name is a key, no old one is', () => {
  const names = Object.entries(schema).flatMap(([table, keys]) =>
    Object.keys(Array.isArray(keys) ? keys[0] : keys).map((name) => `${table}.${tomlName(name)}`),
  )
  assert.ok(names.length > 30)
  for (const { from, to } of moved) {
    assert.ok(!names.includes(from), `${from} is a key`)
    assert.ok(to === undefined || names.includes(to), `${to} is none`)
  }
  const document = { tailnet: { name: 'x' } }
  migrate(document, moves)
  assert.deepEqual(document, { tailnet: { name: 'x' } }, 'left as it is')
})

const paths = (name: string) => {
  const directory = join(root, name)
  mkdirSync(join(directory, 'efi'), { recursive: true })
  return {
    boot: join(directory, 'efi'),
    config: join(directory, 'config'),
    problem: join(directory, 'run/problem'),
  }
}
const plain = async (_name: string, secret: string): Promise<string> => secret

test('provisioning takes old names, and tells', async () => {
  const where = paths('old')
  writeFileSync(join(where.boot, 'gatehouse.toml'), '[tailnet]\nname = "door"\n')
  const { outcome, notes } = await provision(where, plain, moves)
  assert.equal(outcome, 'new')
  assert.match(notes!.join(), /tailnet\.name is called tailnet\.hostname now/)
  assert.match(readFileSync(join(where.config, 'gatehouse.toml'), 'utf8'), /hostname = "door"/)
})

test("after a fall-back: the person's file has new keys, the last good one is a later version's; what is understood holds, all else has its default", async () => {
  const where = paths('newer')
  const newer =
    '[tailnet]\nhostname = "door"\nlater = 1\n[access]\nedit = ["alice@example.com"]\n' +
    'view = 7\n[certificates]\neab_key_id = "kid"\n[later]\nx = 1\n[node_red]\n' +
    'devices = ["serial", "later"]\n[[forward]]\nport = 22\ntarget = "10.0.0.1:22"\n' +
    '[[forward]]\nport = 23\ntarget = "10.0.0.1:23"\nonly = ["bob@example.com"]\n'
  mkdirSync(where.config)
  writeFileSync(
    join(where.config, 'gatehouse.toml'),
    `# Program of 2099-01-01T00:00:00.000Z\n${newer}`,
  )
  writeFileSync(join(where.boot, 'gatehouse.toml'), newer)
  const { outcome, problem } = await provision(where, plain)
  assert.deepEqual(
    [outcome, /unknown key later in \[tailnet\]/.test(problem!)],
    ['kept', true],
    String(problem),
  )
  const notes: string[] = []
  const config = await loadConfig(where.config, (text) => {
    notes.push(text)
  })
  assert.deepEqual(
    [config.tailnet.hostname, config.access.edit, config.access.view],
    ['door', ['alice@example.com'], []],
  )
  assert.deepEqual(config.node_red.devices, defaults().node_red.devices)
  assert.deepEqual(
    config.forward.map(({ port }) => port),
    [22],
    'an entry that may have been narrowed is left out',
  )
  assert.equal(notes.length, 5, notes.join('\n'))
  for (const text of notes)
    assert.match(text, /^line \d+ is left out, which a later version wrote: /)
  // Damaged is not later, and one of this version's own, or an earlier one's, is wrong as a whole.
  writeFileSync(join(where.config, 'gatehouse.toml'), '[tailnet')
  await assert.rejects(loadConfig(where.config), { code: 'GH_CONFIG_SYNTAX' })
  for (const header of [
    '',
    '# Program of 2020-01-01T00:00:00.000Z\n',
    serialize(defaults()).replaceAll(/^[^#].*\n/gm, ''),
  ]) {
    writeFileSync(join(where.config, 'gatehouse.toml'), header + newer)
    await assert.rejects(loadConfig(where.config), { code: 'GH_CONFIG_UNKNOWN_KEY' })
  }
})

test('state that a later version wrote, with more in it than this one knows, is read', async () => {
  const state = join(root, 'state')
  mkdirSync(state)
  const write = (name: string, content: object): void => {
    writeFileSync(join(state, name), JSON.stringify(content))
  }
  const now = Date.UTC(2026, 10, 21)
  write('attempts.json', {
    format: 2,
    'https://acme.example/dir': {
      'a.example': {
        failures: 2,
        next: now + 60_000,
        problem: 'p',
        code: 'GH_CERTS_LATER',
        validations: [now],
        issues: [{ at: now, later: 1 }],
        later: [],
      },
    },
  })
  assert.equal(
    (await Ledger.open(state, 'https://acme.example/dir')).held('a.example', now)?.next.getTime(),
    now + 60_000,
    'what counts for the authority is not forgotten',
  )
  write('status.json', {
    checkedAt: new Date(now).toISOString(),
    result: 'later',
    names: [],
    totals: { attempts: 5, issued: 3, failures: { GH_CERTS_LATER: 2 }, later: 1 },
    notes: [{ at: new Date(now).toISOString(), code: 'GH_CERTS_LATER', message: 'm' }],
    later: {},
  })
  const { totals, notes } = new History(await readRecord(state))
  assert.deepEqual([totals.attempts, totals.issued, notes], [5, 3, []])
  const where = updatePaths({
    GATEHOUSE_SLOTS_DIR: state,
    GATEHOUSE_OS_RELEASE: join(state, 'os-release'),
  })
  writeFileSync(where.osRelease, 'IMAGE_VERSION=0.9\n')
  write('record.json', {
    from: '0.9',
    to: '1.0',
    installedAt: new Date(now).toISOString(),
    failure: 'f',
    later: { a: 1 },
  })
  assert.equal((await readUpdateRecord(where))?.failure, 'f')
  assert.match(
    (await updateLine(where))!.text,
    /^1\.0 of 2026-11-21 was given up, and 0\.9 is back: f$/,
  )
})
