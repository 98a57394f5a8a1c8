/** What a Server is started with: from its options, files, its store and the platform. */
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import tls from 'node:tls'
import { TsnetError } from './errors.ts'
import { federatedKey } from './federation.ts'
import { federation, moduleEnv, network, startParams } from './options.ts'
import { places } from './places.ts'
import type { StartParams, WorkerData } from './protocol.ts'
import type { ServerOptions } from './types.ts'

/** The node's identity in its directory (host/state.ts). */
const STATE_FILE = 'tailscaled.state'

/** What the worker thread and the module in it are started with. */
export interface Prepared {
  /** The path of the worker's program. */
  program: string
  data: WorkerData
  params: StartParams
}

/**
 * Reads and asks for all that the start needs. `told` is given what went wrong and does not matter.
 * Throws TSNET_OPTIONS, TSNET_ROOTS, TSNET_STATE (the store cannot be read) and TSNET_AUTH
 * (workload identity is refused).
 */
export async function prepare(
  options: ServerOptions,
  env: NodeJS.ProcessEnv,
  told: (message: string) => void,
): Promise<Prepared> {
  const { worker: program, wasm } = places(options)
  const rootsPEM = [
    options.caFile
      ? await authorities('caFile', options.caFile)
      : tls.getCACertificates('default').join('\n'),
    ...(options.extraCAFile ? [await authorities('extraCAFile', options.extraCAFile)] : []),
  ].join('\n')
  const state = await stored(options)
  const given = startParams(options, env)
  const workload = federation(options, env, given)
  if (workload) {
    try {
      given.authKey = await federatedKey(workload)
    } catch (err) {
      // A node that is known needs no new key.
      const known = state || (!options.store && existsSync(path.join(options.dir!, STATE_FILE)))
      if (!known || (err as TsnetError).code !== 'TSNET_AUTH') throw err
      told((err as Error).message)
    }
  }
  const ownStore = options.store !== undefined
  return {
    program,
    data: {
      wasm,
      dir: options.dir,
      ownStore,
      network: network(options, env),
      env: moduleEnv(options, env),
    },
    params: {
      ...given,
      rootsPEM,
      stateFile: ownStore ? 'the state store' : path.join(options.dir!, STATE_FILE),
      ownStore,
      state: state ?? '',
    },
  }
}

/** The text of a file with authorities. Throws TSNET_ROOTS when there is none to be had. */
async function authorities(option: string, file: string): Promise<string> {
  let text: string
  try {
    text = await readFile(file, 'utf8')
  } catch (err) {
    throw new TsnetError('TSNET_ROOTS', `${option} cannot be read: ${(err as Error).message}`, {
      cause: err,
    })
  }
  if (!text.includes('-----BEGIN CERTIFICATE-----'))
    throw new TsnetError('TSNET_ROOTS', `${option}: no certificate in ${file}`)
  return text
}

/** The state that the caller's store has. */
async function stored({ store }: ServerOptions): Promise<string | undefined> {
  try {
    return await store?.read()
  } catch (err) {
    const message = `the state store cannot be read: ${(err as Error).message}`
    throw new TsnetError('TSNET_STATE', message, { cause: err })
  }
}
