/**
 * ChaCha20-Poly1305 (RFC 8439 section 2.8) with vectors of 128 bits, on the memory of the Go module, which it imports: it has no data of
 * its own there, and no stack. Compiled with AssemblyScript by ../build.sh; used by ../go/aead/aead.go by way of ../host/aead.ts.
 */
import { xor256 } from './chacha20';
import { KEY, SCRATCH, TAG } from './context';
import { begin, finish, update } from './poly1305';

export { copySum } from './sum';

/** Bytes of the first message that go with the block of the one-time key. */
const HEAD: usize = 192;

function copy(from: usize, to: usize, length: usize): void {
  let i: usize = 0;
  for (; i + 16 <= length; i += 16) v128.store(to + i, v128.load(from + i));
  for (; i < length; i++) store<u8>(to + i, load<u8>(from + i));
}

/** Takes in `length` bytes and zeroes up to a multiple of 16. The padding is made in the scratch space, behind the one-time key. */
function padded(ctx: usize, at: usize, length: usize): void {
  update(at, length & ~15);
  const rest = length & 15;
  if (rest === 0) return;
  const block = ctx + SCRATCH + 32;
  v128.store(block, i64x2.splat(0));
  copy(at + (length - rest), block, rest);
  update(block, 16);
}

/** The tag of the ciphertext at `at`, with the one-time key at the start of the scratch space. */
function authenticate(ctx: usize, at: usize, length: usize, ad: usize, adLength: usize): void {
  begin(ctx + SCRATCH);
  padded(ctx, ad, adLength);
  padded(ctx, at, length);
  const block = ctx + SCRATCH + 32;
  store<u64>(block, adLength);
  store<u64>(block, length, 8);
  update(block, 16);
  finish(ctx + SCRATCH, ctx + TAG);
}

/** The rest of the message after its head, XORed with the key stream from block 4 on. Uses the scratch space. */
function body(ctx: usize, dst: usize, src: usize, length: usize): void {
  let counter: u32 = 4;
  let i = HEAD;
  for (; i + 256 <= length; i += 256, counter += 4) xor256(ctx, counter, src + i, dst + i);
  if (i < length) {
    const scratch = ctx + SCRATCH;
    copy(src + i, scratch, length - i);
    xor256(ctx, counter, scratch, scratch);
    copy(scratch, dst + i, length - i);
  }
}

/** XORs the first bytes of the message, and leaves the one-time key at the start of the scratch space. */
function head(ctx: usize, dst: usize, src: usize, length: usize): void {
  const scratch = ctx + SCRATCH;
  const n = length < HEAD ? length : HEAD;
  v128.store(scratch, i64x2.splat(0));
  v128.store(scratch, i64x2.splat(0), 16);
  copy(src, scratch + 64, n);
  xor256(ctx, 0, scratch, scratch);
  copy(scratch + 64, dst, n);
}

/** Encrypts `length` bytes at `src` to `dst` (the same place, or apart), and leaves the tag of it and of `ad` in the context. */
export function seal(ctx: usize, dst: usize, src: usize, length: usize, ad: usize, adLength: usize): void {
  head(ctx, dst, src, length);
  // The one-time key outlives the use of the scratch space.
  const k0 = v128.load(ctx + SCRATCH), k1 = v128.load(ctx + SCRATCH, 16);
  body(ctx, dst, src, length);
  v128.store(ctx + SCRATCH, k0);
  v128.store(ctx + SCRATCH, k1, 16);
  authenticate(ctx, dst, length, ad, adLength);
}

/** Decrypts, and leaves in the context the tag that the message should have had: the caller compares, and forgets `dst` where it differs. */
export function open(ctx: usize, dst: usize, src: usize, length: usize, ad: usize, adLength: usize): void {
  // In place, the ciphertext is gone after its decryption: the tag comes first.
  const scratch = ctx + SCRATCH;
  for (let i: usize = 0; i < 256; i += 16) v128.store(scratch + i, i64x2.splat(0));
  xor256(ctx, 0, scratch, scratch);
  const keep = length < HEAD ? length : HEAD;
  authenticate(ctx, src, length, ad, adLength);
  for (let i: usize = 0; i + 16 <= keep; i += 16) v128.store(dst + i, v128.xor(v128.load(src + i), v128.load(scratch + 64 + i)));
  for (let i = keep & ~15; i < keep; i++) store<u8>(dst + i, load<u8>(src + i) ^ load<u8>(scratch + 64 + i));
  body(ctx, dst, src, length);
}
