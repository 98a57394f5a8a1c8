/**
 * Updates without a device: what is believed, what is newer, how a download goes on. A real web
 * server on 127.0.0.1, real signatures.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { createHash, generateKeyPairSync, randomBytes, sign } from 'node:crypto'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, beforeEach, test } from 'node:test'
import { parseConfig } from '../../../src/config/config.ts'
import { updateTimerDropIn } from '../../../src/provision/update-timer.ts'
import { arch, compareVersions, readBundle } from '../../../src/update/bundle.ts'
import { collect } from '../../../src/update/collect.ts'
import { hardwareAddress, placeOf } from '../../../src/update/place.ts'
import { webSource } from '../../../src/update/source.ts'
import { bootID, updateLine, updatePaths, writeUpdateRecord } from '../../../src/update/record.ts'

const root = mkdtempSync(join(tmpdir(), 'gh-update-'))
const key = generateKeyPairSync('ed25519')
const other = generateKeyPairSync('ed25519')
const pem = String(key.publicKey.export({ type: 'spki', format: 'pem' }))
const offered = new Map<string, Buffer>()
/** Bytes after which the server cuts the connection, by name. */
const cut = new Map<string, number>()
const ranges: string[] = []
const server = createServer((req, res) => {
  const name = req.url!.slice('/u/'.length)
  const content = offered.get(name)
  if (content === undefined) {
    res.writeHead(404).end()
    return
  }
  const from = Number(/bytes=(\d+)-/.exec(req.headers.range ?? '')?.[1] ?? 0)
  if (from > 0) ranges.push(`${name} ${from}`)
  res.writeHead(from > 0 ? 206 : 200, { 'content-length': content.length - from })
  const end = cut.get(name)
  if (end === undefined) res.end(content.subarray(from))
  else
    res.write(content.subarray(from, end), () => {
      setTimeout(() => {
        res.destroy()
      }, 50)
    })
})
let url = ''
const paths = updatePaths({
  GATEHOUSE_UPDATE_DIR: join(root, 'downloads'),
  GATEHOUSE_SLOTS_DIR: join(root, 'slots'),
  GATEHOUSE_UPDATE_KEY: join(root, 'update.pub'),
  GATEHOUSE_OS_RELEASE: join(root, 'os-release'),
})
before(async () => {
  mkdirSync(join(root, 'slots'))
  writeFileSync(paths.key, pem)
  writeFileSync(paths.osRelease, 'ID=debian\nIMAGE_ID=gatehouse\nIMAGE_VERSION="0.9.1"\n')
  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve)
  })
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/u/`
})
after(() => {
  server.close()
  server.closeAllConnections()
  rmSync(root, { recursive: true, force: true })
})

function offer(version: string, privateKey = key.privateKey): string[] {
  const id = 'aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee'
  const names = [
    `gatehouse_${version}_${arch}.efi`,
    `gatehouse_${version}_${id}_${arch}.root`,
    `gatehouse_${version}_${id}_${arch}.verity`,
  ]
  for (const name of names) offered.set(name, randomBytes(300_000))
  const sums = Buffer.from(
    names
      .map((name) => `${createHash('sha256').update(offered.get(name)!).digest('hex')}  ${name}\n`)
      .join(''),
  )
  offered.set('SHA256SUMS', sums)
  offered.set('SHA256SUMS.sig', sign(null, sums, privateKey))
  return names
}
beforeEach(() => {
  offered.clear()
  cut.clear()
  ranges.length = 0
  rmSync(paths.downloads, { recursive: true, force: true })
  rmSync(join(paths.slots, 'record.json'), { force: true })
})

test('a newer version is downloaded whole; the same, an older one, and one that was given up are not', async () => {
  const names = offer('0.10.0')
  assert.equal((await collect(webSource(url), paths))?.version, '0.10.0')
  for (const name of names)
    assert.ok(readFileSync(join(paths.downloads, name)).equals(offered.get(name)!))
  await writeUpdateRecord(paths, {
    from: '0.9.1',
    to: '0.10.0',
    installedAt: new Date().toISOString(),
    failure: 'x',
  })
  assert.equal(await collect(webSource(url), paths), undefined)
  assert.equal(
    (await collect(webSource(url), paths, { force: true }))?.version,
    '0.10.0',
    'with force',
  )
  // One that was never heard from: the power may have gone.
  for (const [tries, again] of [
    [1, '0.10.0'],
    [2, '0.10.0'],
    [3, undefined],
    [undefined, undefined],
  ] as const) {
    await writeUpdateRecord(paths, {
      from: '0.9.1',
      to: '0.10.0',
      installedAt: new Date().toISOString(),
      ...(tries === undefined ? {} : { tries }),
    })
    assert.equal((await collect(webSource(url), paths))?.version, again, `tried ${tries} times`)
  }
  for (const version of ['0.9.1', '0.9.0', '0.8.99']) {
    offer(version)
    assert.equal(await collect(webSource(url), paths), undefined, version)
  }
})

test('what an earlier download has left is not taken for a new one', async () => {
  offer('1.0')
  await collect(webSource(url), paths)
  assert.ok(existsSync(join(paths.downloads, 'SHA256SUMS.sig')))
  // It has been installed meanwhile, and was given up.
  await writeUpdateRecord(paths, {
    from: '0.9.1',
    to: '1.0',
    installedAt: new Date().toISOString(),
    failure: 'x',
  })
  assert.equal(await collect(webSource(url), paths), undefined)
  assert.ok(!existsSync(join(paths.downloads, 'SHA256SUMS.sig')), 'nothing to install')
})

test('another key, a changed list, a missing file: nothing is downloaded', async () => {
  offer('1.0', other.privateKey)
  await assert.rejects(collect(webSource(url), paths), { code: 'GH_UPDATE_SIGNATURE' })
  offer('1.0')
  offered.set(
    'SHA256SUMS',
    Buffer.concat([
      offered.get('SHA256SUMS')!,
      Buffer.from(`${'0'.repeat(64)}  gatehouse_2.0_${arch}.efi\n`),
    ]),
  )
  await assert.rejects(collect(webSource(url), paths), { code: 'GH_UPDATE_SIGNATURE' })
  offered.delete('SHA256SUMS.sig')
  await assert.rejects(collect(webSource(url), paths), /SHA256SUMS\.sig answers 404/)
  const sums = Buffer.from(`${'0'.repeat(64)}  gatehouse_2.0_${arch}.efi\n`)
  assert.throws(() => readBundle(sums, sign(null, sums, key.privateKey), pem), {
    code: 'GH_UPDATE_FORMAT',
  })
})

test('a download that breaks off goes on where it was; a file that is not what was signed is thrown away', async () => {
  const names = offer('1.0')
  cut.set(names[1]!, 100_000)
  await assert.rejects(collect(webSource(url), paths), { code: 'GH_UPDATE_UNREACHABLE' })
  cut.clear()
  assert.equal((await collect(webSource(url), paths))?.version, '1.0')
  assert.equal(ranges.length, 1)
  assert.match(ranges[0]!, new RegExp(`^${names[1]} [1-9]`))
  assert.ok(readFileSync(join(paths.downloads, names[1]!)).equals(offered.get(names[1]!)!))

  const next = offer('1.1')
  offered.set(next[2]!, offered.get(next[2]!)!.subarray(0, 1000))
  await assert.rejects(collect(webSource(url), paths), { code: 'GH_UPDATE_DAMAGED' })
  assert.ok(!readdirSync(paths.downloads).some((name) => name.startsWith(next[2]!)))
  assert.ok(
    !readdirSync(paths.downloads).some((name) => names.includes(name)),
    'what belongs to another version is gone',
  )
})

test('what a power cut left of a download and is not what had come: it begins anew at once, and only once', async () => {
  const names = offer('1.0')
  mkdirSync(paths.downloads, { recursive: true })
  writeFileSync(join(paths.downloads, `${names[1]!}.part`), Buffer.alloc(4096))
  ranges.length = 0
  assert.equal((await collect(webSource(url), paths))?.version, '1.0')
  assert.deepEqual(ranges.length, 1, 'it went on from there at first')
  assert.ok(readFileSync(join(paths.downloads, names[1]!)).equals(offered.get(names[1]!)!))

  const next = offer('1.1')
  writeFileSync(join(paths.downloads, `${next[1]!}.part`), Buffer.alloc(4096))
  offered.set(next[1]!, Buffer.alloc(offered.get(next[1]!)!.length))
  await assert.rejects(collect(webSource(url), paths), { code: 'GH_UPDATE_DAMAGED' })
  assert.ok(!readdirSync(paths.downloads).some((name) => name.startsWith(next[1]!)))
})

test('versions are ordered by their numbers; status says what became of an update', async () => {
  assert.deepEqual(['0.10', '0.9', '0.9.202611211510', '1'].toSorted(compareVersions), [
    '0.9',
    '0.9.202611211510',
    '0.10',
    '1',
  ])
  // Each is older than the next.
  const ordered = [
    '0.9~~',
    '0.9~rc1',
    '0.9~rc2',
    '0.9~rc10',
    '0.9',
    '0.9^1',
    '0.9^2',
    '0.9.1~a',
    '0.9.1',
    '0.9.1.202611211510',
    '0.9a',
    '0.9b',
    '0.10~1',
    '0.10',
    '1',
    '1.0.rc',
    '1.0.1',
  ]
  for (const [i, one] of ordered.entries())
    for (const [j, another] of ordered.entries())
      assert.equal(compareVersions(one, another), Math.sign(i - j), `${one} and ${another}`)
  assert.equal(compareVersions('1.007', '1.7'), 0)
  const installedAt = '2026-11-21T12:00:00Z'
  const line = async (record: object): Promise<string | undefined> => {
    await writeUpdateRecord(paths, { from: '0.9.0', to: '0.9.1', installedAt, ...record })
    return (await updateLine(paths))?.text
  }
  assert.equal(await line({}), '0.9.1 is on trial: it stays once it has served')
  assert.equal(await line({ good: true }), '0.9.1, since 2026-11-21; before 0.9.0')
  assert.equal(
    await line({ from: '0.9.1', to: '1.0', failure: 'it did not serve in time: no network' }),
    '1.0 of 2026-11-21 was given up, and 0.9.1 is back: it did not serve in time: no network',
  )
  const silent = { from: '0.9.1', to: '1.0', bootID: 'another', tries: 1 }
  assert.match(
    (await line({ ...silent, bootID: await bootID() }))!,
    /has not reported yet; 0\.9\.1 runs/,
  )
  assert.match(
    (await line(silent))!,
    /1\.0 of .* did not stay, and 0\.9\.1 is back: .*, or the power went; it was tried once, and is tried 3 times/,
  )
  assert.match((await line({ ...silent, tries: 2 }))!, /it was tried 2 times/)
  assert.match(
    (await line({ ...silent, tries: 3 }))!,
    /1\.0 of .* was given up, and 0\.9\.1 is back: it was started, and did not get far enough/,
  )
  // Of a version that left the counting to the boot loader.
  assert.match((await line({ from: '0.9.1', to: '1.0' }))!, /1\.0 of .* was given up/)
})

test(
  'the order is that of systemd, which writes and starts by it',
  { skip: spawnSync('systemd-analyze', ['--version']).status !== 0 && 'no systemd-analyze here' },
  () => {
    const pieces = ['0', '1', '2', '10', '007', 'a', 'b', 'rc', 'Z', '~', '^', '.', '.', '~~', '.~']
    // A generator of its own, so that what fails once fails again.
    let seed = 16
    const pick = (below: number): number => (seed = (seed * 48271) % 2147483647) % below
    const version = (): string =>
      ['', '1.0', '0.9.'][pick(3)]! +
      Array.from({ length: 1 + pick(5) }, () => pieces[pick(pieces.length)]!).join('')
    const differ: string[] = []
    for (let i = 0; i < 120; i++) {
      const [one, other] = [version(), version()]
      // 0: equal, 11: the first is newer, 12: the second is.
      const { status } = spawnSync('systemd-analyze', ['compare-versions', one, other])
      const wanted = new Map([
        [0, 0],
        [11, 1],
        [12, -1],
      ]).get(status ?? 1)
      if (compareVersions(one, other) !== wanted) differ.push(`${one} ${other}: ${status}`)
    }
    assert.deepEqual(differ, [])
  },
)

test('a percentage in the signed list: devices above it wait, and nothing large is fetched', async () => {
  offer('1.0')
  const sums = Buffer.concat([Buffer.from('# percentage 10\n'), offered.get('SHA256SUMS')!])
  offered.set('SHA256SUMS', sums).set('SHA256SUMS.sig', sign(null, sums, key.privateKey))
  const seen: number[] = []
  assert.equal(
    await collect(webSource(url), paths, {
      takes: ({ percentage }) => {
        seen.push(percentage)
        return false
      },
    }),
    undefined,
  )
  assert.deepEqual(seen, [10])
  assert.ok(!existsSync(paths.downloads))
  assert.equal(
    (await collect(webSource(url), paths, { takes: ({ percentage }) => percentage === 10 }))
      ?.version,
    '1.0',
  )
  offer('1.1')
  assert.equal(
    (await collect(webSource(url), paths, { takes: ({ percentage }) => percentage === 100 }))
      ?.version,
    '1.1',
    'without the line: all',
  )
})

test("a device's place is its own, the same each time, and spread evenly; another for the next version", async () => {
  const machines = Array.from(
    { length: 5000 },
    (_, i) =>
      `dc:a6:32:00:${(i >> 8).toString(16).padStart(2, '0')}:${(i & 255).toString(16).padStart(2, '0')}`,
  )
  const first = machines.map((machine) => placeOf(machine, '1.0'))
  assert.deepEqual(
    machines.map((machine) => placeOf(machine, '1.0')),
    first,
  )
  const among = (places: number[]): number => places.filter((place) => place < 10).length
  assert.ok(among(first) > 400 && among(first) < 600, `10 % of 5000: ${among(first)}`)
  assert.ok(
    machines.filter((machine, i) => first[i]! < 10 && placeOf(machine, '1.1') < 10).length < 100,
  )
  assert.ok(first.every((place) => Number.isInteger(place) && place >= 0 && place < 100))

  const sys = join(root, 'net')
  for (const [name, address] of [
    ['eth0', 'dc:a6:32:00:00:02'],
    ['wlan0', 'dc:a6:32:00:00:01'],
  ] as const) {
    mkdirSync(join(sys, name, 'device'), { recursive: true })
    writeFileSync(join(sys, name, 'address'), `${address}\n`)
  }
  mkdirSync(join(sys, 'lo'))
  writeFileSync(join(sys, 'lo/address'), '00:00:00:00:00:00\n')
  assert.equal(await hardwareAddress(sys), 'dc:a6:32:00:00:01')
  assert.equal(await hardwareAddress(join(root, 'nowhere')), '')
})

test("the window becomes the timer's: by default its own, else from its beginning by chance to its end", () => {
  const timer = (toml: string): string[] =>
    updateTimerDropIn(parseConfig(`[updates]\n${toml}\n`, 'gatehouse.toml').updates)
      .split('\n')
      .filter((line) => !line.startsWith('#'))
  assert.deepEqual(timer(''), [''])
  assert.deepEqual(timer('window = "23:30-01:00"'), [
    '[Timer]',
    'OnCalendar=',
    'OnCalendar=*-*-* 23:30',
    'RandomizedDelaySec=90min',
    '',
  ])
  assert.deepEqual(timer('window = "Sat,Sun 04:00-06:00"'), [
    '[Timer]',
    'OnCalendar=',
    'OnCalendar=Sat,Sun *-*-* 04:00',
    'RandomizedDelaySec=120min',
    '',
  ])
  for (const window of [
    '2-5',
    '02:00',
    '24:00-01:00',
    '02:00-02:10',
    '02:00-02:00',
    'Sa 02:00-03:00',
  ]) {
    assert.throws(() => timer(`window = "${window}"`), { code: 'GH_CONFIG_VALUE' }, window)
  }
})
