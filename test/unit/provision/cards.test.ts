/** Every card of test/corpus/cards, by the real provisioning: README.md there says how to add one. */
import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { notesFile, paths as pathsOf, secretFile } from '../../../src/base/paths.ts'
import type { Paths } from '../../../src/base/paths.ts'
import { loadConfig } from '../../../src/config/load.ts'
import { runProvision } from '../../../src/provision/provision.ts'

const corpus = join(import.meta.dirname, '../../corpus/cards')
const root = mkdtempSync(join(tmpdir(), 'gh-cards-'))
// systemd is asked to read its units anew; here it is not concerned.
mkdirSync(join(root, 'bin'))
writeFileSync(join(root, 'bin/systemctl'), '#!/bin/sh\nexit 0\n', { mode: 0o755 })
const before = process.env.PATH
process.env.PATH = `${join(root, 'bin')}:${before}`
after(() => {
  process.env.PATH = before
  rmSync(root, { recursive: true, force: true })
})

/** Where each kind of expectation looks. */
const places: Record<string, (paths: Paths) => string> = {
  wifi: ({ config }) => join(config, 'wpa_supplicant.conf'),
  ethernet: ({ units }) => join(units, '../network/50-wired.network.d/50-gatehouse.conf'),
  wireless: ({ units }) => join(units, '../network/60-wireless.network.d/50-gatehouse.conf'),
  'node-red': ({ units }) => join(units, 'node-red.service.d/50-gatehouse.conf'),
  timer: ({ units }) => join(units, 'gatehouse-update.timer.d/50-gatehouse.conf'),
  problem: ({ problem }) => problem,
  note: (paths) => notesFile(paths),
}

const read = (path: string): string => {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return ''
  }
}

for (const file of readdirSync(corpus).filter((name) => name.endsWith('.card'))) {
  const [about, ...sections] = read(join(corpus, file)).split(/^--- /m)
  test(`${file.replace(/\.card$/, '')}: ${about!.trim()}`, async () => {
    const paths = machine()
    let expected: string[] = []
    for (const section of sections) {
      const [header, ...lines] = section.split('\n')
      const [name, ...how] = header!.split(' ')
      const content = lines.join('\n')
      if (name === 'expect') expected = content.split('\n').filter((line) => line !== '')
      else if (how.includes('folder')) mkdirSync(join(paths.boot, name!))
      else writeFileSync(join(paths.boot, name!), bytes(content, how))
    }
    assert.ok(expected.length > 0, 'nothing is expected')
    assert.equal(await quietly(async () => await runProvision(paths)), 0)
    for (const line of expected) await check(line, paths)
    // Whatever is on the card, the next boot comes to the same.
    const [problem, notes] = [read(paths.problem), read(notesFile(paths))]
    assert.equal(await quietly(async () => await runProvision(paths)), 0)
    if (problem === '' || !problem.includes('gatehouse.toml'))
      assert.deepEqual([read(paths.problem), read(notesFile(paths))], [problem, notes])
  })
}

function machine(): Paths {
  const directory = mkdtempSync(join(root, 'c-'))
  mkdirSync(join(directory, 'efi'))
  return pathsOf({
    GATEHOUSE_BOOT_DIR: join(directory, 'efi'),
    GATEHOUSE_CONFIG_DIR: join(directory, 'config'),
    GATEHOUSE_PROBLEM_FILE: join(directory, 'run/problem'),
    GATEHOUSE_CHANNEL_KEY: join(directory, 'run/channel'),
    GATEHOUSE_UNIT_DIR: join(directory, 'systemd/system'),
  })
}

function bytes(content: string, how: readonly string[]): Buffer {
  let text = content.replaceAll('<TAB>', '\t')
  if (how.includes('crlf')) text = text.replaceAll('\n', '\r\n')
  if (how.includes('bom')) text = `\uFEFF${text}`
  if (how.includes('times')) text = text.repeat(Number(how[how.indexOf('times') + 1]))
  if (how.includes('latin1')) return Buffer.from(text, 'latin1')
  if (how.includes('utf-16le')) return Buffer.from(text, 'utf16le')
  if (how.includes('utf-16be')) return Buffer.from(text, 'utf16le').swap16()
  return Buffer.from(text)
}

/** What goes to the journal is not what is looked at here. */
async function quietly<T>(work: () => Promise<T>): Promise<T> {
  const write = process.stderr.write
  process.stderr.write = (() => true) as typeof write
  try {
    return await work()
  } finally {
    process.stderr.write = write
  }
}

async function check(line: string, paths: Paths): Promise<void> {
  const { no, kind, rest } =
    /^(?<no>no )?(?<kind>[a-z-]+)(?:: (?<rest>.*))?$/.exec(line)?.groups ?? {}
  if (kind === 'toml') {
    const [, path, value] = /^(\S+) = (.*)$/.exec(rest!)!
    const config: unknown = await loadConfig(paths.config)
    const found = path!
      .split('.')
      .reduce((at: unknown, part) => (at as Record<string, unknown> | undefined)?.[part], config)
    assert.deepEqual(found, value === 'undefined' ? undefined : JSON.parse(value!), line)
    return
  }
  if (kind === 'authkey') {
    assert.equal(read(secretFile(paths, 'authkey')), rest)
    return
  }
  if (kind === 'never') {
    assert.ok(!`${read(paths.problem)}${read(notesFile(paths))}`.includes(rest!), line)
    return
  }
  const place = places[kind!]
  assert.ok(place !== undefined, `${line}: nothing is called so`)
  const text = read(place(paths))
  const lines = text.split('\n').map((found) => found.trim())
  if (no !== undefined && rest === undefined) assert.equal(text, '', line)
  else if (no !== undefined)
    assert.ok(!lines.some((found) => found.startsWith(rest!)), `${line}\n${text}`)
  else if (kind === 'problem' || kind === 'note')
    assert.ok(text.includes(rest!), `${line}\n${text}`)
  else assert.ok(lines.includes(rest!), `${line}\n${text}`)
}
