// RMSNorm and LayerNorm over rows of d features, and their gradients.
// `how` is { centred, castsFirst, dtype, eps, weightOffset, d }; weight and bias may be undefined.

import { array, dot, round, strided, sum } from "./numbers.js";

// x_hat = (x - mu) / sqrt(mean((x - mu)^2) + eps), with mu = 0 in RMSNorm, and the reciprocals of the roots.
function normalise({ centred, eps, d }, x) {
  const xHat = array(x, x.length);
  const rstd = array(x, x.length / d);
  for (let row = 0; row < rstd.length; row++) {
    const first = row * d;
    const mean = centred ? sum(d, strided(x, first)) / d : 0;
    for (let i = first; i < first + d; i++) xHat[i] = x[i] - mean;
    rstd[row] = 1 / Math.sqrt(dot(d, strided(xHat, first), strided(xHat, first)) / d + eps);
    for (let i = first; i < first + d; i++) xHat[i] *= rstd[row];
  }
  return { xHat, rstd };
}

const scale = ({ weightOffset }, weight, i) => (weight ? weight[i] + weightOffset : 1);

// y = w x_hat + b, not yet rounded to a dtype of its own.
export function norm(how, x, weight, bias) {
  const { xHat } = normalise(how, x);
  if (how.castsFirst) round(how.dtype, xHat);
  return array(x, x.length, (i) => xHat[i] * scale(how, weight, i % how.d) + (bias ? bias[i % how.d] : 0));
}

// With g = w dy: dx = rstd (g - mean(g) - x_hat mean(g x_hat)), without the first mean in RMSNorm.
export function normVjp(how, dy, x, weight) {
  const { d, centred } = how;
  const { xHat, rstd } = normalise(how, x);
  const g = array(x, x.length, (i) => dy[i] * scale(how, weight, i % d));
  const dx = array(x, x.length);
  for (let row = 0; row < rstd.length; row++) {
    const first = row * d;
    const shift = centred ? sum(d, strided(g, first)) / d : 0;
    const projection = dot(d, strided(g, first), strided(xHat, first)) / d;
    for (let i = first; i < first + d; i++) dx[i] = rstd[row] * (g[i] - shift - xHat[i] * projection);
  }
  const dweight = array(x, d, (i) => dot(rstd.length, strided(dy, i, d), strided(xHat, i, d)));
  const dbias = array(x, d, (i) => sum(rstd.length, strided(dy, i, d)));
  return { dx, dweight, dbias };
}
