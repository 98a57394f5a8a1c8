import { createSocket } from 'node:dgram'
import { Resolver as DNS } from 'node:dns/promises'
import { readFile, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { reason } from '../../base/errors.ts'
import { writeFileAtomic } from '../../base/files.ts'
import type { Paths } from '../../base/paths.ts'
import { systemdSockets } from '../../base/sockets.ts'
import { interfaces } from '../networks.ts'
import { nft } from '../nft.ts'
import type { NamedEntry } from './list.ts'
import { readQuestion } from './message.ts'
import { NoName, Resolver } from './resolver.ts'
import type { Ask, Open, Told, Validity } from './resolver.ts'
import { StandIns } from './stand-ins.ts'

/** Where Node-RED asks: its /etc/resolv.conf says so (overlays/usr/lib/gatehouse/node-red-resolv.conf). */
export const resolverAddress = '127.0.0.55'

/** It ends when it was not asked for this long and nothing it told is valid any more. Milliseconds. */
const idle = 300_000

/** Files in the firewall's directory: what the resolver reads, and what it has told. */
export const namesFile = 'names.json'
export const toldFile = 'told.json'

/** Options that tests set. */
export interface NamesOptions {
  /** Descriptor of the UDP socket, as systemd hands it over; or an address to make one at. */
  socket: { fd: number } | { address: string; port: number }
  ask?: Ask
  open?: Open
  validity?: Validity
  idle?: number
}

/**
 * Asks a DNS server, by default systemd-resolved's own address. Nothing but DNS: neither /etc/hosts
 * nor mDNS count.
 */
export function askDNS(server = '127.0.0.53'): Ask {
  const resolver = new DNS({ timeout: 5_000, tries: 2 })
  resolver.setServers([server])
  return async (name, family) => {
    try {
      return await (family === 4
        ? resolver.resolve4(name, { ttl: true })
        : resolver.resolve6(name, { ttl: true }))
    } catch (err) {
      const { code } = err as NodeJS.ErrnoException
      if (code === 'ENODATA') return []
      if (code === 'ENOTFOUND') throw new NoName(name)
      throw new Error(`no answer from the resolver (${code})`, { cause: err })
    }
  }
}

/** Lets addresses through: an element that is there is replaced, so that its time begins anew. */
export function openScript(
  additions: ReadonlyArray<{ set: string; address: string; seconds: number }>,
): string {
  return additions
    .flatMap(({ set, address, seconds }) => {
      const of = `element inet gatehouse ${set}`
      const add = `add ${of} { ${address} timeout ${Math.ceil(seconds)}s }`
      return [add, `delete ${of} { ${address} }`, add, '']
    })
    .join('\n')
}

/**
 * Puts additions in force with one nft at a time: what comes while it runs goes with the next.
 *
 * @param run runs a script, all of it or nothing
 */
export function batched(run: (script: string) => Promise<unknown>): Open {
  type Addition = Parameters<Open>[0]
  let waiting: Array<{ additions: Addition; done: () => void; failed: (err: unknown) => void }> = []
  let running = false
  const work = async (): Promise<void> => {
    running = true
    while (waiting.length > 0) {
      const batch = waiting
      waiting = []
      try {
        await run(openScript(batch.flatMap(({ additions }) => additions)))
        for (const { done } of batch) done()
      } catch {
        // One that is refused, as into a set that is full, is not the others' loss.
        for (const { additions, done, failed } of batch)
          await run(openScript(additions)).then(done, failed)
      }
    }
    running = false
  }
  return async (additions) => {
    await new Promise<void>((done, failed) => {
      waiting.push({ additions, done, failed })
      if (!running) void work()
    })
  }
}

/** What the resolver has told since it started and its list is as it is; empty when it has not. */
export async function readTold(directory: string): Promise<Record<string, Told>> {
  try {
    return JSON.parse(await readFile(join(directory, toldFile), 'utf8')) as Record<string, Told>
  } catch {
    return {}
  }
}

/**
 * Answers Node-RED's questions until nobody asks any more. What it listens at is UDP alone: answers
 * are made to fit.
 */
export async function serveNames(
  paths: Pick<Paths, 'firewall'>,
  { socket: where, ask = askDNS(), open, validity, idle: wait = idle }: NamesOptions,
): Promise<number> {
  const { promise: ended, resolve: end } = Promise.withResolvers<number>()
  const list = join(paths.firewall, namesFile)
  const standIns = new StandIns(paths)
  const resolver = new Resolver({
    entries: [],
    ask,
    open: open ?? batched(nft),
    interfaces,
    unlisted: (name) => standIns.of(name),
    say: (line) => process.stderr.write(`gatehouse firewall: ${line}\n`),
    ...(validity === undefined ? {} : { validity }),
  })
  let read = ''
  /** The list is read again when the firewall has another. */
  const refresh = async (): Promise<void> => {
    await standIns.refresh()
    const { mtimeMs, ino } = await stat(list).catch(() => ({ mtimeMs: 0, ino: 0 }))
    const version = `${mtimeMs} ${ino}`
    if (version === read) return
    const text = await readFile(list, 'utf8').catch(() => '[]')
    resolver.entries = JSON.parse(text) as NamedEntry[]
    read = version
  }
  let changed = false
  const write = async (): Promise<void> => {
    if (!changed) return
    changed = false
    await writeFileAtomic(
      join(paths.firewall, toldFile),
      `${JSON.stringify(resolver.told)}\n`,
      0o644,
    )
    await standIns.write()
  }
  const writing = setInterval(() => {
    write().catch((err: unknown) => process.stderr.write(`gatehouse firewall: ${reason(err)}\n`))
  }, 1_000)
  let last = performance.now()
  const resting = setInterval(
    () => {
      if (performance.now() - last >= wait && !resolver.busy && !standIns.learning) end(0)
    },
    Math.min(wait, 30_000),
  )
  const socket = createSocket({ type: 'udp4' })
  socket.on('error', (err) => {
    process.stderr.write(`gatehouse firewall: ${reason(err)}\n`)
    end(1)
  })
  socket.on('message', (message, { address, port }) => {
    last = performance.now()
    const question = readQuestion(message)
    if (question === undefined) return
    refresh()
      .then(async () => {
        const text = await resolver.reply(question)
        changed = true
        if (text !== undefined) socket.send(text, port, address)
      })
      .catch((err: unknown) => process.stderr.write(`gatehouse firewall: ${reason(err)}\n`))
  })
  if ('fd' in where) socket.bind({ fd: where.fd })
  else socket.bind(where.port, where.address)
  const code = await ended
  clearInterval(writing)
  clearInterval(resting)
  await write()
  socket.close()
  return code
}

/** `gatehouse firewall names`, by gatehouse-names.socket. */
export async function runNames(paths: Paths): Promise<number> {
  const fd = systemdSockets().get('names')
  await rm(join(paths.firewall, toldFile), { force: true })
  return await serveNames(paths, {
    socket: fd === undefined ? { address: resolverAddress, port: 53 } : { fd },
  })
}
