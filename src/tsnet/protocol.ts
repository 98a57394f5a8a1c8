/** What the worker thread and the thread that uses the bindings say to one another. */
import type { TsnetErrorCode } from './errors.ts'
import type { CommonOptions, Network, Stats } from './types.ts'

/** Given to the worker when it is made. */
export interface WorkerData {
  wasm: string
  /** Undefined: a temporary one. */
  dir: string | undefined
  /** The state is the caller's to keep, not in the directory. */
  ownStore: boolean
  network: Network
  env: Record<string, string>
}

/** Parameters of the shim's `start` (../go/main.go, startParams). */
export type StartParams = Required<
  Omit<
    CommonOptions,
    | 'env'
    | 'caFile'
    | 'extraCAFile'
    | 'network'
    | 'verbose'
    | 'clientID'
    | 'idToken'
    | 'audience'
    | 'wasm'
    | 'worker'
  >
> & {
  rootsPEM: string
  verbose: boolean
  stateFile: string
  ownStore: boolean
  state: string
}

/** What a new stream is (../go/main.go, streamMeta). */
export interface StreamMeta {
  listener?: number
  dial?: number
  local: string
  remote: string
  /** Of a connection by Funnel. */
  target?: string
}

/** Bytes that may be under way to one side of a stream, unread there. */
export const WINDOW = 512 << 10

/**
 * Up to so many bytes go to the other thread at once, and as a copy: handing over their buffer
 * takes longer (13 µs more there and back).
 */
export const SMALL = 4096

/** Both ways. */
export type StreamMessage =
  | { t: 'data'; s: number; b: Uint8Array<ArrayBuffer> }
  | { t: 'end'; s: number }
  | { t: 'reset'; s: number }
  | { t: 'credit'; s: number; n: number }

export type ToWorker = StreamMessage | { t: 'rpc'; body: string } | { t: 'stats'; id: number }

export type ToUser =
  | StreamMessage
  | { t: 'open'; s: number; meta: StreamMeta }
  | { t: 'emit'; body: string }
  | { t: 'log'; line: string }
  | { t: 'stats'; id: number; stats: Stats }
  | { t: 'exit'; code: number; reason: string; error?: TsnetErrorCode }
