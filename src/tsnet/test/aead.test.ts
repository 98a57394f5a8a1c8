/**
 * The SIMD module's ChaCha20-Poly1305 against RFC 8439, OpenSSL's by node:crypto, and what must not
 * be taken for good.
 */
import assert from 'node:assert/strict'
import { createCipheriv, randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { loadAead } from '../host/aead.ts'
import { goTest } from './gotest.ts'

const PAGES = 4
const memory = new (
  WebAssembly as unknown as { Memory: new (o: { initial: number }) => WebAssembly.Memory }
).Memory({ initial: PAGES })
const bytes = new Uint8Array(memory.buffer)
const aead = loadAead(readFileSync(path.join(import.meta.dirname, '../go/aead/aead.wasm')), memory)!

// Places in the memory; the context's offsets are ../assembly/context.ts's.
const CONTEXT = 1024
const AD = 4096
const SOURCE = 16 << 10
const APART = 96 << 10
const GUARD = 0xa5
const untouched = Buffer.alloc(bytes.length, GUARD)

interface Message {
  key: Uint8Array
  nonce: Uint8Array
  ad: Uint8Array
  text: Uint8Array
}

/**
 * Ciphertext and tag as the module makes them; `at` and `to`: where text is and goes. Nothing
 * beside them may change.
 */
function run(
  call: 'seal' | 'open',
  { key, nonce, ad, text }: Message,
  at = SOURCE,
  to = at,
  adAt = AD,
): { out: Buffer; tag: Buffer } {
  bytes.fill(GUARD)
  bytes.set(key, CONTEXT)
  bytes.set(nonce, CONTEXT + 32)
  bytes.set(ad, adAt)
  bytes.set(text, at)
  aead[call](CONTEXT, to, at, text.length, adAt, ad.length)
  const out = Buffer.from(bytes.slice(to, to + text.length))
  const tag = Buffer.from(bytes.slice(CONTEXT + 48, CONTEXT + 64))
  assert.deepEqual(
    Buffer.from(bytes.slice(CONTEXT, CONTEXT + 32)),
    Buffer.from(key),
    'the key is as it was',
  )
  // Context, text and additional data apart, all is as it was.
  bytes.fill(GUARD, CONTEXT, CONTEXT + 320)
  bytes.fill(GUARD, to, to + text.length)
  bytes.fill(GUARD, at, at + text.length)
  bytes.fill(GUARD, adAt, adAt + ad.length)
  assert.ok(untouched.equals(bytes), 'a byte elsewhere was written')
  return { out, tag }
}

function openssl({ key, nonce, ad, text }: Message): { out: Buffer; tag: Buffer } {
  const cipher = createCipheriv('chacha20-poly1305', key, nonce, { authTagLength: 16 })
  cipher.setAAD(ad, { plaintextLength: text.length })
  const out = Buffer.concat([cipher.update(text), cipher.final()])
  return { out, tag: cipher.getAuthTag() }
}

const hex = (s: string): Buffer => Buffer.from(s.replace(/\s/g, ''), 'hex')

test('RFC 8439 section 2.8.2', () => {
  const message = {
    key: hex('808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f'),
    nonce: hex('070000004041424344454647'),
    ad: hex('50515253c0c1c2c3c4c5c6c7'),
    text: Buffer.from(
      "Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the " +
        'future, sunscreen would be it.',
    ),
  }
  const { out, tag } = run('seal', message)
  assert.equal(
    out.toString('hex'),
    'd31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36' +
      '92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc3ff4def08e4b7a9de576d26586cec64b6116',
  )
  assert.equal(tag.toString('hex'), '1ae10b594f09e26a7e902ecbd0600691')
  assert.deepEqual(run('open', { ...message, text: out }), { out: message.text, tag })
})

test('RFC 8439 appendix A.5', () => {
  const message = {
    key: hex('1c9240a5eb55d38af333888604f6b5f0473917c1402b80099dca5cbc207075c0'),
    nonce: hex('000000000102030405060708'),
    ad: hex('f33388860000000000004e91'),
    text: hex(
      `64a0861575861af460f062c79be643bd 5e805cfd345cf389f108670ac76c8cb2 4c6cfc18755d43eea09ee94e382d26b0 bdb7b73c321b0100d4f03b7f355894cf
       332f830e710b97ce98c8a84abd0b9481 14ad176e008d33bd60f982b1ff37c855 9797a06ef4f0ef61c186324e2b350638 3606907b6a7c02b0f9f6157b53c867e4
       b9166c767b804d46a59b5216cde7a4e9 9040c5a40433225ee282a1b0a06c523e af4534d7f83fa1155b0047718cbc546a 0d072b04b3564eea1b422273f548271a
       0bb2316053fa76991955ebd63159434e cebb4e466dae5a1073a6727627097a10 49e617d91d361094fa68f0ff77987130 305beaba2eda04df997b714d6c6f2c29
       a6ad5cb4022b02709b`,
    ),
  }
  const { out, tag } = run('open', message)
  assert.equal(tag.toString('hex'), 'eead9d67890cbb22392336fea1851f38')
  assert.match(
    out.toString(),
    /^Internet-Drafts are draft documents valid for a maximum of six months .* \/“work in progress\.\/”$/,
  )
})

test('every length to 2,100 bytes, at any address, in place and apart, with additional data: as OpenSSL, both ways', () => {
  for (let length = 0; length <= 2100; length++) {
    const message = {
      key: randomBytes(32),
      nonce: randomBytes(12),
      ad: randomBytes(length % 67),
      text: randomBytes(length),
    }
    const at = SOURCE + (length % 17)
    const to = length % 2 ? at : APART + (length % 13)
    const adAt = AD + (length % 5)
    const expected = openssl(message)
    assert.deepEqual(run('seal', message, at, to, adAt), expected, `sealing ${length} bytes`)
    assert.deepEqual(
      run('open', { ...message, text: expected.out }, at, to, adAt),
      { out: message.text, tag: expected.tag },
      `opening ${length} bytes`,
    )
  }
})

test('edges of the arithmetic: keys, nonces and texts of all zeros and ones, single bits, 60,000 bytes', () => {
  const of = (length: number, value: number) => Buffer.alloc(length, value)
  for (const key of [of(32, 0), of(32, 0xff), randomBytes(32)]) {
    for (const nonce of [of(12, 0), of(12, 0xff)]) {
      for (const length of [
        0, 1, 15, 16, 17, 31, 32, 63, 64, 191, 192, 193, 255, 256, 447, 448, 449, 1280, 60_000,
      ]) {
        for (const value of [0, 0xff, 0x80, 0x01]) {
          // A ciphertext of such bytes is what goes into Poly1305 when it is opened: limbs that are
          // full, and that carry.
          const message = { key, nonce, ad: of(length % 33, value), text: of(length, value) }
          const sealed = openssl(message)
          assert.deepEqual(run('seal', message), sealed)
          const opened = run('open', message)
          assert.deepEqual(openssl({ ...message, text: opened.out }), {
            out: message.text,
            tag: opened.tag,
          })
        }
      }
    }
  }
})

test('a changed bit of text, tag, nonce or additional data is another tag', () => {
  const message = {
    key: randomBytes(32),
    nonce: randomBytes(12),
    ad: randomBytes(20),
    text: randomBytes(100),
  }
  const { out, tag } = run('seal', message)
  for (const part of ['nonce', 'ad', 'text'] as const) {
    const sealed = { ...message, text: out }
    for (let bit = 0; bit < sealed[part].length * 8; bit++) {
      const changed = Buffer.from(sealed[part])
      changed[bit >> 3]! ^= 1 << (bit & 7)
      assert.notDeepEqual(
        run('open', { ...sealed, [part]: changed }).tag,
        tag,
        `${part}, bit ${bit}`,
      )
    }
  }
})

test("the Go module's use of it against Go's own code: 3,000 messages, a third of them with a changed bit, which are refused and wiped out", async (t) => {
  let simd: ReturnType<typeof loadAead>
  const said = await goTest('./aead', '.', (memory) => ({
    aead_load: (at, n) =>
      (simd = loadAead(new Uint8Array(memory().buffer).slice(at, at! + n!), memory())) ? 0 : -52,
    aead_seal: (...args) => simd!.seal(...(args as Parameters<typeof aead.seal>)),
    aead_open: (...args) => simd!.open(...(args as Parameters<typeof aead.open>)),
    copy_sum: (...args) => simd!.copySum(...(args as Parameters<typeof aead.copySum>)),
  }))
  assert.match(said, /^--- PASS: TestAEADAgainstGo /m)
  assert.match(said, /^--- PASS: TestCopySum /m)
  t.diagnostic(/[0-9]+ messages with a changed bit refused/.exec(said)![0])
})

test('what is no module is said to be none: Go goes on with its own code', () => {
  assert.equal(loadAead(new Uint8Array([1, 2, 3]), memory), undefined)
})
