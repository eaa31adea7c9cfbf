#include "norms.h"

#include "numbers.h"

/* x_hat = (x - mu) / sqrt(mean((x - mu)^2) + eps), with mu = 0 in RMSNorm; returns the reciprocal of the root. Of one group. */
static real normalise(struct norm how, const real *x, real *x_hat)
{
    real n = (real)how.group, mean = how.centred ? sum(how.group, x, 1) / n : 0;
    for (size_t i = 0; i < how.group; i++)
        x_hat[i] = x[i] - mean;
    real rstd = 1 / sqrt(dot(how.group, x_hat, 1, x_hat, 1) / n + how.eps);
    for (size_t i = 0; i < how.group; i++)
        x_hat[i] *= rstd;
    return rstd;
}

static real scale(struct norm how, const real *weight, size_t i)
{
    return weight ? weight[i] + how.weight_offset : 1;
}

/* y = w x_hat + b */
void norm(struct norm how, const real *x, const real *weight, const real *bias, real *y)
{
    size_t count = how.rows * how.d;
    for (size_t first = 0; first < count; first += how.group)
        normalise(how, x + first, y + first);
    if (how.casts_first)
        round_all(how.dtype, count, y);
    for (size_t i = 0; i < count; i++)
        y[i] = y[i] * scale(how, weight, i % how.d) + (bias ? bias[i % how.d] : 0);
}

/* With g = w dy: dx = rstd (g - mean(g) - x_hat mean(g x_hat)), without the first mean in RMSNorm. */
void norm_vjp(struct norm how, const real *dy, const real *x, const real *weight, real *dx, real *dweight, real *dbias)
{
    size_t rows = how.rows, d = how.d, group = how.group;
    real *all = reals(rows * d), *g = reals(group), n = (real)group;
    for (size_t first = 0; first < rows * d; first += group) {
        real *x_hat = all + first, rstd = normalise(how, x + first, x_hat);
        for (size_t i = 0; i < group; i++)
            g[i] = dy[first + i] * scale(how, weight, (first + i) % d);
        real shift = how.centred ? sum(group, g, 1) / n : 0, projection = dot(group, g, 1, x_hat, 1) / n;
        for (size_t i = 0; i < group; i++)
            dx[first + i] = rstd * (g[i] - shift - x_hat[i] * projection);
    }
    for (size_t i = 0; i < d; i++) {
        if (dweight)
            dweight[i] = dot(rows, dy + i, d, all + i, d);
        if (dbias)
            dbias[i] = sum(rows, dy + i, d);
    }
}
