#include "norms.h"

#include "numbers.h"

/* x_hat = (x - mu) / sqrt(mean((x - mu)^2) + eps), with mu = 0 in RMSNorm; returns the reciprocal of the root. */
static real normalise(struct norm how, const real *x, real *x_hat)
{
    real d = (real)how.d, mean = how.centred ? sum(how.d, x, 1) / d : 0;
    for (size_t i = 0; i < how.d; i++)
        x_hat[i] = x[i] - mean;
    real rstd = 1 / sqrt(dot(how.d, x_hat, 1, x_hat, 1) / d + how.eps);
    for (size_t i = 0; i < how.d; i++)
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
    for (size_t row = 0; row < how.rows; row++, x += how.d, y += how.d) {
        normalise(how, x, y);
        if (how.casts_first)
            round_all(how.dtype, how.d, y);
        for (size_t i = 0; i < how.d; i++)
            y[i] = y[i] * scale(how, weight, i) + (bias ? bias[i] : 0);
    }
}

/* With g = w dy: dx = rstd (g - mean(g) - x_hat mean(g x_hat)), without the first mean in RMSNorm. */
void norm_vjp(struct norm how, const real *dy, const real *x, const real *weight, real *dx, real *dweight, real *dbias)
{
    size_t rows = how.rows, d = how.d;
    real *all = reals(rows * d), *g = reals(d);
    for (size_t row = 0; row < rows; row++) {
        real *x_hat = all + row * d, rstd = normalise(how, x + row * d, x_hat);
        for (size_t i = 0; i < d; i++)
            g[i] = dy[row * d + i] * scale(how, weight, i);
        real shift = how.centred ? sum(d, g, 1) / (real)d : 0, projection = dot(d, g, 1, x_hat, 1) / (real)d;
        for (size_t i = 0; i < d; i++)
            dx[row * d + i] = rstd * (g[i] - shift - x_hat[i] * projection);
    }
    for (size_t i = 0; i < d; i++) {
        if (dweight)
            dweight[i] = dot(rows, dy + i, d, all + i, d);
        if (dbias)
            dbias[i] = sum(rows, dy + i, d);
    }
}
