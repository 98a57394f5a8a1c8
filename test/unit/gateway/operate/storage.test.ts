import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { test } from 'node:test'
import { examineStorage } from '../../../../src/gateway/operate/storage.ts'
import { Bench } from '../../support/bench.ts'

/** A file system of this size of its own, in memory. */
function disk(size: string): {
  directory: string
  remount: (option: string) => void
  [Symbol.dispose]: () => void
} {
  const directory = mkdtempSync(join(tmpdir(), 'storage-'))
  execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'tmpfs', directory])
  return {
    directory,
    remount: (option) => {
      execFileSync('mount', ['-o', `remount,${option}`, directory])
    },
    [Symbol.dispose]: () => {
      execFileSync('umount', [directory])
      rmSync(directory, { recursive: true })
    },
  }
}

const skip = process.getuid?.() !== 0 && 'mounting needs root'

test(
  'a file system with room is well; nearly full is a warning, full an error, each with what to do',
  { skip },
  async () => {
    using large = disk('200m')
    assert.deepEqual(await examineStorage(large.directory), { found: '200 MiB free of 200' })
    writeFileSync(join(large.directory, 'much'), Buffer.alloc(150 << 20))
    assert.deepEqual(
      [(await examineStorage(large.directory)).problem].map((problem) => [
        problem?.severity,
        problem?.error.code,
      ]),
      [['warning', 'GH_DATA_FULL']],
    )
    writeFileSync(join(large.directory, 'more'), Buffer.alloc(45 << 20))
    const { problem } = await examineStorage(large.directory)
    assert.equal(problem?.severity, 'error')
    assert.match(problem!.error.cure, /switch the device off and on.*exec node with rm -r/)
  },
)

test('when files are left for the others alone, flows have made too many', { skip }, async () => {
  using small = disk('200m,nr_inodes=4001')
  // A tmpfs has its root in it.
  for (let i = 0; i < 3000; i++) writeFileSync(join(small.directory, String(i)), '')
  assert.equal((await examineStorage(small.directory)).problem, undefined)
  writeFileSync(join(small.directory, 'one more'), '')
  const { problem } = await examineStorage(small.directory)
  assert.deepEqual([problem?.severity, problem?.error.code], ['error', 'GH_DATA_FULL'])
  assert.match(problem!.error.message, /as many files as/)
})

test(
  'an ext4 that the kernel has found damaged, though it counts as writable',
  { skip },
  async () => {
    const folder = mkdtempSync(join(tmpdir(), 'storage-'))
    const [image, directory] = [join(folder, 'image'), join(folder, 'mounted')]
    mkdirSync(directory)
    execFileSync('truncate', ['-s', '256M', image])
    execFileSync('mkfs.ext4', ['-q', image])
    execFileSync('mount', ['-o', 'loop,errors=remount-ro', image, directory])
    try {
      assert.equal((await examineStorage(directory)).problem, undefined)
      const device = execFileSync('findmnt', ['-no', 'SOURCE', directory], {
        encoding: 'utf8',
      }).trim()
      writeFileSync(`/sys/fs/ext4/${basename(device)}/trigger_fs_error`, '1')
      assert.throws(() => {
        writeFileSync(join(directory, 'new'), 'text')
      }, /EROFS/)
      assert.equal((await examineStorage(directory)).problem?.error.code, 'GH_DATA_READ_ONLY')
    } finally {
      execFileSync('umount', [directory])
      rmSync(folder, { recursive: true })
    }
  },
)

test(
  'read-only, as the kernel makes what it finds damaged: in the status within a minute, and gone with it',
  { skip, timeout: 150_000 },
  async (t) => {
    using state = disk('200m')
    t.mock.timers.enable({ apis: ['setInterval'] })
    await using bench = await Bench.start({ options: { state: state.directory } })
    const problem = async (): Promise<string | undefined> => {
      t.mock.timers.tick(60_000)
      await new Promise((resolve) => setTimeout(resolve, 300))
      return bench.gateway.problems.get('storage')?.code
    }
    assert.equal(await problem(), undefined)
    state.remount('ro')
    assert.equal(await problem(), 'GH_DATA_READ_ONLY')
    state.remount('rw')
    assert.equal(await problem(), undefined)
  },
)
