#include "block.h"

#include <string.h>

#include "attention.h"
#include "feed_forward.h"
#include "norms.h"
#include "numbers.h"
#include "scratch.h"

/* A parameter, which may be NULL where it is a bias. */
static const struct tensor *parameter(const struct block *b, const char *name, const char *kind, size_t count)
{
    const char *full = joined(b->layer, name, kind);
    const struct tensor *found = find(b->given, full);
    if (!found && strcmp(kind, ".bias") != 0)
        refuse("%s is missing", full);
    if (found && found->count != count)
        refuse("%s has %zu elements; it must have %zu", full, found->count, count);
    return found;
}

static real *values(const struct tensor *parameter)
{
    return parameter ? decode(parameter) : NULL;
}

/* The axes after x's own *batch. */
struct axes {
    size_t rank, size[3];
};

static real *keep(const struct block *b, struct tensor **taps, const char *name, enum dtype dtype, struct axes axes, real *made)
{
    struct tensor like = b->like;
    like.dtype = dtype;
    like.rank -= 2;
    like.count = b->batch;
    for (size_t i = 0; i < axes.rank; i++)
        like.count *= like.shape[like.rank++] = axes.size[i];
    round_all(dtype, like.count, made);
    if (taps)
        put(taps, joined("tap.", b->layer, name), &like, encode(dtype, like.count, made));
    return made;
}

/* Those of queries and keys are RMSNorms, whatever the others are, and may have an offset of their own. */
static struct norm norm_of(const struct block *b, const char *name, size_t count, size_t d)
{
    bool of_heads = strncmp(name, "attention.", strlen("attention.")) == 0;
    real offset = of_heads ? b->qk_norm_offset : b->weight_offset;
    return (struct norm){b->layer_norm && !of_heads, b->casts_first, b->like.dtype, b->eps, offset, count / d, d, d};
}

static real *normalised(const struct block *b, const char *name, size_t count, size_t d, const real *x)
{
    const struct tensor *weight = parameter(b, name, ".weight", d), *bias = parameter(b, name, ".bias", d);
    real *y = reals(count);
    norm(norm_of(b, name, count, d), x, values(weight), values(bias), y);
    return y;
}

static real *normalised_vjp(const struct block *b, const char *name, size_t count, size_t d, const real *dy,
                            const real *x, struct tensor **gradients)
{
    const struct tensor *weight = parameter(b, name, ".weight", d), *bias = parameter(b, name, ".bias", d);
    real *dx = reals(count), *dweight = reals(d), *dbias = reals(d);
    norm_vjp(norm_of(b, name, count, d), dy, x, values(weight), dx, dweight, dbias);
    put(gradients, joined("d", weight->name, ""), weight, encode(weight->dtype, d, dweight));
    if (bias)
        put(gradients, joined("d", bias->name, ""), bias, encode(bias->dtype, d, dbias));
    return dx;
}

static real *projected(const struct block *b, const char *name, size_t in, size_t out, const real *x)
{
    size_t rows = b->batch * b->s;
    real *y = reals(rows * out);
    const struct tensor *weight = parameter(b, name, ".weight", out * in), *bias = parameter(b, name, ".bias", out);
    linear((struct linear){rows, in, out}, x, values(weight), values(bias), y);
    return y;
}

/* dx is added to. */
static void projected_vjp(const struct block *b, const char *name, size_t in, size_t out, const real *dy, const real *x,
                          real *dx, struct tensor **gradients)
{
    const struct tensor *weight = parameter(b, name, ".weight", out * in), *bias = parameter(b, name, ".bias", out);
    real *dweight = reals(out * in), *dbias = reals(out);
    linear_vjp((struct linear){b->batch * b->s, in, out}, dy, x, values(weight), dx, dweight, dbias);
    put(gradients, joined("d", weight->name, ""), weight, encode(weight->dtype, out * in, dweight));
    if (bias)
        put(gradients, joined("d", bias->name, ""), bias, encode(bias->dtype, out, dbias));
}

static real *rotated(const struct block *b, size_t heads, bool backwards, const real *x)
{
    real *y = reals(b->batch * b->s * heads * b->d_head);
    rope((struct rope){b->batch, b->s, heads, b->d_head, b->position, b->rotary_features, b->rope_base, b->interleaved, backwards},
         x, y);
    return y;
}

/* So many features have statistics of their own: those of a head, or of all that there are of queries or of keys. */
static size_t normed(const struct block *b, size_t heads)
{
    return b->qk_norm_over_all ? heads * b->d_head : b->d_head;
}

static struct attention attention_of(const struct block *b)
{
    size_t t = b->past + b->s;
    const struct tensor *mask = find(b->given, "key_mask");
    if (mask && mask->count != b->batch * t)
        refuse("key_mask has %zu elements; it must have %zu", mask->count, b->batch * t);
    return (struct attention){
        .batch = b->batch,
        .s = b->s,
        .t = t,
        .h = b->n_heads,
        .h_kv = b->n_kv_heads,
        .d_head = b->d_head,
        .window = b->window,
        .causal = b->causal,
        .scale = b->attention_scale,
        .softcap = b->softcap,
        .key_mask = values(mask),
        .sink = b->sink ? values(parameter(b, "attention", ".sink", b->n_heads)) : NULL,
    };
}

/* Keys or values, [batch, past + s, n_kv_heads, d_head]: those that were cached, then the new. */
static real *with_cache(const struct block *b, const char *name, const real *fresh)
{
    size_t position = b->n_kv_heads * b->d_head, old = b->past * position, new = b->s * position;
    real *all = reals(b->batch * (old + new)), *cache = b->past ? decode(find(b->given, name)) : NULL;
    for (size_t i = 0; i < b->batch; i++) {
        if (cache)
            memcpy(all + i * (old + new), cache + i * old, old * sizeof(real));
        memcpy(all + i * (old + new) + old, fresh + i * new, new * sizeof(real));
    }
    return all;
}

/* Its transpose: what was cached is constant. */
static real *without_cache(const struct block *b, const real *all)
{
    size_t position = b->n_kv_heads * b->d_head, old = b->past * position, new = b->s * position;
    real *fresh = reals(b->batch * new);
    for (size_t i = 0; i < b->batch; i++)
        memcpy(fresh + i * new, all + i * (old + new) + old, new * sizeof(real));
    return fresh;
}

/* What stands behind a branch, by name: the norm of the branch, the sum that is normalised, its norm, and what comes of it. */
struct names {
    const char *out, *out_norm, *sum, *norm, *stream;
};
static const struct names ATTENTION = {"attn_out", "attn_out_norm", "attn_sum", "attention_norm", "h"};
static const struct names FFN = {"ffn_out", "ffn_out_norm", "ffn_sum", "ffn_norm", "out"};

static struct joint join(const struct block *b, struct tensor **taps, struct names names, const real *stream, real *out)
{
    enum dtype stored = b->like.dtype;
    size_t d = b->d_model, count = b->batch * b->s * d;
    struct axes axes = {2, {b->s, d}};
    struct joint j = {.out = keep(b, taps, names.out, stored, axes, out)};
    if (b->parallel)
        return j;
    if (b->norms_branch)
        j.out_norm = keep(b, taps, names.out_norm, stored, axes, normalised(b, names.out_norm, count, d, out));
    j.stream = added(count, stream, b->norms_branch ? j.out_norm : out);
    if (b->norms_sum) {
        j.sum = keep(b, taps, names.sum, stored, axes, j.stream);
        j.stream = normalised(b, names.norm, count, d, j.sum);
    }
    keep(b, taps, names.stream, stored, axes, j.stream);
    return j;
}

/* The cotangent of the stream; that of what the branch gave is put into *dout. */
static const real *join_vjp(const struct block *b, struct names names, struct joint j, const real *dy, const real **dout,
                            struct tensor **gradients)
{
    size_t d = b->d_model, count = b->batch * b->s * d;
    if (b->norms_sum)
        dy = normalised_vjp(b, names.norm, count, d, dy, j.sum, gradients);
    *dout = b->norms_branch ? normalised_vjp(b, names.out_norm, count, d, dy, j.out, gradients) : dy;
    return dy;
}

struct stages block(const struct block *b, const real *x, struct tensor **taps)
{
    enum dtype stored = b->like.dtype, computed = stored == F64 ? F64 : F32;
    size_t rows = b->batch * b->s, d = b->d_model, d_q = b->n_heads * b->d_head, d_kv = b->n_kv_heads * b->d_head;
    struct axes stream = {2, {b->s, d}}, heads = {3, {b->s, b->n_heads, b->d_head}}, inner = {2, {b->s, b->d_ff}};
    struct axes kv_heads = {3, {b->s, b->n_kv_heads, b->d_head}}, merged = {2, {b->s, d_q}};
    struct axes scores = {3, {b->n_heads, b->s, b->past + b->s}};
    struct stages m = {.x = x};

    if (b->norms_before)
        m.attention_norm = keep(b, taps, "attention_norm", stored, stream, normalised(b, "attention_norm", rows * d, d, x));
    m.to_attention = b->norms_before ? m.attention_norm : x;
    m.q = keep(b, taps, "q", stored, heads, projected(b, "attention.q", d, d_q, m.to_attention));
    m.k = keep(b, taps, "k", stored, kv_heads, projected(b, "attention.k", d, d_kv, m.to_attention));
    m.v = keep(b, taps, "v", stored, kv_heads, projected(b, "attention.v", d, d_kv, m.to_attention));
    const real *q = m.q, *k = m.k;
    if (b->qk_norm) {
        m.q_norm = normalised(b, "attention.q_norm", rows * d_q, normed(b, b->n_heads), q);
        m.k_norm = normalised(b, "attention.k_norm", rows * d_kv, normed(b, b->n_kv_heads), k);
        q = keep(b, taps, "q_norm", stored, heads, m.q_norm);
        k = keep(b, taps, "k_norm", stored, kv_heads, m.k_norm);
    }
    if (b->rope) {
        q = m.q_rope = keep(b, taps, "q_rope", stored, heads, rotated(b, b->n_heads, false, q));
        k = m.k_rope = keep(b, taps, "k_rope", stored, kv_heads, rotated(b, b->n_kv_heads, false, k));
    }
    m.keys = with_cache(b, "k_cache", k);
    m.values = with_cache(b, "v_cache", m.v);
    m.attn = reals(rows * d_q);
    m.attended = attention(attention_of(b), q, m.keys, m.values, m.attn);
    keep(b, taps, "scores", computed, scores, m.attended.scores);
    if (b->softcap != 0)
        keep(b, taps, "capped", computed, scores, m.attended.capped);
    keep(b, taps, "probs", computed, scores, m.attended.probs);
    keep(b, taps, "attn", stored, merged, m.attn);
    m.attention = join(b, taps, ATTENTION, x, projected(b, "attention.o", d_q, d, m.attn));
    const real *h = m.attention.stream;

    if (b->norms_before && !b->parallel)
        m.ffn_norm = keep(b, taps, "ffn_norm", stored, stream, normalised(b, "ffn_norm", rows * d, d, h));
    m.to_ffn = b->parallel ? m.attention_norm : b->norms_before ? m.ffn_norm : h;
    if (b->gated)
        m.gate = keep(b, taps, "gate", stored, inner, projected(b, "feed_forward.gate", d, b->d_ff, m.to_ffn));
    m.up = keep(b, taps, "up", stored, inner, projected(b, "feed_forward.up", d, b->d_ff, m.to_ffn));
    m.act = reals(rows * b->d_ff);
    if (b->swiglu)
        swiglu(rows * b->d_ff, m.gate, m.up, m.act);
    else if (b->gated)
        geglu(b->gelu_tanh, rows * b->d_ff, m.gate, m.up, m.act);
    else
        gelu(b->gelu_tanh, rows * b->d_ff, m.up, m.act);
    keep(b, taps, "act", stored, inner, m.act);
    m.ffn = join(b, taps, FFN, h, projected(b, "feed_forward.down", b->d_ff, d, m.act));
    m.out = m.ffn.stream;
    if (b->parallel) {
        const real *both = added(rows * d, m.attention.out, m.ffn.out);
        m.out = keep(b, taps, "out", stored, stream, added(rows * d, x, both));
    }
    return m;
}

real *block_vjp(const struct block *b, const struct stages *m, const real *dout, struct tensor **gradients)
{
    size_t rows = b->batch * b->s, d = b->d_model, d_q = b->n_heads * b->d_head, d_kv = b->n_kv_heads * b->d_head;
    size_t all_keys = b->batch * (b->past + b->s) * d_kv;

    real *dact = reals(rows * b->d_ff), *dgate = reals(rows * b->d_ff), *dup = reals(rows * b->d_ff);
    real *dread = reals(rows * d);
    const real *dstream = dout, *dffn_out = dout, *dattn_out = dout;
    if (!b->parallel)
        dstream = join_vjp(b, FFN, m->ffn, dout, &dffn_out, gradients);
    projected_vjp(b, "feed_forward.down", b->d_ff, d, dffn_out, m->act, dact, gradients);
    if (b->swiglu)
        swiglu_vjp(rows * b->d_ff, dact, m->gate, m->up, dgate, dup);
    else if (b->gated)
        geglu_vjp(b->gelu_tanh, rows * b->d_ff, dact, m->gate, m->up, dgate, dup);
    else
        gelu_vjp(b->gelu_tanh, rows * b->d_ff, dact, m->up, dup);
    if (b->gated)
        projected_vjp(b, "feed_forward.gate", d, b->d_ff, dgate, m->to_ffn, dread, gradients);
    projected_vjp(b, "feed_forward.up", d, b->d_ff, dup, m->to_ffn, dread, gradients);
    if (!b->parallel) {
        if (b->norms_before)
            dread = normalised_vjp(b, "ffn_norm", rows * d, d, dread, m->attention.stream, gradients);
        dstream = join_vjp(b, ATTENTION, m->attention, added(rows * d, dstream, dread), &dattn_out, gradients);
        dread = reals(rows * d); /* what attention reads, the feed-forward layer does not */
    }

    real *dattn = reals(rows * d_q), *dq = reals(rows * d_q), *dkeys = reals(all_keys), *dvalues = reals(all_keys);
    projected_vjp(b, "attention.o", d_q, d, dattn_out, m->attn, dattn, gradients);
    const real *q = b->rope ? m->q_rope : b->qk_norm ? m->q_norm : m->q;
    real *dsink = reals(b->n_heads);
    attention_vjp(attention_of(b), m->attended, dattn, q, m->keys, m->values, dq, dkeys, dvalues, dsink);
    if (b->sink) {
        const struct tensor *sink = parameter(b, "attention", ".sink", b->n_heads);
        put(gradients, joined("d", sink->name, ""), sink, encode(sink->dtype, b->n_heads, dsink));
    }
    real *dk = without_cache(b, dkeys), *dv = without_cache(b, dvalues);
    if (b->rope) {
        dq = rotated(b, b->n_heads, true, dq);
        dk = rotated(b, b->n_kv_heads, true, dk);
    }
    if (b->qk_norm) {
        size_t of_q = normed(b, b->n_heads), of_k = normed(b, b->n_kv_heads);
        dq = normalised_vjp(b, "attention.q_norm", rows * d_q, of_q, dq, m->q, gradients);
        dk = normalised_vjp(b, "attention.k_norm", rows * d_kv, of_k, dk, m->k, gradients);
    }
    projected_vjp(b, "attention.q", d, d_q, dq, m->to_attention, dread, gradients);
    projected_vjp(b, "attention.k", d, d_kv, dk, m->to_attention, dread, gradients);
    projected_vjp(b, "attention.v", d, d_kv, dv, m->to_attention, dread, gradients);
    if (b->norms_before)
        dread = normalised_vjp(b, "attention_norm", rows * d, d, dread, m->x, gradients);
    return added(rows * d, dstream, dread);
}
