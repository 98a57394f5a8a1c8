import { Worker } from 'node:worker_threads'
import { workerEnv } from './options.ts'
import { Outbox } from './outbox.ts'
import type { ToUser, ToWorker, WorkerData } from './protocol.ts'

/** What happens on the worker thread. */
export interface ThreadEvents {
  message(m: ToUser): void
  /** It is over, by an error or not. May come more than once. */
  ended(code: number, reason: string): void
  /** A message of this stream could not cross: see {@link Outbox}. */
  lost(stream: number, err: Error): void
}

/** The worker thread that runs the module (worker.ts), from its start to its end. */
export class Thread {
  /** Resolves when the thread has ended. */
  readonly gone: Promise<void>
  private readonly worker: Worker
  private readonly outbox: Outbox

  /** `program`: the path of worker.ts, or of what a bundler has made of it. */
  constructor(program: string, data: WorkerData, events: ThreadEvents) {
    const worker = new Worker(program, {
      workerData: data,
      name: 'tsnet',
      env: workerEnv(process.env),
      // Node's warns of node:ffi; Deno refuses flags of Node's.
      execArgv: process.versions.deno ? [] : ['--disable-warning=ExperimentalWarning'],
    })
    worker.on('message', (messages: ToUser[]) => {
      for (const m of messages) events.message(m)
    })
    worker.on('error', (err) => events.ended(71, String((err as Error).stack ?? err)))
    worker.on('exit', (code) => events.ended(code, 'the worker thread ended'))
    this.gone = new Promise((resolve) => worker.once('exit', () => resolve()))
    this.worker = worker
    this.outbox = new Outbox(
      (messages, transfers) => worker.postMessage(messages, transfers),
      (stream, err) => events.lost(stream, err),
    )
  }

  /** Sends a message, with the others of this turn of the event loop. */
  post(m: ToWorker): void {
    this.outbox.add(m)
  }

  /** Ends the thread at once, whatever it does. */
  terminate(): void {
    void this.worker.terminate()
  }
}
