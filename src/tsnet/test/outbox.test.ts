/** A message that cannot cross to the worker fails alone: what comes after it still goes. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Calls } from '../calls.ts'
import { Outbox } from '../outbox.ts'
import type { ToWorker } from '../protocol.ts'
import { Streams } from '../streams.ts'

test('a buffer that cannot be transferred: its connection ends, others go on', async () => {
  const sent: ToWorker[] = []
  const post = (m: ToWorker): void => outbox.add(m)
  const calls = new Calls({ post, why: () => '', ready: async () => {} })
  const streams = new Streams(calls, post)
  const outbox = new Outbox(
    // The real check of structured cloning, with nobody at the other end.
    (messages, transfer) => void sent.push(...structuredClone(messages, { transfer })),
    (s, err) => streams.lost(s, err),
  )
  // A connection as dial() makes it: the module says that it is open, then replies.
  const dialling = streams.dial('dial', {}, {})
  await new Promise((resolve) => setImmediate(resolve))
  const { id } = JSON.parse((sent.pop() as { body: string }).body) as { id: number }
  streams.opened(7, { dial: id, local: '100.64.0.1:1', remote: '100.64.0.2:2' })
  calls.reply({ id })
  const [conn] = await dialling
  const failed = new Promise<Error>((resolve) => conn.once('error', resolve))
  const gone = new Uint8Array(8192)
  gone.buffer.transfer()
  const bytes = new Uint8Array(8192).fill(3)
  post({ t: 'rpc', body: 'before' })
  post({ t: 'data', s: 7, b: { buffer: gone.buffer, length: 8192 } as typeof bytes })
  post({ t: 'data', s: 8, b: bytes })
  await new Promise((resolve) => setImmediate(resolve))
  assert.equal((await failed).name, 'DataCloneError')
  post({ t: 'rpc', body: 'after' })
  await new Promise((resolve) => setImmediate(resolve))
  assert.deepEqual(
    sent.map((m) => (m.t === 'rpc' ? m.body : `${m.t} ${(m as { s: number }).s}`)),
    ['before', 'data 8', 'reset 7', 'after'],
  )
})
