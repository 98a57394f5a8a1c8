/**
 * What the FAT partition looks like wherever the power goes while settings are tried, kept and taken
 * back: all that the booted image writes there is noted, and each state that a card with a cache may
 * be left in is checked by fsck.fat, and by what is in gatehouse.toml. Hundreds of cuts in one boot.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { createHash, randomInt } from 'node:crypto'
import { type FileHandle, open, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { test } from 'node:test'
import { Lab } from '../lab/lab.ts'
import { bootAppliance, eventually, settings, tried } from './appliance.ts'
import { Stage } from '../scenarios/stage.ts'
import type { Recording } from './cache-card.ts'
import { fromTree, tool, treeEnvironment } from './tools-tree.ts'

const skip = process.env['GATEHOUSE_LONG'] === '1' ? false : 'boots a machine: make test-long'

/**
 * What fsck.fat may say. Space that is lost is no harm; that the partition was not unmounted is what
 * a cut is.
 */
const harmless = [
  /^fsck\.fat /,
  /^(?:0x\d+: )?Dirty bit is set\./,
  /^ ?Automatically removing dirty bit/,
  /^There are differences between boot sector and its backup\./,
  /^This is mostly harmless\. Differences:/,
  /^ {2}65:01\/00/,
  /^ {2}Not automatically fixing this\./,
  // Linux reads the first, and writes both.
  /^(?:FATs differ but appear to be intact\.| {2}Using first FAT\.)/,
  /^Reclaimed \d+ unused clusters? \(\d+ bytes\)\.?/,
  /^Free cluster summary (?:wrong|uninitialized)/,
  /^ {2}Auto-(?:correcting|setting)\./,
  /^Leaving filesystem unchanged\./,
  /^\*\*\* Filesystem was changed \*\*\*/,
  /^The changes have not/,
  /: \d+ files, \d+\/\d+ clusters/,
  /^$/,
]

type Write = { offset: number; data: Buffer }

/** Ends of what was written without a flush between: all of it, none of it, parts in any order. */
function subsets(writes: readonly Write[]): Write[][] {
  const prefixes = writes.map((_, i) => writes.slice(0, i))
  const anyhow = Array.from({ length: Math.min(8, 2 ** writes.length) }, () =>
    writes.filter(() => randomInt(2) === 1),
  )
  return [...prefixes, ...anyhow, [...writes]]
}

/** The partition as a cut may leave it, one state after the other, in a file. */
class States {
  readonly file: string
  readonly #handle: FileHandle
  readonly #durable: Buffer
  readonly #seen = new Set<string>()

  static async of(base: Buffer, file: string): Promise<States> {
    await writeFile(file, base)
    return new States(Buffer.from(base), file, await open(file, 'r+'))
  }

  private constructor(durable: Buffer, file: string, handle: FileHandle) {
    this.#durable = durable
    this.file = file
    this.#handle = handle
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#handle.close()
  }

  /** Does something with each state that the cut may leave before these writes were flushed. */
  async after(writes: readonly Write[], check: () => Promise<void>): Promise<void> {
    for (const some of subsets(writes)) {
      const hash = createHash('sha256')
      const over = Buffer.from(this.#durable)
      for (const { offset, data } of some) data.copy(over, offset)
      for (const { offset, data } of writes)
        hash.update(over.subarray(offset, offset + data.length)).update(`${offset} `)
      const state = hash.digest('hex')
      if (this.#seen.has(state)) continue
      this.#seen.add(state)
      for (const { offset, data } of writes)
        await this.#handle.write(over, offset, data.length, offset)
      await check()
    }
    for (const { offset, data } of writes) data.copy(this.#durable, offset)
    for (const { offset, data } of writes)
      await this.#handle.write(this.#durable, offset, data.length, offset)
  }
}

/** The writes of each time between two flushes. */
function epochs({ steps }: Recording): Write[][] {
  const all: Write[][] = [[]]
  for (const step of steps)
    if (step === 'flush') all.push([])
    else all.at(-1)!.push(step)
  return all.filter((writes) => writes.length > 0)
}

test(
  'wherever the power goes while settings change, the FAT partition is sound and has one of the two files',
  { skip },
  async (t) => {
    const lab = await Lab.start({ name: 'cardcuts' })
    t.after(async () => {
      await lab.stop()
    })
    const client = await lab.client('laptop')
    const machine = await bootAppliance(lab, tried, {
      card: 'honest',
      toml: `${settings(lab)}[updates]\nhold = false\n`,
    })
    t.after(async () => {
      await machine.destroy()
    })
    const stage = new Stage(lab, client, machine)
    await stage.served(600)
    // The used key comes off the card, and the report is written there.
    await eventually('the key is off the card', 300, async () =>
      /^auth_key/m.test(await stage.run('cat /efi/gatehouse.toml')) ? undefined : true,
    )
    const api = `https://${await stage.name()}:10000/api/v1`
    const call = async (verb: string, body?: object): Promise<Record<string, string>> => {
      const answer = await client.fetch(`${api}/${verb}`, {
        timeout: 120_000,
        ...(body === undefined
          ? {}
          : {
              method: 'POST',
              headers: { 'content-type': 'application/json' },
              body: JSON.stringify(body),
            }),
      })
      assert.ok(answer.status < 300, `${verb}: ${answer.status} ${answer.body.toString()}`)
      return JSON.parse(answer.body.toString()) as Record<string, string>
    }
    const known = new Set([await stage.run('cat /efi/gatehouse.toml')])
    const recording = await machine.recordBoot()
    for (let round = 0; round < 6; round++) {
      const { digest, text } = await call('settings')
      // From a few clusters to another number of them, and back.
      const changed = `${text!
        .replace(/^hold = .*[^]*$/m, `hold = ${!text!.includes('hold = true')}`)
        .trim()}\n# ${'x'.repeat(400 * ((round * 2) % 5))}\n`
      const { id } = await call('settings/try', { text: changed, digest })
      known.add(await stage.run('cat /efi/gatehouse.toml'))
      await call(round % 3 === 2 ? 'settings/revert' : 'settings/confirm', { id })
      known.add(await stage.run('cat /efi/gatehouse.toml'))
    }
    await stage.run('sync')
    const written = epochs(recording)
    let states = 0
    const harmed: string[] = []
    const [fsck = '', ...fsckArgs] = fromTree('../sbin/fsck.fat')
    const [mtools = '', ...mtoolsArgs] = fromTree('mtools')
    await using cuts = await States.of(recording.base, path.join(lab.dir, 'esp'))
    for (const writes of written)
      await cuts.after(writes, async () => {
        states++
        // It ends with 1 where it would have changed anything.
        const said = spawnSync(fsck, [...fsckArgs, '-n', cuts.file], {
          encoding: 'utf8',
          env: { ...process.env, ...treeEnvironment },
        })
        // A file that was being written goes before anything else is written (src/base/card.ts).
        const harm = `${said.stdout}${said.stderr}`
          .replaceAll(/^\/\S+\.TMP\n(?: {2}.*\n)+/gm, '')
          .split('\n')
          .filter((line) => !harmless.some((pattern) => pattern.test(line)))
        if (harm.length > 0) harmed.push(`state ${states}: ${harm.join('; ')}`)
        const read = await tool(
          mtools,
          [...mtoolsArgs, '-c', 'mtype', '-i', cuts.file, '::gatehouse.toml'],
          undefined,
          treeEnvironment,
        )
        if (!known.has(read.trim()))
          harmed.push(`state ${states}: gatehouse.toml is ${JSON.stringify(read)}`)
      })
    t.diagnostic(`${written.length} flushes, ${states} states`)
    assert.deepEqual(harmed.slice(0, 10), [], `${harmed.length} of ${states} states`)
    assert.ok(states > 50, `${states} states`)
    assert.equal(await lab.leaked(), 0)
  },
)
