/**
 * The worker thread that runs the module, so that TLS and HTTP have the caller's thread for
 * themselves.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads'
import zlib from 'node:zlib'
import { Host, ModuleExit } from './host/imports.ts'
import { instantiate } from './host/module.ts'
import { lockDirectory } from './host/lock.ts'
import { NameFiles } from './host/names.ts'
import { StateFile } from './host/state.ts'
import { watchNetwork } from './host/system.ts'
import { Wasi } from './host/wasi.ts'
import type { TsnetErrorCode } from './errors.ts'
import type { ToUser, ToWorker, WorkerData } from './protocol.ts'

/** How it ended, by the numbers of sysexits(3). */
const EX_USAGE = 64
/** A trap, out of memory, or a fault of the host's. */
const EX_SOFTWARE = 70
/** It could not be started. */
const EX_OSERR = 71
const EX_CANTCREAT = 73

const data = workerData as WorkerData
const port = parentPort!

/** The last message: the other thread ends this one when it comes. */
function exit(code: number, reason: string, error?: TsnetErrorCode): void {
  unlock()
  if (data.dir === undefined) rmSync(dir, { recursive: true, force: true })
  port.postMessage([{ t: 'exit', code, reason, ...(error && { error }) }] satisfies ToUser[])
}

// With a store of the caller's, a directory is for Tailscale's odds and ends alone.
const dir = data.dir ?? mkdtempSync(path.join(os.tmpdir(), 'tsnet-'))
let unlock = (): void => {}

function stateFile(): StateFile | undefined {
  try {
    const file = new StateFile(dir)
    if (!data.ownStore) unlock = lockDirectory(dir)
    return file
  } catch (err) {
    const reason = `the state directory is not usable: ${(err as Error).message}`
    exit(EX_CANTCREAT, reason, 'TSNET_STATE')
  }
  return undefined
}

/** The module; it is shipped compressed (zstd). */
async function moduleBytes(file: string): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = await readFile(file)
  return file.endsWith('.zst') ? await promisify(zlib.zstdDecompress)(bytes) : bytes
}

async function run(state: StateFile): Promise<void> {
  const host = new Host(state, (messages, transfers) => port.postMessage(messages, transfers))
  const take = (messages: ToWorker[]): void => {
    for (const m of messages) {
      if (m.t === 'rpc') host.request(m.body)
      else if (m.t === 'stats')
        port.postMessage([{ t: 'stats', id: m.id, stats: host.stats() }] satisfies ToUser[])
      else host.stream(m)
    }
  }
  port.on('message', take)
  const receive = (): void => {
    for (let m = receiveMessageOnPort(port); m; m = receiveMessageOnPort(port))
      take(m.message as ToWorker[])
  }
  // Only Tailscale's own odds and ends (not the identity) are written to through this directory.
  const names = new NameFiles(dir)
  const wasi = new Wasi(host.memory, {
    args: ['tsnet'],
    env: { ...data.env, PWD: '/state' },
    preopens: { '/state': dir, '/etc': names.dir },
  })
  try {
    await host.choose(data.network, receive)
  } catch (err) {
    exit(EX_USAGE, (err as Error).message, 'TSNET_OPTIONS')
    return
  }
  const instance = await instantiate(await moduleBytes(data.wasm), host.imports(wasi))
  host.memory.attach(instance.exports.memory as WebAssembly.Memory)
  const stopWatching = watchNetwork(
    () => host.request(JSON.stringify({ method: 'networkChanged' })),
    () => names.refresh(),
  )
  let code = 0
  let reason = ''
  try {
    await WebAssembly.promising(instance.exports._start as () => void)()
  } catch (err) {
    if (err instanceof ModuleExit) {
      code = err.code
      if (code !== 0) reason = host.lastWords()
    } else {
      code = EX_SOFTWARE
      reason = String((err as Error).stack ?? err)
    }
  }
  stopWatching()
  host.flush()
  host.closeAll()
  // What the node was told to keep is kept, before another may have the directory.
  await state.idle()
  exit(code, reason)
}

const state = stateFile()
if (state) await run(state).catch((err) => exit(EX_OSERR, String((err as Error).message ?? err)))
port.close()
