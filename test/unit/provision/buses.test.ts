import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { after, test } from 'node:test'
import { busNotes, busesFile, busesText, writeBuses } from '../../../src/provision/buses.ts'

const root = mkdtempSync(join(tmpdir(), 'gh-buses-'))
after(() => rmSync(root, { recursive: true, force: true }))
const config = readFileSync(resolve(import.meta.dirname, '../../../image/rpi/config.txt'), 'utf8')

/** A card's FAT partition. */
function card(name: string, files: Record<string, string>): string {
  const folder = join(root, name)
  mkdirSync(folder)
  for (const [file, text] of Object.entries(files)) writeFileSync(join(folder, file), text)
  return folder
}

/** A kernel's device tree, as /sys has it. */
function tree(name: string, nodes: Record<string, string>): string {
  const folder = join(root, name)
  for (const [node, status] of Object.entries(nodes)) {
    mkdirSync(join(folder, node), { recursive: true })
    writeFileSync(join(folder, node, 'status'), `${status}\0`)
  }
  return folder
}

test('a line for each bus that is given, of one size whatever is given', () => {
  assert.doesNotMatch(busesText(['serial', 'gpio', 'i2c']), /^[^#\n]/m)
  assert.match(busesText(['i2c', 'spi']), /^dtoverlay=gatehouse-spi$/m)
  assert.doesNotMatch(busesText(['spi']), /1-wire/)
  const both = busesText(['1-wire', 'spi'])
  assert.match(both, /^dtoverlay=gatehouse-spi\ndtoverlay=gatehouse-1-wire$/m)
  for (const text of [both, busesText([])]) assert.equal(text.length, 512)
  for (const line of both.split('\n')) assert.ok(line.length <= 98, line)
})

test('the file is written in place where config.txt includes it, and nowhere else', async () => {
  const boot = card('new', { 'config.txt': config, [busesFile]: busesText([]) })
  const { ino } = statSync(join(boot, busesFile))
  await writeBuses(boot, ['spi', 'serial'])
  assert.equal(readFileSync(join(boot, busesFile), 'utf8'), busesText(['spi']))
  await writeBuses(boot, [])
  assert.equal(readFileSync(join(boot, busesFile), 'utf8'), busesText([]))
  assert.equal(statSync(join(boot, busesFile)).ino, ino)
  // What a person made of it ends too: it is Gatehouse's.
  writeFileSync(join(boot, busesFile), `${'x'.repeat(2000)}\n`)
  await writeBuses(boot, ['1-wire'])
  assert.equal(readFileSync(join(boot, busesFile), 'utf8'), busesText(['1-wire']))
  assert.equal(readFileSync(join(boot, 'config.txt'), 'utf8'), config)

  const old = card('old', { 'config.txt': config.replace(/^include .*$/m, '') })
  await writeBuses(old, ['spi'])
  assert.throws(() => readFileSync(join(old, busesFile)), /ENOENT/)
  writeFileSync(join(old, busesFile), 'mine')
  await writeBuses(old, ['spi'])
  assert.equal(readFileSync(join(old, busesFile), 'utf8'), 'mine')
  await writeBuses(card('pc', {}), ['spi'])
})

test('what is given and off is said: from the next start, or not with this card', async () => {
  const boot = card('notes', { 'config.txt': config, [busesFile]: busesText([]) })
  const off = tree('off', { 'soc/spi@7e204000': 'disabled' })
  const on = tree('on', { 'soc/spi@7e204000': 'okay', 'gatehouse-1-wire': 'okay' })
  assert.deepEqual(await busNotes(boot, ['i2c', 'serial'], off), [])
  assert.deepEqual(await busNotes(boot, ['spi', '1-wire'], on), [])
  assert.deepEqual(await busNotes(boot, ['spi'], join(root, 'none')), [], 'a PC')
  const [note, ...more] = await busNotes(boot, ['1-wire', 'spi'], off)
  assert.match(note!, /^SPI and 1-wire on the board's header: on from the next start/)
  assert.deepEqual(more, [])
  assert.match(
    (await busNotes(card('older', { 'config.txt': '' }), ['1-wire'], off))[0]!,
    /^1-wire .* not to be switched on with this card, .*KEEP=1/,
  )
})
