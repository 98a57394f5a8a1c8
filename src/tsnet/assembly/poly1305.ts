/**
 * Poly1305 (RFC 8439 section 2.5) with limbs of 26 bits in 64-bit integers. The state is in globals: a call of the module's runs to its end,
 * and there is one thread. No branch and no address depends on a secret.
 */
const MASK: u64 = 0x3ffffff;

let h0: u64 = 0, h1: u64 = 0, h2: u64 = 0, h3: u64 = 0, h4: u64 = 0;
let r0: u64 = 0, r1: u64 = 0, r2: u64 = 0, r3: u64 = 0, r4: u64 = 0;
/** r squared. */
let q0: u64 = 0, q1: u64 = 0, q2: u64 = 0, q3: u64 = 0, q4: u64 = 0;

/** Begins a message, with the first half of the one-time key. */
export function begin(key: usize): void {
  const low = load<u64>(key) & 0x0ffffffc0fffffff;
  const high = load<u64>(key, 8) & 0x0ffffffc0ffffffc;
  r0 = low & MASK;
  r1 = (low >> 26) & MASK;
  r2 = ((low >> 52) | (high << 12)) & MASK;
  r3 = (high >> 14) & MASK;
  r4 = high >> 40;
  h0 = r0; h1 = r1; h2 = r2; h3 = r3; h4 = r4;
  multiply();
  q0 = h0; q1 = h1; q2 = h2; q3 = h3; q4 = h4;
  h0 = 0; h1 = 0; h2 = 0; h3 = 0; h4 = 0;
}

/** h = h * r mod 2^130 - 5, limbs but for h1's of 26 bits. */
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
  const pairs = at + (length & ~31);
  let a0 = h0, a1 = h1, a2 = h2, a3 = h3, a4 = h4;
  const s1 = r1 * 5, s2 = r2 * 5, s3 = r3 * 5, s4 = r4 * 5;
  const t1 = q1 * 5, t2 = q2 * 5, t3 = q3 * 5, t4 = q4 * 5;
  // Two blocks at once: (h + a) * r^2 + b * r.
  for (; at < pairs; at += 32) {
    let low = load<u64>(at), high = load<u64>(at, 8);
    a0 += low & MASK;
    a1 += (low >> 26) & MASK;
    a2 += ((low >> 52) | (high << 12)) & MASK;
    a3 += (high >> 14) & MASK;
    a4 += (high >> 40) | (1 << 24);
    low = load<u64>(at, 16);
    high = load<u64>(at, 24);
    const b0 = low & MASK;
    const b1 = (low >> 26) & MASK;
    const b2 = ((low >> 52) | (high << 12)) & MASK;
    const b3 = (high >> 14) & MASK;
    const b4 = (high >> 40) | (1 << 24);
    const d0 = a0 * q0 + a1 * t4 + a2 * t3 + a3 * t2 + a4 * t1 + (b0 * r0 + b1 * s4 + b2 * s3 + b3 * s2 + b4 * s1);
    let d1 = a0 * q1 + a1 * q0 + a2 * t4 + a3 * t3 + a4 * t2 + (b0 * r1 + b1 * r0 + b2 * s4 + b3 * s3 + b4 * s2);
    let d2 = a0 * q2 + a1 * q1 + a2 * q0 + a3 * t4 + a4 * t3 + (b0 * r2 + b1 * r1 + b2 * r0 + b3 * s4 + b4 * s3);
    let d3 = a0 * q3 + a1 * q2 + a2 * q1 + a3 * q0 + a4 * t4 + (b0 * r3 + b1 * r2 + b2 * r1 + b3 * r0 + b4 * s4);
    let d4 = a0 * q4 + a1 * q3 + a2 * q2 + a3 * q1 + a4 * q0 + (b0 * r4 + b1 * r3 + b2 * r2 + b3 * r1 + b4 * r0);
    d1 += d0 >> 26;
    d2 += d1 >> 26;
    d3 += d2 >> 26;
    d4 += d3 >> 26;
    const t = (d0 & MASK) + (d4 >> 26) * 5;
    a0 = t & MASK;
    a1 = (d1 & MASK) + (t >> 26);
    a2 = d2 & MASK;
    a3 = d3 & MASK;
    a4 = d4 & MASK;
  }
  h0 = a0; h1 = a1; h2 = a2; h3 = a3; h4 = a4;
  if (at < end) {
    const low = load<u64>(at), high = load<u64>(at, 8);
    h0 += low & MASK;
    h1 += (low >> 26) & MASK;
    h2 += ((low >> 52) | (high << 12)) & MASK;
    h3 += (high >> 14) & MASK;
    h4 += (high >> 40) | (1 << 24);
    multiply();
  }
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
