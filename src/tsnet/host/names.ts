/**
 * The files that say how names are looked up, for the module: Go's resolver reads them from /etc,
 * which the module cannot see. Search domains, options and local names are then as for any other
 * program here.
 */
import fs from 'node:fs'
import path from 'node:path'

/** resolv.conf(5) and hosts(5). */
const files = ['resolv.conf', 'hosts']

/** Where the system has them. Windows has hosts alone. */
function home(): string {
  return process.platform === 'win32'
    ? `${process.env.SystemRoot || 'C:\\Windows'}\\System32\\drivers\\etc`
    : '/etc'
}

/** Content of a file; empty when there is none, which is as good. */
function text(file: string): string {
  try {
    return fs.readFileSync(file, 'utf8')
  } catch {
    return ''
  }
}

/**
 * A directory with copies, below the node's own: resolv.conf is often a link out of any directory
 * one would show. Written only when something has changed.
 */
export class NameFiles {
  readonly dir: string
  readonly #from: string

  /**
   * @param parent directory in which the copies' is made
   * @param from the directory that is copied; for tests
   */
  constructor(parent: string, from = home()) {
    this.dir = path.join(parent, 'etc')
    this.#from = from
    fs.mkdirSync(this.dir, { recursive: true, mode: 0o700 })
    this.refresh()
  }

  /** Takes over what has changed. A copy that cannot be written stays as it is. */
  refresh(): void {
    for (const name of files) {
      const [now, copy] = [path.join(this.#from, name), path.join(this.dir, name)].map(text)
      if (now === copy) continue
      try {
        fs.writeFileSync(path.join(this.dir, name), now!)
      } catch {
        // A full disk: names are looked up as before.
      }
    }
  }
}
