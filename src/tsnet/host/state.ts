import fs from 'node:fs'
import path from 'node:path'

/**
 * The node's identity, in one file. A write is on the disk when it returns: file and directory are
 * synced, and the old file is whole until the new one is (Tailscale users have lost nodes to files
 * emptied by a power cut).
 */
export class StateFile {
  private readonly file: string

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

  write(bytes: Uint8Array): void {
    const temporary = `${this.file}.new`
    const fd = fs.openSync(temporary, 'w', 0o600)
    try {
      fs.writeFileSync(fd, bytes)
      fs.fsyncSync(fd)
    } finally {
      fs.closeSync(fd)
    }
    fs.renameSync(temporary, this.file)
    const dir = fs.openSync(path.dirname(this.file), 'r')
    try {
      fs.fsyncSync(dir)
    } finally {
      fs.closeSync(dir)
    }
  }
}
