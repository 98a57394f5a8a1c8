/** The card with a cache that power cuts are tried on: what it keeps, and what it loses. */
import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import type { Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { CacheCard } from '../../vm/cache-card.ts'
import type { Manner } from '../../vm/cache-card.ts'

const root = mkdtempSync(join(tmpdir(), 'gh-card-'))
after(() => {
  rmSync(root, { recursive: true, force: true })
})

/** So many bytes from a socket. */
async function take(socket: Socket, length: number): Promise<Buffer> {
  for (;;) {
    const data = socket.read(length) as Buffer | null
    if (data !== null) return data
    await new Promise((done) => socket.once('readable', done))
  }
}

/** A client as QEMU is one: asks for the export with NBD_OPT_GO, then reads, writes and flushes. */
async function open(path: string) {
  const socket = connect(path)
  socket.on('error', () => {})
  assert.equal((await take(socket, 18)).toString('latin1', 0, 16), 'NBDMAGICIHAVEOPT')
  const go = Buffer.alloc(4 + 16 + 6)
  go.writeUInt32BE(1, 0)
  go.write('IHAVEOPT', 4, 'latin1')
  go.writeUInt32BE(7, 12)
  go.writeUInt32BE(6, 16)
  socket.write(go)
  const info = await take(socket, 20 + 12 + 20)
  const size = Number(info.readBigUInt64BE(22))
  const ask = async (
    type: number,
    offset: number,
    length: number,
    data: Buffer = Buffer.alloc(0),
  ) => {
    const head = Buffer.alloc(28)
    head.writeUInt32BE(0x25609513, 0)
    head.writeUInt16BE(type, 6)
    head.writeBigUInt64BE(BigInt(offset), 16)
    head.writeUInt32BE(length, 24)
    socket.write(Buffer.concat([head, data]))
    const answer = await take(socket, 16)
    assert.deepEqual([answer.readUInt32BE(0), answer.readUInt32BE(4)], [0x67446698, 0])
    return type === 0 ? await take(socket, length) : Buffer.alloc(0)
  }
  return {
    size,
    read: (offset: number, length: number) => ask(0, offset, length),
    write: (offset: number, data: Buffer) => ask(1, offset, data.length, data),
    flush: () => ask(3, 0, 0),
  }
}

for (const [manner, keeps] of [
  ['honest', true],
  ['lying', false],
] as const satisfies [Manner, boolean][])
  test(`a card that is ${manner}: what was flushed is ${keeps ? 'there' : 'lost'} after a cut, what was not is lost; taken out it has all`, async () => {
    const image = join(root, `${manner}.img`)
    writeFileSync(image, Buffer.alloc(1 << 20, 1))
    const socket = join(root, manner)
    let card = await CacheCard.open(image, socket, manner)
    let client = await open(socket)
    assert.equal(client.size, 1 << 20)
    // Across blocks, and within one, twice.
    await client.write(4000, Buffer.alloc(9000, 2))
    await client.write(4100, Buffer.alloc(10, 3))
    await client.flush()
    await client.write(500_000, Buffer.alloc(512, 4))
    const seen = await client.read(3999, 9002)
    assert.deepEqual(
      [seen[0], seen[1], seen[100], seen[101], seen[111], seen[9000], seen[9001]],
      [1, 2, 2, 3, 2, 2, 1],
    )
    // Some may be on the card by itself meanwhile.
    const loss = await card.cut()
    assert.equal(keeps ? loss.flushed : loss.flushed > 0, keeps ? 0 : true)
    assert.ok(loss.blocks > loss.flushed || loss.blocks <= 4)
    const found = readFileSync(image)
    if (keeps) assert.ok(found.subarray(3999, 13_001).equals(seen))
    else assert.ok(!found.subarray(3999, 13_001).equals(seen))

    writeFileSync(image, Buffer.alloc(1 << 20, 1))
    card = await CacheCard.open(image, socket, manner)
    client = await open(socket)
    await client.write(1234, Buffer.alloc(50_000, 5))
    await card.eject()
    assert.ok(readFileSync(image).subarray(1234, 51_234).equals(Buffer.alloc(50_000, 5)))
    assert.equal(readFileSync(image)[51_234], 1)
  })
