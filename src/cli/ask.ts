import { text as readText } from 'node:stream/consumers'

/**
 * What a person types who is asked for it, without showing it on a terminal; from a pipe, its first
 * line. For secrets: an argument is for every process to read.
 *
 * @throws Error when they type Ctrl-C
 */
export async function askSecret(question: string): Promise<string> {
  if (!process.stdin.isTTY) return (await readText(process.stdin)).split('\n')[0]!.trimEnd()
  return await typed(question, false)
}

/**
 * A line that a person types; undefined where nobody is there to type it.
 *
 * @throws Error when they type Ctrl-C
 */
export async function askLine(question: string): Promise<string | undefined> {
  return process.stdin.isTTY ? await typed(question, true) : undefined
}

async function typed(question: string, shown: boolean): Promise<string> {
  const { stdin, stderr } = process
  stderr.write(question)
  stdin.setRawMode(true)
  stdin.setEncoding('utf8').resume()
  const { promise, resolve, reject } = withResolvers<string>()
  let line = ''
  const take = (piece: string): void => {
    for (const character of piece) {
      if (character === '\r' || character === '\n') {
        resolve(line)
        return
      }
      if (character === '\u0003' || character === '\u0004') {
        reject(new Error('nothing was done'))
        return
      }
      const erase = character === '\u007f' || character === '\b'
      if (erase && line === '') continue
      line = erase ? line.slice(0, -1) : line + character
      if (shown) stderr.write(erase ? '\b \b' : character)
    }
  }
  stdin.on('data', take)
  try {
    return await promise
  } finally {
    stdin.off('data', take).pause()
    stdin.setRawMode(false)
    stderr.write('\n')
  }
}

/** Promise.withResolvers for Node.js 20, which laptops have. */
function withResolvers<T>(): {
  promise: Promise<T>
  resolve: (value: T) => void
  reject: (err: Error) => void
} {
  let resolve!: (value: T) => void
  let reject!: (err: Error) => void
  const promise = new Promise<T>((yes, no) => {
    resolve = yes
    reject = no
  })
  return { promise, resolve, reject }
}
