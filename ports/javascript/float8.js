// A number in eight bits: a sign, an exponent, and so many digits below the leading one.

import { exponentOf } from "./numbers.js";

// The nearest whole number, ties to even.
export function nearestEven(x) {
  const floor = Math.floor(x);
  const rest = x - floor;
  if (rest === 0.5) return floor % 2 === 0 ? floor : floor + 1;
  return rest < 0.5 ? floor : floor + 1;
}

// The nearest number, ties to even; x must be within the range of the format. e4m3fn has 3 digits, e5m2 2.
export function float8Of(x, digits) {
  if (Number.isNaN(x)) return 0x7f;
  const sign = x < 0 || Object.is(x, -0) ? 0x80 : 0;
  const least = digits === 3 ? -6 : -14; // of the smallest normal number
  const exponent = Math.max(exponentOf(x), least);
  const steps = nearestEven(Math.abs(x) * 2 ** (digits - exponent)); // a carry out of the digits steps to the next exponent
  return sign | (((exponent - least) << digits) + steps);
}
