#include "gated_norm.h"

#include "feed_forward.h"
#include "numbers.h"

/* g sigmoid(g), or sigmoid(g). */
static real activation(bool silu, real g)
{
    return (silu ? g : 1) * sigmoid(g);
}

/* sigmoid(g) (1 + g sigmoid(-g)), or sigmoid(g) sigmoid(-g). */
static real slope(bool silu, real g)
{
    return sigmoid(g) * (silu ? 1 + g * sigmoid(-g) : sigmoid(-g));
}

static real *gated(struct gated_norm how, const real *x, const real *gate)
{
    size_t count = how.norm.rows * how.norm.d;
    real *made = reals(count);
    for (size_t i = 0; i < count; i++)
        made[i] = x[i] * activation(how.silu, gate[i]);
    return made;
}

/* What the norm makes, where it is first. */
static real *normed(struct norm how, const real *x, const real *weight)
{
    real *z = reals(how.rows * how.d);
    norm(how, x, weight, NULL, z);
    if (how.casts_first)
        round_all(how.dtype, how.rows * how.d, z);
    return z;
}

void gated_norm(struct gated_norm how, const real *x, const real *gate, const real *weight, real *y)
{
    if (!how.norm_first) {
        norm(how.norm, gated(how, x, gate), weight, NULL, y);
        return;
    }
    const real *made = gated(how, normed(how.norm, x, weight), gate);
    for (size_t i = 0; i < how.norm.rows * how.norm.d; i++)
        y[i] = made[i];
}

/* With z what the norm makes: dz = dy a, dgate = dy z a'. Or with s what it reads: dx = ds a, dgate = ds x a'. */
void gated_norm_vjp(struct gated_norm how, const real *dy, const real *x, const real *gate, const real *weight, real *dx,
                    real *dgate, real *dweight)
{
    size_t count = how.norm.rows * how.norm.d;
    const real *d = dy, *other = x;
    if (how.norm_first) {
        norm_vjp(how.norm, gated(how, dy, gate), x, weight, dx, dweight, NULL);
        other = normed(how.norm, x, weight);
    } else {
        real *ds = reals(count);
        norm_vjp(how.norm, dy, gated(how, x, gate), weight, ds, dweight, NULL);
        for (size_t i = 0; i < count; i++)
            dx[i] = ds[i] * activation(how.silu, gate[i]);
        d = ds;
    }
    for (size_t i = 0; i < count; i++)
        dgate[i] = d[i] * other[i] * slope(how.silu, gate[i]);
}
