import fs from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

/** How long another program may have the file open on Windows, in ms, and how often to look. */
const OPEN_ELSEWHERE_MS = 5000
const AGAIN_MS = 50

/**
 * Puts a file in another's place. On Windows that fails for as long as somebody has the other open,
 * which virus scanners and indexers do for a moment with what has just been written.
 */
async function rename(from: string, to: string): Promise<void> {
  const until = Date.now() + OPEN_ELSEWHERE_MS
  for (;;) {
    try {
      await fs.promises.rename(from, to)
      return
    } catch (err) {
      const { code = '' } = err as NodeJS.ErrnoException
      const elsewhere = process.platform === 'win32' && /^(EPERM|EACCES|EBUSY)$/.test(code)
      if (!elsewhere || Date.now() > until) throw err
    }
    await sleep(AGAIN_MS)
  }
}

/**
 * The node's identity, in one file. When a write has resolved it is on the disk: file and directory
 * are synced, and the old file is whole until the new one is (Tailscale users have lost nodes to
 * files emptied by a power cut). Writes go by the threads that Node.js has for files: an SD card
 * may take seconds to sync, and the packets of the tailnet pass through this thread.
 */
export class StateFile {
  private readonly file: string
  /** The last write that was asked for; it never rejects. */
  private last: Promise<unknown> = Promise.resolve()

  /**
   * Makes `dir` with mode 0700 where it is missing. Throws where it cannot be made, read or
   * written.
   */
  constructor(dir: string) {
    fs.mkdirSync(dir, { recursive: true, mode: 0o700 })
    fs.accessSync(dir, fs.constants.R_OK | fs.constants.W_OK | fs.constants.X_OK)
    this.file = path.join(dir, 'tailscaled.state')
  }

  /** Empty when there is no file yet. */
  read(): Uint8Array {
    try {
      return fs.readFileSync(this.file)
    } catch (err) {
      if ((err as NodeJS.ErrnoException).code === 'ENOENT') return new Uint8Array()
      throw err
    }
  }

  /**
   * Writes all of it, after what was given before. Resolves when it would survive a power cut.
   * Rejects as node:fs does; the old file is whole then.
   */
  write(bytes: Uint8Array): Promise<void> {
    const done = this.last.then(() => this.replace(bytes))
    this.last = done.catch(() => {})
    return done
  }

  /** Resolves when no write is under way. */
  async idle(): Promise<void> {
    await this.last
  }

  private async replace(bytes: Uint8Array): Promise<void> {
    const temporary = `${this.file}.new`
    const to = await fs.promises.open(temporary, 'w', 0o600)
    try {
      await to.writeFile(bytes)
      await to.sync()
    } finally {
      await to.close()
    }
    await rename(temporary, this.file)
    // Windows opens no directory, and has none to sync: NTFS keeps a journal of its names.
    if (process.platform === 'win32') return
    const dir = await fs.promises.open(path.dirname(this.file), 'r')
    try {
      await dir.sync()
    } finally {
      await dir.close()
    }
  }
}
