/** Calls of functions of the module (go/main.go), and their replies. */
import { TsnetError, type TsnetErrorCode } from './errors.ts'
import type { ToWorker } from './protocol.ts'

/** Callers that wait for something may give it up. */
export interface WaitOptions {
  signal?: AbortSignal
}

/** The module's reply to a call. */
export interface Reply {
  id: number
  result?: unknown
  error?: { code: TsnetErrorCode; message: string }
}

interface Waiting {
  resolve: (value: unknown) => void
  reject: (err: TsnetError) => void
}

/** What a call needs of the Server that makes it. */
export interface Caller {
  /** Resolves when the module may be called; rejects when it cannot be. */
  ready(method: string): Promise<void>
  post(m: ToWorker): void
  /** What a wait that was given up waited for, as far as it was a person: ends a sentence. */
  why(): string
}

export const closedError = (): TsnetError => new TsnetError('TSNET_CLOSED', 'the server is closed')

/** The calls that wait for a reply. */
export class Calls {
  /** Why no more calls can be made: the error of each. */
  ended: TsnetError | undefined
  /** What the module gives up from here on is closed, and not aborted. */
  closing = false
  private nextId = 1
  private readonly waiting = new Map<number, Waiting>()
  private readonly caller: Caller

  constructor(caller: Caller) {
    this.caller = caller
  }

  /** The number of the next call, for a caller that must know it before. */
  id(): number {
    return this.nextId++
  }

  /** Whether a call still waits for its reply. */
  waits(id: number): boolean {
    return this.waiting.has(id)
  }

  /**
   * Calls a function of the module; resolves with its result. Rejects with TSNET_ABORTED at once
   * when `signal` is aborted, whatever the module does: what it replies later is dropped, a
   * connection that it dials is closed.
   */
  async call<T>(
    method: string,
    params: unknown = {},
    { signal }: WaitOptions = {},
    id = this.id(),
  ): Promise<T> {
    const aborted = (): TsnetError =>
      new TsnetError('TSNET_ABORTED', `${method}: aborted${this.caller.why()}`, {
        cause: signal?.reason,
      })
    const begin = async (): Promise<unknown> => {
      await this.caller.ready(method)
      if (this.ended) throw this.ended
      if (signal?.aborted) throw aborted()
      return await new Promise<unknown>((resolve, reject) => {
        this.waiting.set(id, { resolve, reject })
        this.caller.post(
          method === 'stats'
            ? { t: 'stats', id }
            : { t: 'rpc', body: JSON.stringify({ id, method, params }) },
        )
      })
    }
    if (!signal) return (await begin()) as T
    if (signal.aborted) throw aborted()
    const { promise, reject } = Promise.withResolvers<never>()
    const cancel = (): void => {
      if (this.settle(id))
        this.caller.post({ t: 'rpc', body: JSON.stringify({ id, method: 'cancel' }) })
      reject(aborted())
    }
    signal.addEventListener('abort', cancel, { once: true })
    try {
      return (await Promise.race([begin(), promise])) as T
    } finally {
      signal.removeEventListener('abort', cancel)
    }
  }

  /** Gives a reply to the one who waits for it, if anybody still does. */
  reply({ id, result, error }: Reply): void {
    const w = this.settle(id)
    if (!error) w?.resolve(result)
    // What close() interrupts over there is closed, not aborted: abort signals are answered here.
    else if (this.closing && error.code === 'TSNET_ABORTED') w?.reject(closedError())
    else w?.reject(new TsnetError(error.code, error.message))
  }

  /** The module has ended: all calls fail, those to come too. Says whether any waited. */
  end(error: TsnetError): boolean {
    this.ended = error
    const heard = this.waiting.size > 0
    for (const w of this.waiting.values()) w.reject(error)
    this.waiting.clear()
    return heard
  }

  /** The one who waits for this reply, who will wait no more. */
  private settle(id: number): Waiting | undefined {
    const w = this.waiting.get(id)
    this.waiting.delete(id)
    return w
  }
}
