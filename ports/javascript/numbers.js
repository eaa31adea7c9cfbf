// Arrays to compute with, and their sums. Float64Array for float64; for all else Float32Array, which rounds to float32 whatever
// is stored in it. Between two stores JavaScript computes in float64, sums included, which is better than is asked for.

import { bfloat16Of, float16Of, fromBfloat16, fromFloat16 } from "./half.js";

const ONE_BY_ONE = 8; // as many terms are added one after the other; longer sums are halved

// An array like another, of `count` zeros or of a function of the index.
export function array(like, count, value) {
  const made = new like.constructor(count);
  if (value) for (let i = 0; i < count; i++) made[i] = value(i);
  return made;
}

// Element by element; between two stores the sum is float64.
export function added(...arrays) {
  return array(arrays[0], arrays[0].length, (i) => arrays.reduce((total, each) => total + each[i], 0));
}

const ROUND = {
  float64: (x) => x,
  float32: Math.fround,
  bfloat16: (x) => fromBfloat16(bfloat16Of(x)),
  float16: (x) => fromFloat16(float16Of(x)),
};

// Rounds every value, where it stands, to the nearest number of a dtype.
export function round(dtype, values) {
  const nearest = ROUND[dtype];
  for (let i = 0; i < values.length; i++) values[i] = nearest(values[i]);
  return values;
}

// A column or a row of an array: n elements, `step` apart.
export function strided(values, first, step = 1) {
  return { values, first, step };
}

// Pairwise: the error grows with the logarithm of n.
export function sum(n, a, from = 0) {
  if (n > ONE_BY_ONE) {
    const half = n >> 1;
    return sum(half, a, from) + sum(n - half, a, from + half);
  }
  let total = 0;
  for (let i = from; i < from + n; i++) total += a.values[a.first + i * a.step];
  return total;
}

export function dot(n, a, b, from = 0) {
  if (n > ONE_BY_ONE) {
    const half = n >> 1;
    return dot(half, a, b, from) + dot(n - half, a, b, from + half);
  }
  let total = 0;
  for (let i = from; i < from + n; i++) total += a.values[a.first + i * a.step] * b.values[b.first + i * b.step];
  return total;
}

const single = new Float32Array(1);
const bits = new Uint32Array(single.buffer);

// That of the power of two at or below |x|, a normal number of float32.
export function exponentOf(x) {
  single[0] = x;
  return ((bits[0] >>> 23) & 0xff) - 127;
}
