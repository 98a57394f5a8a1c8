import { constants } from 'node:fs'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { GatehouseError, reason } from '../base/errors.ts'

/**
 * Where the files of an update come from. Nothing in it is believed: {@link collect} checks
 * signature, sums and sizes.
 */
export interface Source {
  /** For messages: an address, or what a person calls it. */
  name: string
  /**
   * The content of a small file: SHA256SUMS or its signature. @throws GatehouseError when it cannot
   * be had, or is longer than {@link smallest} bytes
   */
  small: (name: string) => Promise<Buffer>
  /**
   * Likewise; undefined where there is no such file. Absent: this source has no log of releases
   * (src/update/log.ts), as a stick has none.
   */
  optional?: (name: string) => Promise<Buffer | undefined>
  /** A file from byte `from` on. */
  open: (name: string, from: number) => Promise<Stream>
}

/** One file of a {@link Source} on its way. */
export interface Stream {
  body: Readable
  /** Where it begins: what was asked for, or 0 when that could not be done. */
  from: number
  /** Bytes that {@link body} is to have; undefined when nobody says. */
  length: number | undefined
  /** To be called with each piece that has come: a source that is silent for long gives up. */
  alive: () => void
}

/** Longest list or signature, bytes. */
export const smallest = 65_536

/**
 * Milliseconds without a byte until a download counts as stuck; what has come stays, and the next
 * run goes on from there.
 */
const patience = 60_000

/** A folder of a web server, http or https. */
export function webSource(url: string): Source {
  const base = url.replace(/\/$/, '')
  const cure = 'Check updates.url in gatehouse.toml: it names the folder that SHA256SUMS lies in'
  const get = async (
    name: string,
    from = 0,
  ): Promise<{ response: Response; alive: () => void }> => {
    const stuck = new AbortController()
    const timer = setTimeout(() => {
      stuck.abort(new Error(`no data for ${patience / 1000} s`))
    }, patience)
    timer.unref()
    const response = await fetch(`${base}/${name}`, {
      headers: from > 0 ? { range: `bytes=${from}-` } : {},
      signal: stuck.signal,
      redirect: 'follow',
    }).catch((err: unknown) => {
      throw new GatehouseError(
        'GH_UPDATE_UNREACHABLE',
        `${base}/${name} cannot be fetched: ${reason(err)}`,
        'Check updates.url in gatehouse.toml and the network. What has been downloaded ' +
          'stays, and the next attempt goes on from there',
        { cause: err },
      )
    })
    // All of it was there already, or the file is another one now (RFC 9110, 15.5.17).
    if (response.status === 416 && from > 0) return await get(name)
    if (!response.ok)
      throw new GatehouseError(
        'GH_UPDATE_UNREACHABLE',
        `${base}/${name} answers ${response.status}`,
        cure,
        { cause: response.status },
      )
    return {
      response,
      alive: () => {
        timer.refresh()
      },
    }
  }
  const small = async (name: string): Promise<Buffer> => {
    const { response } = await get(name)
    const content = Buffer.from(await response.arrayBuffer())
    if (content.length > smallest)
      throw new GatehouseError(
        'GH_UPDATE_FORMAT',
        `${base}/${name} is ${content.length} bytes long`,
        cure,
      )
    return content
  }
  return {
    name: base,
    small,
    async optional(name) {
      return await small(name).catch((err: unknown) => {
        if (err instanceof GatehouseError && err.cause === 404) return undefined
        throw err
      })
    },
    async open(name, from) {
      const { response, alive } = await get(name, from)
      const body = Readable.fromWeb(response.body as Parameters<typeof Readable.fromWeb>[0])
      const length = Number(response.headers.get('content-length') ?? Number.NaN)
      // A server that knows no ranges sends it whole.
      return {
        body,
        from: response.status === 206 ? from : 0,
        length: Number.isNaN(length) ? undefined : length,
        alive,
      }
    },
  }
}

/**
 * A folder of a file system that somebody else wrote. Only plain files are read, and no link is
 * followed.
 *
 * @param name what a person calls it: `the USB stick`
 */
export function folderSource(folder: string, name: string): Source {
  const opened = async (file: string) => {
    const wrong = (what: string, err?: unknown): GatehouseError =>
      new GatehouseError(
        'GH_UPDATE_FORMAT',
        `${file} on ${name} ${what}`,
        'Copy all of out/update-<arch> there: SHA256SUMS, SHA256SUMS.sig and the three files',
        { cause: err },
      )
    // NONBLOCK: a named pipe would be waited for.
    const handle = await open(
      join(folder, file),
      constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK,
    ).catch((err: NodeJS.ErrnoException) => {
      const known: Record<string, string> = { ENOENT: 'is missing', ELOOP: 'is a link' }
      throw wrong(known[err.code ?? ''] ?? `cannot be read: ${reason(err)}`, err)
    })
    const stat = await handle.stat()
    if (stat.isFile()) return { handle, size: stat.size, wrong }
    await handle.close()
    throw wrong('is not a file')
  }
  return {
    name,
    async small(file) {
      const { handle, size, wrong } = await opened(file)
      try {
        if (size > smallest) throw wrong(`is ${size} bytes long`)
        return await handle.readFile()
      } finally {
        await handle.close()
      }
    },
    async open(file, from) {
      const { handle, size } = await opened(file)
      return {
        body: handle.createReadStream({ start: from }),
        from,
        length: Math.max(0, size - from),
        alive: () => {},
      }
    },
  }
}
