// BatchNorm of rows of d features, each feature by itself, and its gradients.
// `how` is { training, momentum, unbiased, eps, rows, d }, `running` { mean, variance }; weight and bias may be undefined.

import { array, dot, strided, sum } from "./numbers.js";

// x_hat = (x - mu) / sqrt(sigma^2 + eps), with a feature's mean and variance: over the rows in training, else those that ran.
function normalise({ training, eps, rows, d }, x, running) {
  const mean = training ? array(x, d, (i) => sum(rows, strided(x, i, d)) / rows) : running.mean;
  const xHat = array(x, x.length, (i) => x[i] - mean[i % d]);
  const centred = (i) => strided(xHat, i, d);
  const variance = training ? array(x, d, (i) => dot(rows, centred(i), centred(i)) / rows) : running.variance;
  const rstd = array(x, d, (i) => 1 / Math.sqrt(variance[i] + eps));
  for (let i = 0; i < x.length; i++) xHat[i] *= rstd[i % d];
  return { mean, variance, xHat, rstd };
}

// y = w x_hat + b, and in training what runs from now on, with a share of `momentum` of the new.
export function batchNorm(how, x, weight, bias, running) {
  const { training, momentum, unbiased, rows, d } = how;
  const { mean, variance, xHat } = normalise(how, x, running);
  const y = array(x, x.length, (i) => xHat[i] * (weight ? weight[i % d] : 1) + (bias ? bias[i % d] : 0));
  if (!training) return { y };
  const correction = unbiased ? rows / (rows - 1) : 1;
  const moved = (old, made) => array(x, d, (i) => old[i] + momentum * (made(i) - old[i]));
  return {
    y,
    mean: moved(running.mean, (i) => mean[i]),
    variance: moved(running.variance, (i) => correction * variance[i]),
  };
}

// dx = w rstd (dy - mean(dy) - x_hat mean(dy x_hat)), means over the rows; in evaluation w rstd dy.
export function batchNormVjp(how, dy, x, weight, running) {
  const { training, rows, d } = how;
  const { xHat, rstd } = normalise(how, x, running);
  const dweight = array(x, d, (i) => dot(rows, strided(dy, i, d), strided(xHat, i, d)));
  const dbias = array(x, d, (i) => sum(rows, strided(dy, i, d)));
  const dx = array(x, x.length, (i) => {
    const feature = i % d;
    const ofStatistics = training ? (dbias[feature] + xHat[i] * dweight[feature]) / rows : 0;
    return (weight ? weight[feature] : 1) * rstd[feature] * (dy[i] - ofStatistics);
  });
  return { dx, dweight, dbias };
}
