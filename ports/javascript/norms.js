// RMSNorm and LayerNorm over rows of d features, and their gradients.
// `how` is { centred, castsFirst, dtype, eps, weightOffset, d, group }: so many features of the d have statistics of their own.
// weight and bias may be undefined.

import { array, dot, round, strided, sum } from "./numbers.js";

// x_hat = (x - mu) / sqrt(mean((x - mu)^2) + eps), with mu = 0 in RMSNorm, and the reciprocals of the roots.
function normalise({ centred, eps, group }, x) {
  const xHat = array(x, x.length);
  const rstd = array(x, x.length / group);
  for (let row = 0; row < rstd.length; row++) {
    const first = row * group;
    const mean = centred ? sum(group, strided(x, first)) / group : 0;
    for (let i = first; i < first + group; i++) xHat[i] = x[i] - mean;
    rstd[row] = 1 / Math.sqrt(dot(group, strided(xHat, first), strided(xHat, first)) / group + eps);
    for (let i = first; i < first + group; i++) xHat[i] *= rstd[row];
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
  const { d, group, centred } = how;
  const { xHat, rstd } = normalise(how, x);
  const g = array(x, x.length, (i) => dy[i] * scale(how, weight, i % d));
  const dx = array(x, x.length);
  for (let row = 0; row < rstd.length; row++) {
    const first = row * group;
    const shift = centred ? sum(group, strided(g, first)) / group : 0;
    const projection = dot(group, strided(g, first), strided(xHat, first)) / group;
    for (let i = first; i < first + group; i++) dx[i] = rstd[row] * (g[i] - shift - xHat[i] * projection);
  }
  const rows = x.length / d;
  const dweight = array(x, d, (i) => dot(rows, strided(dy, i, d), strided(xHat, i, d)));
  const dbias = array(x, d, (i) => sum(rows, strided(dy, i, d)));
  return { dx, dweight, dbias };
}
