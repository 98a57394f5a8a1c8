/** A message that cannot cross to the worker fails alone: what comes after it still goes. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Worker } from 'node:worker_threads'
import { Server } from '../index.ts'
import type { ToWorker } from '../protocol.ts'

/** What is private of a Server, for a test without a worker. */
interface Inside {
  worker: Pick<Worker, 'postMessage'>
  post(m: ToWorker): void
  accept(s: number, meta: { dial: number; local: string; remote: string }): void
  waiting: Map<number, unknown>
  dialled: Map<number, import('../conn.ts').Conn>
}

test('a buffer that cannot be transferred: its connection ends, others go on', async () => {
  const server = new Server({ dir: '/nowhere' }) as unknown as Inside
  const sent: ToWorker[] = []
  // The real check of structured cloning, with nobody at the other end.
  server.worker = {
    postMessage: ((messages: ToWorker[], transfer: ArrayBuffer[]) => {
      sent.push(...structuredClone(messages, { transfer }))
    }) as Worker['postMessage'],
  }
  server.waiting.set(1, {})
  server.accept(7, { dial: 1, local: '100.64.0.1:1', remote: '100.64.0.2:2' })
  const conn = server.dialled.get(1)!
  const failed = new Promise<Error>((resolve) => conn.once('error', resolve))
  const gone = new Uint8Array(8192)
  gone.buffer.transfer()
  const bytes = new Uint8Array(8192).fill(3)
  server.post({ t: 'rpc', body: 'before' })
  server.post({ t: 'data', s: 7, b: { buffer: gone.buffer, length: 8192 } as typeof bytes })
  server.post({ t: 'data', s: 8, b: bytes })
  await new Promise((resolve) => setImmediate(resolve))
  assert.equal((await failed).name, 'DataCloneError')
  server.post({ t: 'rpc', body: 'after' })
  await new Promise((resolve) => setImmediate(resolve))
  assert.deepEqual(
    sent.map((m) => (m.t === 'rpc' ? m.body : `${m.t} ${(m as { s: number }).s}`)),
    ['before', 'data 8', 'reset 7', 'after'],
  )
})
