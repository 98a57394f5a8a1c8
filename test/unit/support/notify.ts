import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/**
 * systemd's end of sd_notify(3): a datagram socket, in Python because Node has none, whose messages
 * are kept.
 */
export class NotifySocket implements AsyncDisposable {
  readonly #directory = mkdtempSync(join(tmpdir(), 'gh-notify-'))
  readonly path: string = join(this.#directory, 'notify.sock')
  /** Each message with its lines, but for those that systemd-notify adds of its own. */
  readonly messages: string[][] = []
  #child: ChildProcess | undefined

  static async open(): Promise<NotifySocket> {
    const made = new NotifySocket()
    made.#child = spawn(
      'python3',
      [
        '-uc',
        `
import json, os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
print('bound')
while True:
    print(json.dumps(s.recv(65536).decode().split('\\n')))`,
        made.path,
      ],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    )
    let text = ''
    const bound = Promise.withResolvers<void>()
    made.#child.stdout!.setEncoding('utf8').on('data', (piece: string) => {
      text += piece
      const lines = text.split('\n')
      text = lines.pop()!
      for (const line of lines) {
        if (line === 'bound') {
          bound.resolve()
          continue
        }
        const message = (JSON.parse(line) as string[]).filter(
          (part) => part !== '' && !/^(?:BARRIER|MAINPID)=/.test(part),
        )
        if (message.length > 0) made.messages.push(message)
      }
    })
    await bound.promise
    return made
  }

  /** Messages that hold a line that begins so. */
  with(start: string): string[][] {
    return this.messages.filter((message) => message.some((line) => line.startsWith(start)))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const gone = once(this.#child!, 'exit')
    this.#child!.kill()
    await gone
    rmSync(this.#directory, { recursive: true, force: true })
  }
}
