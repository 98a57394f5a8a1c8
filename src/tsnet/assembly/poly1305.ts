/**
 * Poly1305 (RFC 8439 section 2.5) with limbs of 26 bits: four blocks at once, one a lane, and what is left one by one. The state is in
 * globals: a call of the module's runs to its end, and there is one thread. No branch and no address depends on a secret.
 */
const MASK: u64 = 0x3ffffff;
/** From how many bytes on the two more powers of r are worth their while. */
const VECTOR_MIN: usize = 256;

let h0: u64 = 0, h1: u64 = 0, h2: u64 = 0, h3: u64 = 0, h4: u64 = 0;
let r0: u64 = 0, r1: u64 = 0, r2: u64 = 0, r3: u64 = 0, r4: u64 = 0;

/** Begins a message, with the first half of the one-time key. */
export function begin(key: usize): void {
  const low = load<u64>(key) & 0x0ffffffc0fffffff;
  const high = load<u64>(key, 8) & 0x0ffffffc0ffffffc;
  r0 = low & MASK;
  r1 = (low >> 26) & MASK;
  r2 = ((low >> 52) | (high << 12)) & MASK;
  r3 = (high >> 14) & MASK;
  r4 = high >> 40;
  h0 = 0; h1 = 0; h2 = 0; h3 = 0; h4 = 0;
}

/** h = h * r mod 2^130 - 5, limbs of 26 bits; h1 may be some bits larger. */
function multiply(): void {
  const s1 = r1 * 5, s2 = r2 * 5, s3 = r3 * 5, s4 = r4 * 5;
  const d0 = h0 * r0 + h1 * s4 + h2 * s3 + h3 * s2 + h4 * s1;
  let d1 = h0 * r1 + h1 * r0 + h2 * s4 + h3 * s3 + h4 * s2;
  let d2 = h0 * r2 + h1 * r1 + h2 * r0 + h3 * s4 + h4 * s3;
  let d3 = h0 * r3 + h1 * r2 + h2 * r1 + h3 * r0 + h4 * s4;
  let d4 = h0 * r4 + h1 * r3 + h2 * r2 + h3 * r1 + h4 * r0;
  d1 += d0 >> 26;
  d2 += d1 >> 26;
  d3 += d2 >> 26;
  d4 += d3 >> 26;
  const t = (d0 & MASK) + (d4 >> 26) * 5;
  h0 = t & MASK;
  h1 = (d1 & MASK) + (t >> 26);
  h2 = d2 & MASK;
  h3 = d3 & MASK;
  h4 = d4 & MASK;
}

/** Takes in `length` bytes, a multiple of 16. */
export function update(at: usize, length: usize): void {
  const end = at + length;
  if (length >= VECTOR_MIN) {
    const n = length & ~63;
    update64(at, n);
    at += n;
  }
  for (; at < end; at += 16) {
    const low = load<u64>(at), high = load<u64>(at, 8);
    h0 += low & MASK;
    h1 += (low >> 26) & MASK;
    h2 += ((low >> 52) | (high << 12)) & MASK;
    h3 += (high >> 14) & MASK;
    h4 += (high >> 40) | (1 << 24);
    multiply();
  }
}

// @ts-ignore: a decorator of AssemblyScript's
@inline function lanes(a: u64, b: u64, c: u64, d: u64): v128 {
  return i32x4.replace_lane(i32x4.replace_lane(i32x4.replace_lane(i32x4.splat(<i32>a), 1, <i32>b), 2, <i32>c), 3, <i32>d);
}
// @ts-ignore
@inline function times5(x: v128): v128 {
  return i32x4.add(i32x4.shl(x, 2), x);
}
/** The sum of five products, of the lanes 0 and 1. */
// @ts-ignore
@inline function low5(a: v128, b: v128, c: v128, d: v128, e: v128, f: v128, g: v128, h: v128, i: v128, j: v128): v128 {
  return i64x2.add(
    i64x2.add(i64x2.add(i64x2.extmul_low_i32x4_u(a, b), i64x2.extmul_low_i32x4_u(c, d)), i64x2.add(i64x2.extmul_low_i32x4_u(e, f), i64x2.extmul_low_i32x4_u(g, h))),
    i64x2.extmul_low_i32x4_u(i, j),
  );
}
/** The same of the lanes 2 and 3. */
// @ts-ignore
@inline function high5(a: v128, b: v128, c: v128, d: v128, e: v128, f: v128, g: v128, h: v128, i: v128, j: v128): v128 {
  return i64x2.add(
    i64x2.add(i64x2.add(i64x2.extmul_high_i32x4_u(a, b), i64x2.extmul_high_i32x4_u(c, d)), i64x2.add(i64x2.extmul_high_i32x4_u(e, f), i64x2.extmul_high_i32x4_u(g, h))),
    i64x2.extmul_high_i32x4_u(i, j),
  );
}
/** The low halves of the four 64-bit lanes. */
// @ts-ignore
@inline function narrow(low: v128, high: v128): v128 {
  return i8x16.shuffle(low, high, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
}
// @ts-ignore
@inline function sum(x: v128): u64 {
  return <u64><u32>i32x4.extract_lane(x, 0) + <u64><u32>i32x4.extract_lane(x, 1) + <u64><u32>i32x4.extract_lane(x, 2) + <u64><u32>i32x4.extract_lane(x, 3);
}

/** Takes in `length` bytes, a multiple of 64 and not 0. Lane i has the blocks i, i + 4, …, and r^4 between them; at the end r^(4 - i). */
function update64(at: usize, length: usize): void {
  // r^2, r^3 and r^4, by way of h.
  const k0 = h0, k1 = h1, k2 = h2, k3 = h3, k4 = h4;
  h0 = r0; h1 = r1; h2 = r2; h3 = r3; h4 = r4;
  multiply();
  const p0 = h0, p1 = h1, p2 = h2, p3 = h3, p4 = h4;
  multiply();
  const q0 = h0, q1 = h1, q2 = h2, q3 = h3, q4 = h4;
  multiply();
  let m0 = i32x4.splat(<i32>h0), m1 = i32x4.splat(<i32>h1), m2 = i32x4.splat(<i32>h2), m3 = i32x4.splat(<i32>h3), m4 = i32x4.splat(<i32>h4);
  let s1 = times5(m1), s2 = times5(m2), s3 = times5(m3), s4 = times5(m4);
  let a0 = lanes(k0, 0, 0, 0), a1 = lanes(k1, 0, 0, 0), a2 = lanes(k2, 0, 0, 0), a3 = lanes(k3, 0, 0, 0), a4 = lanes(k4, 0, 0, 0);
  const mask32 = i32x4.splat(0x3ffffff);
  const mask = i64x2.splat(0x3ffffff);
  const last = at + length - 64;
  for (; at <= last; at += 64) {
    // Words 0 to 3 of the four blocks, a block a lane; of them the limbs.
    const b0 = v128.load(at), b1 = v128.load(at, 16), b2 = v128.load(at, 32), b3 = v128.load(at, 48);
    const c0 = i8x16.shuffle(b0, b1, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const c1 = i8x16.shuffle(b2, b3, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const c2 = i8x16.shuffle(b0, b1, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    const c3 = i8x16.shuffle(b2, b3, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    const w0 = i8x16.shuffle(c0, c1, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    const w1 = i8x16.shuffle(c0, c1, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    const w2 = i8x16.shuffle(c2, c3, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    const w3 = i8x16.shuffle(c2, c3, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    a0 = i32x4.add(a0, v128.and(w0, mask32));
    a1 = i32x4.add(a1, v128.and(v128.or(i32x4.shr_u(w0, 26), i32x4.shl(w1, 6)), mask32));
    a2 = i32x4.add(a2, v128.and(v128.or(i32x4.shr_u(w1, 20), i32x4.shl(w2, 12)), mask32));
    a3 = i32x4.add(a3, v128.and(v128.or(i32x4.shr_u(w2, 14), i32x4.shl(w3, 18)), mask32));
    a4 = i32x4.add(a4, v128.or(i32x4.shr_u(w3, 8), i32x4.splat(1 << 24)));
    if (at === last) {
      m0 = lanes(h0, q0, p0, r0); m1 = lanes(h1, q1, p1, r1); m2 = lanes(h2, q2, p2, r2); m3 = lanes(h3, q3, p3, r3); m4 = lanes(h4, q4, p4, r4);
      s1 = times5(m1); s2 = times5(m2); s3 = times5(m3); s4 = times5(m4);
    }
    let l0 = low5(a0, m0, a1, s4, a2, s3, a3, s2, a4, s1), g0 = high5(a0, m0, a1, s4, a2, s3, a3, s2, a4, s1);
    let l1 = low5(a0, m1, a1, m0, a2, s4, a3, s3, a4, s2), g1 = high5(a0, m1, a1, m0, a2, s4, a3, s3, a4, s2);
    let l2 = low5(a0, m2, a1, m1, a2, m0, a3, s4, a4, s3), g2 = high5(a0, m2, a1, m1, a2, m0, a3, s4, a4, s3);
    let l3 = low5(a0, m3, a1, m2, a2, m1, a3, m0, a4, s4), g3 = high5(a0, m3, a1, m2, a2, m1, a3, m0, a4, s4);
    let l4 = low5(a0, m4, a1, m3, a2, m2, a3, m1, a4, m0), g4 = high5(a0, m4, a1, m3, a2, m2, a3, m1, a4, m0);
    l1 = i64x2.add(l1, i64x2.shr_u(l0, 26)); g1 = i64x2.add(g1, i64x2.shr_u(g0, 26));
    l2 = i64x2.add(l2, i64x2.shr_u(l1, 26)); g2 = i64x2.add(g2, i64x2.shr_u(g1, 26));
    l3 = i64x2.add(l3, i64x2.shr_u(l2, 26)); g3 = i64x2.add(g3, i64x2.shr_u(g2, 26));
    l4 = i64x2.add(l4, i64x2.shr_u(l3, 26)); g4 = i64x2.add(g4, i64x2.shr_u(g3, 26));
    const lc = i64x2.shr_u(l4, 26), gc = i64x2.shr_u(g4, 26);
    l0 = i64x2.add(v128.and(l0, mask), i64x2.add(i64x2.shl(lc, 2), lc));
    g0 = i64x2.add(v128.and(g0, mask), i64x2.add(i64x2.shl(gc, 2), gc));
    a0 = v128.and(narrow(l0, g0), mask32);
    a1 = i32x4.add(v128.and(narrow(l1, g1), mask32), narrow(i64x2.shr_u(l0, 26), i64x2.shr_u(g0, 26)));
    a2 = v128.and(narrow(l2, g2), mask32);
    a3 = v128.and(narrow(l3, g3), mask32);
    a4 = v128.and(narrow(l4, g4), mask32);
  }
  // The sum of the lanes. What the limbs have above 26 bits is carried on, as their products would not fit otherwise.
  h0 = sum(a0);
  h1 = sum(a1) + (h0 >> 26);
  h2 = sum(a2) + (h1 >> 26);
  h3 = sum(a3) + (h2 >> 26);
  h4 = sum(a4) + (h3 >> 26);
  h0 = (h0 & MASK) + (h4 >> 26) * 5;
  h1 &= MASK; h2 &= MASK; h3 &= MASK; h4 &= MASK;
}

/** The tag to `out`: h mod 2^130 - 5, plus the second half of the one-time key, mod 2^128. */
export function finish(key: usize, out: usize): void {
  // Limbs of 26 bits, twice around for what the carry from the top brings in.
  let a0 = h0, a1 = h1, a2 = h2, a3 = h3, a4 = h4;
  for (let i = 0; i < 2; i++) {
    a1 += a0 >> 26; a0 &= MASK;
    a2 += a1 >> 26; a1 &= MASK;
    a3 += a2 >> 26; a2 &= MASK;
    a4 += a3 >> 26; a3 &= MASK;
    a0 += (a4 >> 26) * 5; a4 &= MASK;
  }
  a1 += a0 >> 26; a0 &= MASK;
  // g = h + 5 - 2^130, which is below zero where h is reduced already.
  let g0 = a0 + 5;
  let g1 = a1 + (g0 >> 26); g0 &= MASK;
  let g2 = a2 + (g1 >> 26); g1 &= MASK;
  let g3 = a3 + (g2 >> 26); g2 &= MASK;
  const g4 = a4 + (g3 >> 26) - (1 << 26); g3 &= MASK;
  const keep: u64 = 0 - (g4 >> 63);
  a0 = (a0 & keep) | (g0 & ~keep);
  a1 = (a1 & keep) | (g1 & ~keep);
  a2 = (a2 & keep) | (g2 & ~keep);
  a3 = (a3 & keep) | (g3 & ~keep);
  a4 = (a4 & keep) | (g4 & ~keep);
  // 128 bits and the key's half of them, in portions of 32 bits: there is no carry flag.
  let low = a0 | (a1 << 26) | (a2 << 52);
  let high = (a2 >> 12) | (a3 << 14) | (a4 << 40);
  const k = load<u64>(key, 16);
  low += k;
  // The carry out of 64 bits, without a comparison that could become a branch.
  const before = low - k;
  const carry = ((before & k) | ((before | k) & ~low)) >> 63;
  high += load<u64>(key, 24) + carry;
  store<u64>(out, low);
  store<u64>(out, high, 8);
}
