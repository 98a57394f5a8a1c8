import { SMALL, type ToWorker } from './protocol.ts'

/**
 * Messages for the worker thread. Those of one turn of the event loop go over together: a wake-up
 * of the other thread costs more than they do.
 */
export class Outbox {
  private messages: ToWorker[] = []
  private transfers: ArrayBuffer[] = []
  private readonly send: (messages: ToWorker[], transfers: ArrayBuffer[]) => void
  private readonly lost: (stream: number, err: Error) => void

  /**
   * `send` is the worker's postMessage. `lost` is told of a stream when a message of it could not
   * cross: bytes would be missing, so both ends of it are to see an error.
   */
  constructor(
    send: (messages: ToWorker[], transfers: ArrayBuffer[]) => void,
    lost: (stream: number, err: Error) => void,
  ) {
    this.send = send
    this.lost = lost
  }

  add(m: ToWorker): void {
    if (this.messages.length === 0) queueMicrotask(this.flush)
    this.messages.push(m)
    if (m.t === 'data' && m.b.length > SMALL) this.transfers.push(m.b.buffer)
  }

  private flush = (): void => {
    const { messages, transfers } = this
    this.messages = []
    this.transfers = []
    try {
      this.send(messages, transfers)
    } catch {
      // One of them cannot cross: it alone fails.
      for (const m of messages) this.sendAlone(m)
    }
  }

  private sendAlone(m: ToWorker): void {
    try {
      this.send([m], m.t === 'data' && m.b.length > SMALL ? [m.b.buffer] : [])
    } catch (err) {
      if ('s' in m) this.lost(m.s, err as Error)
    }
  }
}
