/** The Internet checksum with vectors of 128 bits, while copying. */

/**
 * Copies `length` bytes, at most 65,535, and returns the sum of their 16-bit words in little-endian
 * order, folded to 16 bits (RFC 1071 section 2: the order of bytes is the caller's to turn). The
 * two places are the same, or apart.
 */
export function copySum(dst: usize, src: usize, length: usize): u32 {
  // Lanes of 32 bits, to each of which two words are added at a time: 4,096 times at most.
  let acc = i32x4.splat(0);
  let i: usize = 0;
  for (; i + 16 <= length; i += 16) {
    const part = v128.load(src + i);
    v128.store(dst + i, part);
    acc = i32x4.add(acc, i32x4.extadd_pairwise_i16x8_u(part));
  }
  let sum = <u64>(<u32>i32x4.extract_lane(acc, 0)) + <u64>(<u32>i32x4.extract_lane(acc, 1)) +
    <u64>(<u32>i32x4.extract_lane(acc, 2)) + <u64>(<u32>i32x4.extract_lane(acc, 3));
  for (; i + 2 <= length; i += 2) {
    const word = load<u16>(src + i);
    store<u16>(dst + i, word);
    sum += word;
  }
  if (i < length) {
    const last = load<u8>(src + i);
    store<u8>(dst + i, last);
    sum += last;
  }
  while (sum > 0xffff) sum = (sum >> 16) + (sum & 0xffff);
  return <u32>sum;
}
