#include "batch_norm.h"

#include "numbers.h"

struct statistics {
    real mean, variance, rstd;
};

/* x_hat = (x - mu) / sqrt(sigma^2 + eps), of one feature, with the mean and variance of the rows in training, else those given. */
static struct statistics normalise(struct batch_norm how, const real *x, real mean, real variance, real *x_hat)
{
    size_t rows = how.rows, d = how.d;
    struct statistics made = {.mean = how.training ? sum(rows, x, d) / (real)rows : mean, .variance = variance};
    for (size_t row = 0; row < rows; row++)
        x_hat[row] = x[row * d] - made.mean;
    if (how.training)
        made.variance = dot(rows, x_hat, 1, x_hat, 1) / (real)rows;
    made.rstd = 1 / sqrt(made.variance + how.eps);
    for (size_t row = 0; row < rows; row++)
        x_hat[row] *= made.rstd;
    return made;
}

static real scale(struct batch_norm how, size_t i)
{
    return how.weight ? how.weight[i] : 1;
}

/* y = w x_hat + b */
void batch_norm(struct batch_norm how, const real *x, real *mean, real *variance, real *y)
{
    size_t rows = how.rows, d = how.d;
    real *x_hat = reals(rows), correction = how.unbiased ? (real)rows / (real)(rows - 1) : 1;
    for (size_t i = 0; i < d; i++) {
        struct statistics made = normalise(how, x + i, mean[i], variance[i], x_hat);
        for (size_t row = 0; row < rows; row++)
            y[row * d + i] = x_hat[row] * scale(how, i) + (how.bias ? how.bias[i] : 0);
        if (!how.training)
            continue;
        mean[i] += how.momentum * (made.mean - mean[i]);
        variance[i] += how.momentum * (correction * made.variance - variance[i]);
    }
}

/* dx = w rstd (dy - mean(dy) - x_hat mean(dy x_hat)), means over the rows; in evaluation w rstd dy. */
void batch_norm_vjp(struct batch_norm how, const real *dy, const real *x, const real *mean, const real *variance, real *dx,
                    real *dweight, real *dbias)
{
    size_t rows = how.rows, d = how.d;
    real *x_hat = reals(rows);
    for (size_t i = 0; i < d; i++) {
        real rstd = normalise(how, x + i, mean[i], variance[i], x_hat).rstd;
        dweight[i] = dot(rows, dy + i, d, x_hat, 1);
        dbias[i] = sum(rows, dy + i, d);
        for (size_t row = 0; row < rows; row++) {
            real of_statistics = how.training ? (dbias[i] + x_hat[row] * dweight[i]) / (real)rows : 0;
            dx[row * d + i] = scale(how, i) * rstd * (dy[row * d + i] - of_statistics);
        }
    }
}
