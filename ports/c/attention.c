#include "attention.h"

#include <string.h>

#include "numbers.h"

/* Every pair of features (a, b) becomes (a cos - b sin, b cos + a sin), by an angle of position / base^(2i / features). */
void rope(struct rope how, const real *x, real *y)
{
    size_t half = how.rotary_features / 2, width = how.heads * how.d_head;
    memcpy(y, x, how.batch * how.s * width * sizeof(real));
    size_t pair = how.interleaved ? 2 : 1, apart = how.interleaved ? 1 : half;
    for (size_t row = 0; row < how.batch * how.s; row++)
        for (size_t i = 0; i < half; i++) {
            real position = (real)(how.position + row % how.s);
            real angle = position * pow(how.base, -(real)(2 * i) / (real)how.rotary_features);
            real c = cos(angle), s = how.backwards ? -sin(angle) : sin(angle);
            for (size_t head = 0; head < how.heads; head++) {
                size_t a = row * width + head * how.d_head + pair * i, b = a + apart;
                real xa = x[a], xb = x[b];
                y[a] = xa * c - xb * s;
                y[b] = xb * c + xa * s;
            }
        }
}

/* What one query reads: a row of scores, and its places in q, k and v. */
struct query {
    size_t scores, q, kv, from, to; /* it sees the keys between them */
    const real *key_mask, *sink;
};

/* The queries are numbered as the rows of scores are. */
static struct query query(struct attention how, size_t number)
{
    size_t i = number % how.s, head = number / how.s % how.h, batch = number / how.s / how.h;
    size_t own = how.t - how.s + i; /* the key that is its own */
    return (struct query){
        .scores = number * how.t,
        .q = ((batch * how.s + i) * how.h + head) * how.d_head,
        .kv = (batch * how.t * how.h_kv + head / (how.h / how.h_kv)) * how.d_head,
        .from = how.window && own + 1 > how.window ? own + 1 - how.window : 0,
        .to = how.causal ? own + 1 : how.t,
        .key_mask = how.key_mask ? how.key_mask + batch * how.t : NULL,
        .sink = how.sink ? how.sink + head : NULL,
    };
}

static bool visible(struct query at, size_t j)
{
    return at.from <= j && j < at.to && (!at.key_mask || at.key_mask[j] != 0);
}

/* Exponentials of the visible scores, normalised; a query that sees no key has zeros. */
static void softmax(struct query at, size_t t, const real *scores, real *probs)
{
    real top = at.sink ? *at.sink : -INFINITY;
    for (size_t j = 0; j < t; j++)
        if (visible(at, j))
            top = fmax(top, scores[j]);
    for (size_t j = 0; j < t; j++)
        probs[j] = visible(at, j) ? exp(scores[j] - top) : 0;
    real total = sum(t, probs, 1) + (at.sink ? exp(*at.sink - top) : 0);
    for (size_t j = 0; j < t; j++)
        probs[j] = total != 0 ? probs[j] / total : 0;
}

/* y = softmax(scale q k') v, the scores perhaps capped: softcap tanh(score / softcap) */
struct attended attention(struct attention how, const real *q, const real *k, const real *v, real *y)
{
    size_t row = how.h_kv * how.d_head, count = how.batch * how.h * how.s * how.t; /* row: from one key to the next */
    struct attended made = {.scores = reals(count), .probs = reals(count)};
    made.capped = how.softcap != 0 ? reals(count) : made.scores;
    for (size_t number = 0; number < how.batch * how.h * how.s; number++) {
        struct query at = query(how, number);
        for (size_t j = 0; j < how.t; j++)
            made.scores[at.scores + j] = how.scale * dot(how.d_head, q + at.q, 1, k + at.kv + j * row, 1);
        for (size_t j = at.scores; how.softcap != 0 && j < at.scores + how.t; j++)
            made.capped[j] = how.softcap * tanh(made.scores[j] / how.softcap);
        softmax(at, how.t, made.capped + at.scores, made.probs + at.scores);
        for (size_t c = 0; c < how.d_head; c++)
            y[at.q + c] = dot(how.t, made.probs + at.scores, 1, v + at.kv + c, row);
    }
    return made;
}

/* With dp = dy v': ds = scale p (dp - sum(p dp)), times the cap's slope 1 - tanh^2, dq = ds k, dk = ds' q, dv = p' dy;
   of a sink, which has the share that the keys' probabilities lack of one, d = -share sum(p dp), summed over the queries. */
void attention_vjp(struct attention how, struct attended made, const real *dy, const real *q, const real *k, const real *v,
                   real *dq, real *dk, real *dv, real *dsink)
{
    const real *probs = made.probs;
    size_t row = how.h_kv * how.d_head, q_row = how.h * how.d_head;
    real *dscores = reals(how.batch * how.h * how.s * how.t);
    for (size_t number = 0; number < how.batch * how.h * how.s; number++) {
        struct query at = query(how, number);
        const real *p = probs + at.scores;
        real *ds = dscores + at.scores;
        for (size_t j = 0; j < how.t; j++)
            ds[j] = p[j] != 0 ? dot(how.d_head, dy + at.q, 1, v + at.kv + j * row, 1) : 0;
        real total = dot(how.t, p, 1, ds, 1);
        if (at.sink)
            dsink[number / how.s % how.h] -= (1 - sum(how.t, p, 1)) * total;
        for (size_t j = 0; j < how.t; j++) {
            real tanh_of = how.softcap != 0 ? made.capped[at.scores + j] / how.softcap : 0;
            ds[j] = how.scale * (1 - tanh_of * tanh_of) * p[j] * (ds[j] - total);
        }
        for (size_t c = 0; c < how.d_head; c++)
            dq[at.q + c] = dot(how.t, ds, 1, k + at.kv + c, row);
    }
    for (size_t number = 0; number < how.batch * how.h * how.s; number += how.s) { /* the first query of every head */
        struct query at = query(how, number);
        for (size_t j = 0; j < how.t; j++)
            for (size_t c = 0; c < how.d_head; c++) {
                size_t to = at.kv + j * row + c; /* the heads of a group add up */
                dk[to] += dot(how.s, dscores + at.scores + j, how.t, q + at.q + c, q_row);
                dv[to] += dot(how.s, probs + at.scores + j, how.t, dy + at.q + c, q_row);
            }
    }
}
