/* RMSNorm and LayerNorm over rows of d features, and their gradients. */

#ifndef NORMS_H
#define NORMS_H

#include <stdbool.h>

#include "real.h"
#include "safetensors.h"

struct norm {
    bool centred;      /* LayerNorm */
    bool casts_first;  /* x_hat is rounded to x's dtype before the weight multiplies it */
    enum dtype dtype;  /* x's */
    real eps, weight_offset;
    size_t rows, d, group; /* so many features of the d have statistics of their own; it divides d */
};

/* weight and bias may be NULL; y is not yet rounded to a dtype of its own. */
void norm(struct norm how, const real *x, const real *weight, const real *bias, real *y);

/* The gradients of <y, dy>; dweight and dbias may be NULL. */
void norm_vjp(struct norm how, const real *dy, const real *x, const real *weight, real *dx, real *dweight, real *dbias);

#endif
