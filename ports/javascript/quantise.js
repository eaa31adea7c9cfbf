// y over a scale, within the range of eight bits.

import { array, exponentOf } from "./numbers.js";

const GROUPS = { per_group_128: 128, mx: 32 };
const QMAX = { float8_e4m3fn: 448, float8_e5m2: 57344, int8: 127 }; // -128 is not used

// What brings the largest number of a group to the largest of the dtype, or near to it.
function scaleOf(largest, { quantised_dtype: dtype, scaling, scale_ub: bound = Infinity }) {
  const qmax = QMAX[dtype];
  if (scaling === "mx") return largest === 0 ? 1 : 2 ** Math.max(exponentOf(largest) - exponentOf(qmax), -126); // zeros are left open
  return Math.max(Math.min(largest, bound) / qmax, dtype === "int8" ? 2 ** -23 : 1 / (512 * qmax));
}

// q, not yet rounded to its dtype, and the scales of all groups of rows of d features: those found, or the one given.
export function quantise(settings, d, y, given) {
  const size = GROUPS[settings.scaling] ?? d;
  const qmax = QMAX[settings.quantised_dtype];
  if (!qmax || d % size !== 0) throw new Error(`${d} features cannot be quantised as asked`);
  const scales = array(y, y.length / size, (group) => {
    if (given) return given[0];
    return scaleOf(y.subarray(group * size, (group + 1) * size).reduce((a, b) => Math.max(a, Math.abs(b)), 0), settings);
  });
  const q = array(y, y.length, (i) => Math.min(Math.max(y[i] / scales[Math.floor(i / size)], -qmax), qmax));
  return { q, scales };
}
