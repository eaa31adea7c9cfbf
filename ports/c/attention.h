/* Rotary position embedding, and attention with grouped queries. */

#ifndef ATTENTION_H
#define ATTENTION_H

#include <stdbool.h>

#include "real.h"

/* x is [batch, s, heads, d_head]. Turned the other way, a cotangent of y is that of x. */
struct rope {
    size_t batch, s, heads, d_head, position;
    real base;
    bool interleaved, backwards;
};

void rope(struct rope how, const real *x, real *y);

/* q is [batch, s, h, d_head], k and v are [batch, t, h_kv, d_head], scores and probs [batch, h, s, t]. */
struct attention {
    size_t batch, s, t, h, h_kv, d_head;
    bool causal;
    const real *key_mask; /* [batch, t], zero for a key that is padding; or NULL */
};

void attention(struct attention how, const real *q, const real *k, const real *v, real *scores, real *probs, real *y);
void attention_vjp(struct attention how, const real *dy, const real *q, const real *k, const real *v, const real *probs,
                   real *dq, real *dk, real *dv);

#endif
