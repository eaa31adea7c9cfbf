// Matrix products, and the nonlinearities between them.

import { erfc } from "./erfc.js";
import { array, dot, strided, sum } from "./numbers.js";

// y = x weight' + bias, weight [out, in]; bias may be undefined.
export function linear({ rows, inner, out }, x, weight, bias) {
  return array(x, rows * out, (i) => {
    const o = i % out;
    return dot(inner, strided(x, ((i - o) / out) * inner), strided(weight, o * inner)) + (bias ? bias[o] : 0);
  });
}

export function linearVjp({ rows, inner, out }, dy, x, weight) {
  return {
    dx: array(x, rows * inner, (i) => dot(out, strided(dy, Math.floor(i / inner) * out), strided(weight, i % inner, inner))),
    dweight: array(x, out * inner, (i) => dot(rows, strided(dy, Math.floor(i / inner), out), strided(x, i % inner, inner))),
    dbias: array(x, out, (o) => sum(rows, strided(dy, o, out))),
  };
}

// 1 / (1 + exp(-x)), and exp(x) / (1 + exp(x)) below zero: neither overflows.
export function sigmoid(x) {
  const e = Math.exp(-Math.abs(x));
  return (x < 0 ? e : 1) / (1 + e);
}

export function swiglu(gate, up) {
  return array(gate, gate.length, (i) => gate[i] * sigmoid(gate[i]) * up[i]);
}

export function swigluVjp(dy, gate, up) {
  const slope = (x) => sigmoid(x) * (1 + x * sigmoid(-x));
  return {
    dgate: array(gate, gate.length, (i) => dy[i] * up[i] * slope(gate[i])),
    dup: array(gate, gate.length, (i) => dy[i] * gate[i] * sigmoid(gate[i])),
  };
}

export function gegluByTanh(gate, up) {
  const activated = gelu(gate, true);
  return array(gate, gate.length, (i) => activated[i] * up[i]);
}

export function gegluByTanhVjp(dy, gate, up) {
  const activated = gelu(gate, true);
  const dactivated = array(gate, gate.length, (i) => dy[i] * up[i]);
  return { dgate: geluVjp(dactivated, gate, true), dup: array(gate, gate.length, (i) => dy[i] * activated[i]) };
}

// (1 + tanh(a)) / 2 is sigmoid(2a), which does not cancel.
const twiceTheAngle = (x) => Math.sqrt(8 / Math.PI) * (x + 0.044715 * x ** 3);
const shareBelow = (x, approximate) => (approximate ? sigmoid(twiceTheAngle(x)) : erfc(-x / Math.SQRT2) / 2);

// The derivatives of the two.
const density = (x) => Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI);
const slopeByTanh = (x) => {
  const a = twiceTheAngle(x);
  return sigmoid(a) * sigmoid(-a) * Math.sqrt(8 / Math.PI) * (1 + 3 * 0.044715 * x * x);
};

export function gelu(x, approximate) {
  return array(x, x.length, (i) => x[i] * shareBelow(x[i], approximate));
}

export function geluVjp(dy, x, approximate) {
  const slope = approximate ? slopeByTanh : density;
  return array(x, x.length, (i) => dy[i] * (shareBelow(x[i], approximate) + x[i] * slope(x[i])));
}
