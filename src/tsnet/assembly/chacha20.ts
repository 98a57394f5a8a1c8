/**
 * ChaCha20 (RFC 8439 section 2.4), four blocks at once: word i of the four states is one vector, a lane a block. No branch and no address
 * depends on a secret.
 */
import { NONCE, KEY } from './context';

// @ts-ignore: a decorator of AssemblyScript's
@inline function rotate16(x: v128): v128 {
  return i8x16.shuffle(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
}
// @ts-ignore
@inline function rotate12(x: v128): v128 {
  return v128.or(i32x4.shl(x, 12), i32x4.shr_u(x, 20));
}
// @ts-ignore
@inline function rotate8(x: v128): v128 {
  return i8x16.shuffle(x, x, 3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14);
}
// @ts-ignore
@inline function rotate7(x: v128): v128 {
  return v128.or(i32x4.shl(x, 7), i32x4.shr_u(x, 25));
}
// @ts-ignore
@inline function word(ctx: usize, at: usize): v128 {
  return v128.load32_splat(ctx + at);
}

/** Four words of each of four blocks: lanes to rows, each XORed with 16 bytes of `src`, to `dst`; blocks are 64 bytes apart. */
// @ts-ignore
@inline function emit(a: v128, b: v128, c: v128, d: v128, src: usize, dst: usize): void {
  const ab0 = i8x16.shuffle(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const ab1 = i8x16.shuffle(a, b, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  const cd0 = i8x16.shuffle(c, d, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const cd1 = i8x16.shuffle(c, d, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  v128.store(dst, v128.xor(v128.load(src), i8x16.shuffle(ab0, cd0, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)));
  v128.store(dst, v128.xor(v128.load(src, 64), i8x16.shuffle(ab0, cd0, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)), 64);
  v128.store(dst, v128.xor(v128.load(src, 128), i8x16.shuffle(ab1, cd1, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)), 128);
  v128.store(dst, v128.xor(v128.load(src, 192), i8x16.shuffle(ab1, cd1, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)), 192);
}

/** XORs the 256 bytes at `src` with the key stream's blocks `counter` to `counter` + 3, to `dst`, which is `src` or apart from it. */
export function xor256(ctx: usize, counter: u32, src: usize, dst: usize): void {
  const counters = i32x4.add(i32x4.splat(counter), i32x4(0, 1, 2, 3));
  let x0 = i32x4.splat(0x61707865), x1 = i32x4.splat(0x3320646e), x2 = i32x4.splat(0x79622d32), x3 = i32x4.splat(0x6b206574);
  let x4 = word(ctx, KEY), x5 = word(ctx, KEY + 4), x6 = word(ctx, KEY + 8), x7 = word(ctx, KEY + 12);
  let x8 = word(ctx, KEY + 16), x9 = word(ctx, KEY + 20), x10 = word(ctx, KEY + 24), x11 = word(ctx, KEY + 28);
  let x12 = counters, x13 = word(ctx, NONCE), x14 = word(ctx, NONCE + 4), x15 = word(ctx, NONCE + 8);
  for (let i = 0; i < 10; i++) {
    x0 = i32x4.add(x0, x4); x12 = rotate16(v128.xor(x12, x0));
    x1 = i32x4.add(x1, x5); x13 = rotate16(v128.xor(x13, x1));
    x2 = i32x4.add(x2, x6); x14 = rotate16(v128.xor(x14, x2));
    x3 = i32x4.add(x3, x7); x15 = rotate16(v128.xor(x15, x3));
    x8 = i32x4.add(x8, x12); x4 = rotate12(v128.xor(x4, x8));
    x9 = i32x4.add(x9, x13); x5 = rotate12(v128.xor(x5, x9));
    x10 = i32x4.add(x10, x14); x6 = rotate12(v128.xor(x6, x10));
    x11 = i32x4.add(x11, x15); x7 = rotate12(v128.xor(x7, x11));
    x0 = i32x4.add(x0, x4); x12 = rotate8(v128.xor(x12, x0));
    x1 = i32x4.add(x1, x5); x13 = rotate8(v128.xor(x13, x1));
    x2 = i32x4.add(x2, x6); x14 = rotate8(v128.xor(x14, x2));
    x3 = i32x4.add(x3, x7); x15 = rotate8(v128.xor(x15, x3));
    x8 = i32x4.add(x8, x12); x4 = rotate7(v128.xor(x4, x8));
    x9 = i32x4.add(x9, x13); x5 = rotate7(v128.xor(x5, x9));
    x10 = i32x4.add(x10, x14); x6 = rotate7(v128.xor(x6, x10));
    x11 = i32x4.add(x11, x15); x7 = rotate7(v128.xor(x7, x11));
    x0 = i32x4.add(x0, x5); x15 = rotate16(v128.xor(x15, x0));
    x1 = i32x4.add(x1, x6); x12 = rotate16(v128.xor(x12, x1));
    x2 = i32x4.add(x2, x7); x13 = rotate16(v128.xor(x13, x2));
    x3 = i32x4.add(x3, x4); x14 = rotate16(v128.xor(x14, x3));
    x10 = i32x4.add(x10, x15); x5 = rotate12(v128.xor(x5, x10));
    x11 = i32x4.add(x11, x12); x6 = rotate12(v128.xor(x6, x11));
    x8 = i32x4.add(x8, x13); x7 = rotate12(v128.xor(x7, x8));
    x9 = i32x4.add(x9, x14); x4 = rotate12(v128.xor(x4, x9));
    x0 = i32x4.add(x0, x5); x15 = rotate8(v128.xor(x15, x0));
    x1 = i32x4.add(x1, x6); x12 = rotate8(v128.xor(x12, x1));
    x2 = i32x4.add(x2, x7); x13 = rotate8(v128.xor(x13, x2));
    x3 = i32x4.add(x3, x4); x14 = rotate8(v128.xor(x14, x3));
    x10 = i32x4.add(x10, x15); x5 = rotate7(v128.xor(x5, x10));
    x11 = i32x4.add(x11, x12); x6 = rotate7(v128.xor(x6, x11));
    x8 = i32x4.add(x8, x13); x7 = rotate7(v128.xor(x7, x8));
    x9 = i32x4.add(x9, x14); x4 = rotate7(v128.xor(x4, x9));
  }
  emit(
    i32x4.add(x0, i32x4.splat(0x61707865)), i32x4.add(x1, i32x4.splat(0x3320646e)), i32x4.add(x2, i32x4.splat(0x79622d32)),
    i32x4.add(x3, i32x4.splat(0x6b206574)), src, dst,
  );
  emit(
    i32x4.add(x4, word(ctx, KEY)), i32x4.add(x5, word(ctx, KEY + 4)), i32x4.add(x6, word(ctx, KEY + 8)),
    i32x4.add(x7, word(ctx, KEY + 12)), src + 16, dst + 16,
  );
  emit(
    i32x4.add(x8, word(ctx, KEY + 16)), i32x4.add(x9, word(ctx, KEY + 20)), i32x4.add(x10, word(ctx, KEY + 24)),
    i32x4.add(x11, word(ctx, KEY + 28)), src + 32, dst + 32,
  );
  emit(
    i32x4.add(x12, counters), i32x4.add(x13, word(ctx, NONCE)), i32x4.add(x14, word(ctx, NONCE + 4)),
    i32x4.add(x15, word(ctx, NONCE + 8)), src + 48, dst + 48,
  );
}
