// The two halves of a float: bfloat16 and float16, as bits, rounded to nearest with ties to even.

const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

const INFINITE = 0x7f800000;
const REBIAS = (127 - 15) << 23; // from float16's exponents to float's

function bitsOf(x) {
  float[0] = x;
  return bits[0];
}

function fromBits(pattern) {
  bits[0] = pattern;
  return float[0];
}

// Drops the lowest bits. A carry out of the fraction is right: it steps to the next exponent, and from the last to infinity.
function without(dropped, pattern) {
  const odd = (pattern >>> dropped) & 1;
  const justBelowHalf = 2 ** (dropped - 1) - 1;
  return (pattern + justBelowHalf + odd) >>> dropped;
}

export function bfloat16Of(x) {
  const pattern = bitsOf(x);
  if (Number.isNaN(x)) return (pattern >>> 16) | 0x40; // its carry would make it infinite, or zero
  return without(16, pattern);
}

export function float16Of(x) {
  const pattern = bitsOf(x);
  const sign = (pattern >>> 16) & 0x8000;
  const size = Math.abs(float[0]);
  if (Number.isNaN(size)) return sign | 0x7e00;
  if (size >= 65520) return sign | 0x7c00; // halfway from the largest number, 65504, to the next power of two
  if (size >= 2 ** -14) return sign | without(13, (pattern & 0x7fffffff) - REBIAS);
  // Subnormal: a whole number of 2^-24, which is what the last bit of floats from 1/2 to 1 is worth.
  return sign | (bitsOf(size + 0.5) - bitsOf(0.5));
}

export function fromBfloat16(pattern) {
  return fromBits(pattern << 16);
}

export function fromFloat16(pattern) {
  const size = pattern & 0x7fff;
  const sign = pattern & 0x8000 ? -1 : 1;
  if (size >= 0x7c00) return sign * fromBits(INFINITE | (size << 13));
  if (size >= 0x0400) return sign * fromBits((size << 13) + REBIAS);
  return sign * size * 2 ** -24;
}
