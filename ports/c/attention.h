/* Rotary position embedding, and attention with grouped queries. */

#ifndef ATTENTION_H
#define ATTENTION_H

#include <stdbool.h>

#include "real.h"

/* x is [batch, s, heads, d_head]. Turned the other way, a cotangent of y is that of x. */
struct rope {
    size_t batch, s, heads, d_head, position, rotary_features; /* so many features of each head, the first, are turned */
    real base;
    bool interleaved, backwards;
};

void rope(struct rope how, const real *x, real *y);

/* q is [batch, s, h, d_head], k and v are [batch, t, h_kv, d_head]. */
struct attention {
    size_t batch, s, t, h, h_kv, d_head, window; /* window: so many keys a query sees; 0 for all */
    bool causal;
    real scale, softcap;  /* softcap: 0 where scores are not capped */
    const real *key_mask; /* [batch, t], zero for a key that is padding; or NULL */
    const real *sink;     /* [h], one more score a head, of no key; or NULL */
};

/* All [batch, h, s, t]; scores are capped where there is a soft cap, and otherwise the same as `capped`. */
struct attended {
    real *scores, *capped, *probs;
};

struct attended attention(struct attention how, const real *q, const real *k, const real *v, real *y);
void attention_vjp(struct attention how, struct attended made, const real *dy, const real *q, const real *k, const real *v,
                   real *dq, real *dk, real *dv, real *dsink);

#endif
