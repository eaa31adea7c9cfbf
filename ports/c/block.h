/* The transformer block: out = h + feed_forward(norm(h)), h = x + attention(norm(x)) in Pre-LN, or its norms stand elsewhere. */

#ifndef BLOCK_H
#define BLOCK_H

#include <stdbool.h>

#include "attention.h"
#include "real.h"
#include "safetensors.h"

struct block {
    struct tensor like; /* x: its dtype is that of what is stored, its shape [*batch, s, d_model] */
    size_t batch, s, past, d_model, n_heads, n_kv_heads, d_head, d_ff, position, rotary_features, window;
    bool norms_before, norms_branch, norms_sum, parallel; /* where its norms stand: docs/spec.md */
    bool layer_norm, casts_first, qk_norm, qk_norm_over_all, rope, interleaved, gated, swiglu, gelu_tanh, causal, sink;
    real eps, weight_offset, qk_norm_offset, rope_base, attention_scale, softcap;
    const struct tensor *given; /* the parameters, k_cache, v_cache and key_mask */
    const char *layer;          /* what the names of its parameters begin with */
};

/* A branch and the stream that it joins, with the norms that stand behind. */
struct joint {
    real *out, *out_norm, *sum, *stream;
};

/* What the forward pass leaves to the backward pass; the names are those of docs/spec.md. */
struct stages {
    const real *x, *to_attention, *to_ffn;
    real *attention_norm, *q, *k, *v, *q_norm, *k_norm, *q_rope, *k_rope, *keys, *values, *attn;
    struct attended attended;
    real *ffn_norm, *gate, *up, *act, *out;
    struct joint attention, ffn; /* their streams are h and out, unless the branches are parallel */
};

/* The intermediates are rounded as they are stored, all but scores, capped or not, and probs, and join `taps`, unless it is NULL. */
struct stages block(const struct block *b, const real *x, struct tensor **taps);

/* dx, of <out, dout>; the parameters' gradients join `gradients`. Nothing is rounded on the way. */
real *block_vjp(const struct block *b, const struct stages *made, const real *dout, struct tensor **gradients);

#endif
