// A case answered: its op, with the constants of the message and the tensors of its file. Each op returns all of its outputs.

import { attention, attentionVjp, rope } from "./attention.js";
import { batchNorm, batchNormVjp } from "./batch_norm.js";
import { Block } from "./block.js";
import { gelu, geluVjp, swiglu, swigluVjp } from "./feed_forward.js";
import { gatedNorm, gatedNormVjp } from "./gated_norm.js";
import { norm, normVjp } from "./norms.js";
import { added, array, round } from "./numbers.js";
import { quantise } from "./quantise.js";

const like = (tensor, values, dtype = tensor.dtype) => ({ dtype, shape: tensor.shape, values });

const ofThoseGiven = ({ x, weight, bias }, { dx, dweight, dbias }) => ({
  dx: like(x, dx),
  ...(weight && { dweight: like(weight, dweight) }),
  ...(bias && { dbias: like(bias, dbias) }),
});

const howToNorm = (centred, { order, eps, weight_offset: weightOffset, settings }, x) => ({
  centred,
  castsFirst: order === "cast_then_scale",
  dtype: x.dtype,
  eps,
  weightOffset,
  d: x.shape.at(-1),
  group: settings.group_size ?? x.shape.at(-1),
});

// s is what is normalised: x's values, or the sum of them and a residual.
function normed(how, { x, weight, bias }, s) {
  const promotes = how.castsFirst && [weight, bias].some((parameter) => parameter?.dtype === "float32");
  return like(x, norm(how, s, weight?.values, bias?.values), promotes ? "float32" : x.dtype);
}

function normOp(centred) {
  return (message, given, backward) => {
    const { x, weight, dy } = given;
    const how = howToNorm(centred, message, x);
    const y = normed(how, given, x.values);
    return backward ? { y, ...ofThoseGiven(given, normVjp(how, dy.values, x.values, weight?.values)) } : { y };
  };
}

// The norm of s = x + residual, as s is stored or as it was before; an output without a cotangent counts for nothing.
function addNormOp(centred) {
  return (message, given, backward) => {
    const { x, residual, weight, dy, dresidual_out: dresidualOut } = given;
    const how = howToNorm(centred, message, x);
    const residualOut = like(residual, added(x.values, residual.values));
    const s = residualOut.values.slice();
    if (message.settings.sum === "rounded") round(x.dtype, s);
    const outputs = { y: normed(how, given, s), residual_out: residualOut };
    if (!backward) return outputs;
    const { dx: ds, dweight, dbias } = normVjp(how, dy?.values ?? array(s, s.length), s, weight?.values);
    const dx = dresidualOut ? added(ds, dresidualOut.values) : ds;
    return { ...outputs, ...ofThoseGiven(given, { dx, dweight, dbias }), dresidual: like(residual, dx) };
  };
}

function blocks({ op, settings }, given, backward) {
  const { config, position, n_layers: nLayers = 1 } = settings;
  const names = op === "pre_ln_stack" ? [...Array(nLayers).keys()].map((i) => `${i}.`) : [""];
  const layers = names.map((layer) => new Block(config, position, given, layer));
  const out = layers.reduce((stream, layer) => layer.forward(stream), given.x.values);
  const outputs = { out: like(given.x, out) };
  for (const { taps } of layers) for (const [name, tap] of Object.entries(taps)) outputs[`tap.${name}`] = tap;
  if (!backward) return outputs;
  const dx = layers.reduceRight((cotangent, layer) => layer.backward(cotangent), given.dout.values);
  outputs.dx = like(given.x, dx);
  return Object.assign(outputs, ...layers.map(({ gradients }) => gradients));
}

// The norm of x, or of its sum with a residual, in eight bits: q and, where none is given, its scale.
function quantisedOp(message, given) {
  const { settings } = message;
  const { x, residual, scale } = given;
  const how = howToNorm(false, message, x);
  const s = residual ? added(x.values, residual.values) : x.values.slice();
  const residualOut = residual && like(residual, s.slice());
  if (settings.sum === "rounded") round(x.dtype, s);
  const y = norm(how, s, given.weight?.values);
  if (settings.y === "rounded") round(x.dtype, y);
  const { q, scales } = quantise(settings, how.d, y, scale?.values);
  const shape = [...x.shape.slice(0, -1), scales.length / (y.length / how.d)];
  return {
    q: like(x, q, settings.quantised_dtype),
    ...(!scale && { scale: { dtype: "float32", shape, values: scales } }),
    ...(residual && { residual_out: residualOut }),
  };
}

export const OPS = {
  rms_norm: normOp(false),
  layer_norm: normOp(true),
  add_rms_norm: addNormOp(false),
  add_layer_norm: addNormOp(true),
  quantised_rms_norm: quantisedOp,
  quantised_add_rms_norm: quantisedOp,

  gated_rms_norm(message, given, backward) {
    const { x, gate, weight, dy } = given;
    const { norm_before_gate: normFirst, activation } = message.settings;
    const how = { ...howToNorm(false, message, x), normFirst, silu: activation === "silu" };
    const promotes = how.castsFirst && !normFirst && weight?.dtype === "float32";
    const y = like(x, gatedNorm(how, x.values, gate.values, weight?.values), promotes ? "float32" : x.dtype);
    if (!backward) return { y };
    const { dgate, ...gradients } = gatedNormVjp(how, dy.values, x.values, gate.values, weight?.values);
    return { y, ...ofThoseGiven({ x, weight }, gradients), dgate: like(gate, dgate) };
  },

  batch_norm({ eps, settings }, given, backward) {
    const { x, weight, bias, running_mean: runningMean, running_var: runningVar, dy } = given;
    const d = x.shape.at(-1);
    const how = { ...settings, eps, rows: x.values.length / d, d };
    const running = { mean: runningMean.values, variance: runningVar.values };
    const { y, mean, variance } = batchNorm(how, x.values, weight?.values, bias?.values, running);
    const outputs = { y: like(x, y) };
    if (how.training) Object.assign(outputs, { running_mean: like(runningMean, mean), running_var: like(runningVar, variance) });
    if (!backward) return outputs;
    const { dx, dweight, dbias } = batchNormVjp(how, dy.values, x.values, weight?.values, running);
    return { ...outputs, ...ofThoseGiven({ x, weight, bias }, { dx, dweight, dbias }) };
  },

  rope({ settings }, { x, dy }, backward) {
    const [s, heads, dHead] = x.shape.slice(-3);
    const how = { ...settings, s, heads, dHead };
    const y = like(x, rope(how, x.values));
    return backward ? { y, dx: like(x, rope({ ...how, backwards: true }, dy.values)) } : { y };
  },

  attention({ settings }, { q, k, v, key_mask: keyMask, sink, dy }, backward) {
    const [s, h, dHead] = q.shape.slice(-3);
    const [t, hKv] = k.shape.slice(-3);
    const batch = q.values.length / (s * h * dHead);
    const how = { ...settings, batch, s, t, h, hKv, dHead, keyMask: keyMask?.values, sink: sink?.values };
    const made = attention(how, q.values, k.values, v.values);
    const y = like(q, made.y);
    if (!backward) return { y };
    const { dq, dk, dv, dsink } = attentionVjp(how, dy.values, q.values, k.values, v.values, made);
    return { y, dq: like(q, dq), dk: like(k, dk), dv: like(v, dv), ...(sink && { dsink: like(sink, dsink) }) };
  },

  swiglu(_, { gate, up, dy }, backward) {
    const y = like(gate, swiglu(gate.values, up.values));
    if (!backward) return { y };
    const { dgate, dup } = swigluVjp(dy.values, gate.values, up.values);
    return { y, dgate: like(gate, dgate), dup: like(up, dup) };
  },

  gelu({ settings: { approximate } }, { x, dy }, backward) {
    const y = like(x, gelu(x.values, approximate));
    return backward ? { y, dx: like(x, geluVjp(dy.values, x.values, approximate)) } : { y };
  },

  pre_ln_block: blocks,
  pre_ln_stack: blocks,
};
