import { execFile } from 'node:child_process'
import { readFile, rm, stat, writeFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { writeFileAtomic } from './files.ts'

const run = promisify(execFile)

/**
 * Does something with the card's FAT partition writable, which it is for no longer than that:
 * read-only, a power cut cannot harm what boots. Outside the appliance (`boot` is no mount point)
 * it is just done.
 */
export async function withCard<T>(boot: string, work: () => Promise<T>): Promise<T> {
  const mounted = (await readFile('/proc/self/mounts', 'utf8'))
    .split('\n')
    .some((line) => line.split(' ')[1] === boot)
  if (!mounted) return await work()
  // One at a time: who is done makes it read-only again.
  await using _lock = await lock('/run/gatehouse-card.lock')
  await run('mount', ['-o', 'remount,rw', boot])
  try {
    return await work()
  } finally {
    await run('sync', ['-f', boot])
    await run('mount', ['-o', 'remount,ro', boot])
  }
}

/**
 * A lock by a file with the holder's process ID, which frees itself when that process is gone.
 * Waits for up to five minutes.
 */
async function lock(path: string): Promise<AsyncDisposable> {
  for (let tries = 0; ; tries++) {
    try {
      await writeFile(path, String(process.pid), { flag: 'wx' })
      return {
        [Symbol.asyncDispose]: async () => {
          await rm(path, { force: true })
        },
      }
    } catch (err) {
      if ((err as NodeJS.ErrnoException).code !== 'EEXIST' || tries > 1500) throw err
    }
    const holder = Number(await readFile(path, 'utf8').catch(() => ''))
    if (
      holder > 0 &&
      !(await stat(`/proc/${holder}`).then(
        () => true,
        () => false,
      ))
    )
      await rm(path, { force: true })
    await sleep(200)
  }
}

/**
 * Replaces a file on the card unless it has this content already. FAT has no modes: root alone can
 * see the partition.
 */
export async function writeCard(boot: string, path: string, content: string): Promise<void> {
  if ((await readFile(path, 'utf8').catch(() => '')) === content) return
  await withCard(boot, async () => {
    await writeFileAtomic(path, content, 0o700)
  })
}

/**
 * gatehouse.toml without its auth key or OAuth client secret: the line stays as a comment that says
 * what became of it. All else, comments and line ends included, is left as the person wrote it.
 *
 * @returns undefined when there is no such line
 */
export function withoutAuthKey(text: string): string | undefined {
  // A string of any of TOML's one-line forms; the key may be quoted too. Multi-line strings are no
  // auth keys (see checkAuthKey).
  const line =
    /^([ \t]*)(?:tailnet\s*\.\s*)?("auth_key"|'auth_key'|auth_key|"client_secret"|'client_secret'|client_secret)\s*=\s*("[^"\r\n]*"|'[^'\r\n]*')([^\r\n]*)$/gm
  let found = false
  const changed = text.replace(line, (_all, indent: string, key: string) => {
    found = true
    return `${indent}# ${key.replaceAll(/["']/g, '')}: used to join the tailnet, and taken off the card. The device keeps its own identity.`
  })
  return found ? changed : undefined
}
