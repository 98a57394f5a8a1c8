import { GatehouseError } from '../../base/errors.ts'
import { askLine } from '../ask.ts'

/** How a command speaks. */
export interface Manner {
  /** JSON on standard output, and nothing but errors on standard error. */
  json: boolean
  /** No questions. */
  yes: boolean
  /** The code from the device's screen, for what would hand over the device. */
  code: string | undefined
}

/** A line on standard error that says how far something is. */
export interface Progress {
  /** @param total undefined: how much there will be is not known */
  at: (done: number, total?: number) => void
  /** Removes it. */
  end: () => void
}

/**
 * Shows that something goes on: a line that is written over on a terminal, and one line alone
 * elsewhere. With `json`, nothing.
 */
export function progress(what: string, { json }: Pick<Manner, 'json'>): Progress {
  const { stderr } = process
  if (json) return { at: () => {}, end: () => {} }
  if (!stderr.isTTY) {
    stderr.write(`${what} …\n`)
    return { at: () => {}, end: () => {} }
  }
  const begun = Date.now()
  let said = ''
  const show = (): void => {
    stderr.write(`\r\u001b[K${what} ${said}(${Math.round((Date.now() - begun) / 1000)} s)`)
  }
  const timer = setInterval(show, 1_000)
  timer.unref()
  show()
  let last = 0
  return {
    at: (done, total) => {
      const part = total === undefined || total === 0 ? undefined : Math.min(1, done / total)
      said = part === undefined ? `${size(done)} ` : `${bar(part)} ${size(done)} `
      if (Date.now() - last < 100) return
      last = Date.now()
      show()
    },
    end: () => {
      clearInterval(timer)
      stderr.write('\r\u001b[K')
    },
  }
}

/** A bar of 24 characters. */
function bar(part: number): string {
  const full = Math.round(part * 24)
  return `[${'#'.repeat(full)}${'-'.repeat(24 - full)}] ${Math.round(part * 100)} %`
}

/** Bytes for a person: `3.4 MiB`. */
export function size(bytes: number): string {
  return bytes < 2 ** 20 ? `${Math.round(bytes / 1024)} KiB` : `${(bytes / 2 ** 20).toFixed(1)} MiB`
}

/**
 * Does something that may need the code from the device's screen: where it does, the person is
 * asked for it, once.
 */
export async function withCode<T>(
  work: (code: string | undefined) => Promise<T>,
  { code }: Pick<Manner, 'code'>,
): Promise<T> {
  try {
    return await work(code)
  } catch (err) {
    if (!(err instanceof GatehouseError) || err.code !== 'GH_SETTINGS_CODE') throw err
    const typed = await askLine(`${err.message}.\nCode on the device's screen: `)
    if (typed === undefined || typed.trim() === '')
      throw new GatehouseError(
        err.code,
        err.message,
        'Read the six digits from the screen or serial line of the device, and give them ' +
          'with --code within ten minutes',
      )
    return await work(typed.trim())
  }
}
