// The transformer block: out = h + feed_forward(norm(h)), h = x + attention(norm(x)) in Pre-LN, or with its norms in another place.

import { attention, attentionVjp, rope } from "./attention.js";
import { gegluByTanh, gegluByTanhVjp, gelu, geluVjp, linear, linearVjp, swiglu, swigluVjp } from "./feed_forward.js";
import { norm, normVjp } from "./norms.js";
import { added, array, round } from "./numbers.js";

const normsBefore = ["pre", "sandwich", "parallel"]; // placements with a norm before what reads the stream
const normsBehind = ["sandwich", "branch"]; // with one after attention and after the feed-forward layer, before they are added
const sumNorms = { attn: "attention_norm", ffn: "ffn_norm" }; // in Post-LN, by what the sum was added from

const gates = {
  swiglu: { forward: swiglu, backward: swigluVjp },
  geglu_tanh: { forward: gegluByTanh, backward: gegluByTanhVjp },
};

// One layer: `config` is the message's, `given` the file's tensors, `layer` what the names of its parameters begin with.
export class Block {
  constructor(config, position, given, layer) {
    this.config = config;
    this.layer = layer;
    this.given = given;
    this.dtype = given.x.dtype;
    const { d_model: d, d_head: dHead, n_heads: h, n_kv_heads: hKv } = config;
    const s = given.x.shape.at(-2);
    const t = s + (given.k_cache ? given.k_cache.shape.at(-3) : 0);
    const batch = given.x.values.length / (s * d);
    this.leading = given.x.shape.slice(0, -2);
    this.sizes = { batch, s, t, h, hKv, dHead, dQ: h * dHead, dKv: hKv * dHead, d, dFf: config.d_ff };
    const { causal, window, softcap, attention_scale, rotary_features } = config; // undefined where a block has none
    const sink = this.parameter("attention.sink")?.values;
    this.attends = { ...this.sizes, causal, window, softcap, attention_scale, sink, keyMask: given.key_mask?.values };
    this.turns = { s, dHead, position, base: config.rope_base, interleaved: config.rope === "interleaved", rotary_features };
    const together = config.qk_norm_over === "all_heads";
    this.normed = together ? [h * dHead, hKv * dHead] : [dHead, dHead];
    const { placement = "pre" } = config;
    this.before = normsBefore.includes(placement);
    this.behind = normsBehind.includes(placement);
    this.post = placement === "post";
    this.parallel = placement === "parallel";
    this.gated = gates[config.feed_forward]; // undefined where there is no gate
    this.taps = {};
    this.gradients = {};
  }

  // All intermediates by name; what the backward pass needs of them stays in this.made.
  forward(x) {
    const { config, sizes } = this;
    const { s, t, h, hKv, dHead, dQ, dKv, d, dFf } = sizes;
    const m = (this.made = { x });
    const keep = (name, values, shape, dtype = this.dtype) => {
      m[name] = round(dtype, values);
      this.taps[this.layer + name] = { dtype, shape: [...this.leading, ...shape], values };
      return values;
    };

    // The stream and what the branch gives to it, with the norms that stand behind.
    const join = (name, stream, branch) => {
      const out = `${branch}_out`;
      if (this.behind) keep(`${out}_norm`, this.norm(`${out}_norm`, d, m[out]), [s, d]);
      const sum = added(stream, m[`${out}_norm`] ?? m[out]);
      if (!this.post) return keep(name, sum, [s, d]);
      keep(`${branch}_sum`, sum, [s, d]);
      return keep(name, this.norm(sumNorms[branch], d, sum), [s, d]);
    };

    if (this.before) keep("attention_norm", this.norm("attention_norm", d, x), [s, d]);
    m.to_attention = m.attention_norm ?? x;
    m.q_in = keep("q", this.linear("attention.q", d, dQ, m.to_attention), [s, h, dHead]);
    m.k_in = keep("k", this.linear("attention.k", d, dKv, m.to_attention), [s, hKv, dHead]);
    keep("v", this.linear("attention.v", d, dKv, m.to_attention), [s, hKv, dHead]);
    if (config.qk_norm) {
      m.q_in = keep("q_norm", this.norm("attention.q_norm", this.normed[0], m.q), [s, h, dHead]);
      m.k_in = keep("k_norm", this.norm("attention.k_norm", this.normed[1], m.k), [s, hKv, dHead]);
    }
    if (config.rope !== "none") {
      m.q_in = keep("q_rope", rope({ ...this.turns, heads: h }, m.q_in), [s, h, dHead]);
      m.k_in = keep("k_rope", rope({ ...this.turns, heads: hKv }, m.k_in), [s, hKv, dHead]);
    }
    m.keys = this.withCache("k_cache", m.k_in);
    m.values = this.withCache("v_cache", m.v);
    m.attended = attention(this.attends, m.q_in, m.keys, m.values);
    const computed = this.dtype === "float64" ? "float64" : "float32";
    keep("scores", m.attended.scores, [h, s, t], computed);
    if (config.softcap) keep("capped", m.attended.capped, [h, s, t], computed);
    keep("probs", m.attended.probs, [h, s, t], computed);
    keep("attn", m.attended.y, [s, dQ]);
    keep("attn_out", this.linear("attention.o", dQ, d, m.attn), [s, d]);
    if (!this.parallel) join("h", x, "attn");

    if (this.before && !this.parallel) keep("ffn_norm", this.norm("ffn_norm", d, m.h), [s, d]);
    m.to_ffn = this.parallel ? m.attention_norm : (m.ffn_norm ?? m.h);
    if (this.gated) keep("gate", this.linear("feed_forward.gate", d, dFf, m.to_ffn), [s, dFf]);
    keep("up", this.linear("feed_forward.up", d, dFf, m.to_ffn), [s, dFf]);
    keep("act", this.gated ? this.gated.forward(m.gate, m.up) : gelu(m.up, config.feed_forward === "gelu_tanh"), [s, dFf]);
    keep("ffn_out", this.linear("feed_forward.down", dFf, d, m.act), [s, d]);
    return this.parallel ? keep("out", added(x, m.attn_out, m.ffn_out), [s, d]) : join("out", m.h, "ffn");
  }

  // dx, of <out, dout>; the parameters' gradients join this.gradients. Nothing is rounded to half precision on the way.
  backward(dout) {
    const { config, sizes, made: m } = this;
    const { h, hKv, dHead, dQ, dKv, d, dFf } = sizes;

    // The cotangents of the stream and of what the branch gives to it.
    const unjoin = (dy, branch) => {
      const out = `${branch}_out`;
      const dsum = this.post ? this.normVjp(sumNorms[branch], d, dy, m[`${branch}_sum`]) : dy;
      return [dsum, m[`${out}_norm`] ? this.normVjp(`${out}_norm`, d, dsum, m[out]) : dsum];
    };

    const [dpast, dffnOut] = this.parallel ? [dout, dout] : unjoin(dout, "ffn");
    const dact = this.linearVjp("feed_forward.down", dFf, d, dffnOut, m.act);
    const { dgate, dup } = this.gated
      ? this.gated.backward(dact, m.gate, m.up)
      : { dup: geluVjp(dact, m.up, config.feed_forward === "gelu_tanh") };
    const dread = [this.linearVjp("feed_forward.up", d, dFf, dup, m.to_ffn)];
    if (dgate) dread.push(this.linearVjp("feed_forward.gate", d, dFf, dgate, m.to_ffn));
    const throughFfn = () => (m.ffn_norm ? this.normVjp("ffn_norm", d, added(...dread), m.h) : added(...dread));
    const [dstream, dattnOut] = this.parallel ? [dout, dout] : unjoin(added(dpast, throughFfn()), "attn");

    const dattn = this.linearVjp("attention.o", dQ, d, dattnOut, m.attn);
    const attended = attentionVjp(this.attends, dattn, m.q_in, m.keys, m.values, m.attended);
    let [dq, dk, dv] = [attended.dq, this.withoutCache(attended.dk), this.withoutCache(attended.dv)];
    const sink = this.parameter("attention.sink");
    if (sink) this.gradients[`d${this.layer}attention.sink`] = { ...sink, values: attended.dsink };
    if (config.rope !== "none") {
      dq = rope({ ...this.turns, heads: h, backwards: true }, dq);
      dk = rope({ ...this.turns, heads: hKv, backwards: true }, dk);
    }
    if (config.qk_norm) {
      dq = this.normVjp("attention.q_norm", this.normed[0], dq, m.q);
      dk = this.normVjp("attention.k_norm", this.normed[1], dk, m.k);
    }
    const dattention = added(
      this.linearVjp("attention.q", d, dQ, dq, m.to_attention),
      this.linearVjp("attention.k", d, dKv, dk, m.to_attention),
      this.linearVjp("attention.v", d, dKv, dv, m.to_attention),
      ...(this.parallel ? dread : []),
    );
    return added(dstream, this.before ? this.normVjp("attention_norm", d, dattention, m.x) : dattention);
  }

  parameter(name) {
    return this.given[this.layer + name];
  }

  // Those of queries and keys are RMSNorms, whatever the others are.
  howToNorm(name, d) {
    const { eps, order, qk_norm_offset: ofHeads = true } = this.config;
    const isOfHeads = name.startsWith("attention.");
    const weightOffset = ofHeads || !isOfHeads ? this.config.weight_offset : 0;
    const centred = this.config.norm === "layer_norm" && !isOfHeads;
    return { centred, castsFirst: order === "cast_then_scale", dtype: this.dtype, eps, weightOffset, d, group: d };
  }

  norm(name, d, x) {
    return norm(this.howToNorm(name, d), x, this.parameter(`${name}.weight`).values, this.parameter(`${name}.bias`)?.values);
  }

  normVjp(name, d, dy, x) {
    const { dx, dweight, dbias } = normVjp(this.howToNorm(name, d), dy, x, this.parameter(`${name}.weight`).values);
    this.grow(name, dweight, dbias);
    return dx;
  }

  linear(name, inner, out, x) {
    const rows = this.sizes.batch * this.sizes.s;
    return linear({ rows, inner, out }, x, this.parameter(`${name}.weight`).values, this.parameter(`${name}.bias`)?.values);
  }

  linearVjp(name, inner, out, dy, x) {
    const rows = this.sizes.batch * this.sizes.s;
    const { dx, dweight, dbias } = linearVjp({ rows, inner, out }, dy, x, this.parameter(`${name}.weight`).values);
    this.grow(name, dweight, dbias);
    return dx;
  }

  grow(name, dweight, dbias) {
    for (const [kind, values] of Object.entries({ weight: dweight, bias: dbias })) {
      const parameter = this.parameter(`${name}.${kind}`);
      if (parameter) this.gradients[`d${this.layer}${name}.${kind}`] = { ...parameter, values };
    }
  }

  // Keys or values, [batch, t, hKv, dHead]: those that were cached, then the new.
  withCache(name, fresh) {
    const cache = this.given[name]?.values;
    if (!cache) return fresh;
    const { batch } = this.sizes;
    const [old, young] = [cache.length / batch, fresh.length / batch];
    const all = array(fresh, cache.length + fresh.length);
    for (let i = 0; i < batch; i++) {
      all.set(cache.subarray(i * old, (i + 1) * old), i * (old + young));
      all.set(fresh.subarray(i * young, (i + 1) * young), i * (old + young) + old);
    }
    return all;
  }

  // Its transpose: what was cached is constant.
  withoutCache(all) {
    const { batch, s, t, dKv } = this.sizes;
    const fresh = array(all, batch * s * dKv);
    for (let i = 0; i < batch; i++) fresh.set(all.subarray((i * t + t - s) * dKv, (i + 1) * t * dKv), i * s * dKv);
    return fresh;
  }
}
