import { open, readFile } from 'node:fs/promises'

/**
 * The lines that the kernel has as its console, by name below /dev, with a space between: `tty0
 * ttyAMA0`. The last one is /dev/console.
 *
 * @throws the system's error when they cannot be read
 */
export async function activeConsoles(): Promise<string> {
  return await readFile('/sys/class/tty/console/active', 'utf8')
}

/**
 * Writes to every console there is: serial, and the screen where there is one. Each by its own
 * name: /dev/console is another device, which a unit would have to be allowed beside them.
 *
 * @returns those that took it, by name; nobody need be there to read it
 */
export async function writeToConsoles(text: string): Promise<string[]> {
  const active = await activeConsoles().catch(() => '')
  const names = new Set([...active.trim().split(/\s+/).filter(Boolean), 'tty1'])
  const took: string[] = []
  for (const name of names) {
    try {
      const terminal = await open(`/dev/${name}`, 'w')
      await terminal.writeFile(`\r\n${text.replaceAll(/\r?\n/g, '\r\n')}\r\n`).finally(async () => {
        await terminal.close()
      })
      took.push(name)
    } catch {
      /* no such console */
    }
  }
  return took
}
